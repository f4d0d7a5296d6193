"""Runs every kind of work on a device and asserts that each network computed there, and as on the CPU.

    python benchmarks/gpu_check.py [DEVICE] [FOLDER]

DEVICE is cuda by default; cpu is a dry run. About 4 minutes on one large GPU. Nothing is downloaded. The last line is
"gpu_check: all good", or the script ends with a traceback.

CUDA predictions agree with those of the CPU where at least 98 % of the boxes with a score of 0.1 or more (of the 100 best at
least) have a partner of the same class with an IoU of 0.9 or more and a score within 0.02: cuDNN's TF32 rounds differently.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from foldfuse import cli
from foldfuse.boxes import pairwise_iou
from foldfuse.data.folds import make_folds
from foldfuse.data.readers.coco import read
from foldfuse.formats.predictions import read_predictions
from foldfuse.storage.run import Run

MIN_SCORE, MIN_IOU, MAX_SCORE_GAP, MIN_AGREEMENT = 0.1, 0.9, 0.02, 0.98
SMALL = ("--image-size", "256", "--batch-size", "8")

seen: set[str] = set()  # kinds of devices on which layers with weights computed


def record(module: torch.nn.Module, inputs: tuple[object, ...]) -> None:
    """Note the device of a layer's weights and of its inputs, unless a detector is under construction.

    The constructor of a detector counts the channels of its backbone with an empty image, on the CPU.
    """
    if (weight := module._parameters.get("weight")) is None:
        return
    kinds = {weight.device.type, *(each.device.type for each in inputs if isinstance(each, torch.Tensor))}
    if not kinds <= seen and not any(
        frame.f_code.co_name == "make_detector" for frame, _ in traceback.walk_stack(None)
    ):
        seen.update(kinds)


def foldfuse(*words: object, expect: str) -> None:
    """Run a command in this process; its networks must have computed on the expected kind of device alone."""
    seen.clear()
    began = time.perf_counter()
    print("$ foldfuse", *words, flush=True)
    status = cli.main([str(word) for word in words])
    assert status == 0, f"{words[0]}: exit status {status}"
    assert seen == {expect}, f"{words[0]}: networks computed on {seen}, expected {expect}"
    print(f"  {time.perf_counter() - began:.0f} s, on {expect}", flush=True)


def agreement(one: Path, other: Path, data: Path) -> float:
    """The share of the boxes in `one` that have a partner in `other`."""
    dataset = read(data, annotated=False)
    first, second = (read_predictions(path, dataset) for path in (one, other))
    best = np.sort(first.scores)[::-1]
    floor = min(MIN_SCORE, float(best[min(len(best), 100) - 1]))
    found = total = 0
    for i in first.image_ids:
        a, b = first[i], second[i]
        a = a[a.scores >= floor]
        total += len(a)
        if len(a) and len(b):
            alike = pairwise_iou(a.boxes, b.boxes) >= MIN_IOU
            alike &= (a.labels[:, None] == b.labels) & (np.abs(a.scores[:, None] - b.scores) <= MAX_SCORE_GAP)
            found += int(alike.any(1).sum())
    assert total, "the run finds nothing at all"
    return found / total


def main(device: str, folder: Path) -> None:
    kind = device.partition(":")[0]
    register_module_forward_pre_hook(record)
    on = ("--device", device)
    foldfuse("demo", "--out", folder / "demo", "--deadline", "90s", "--num-images", 90, *on, expect=kind)
    campaign = json.loads((folder / "demo/campaign/campaign.json").read_text(encoding="utf-8"))
    assert campaign["state"] == "finished", campaign["state"]
    data, test = folder / "demo/data/train.json", folder / "demo/data/test.json"
    split, run = folder / "folds.json", folder / "run"
    make_folds(read(data), num_folds=3).write(split)

    foldfuse("train", data, "--out", run, *SMALL, "--folds", split, "--budget", "20s", *on, expect=kind)
    steps = Run(run).metadata.steps
    foldfuse("train", "--resume", run, "--steps", steps + 5, *on, expect=kind)
    metadata = Run(run).metadata
    assert metadata.trained_on == device, metadata.trained_on
    assert metadata.steps == steps + 5
    assert [row["step"] for row in Run(run).log] == list(range(steps + 5))
    state, _ = Run(run).load_checkpoint()
    assert ("cuda" in state["rng"][0]) == (kind == "cuda")

    predictions = {name: folder / f"{name}.parquet" for name in ("device", "cpu", "views", "train")}
    foldfuse("predict", run, test, "--out", predictions["device"], *on, expect=kind)
    foldfuse("predict", run, test, "--out", predictions["cpu"], "--device", "cpu", expect="cpu")
    views = ("--view", "1,1.25+hflip")
    foldfuse("predict", run, test, "--out", predictions["views"], *views, *on, expect=kind)
    share = agreement(predictions["device"], predictions["cpu"], test)
    print(f"{share:.2%} of the boxes agree with the CPU's", flush=True)
    assert share >= MIN_AGREEMENT

    foldfuse("predict", run, data, "--out", predictions["train"], *on, expect=kind)
    rescored = ("--data", data, "--out", folder / "rescored")
    foldfuse("rescore", predictions["train"], *rescored, *on, expect=kind)

    classifier = folder / "classifier"
    recipe = ("--recipe", "classify_lite0", "--set", "image_size=96", "--folds", split, "--budget", "10s")
    foldfuse("train", data, "--out", classifier, *recipe, *on, expect=kind)
    tables = [folder / f"{name}.csv" for name in ("device", "cpu")]
    foldfuse("predict", classifier, data, "--out", tables[0], *on, expect=kind)
    foldfuse("predict", classifier, data, "--out", tables[1], "--device", "cpu", expect="cpu")

    sizes = ("--image-size", "128,192", "--budget", "45s", "--folds", 3)
    foldfuse("sweep", data, "--out", folder / "sweep", *sizes, *on, expect=kind)

    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        print("export skipped: foldfuse[export] is not installed", flush=True)
    else:
        foldfuse("export", run, "--out", folder / "run.onnx", expect="cpu")

    words = ["train", data, "--out", folder / "together", *SMALL, "--steps", 5, *on]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "foldfuse"]
    subprocess.run([str(word) for word in [*command, *words]], check=True, env=os.environ)
    assert Run(folder / "together").metadata.trained_on == device
    print("gpu_check: all good")


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    if len(sys.argv) > 2:
        main(name, Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(name, Path(place))
