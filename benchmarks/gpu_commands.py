"""The commands that compute with a network, run on a device and checked; `gpu.py` runs them and says what is asked of them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
COMMAND_SIZES = ("--image-size", "256", "--batch-size", "8")

Row = dict[str, Any]
seen: set[str] = set()  # kinds of devices on which layers with weights computed


def record(module: torch.nn.Module, inputs: tuple[object, ...]) -> None:
    """Note the device of a layer's weights and of its inputs, unless a detector is under construction or loops are compiled.

    The constructor of a detector counts the channels of its backbone with an empty image, and the loops for CPUs are compiled by
    calling them, both on the CPU.
    """
    if (weight := module._parameters.get("weight")) is None:
        return
    kinds = {weight.device.type, *(each.device.type for each in inputs if isinstance(each, torch.Tensor))}
    if not kinds <= seen and not any(
        frame.f_code.co_name in ("make_detector", "compile_training_loops") for frame, _ in traceback.walk_stack(None)
    ):
        seen.update(kinds)


def foldfuse(rows: list[Row], *words: object, expect: str) -> None:
    """Run a command in this process; its networks must have computed on the expected kind of device alone.

    What went wrong is told in the command's row, and the other commands run.
    """
    seen.clear()
    began = time.perf_counter()
    print("$ foldfuse", *words, flush=True)
    row: Row = {"command": str(words[0]), "on": expect}
    try:
        status = cli.main([str(word) for word in words])
        assert status == 0, f"exit status {status}"
        assert seen == {expect}, f"networks computed on {seen}, expected {expect}"
    except Exception as error:
        traceback.print_exc()
        row["failed"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    rows.append(row | {"seconds": round(time.perf_counter() - began, 1)})
    print(json.dumps(rows[-1]), flush=True)


@contextmanager
def checked(rows: list[Row], name: str) -> Iterator[None]:
    """A check between commands; what fails in it becomes a row of the page."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        rows.append({"command": name, "on": "", "failed": f"{type(error).__name__}: {error}", "seconds": 0.0})


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


def run_commands(device: str, folder: Path, *, quick: bool) -> Row:
    """Runs every command that computes with a network, checks where it computed, and compares predictions."""
    kind, rows = device.partition(":")[0], list[Row]()
    on = ("--device", device)
    hook = register_module_forward_pre_hook(record)
    several = device == "cuda" and torch.cuda.device_count() > 1
    one = ("--device", "cuda:0" if several else device)  # processes of other cards are not seen by the hook
    deadline = "120s" if kind == "cpu" else "60s" if quick else "90s"  # a CPU measures its plan for most of a minute
    foldfuse(rows, "demo", "--out", folder / "demo", "--deadline", deadline, "--num-images", 60, *one, expect=kind)
    data, test = folder / "demo/data/train.json", folder / "demo/data/test.json"
    with checked(rows, "the campaign is finished"):
        campaign = json.loads((folder / "demo/campaign/campaign.json").read_text(encoding="utf-8"))
        assert campaign["state"] == "finished", campaign["state"]
    if several:
        with checked(rows, "segments on all cards"):
            words = ("campaign", data, "--test", test, "--deadline", deadline, "--out", folder / "cards", *on)
            assert cli.main([str(word) for word in words]) == 0
            segments = json.loads((folder / "cards/campaign.json").read_text())["segments"]
            trained = {row["result"].get("device") for row in segments}
            assert len(trained) > 1, f"all segments were trained on {trained}"
    split, run = folder / "folds.json", folder / "run"
    make_folds(read(data), num_folds=3).write(split)
    budget = "10s" if quick else "20s"
    foldfuse(rows, "train", data, "--out", run, *COMMAND_SIZES, "--folds", split, "--budget", budget, *on, expect=kind)
    steps = Run(run).metadata.steps or 0
    foldfuse(rows, "train", "--resume", run, "--steps", steps + 5, *on, expect=kind)
    with checked(rows, "the resumed run"):
        metadata = Run(run).metadata
        assert metadata.trained_on == device, metadata.trained_on
        assert [row["step"] for row in Run(run).log if "loss" in row] == list(range(steps + 5))
        state, _ = Run(run).load_checkpoint()
        assert state is not None
        assert ("cuda" in state["rng"][0]) == (kind == "cuda")

    predictions = {name: folder / f"{name}.parquet" for name in ("device", "cpu", "views", "train")}
    foldfuse(rows, "predict", run, test, "--out", predictions["device"], *on, expect=kind)
    foldfuse(rows, "predict", run, test, "--out", predictions["cpu"], "--device", "cpu", expect="cpu")
    views = ("--view", "1,1.25+hflip")
    foldfuse(rows, "predict", run, test, "--out", predictions["views"], *views, *on, expect=kind)
    foldfuse(rows, "evaluate", run, *on, expect=kind)
    share = 0.0
    with checked(rows, "boxes as on the CPU"):
        share = agreement(predictions["device"], predictions["cpu"], test)
        assert share >= MIN_AGREEMENT, f"{share:.2%} of the boxes agree with the CPU's"
    foldfuse(rows, "train", "--resume", run, "--steps", steps + 7, "--device", "cpu", expect="cpu")

    foldfuse(rows, "predict", run, data, "--out", predictions["train"], *on, expect=kind)
    rescored = ("--data", data, "--out", folder / "rescored")
    foldfuse(rows, "rescore", predictions["train"], *rescored, *on, expect=kind)
    classifier = folder / "classifier"
    recipe = ("--recipe", "classify_lite0", "--set", "image_size=96", "--folds", split, "--budget", "5s")
    foldfuse(rows, "train", data, "--out", classifier, *recipe, *on, expect=kind)
    foldfuse(rows, "predict", classifier, data, "--out", folder / "classes.csv", *on, expect=kind)
    sizes = ("--image-size", "128,192", "--budget", "30s" if quick else "45s", "--folds", 3)
    foldfuse(rows, "sweep", data, "--out", folder / "sweep", *sizes, *on, expect=kind)
    if all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript")):
        foldfuse(rows, "export", run, "--out", folder / "run.onnx", expect="cpu")
    hook.remove()
    count = max(1, torch.cuda.device_count()) if device == "cuda" else 1
    with checked(rows, "torchrun"):
        rows.append(_together(data, folder / "together", count, on) | {"on": kind})
    return {"commands": rows, "boxes_as_on_the_cpu": round(share, 4)}


def _together(data: Path, out: Path, count: int, on: tuple[str, str]) -> Row:
    """A short training in `count` processes."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count)
    options = ("--image-size", 256, "--batch-size", 8 * count, "--steps", 5)
    words = (*launcher, "-m", "foldfuse", "train", data, "--out", out, *options, *on)
    began = time.perf_counter()
    subprocess.run([str(word) for word in words], check=True)
    return {"command": f"torchrun, {count} processes", "seconds": round(time.perf_counter() - began, 1)}
