"""Images a second of prediction on a CPU by engine: PyTorch as trained, PyTorch folded, bfloat16, ONNX Runtime, OpenVINO.

    OMP_NUM_THREADS=1 python benchmarks/prediction.py --out benchmarks/prediction.md

A turn is letterboxed images at hand -> detections: network and decoding. The engines take turns; a figure is the median of
rounds, a ratio the median of the rounds' ratios to "eager" of the same round. "Plain" is the network as it is trained, with its
batch norms and channels first. Weights are random (lite0_fpn: the package's own). Boxes without a partner to 0.01 px and 1e-4 in
score are counted against "eager" on the same images.

With --run and --data the AP of each engine on the images of --data that the run has not learnt from is measured instead.
"""

from __future__ import annotations

import argparse
import copy
import functools
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foldfuse.data.images import Letterbox, load_sample
from foldfuse.data.readers.coco import read
from foldfuse.detections import Array, Detections
from foldfuse.inference.detector import detect
from foldfuse.inference.engine import Engine, without_partner
from foldfuse.inference.evaluation import evaluate
from foldfuse.inference.runtimes import RUNTIMES
from foldfuse.models import make_detector
from foldfuse.models.cpu.fold_batch_norm import fold_batch_norms
from foldfuse.models.detection.detr import Detr
from foldfuse.recipes import load_recipe
from foldfuse.system.host import describe
from foldfuse.training.init_weights import load_init_weights

ROOT = Path(os.environ.get("FOLDFUSE_SHARED", Path(__file__).parents[2] / "shared")) / "data"
DETECTORS = ("lite0_fpn", "yolov5n", "efficientdet_d0", "dfine_n")
PLAIN = "plain"
ENGINES = (PLAIN, "eager", "bfloat16", *RUNTIMES)
CLASSES = tuple(f"class {i}" for i in range(8))
BATCH = 4

Detect = Callable[[Array], list[Detections]]


def main() -> None:
    """Measure, and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(ROOT / "coco_val2017_128" / "instances.json"))
    parser.add_argument("--detectors", default=",".join(DETECTORS))
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--run")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(asked.threads)
    lines = accuracy(asked.run, asked.data) if asked.run else speed(asked)
    text = "\n".join(lines) + "\n"
    print(text)
    if asked.out:
        asked.out.write_text(text)


def speed(asked: argparse.Namespace) -> list[str]:
    """The page with the table of images a second."""
    images = images_of(asked.data, asked.image_size)
    versions = ", ".join(f"{RUNTIMES[name].title} {RUNTIMES[name].version()}" for name in RUNTIMES)
    conditions = (
        f"Images a second at {asked.image_size} px, batches of {BATCH}, {asked.threads} thread(s) of {describe('cpu')['cpu']}; "
        f"load {os.getloadavg()[0]:.1f} at the start. Python {platform.python_version()}, PyTorch {torch.__version__}, "
        f"{versions}. Medians of {asked.rounds} rounds in which the engines take turns; in brackets the median of the ratios to "
        "eager."
    )
    lines = [
        "# Prediction by engine",
        "",
        f"    OMP_NUM_THREADS=1 python benchmarks/prediction.py --threads {asked.threads} --rounds {asked.rounds} --out FILE",
        "",
        conditions,
        "",
        "| detector | " + " | ".join(ENGINES) + " |",
        "|---|" + "---|" * len(ENGINES),
    ]
    notes = []
    for name in asked.detectors.split(","):
        calls, converting = engines_of(name, images)
        rates = measured(calls, images, asked.rounds)
        cells = []
        for engine in ENGINES:
            if engine not in rates:
                cells.append("cannot run it")
                continue
            ratio = statistics.median(a / b for a, b in zip(rates[engine], rates["eager"], strict=True))
            cells.append(f"{statistics.median(rates[engine]):.1f} ({ratio:.2f} x)")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        want = [one for batch in images for one in calls["eager"](batch)]
        apart = []
        for engine in calls:
            found = [one for batch in images for one in calls[engine](batch)]
            share = max(without_partner(a, b) for a, b in zip(found, want, strict=True))
            apart.append(f"{engine} {share:.2%}")
        seconds = ", ".join(f"{RUNTIMES[engine].title} {value:.1f} s" for engine, value in converting.items())
        notes.append(
            f"* {name}: largest share of an image's boxes without a partner: {', '.join(apart)}. Converted in {seconds}."
        )
    return [*lines, "", *notes]


def images_of(data: str, image_size: int) -> list[Array]:
    """Two letterboxed batches (B, S, S, 3) of an image set."""
    samples = read(Path(data)).samples[: 2 * BATCH]
    canvas = (image_size, image_size)
    square = [
        Letterbox(sample.width, sample.height, canvas).apply(load_sample(sample, longest=image_size))
        for sample in samples
    ]
    return [np.stack(square[start : start + BATCH]) for start in range(0, len(square), BATCH)]


def engines_of(name: str, images: list[Array]) -> tuple[dict[str, Detect], dict[str, float]]:
    """{engine: detects by it}, and {runtime: seconds of converting}, of the engines that can run a detector."""
    torch.manual_seed(0)
    changes = [] if name == "lite0_fpn" else ["init_weights=none"]
    recipe = load_recipe(name, changes)
    model = make_detector(recipe.detector, len(CLASSES), anchor_scale=recipe.anchor_scale, pretrained=False)
    load_init_weights(recipe, model, CLASSES)
    if isinstance(model, Detr):
        spread(model, images)
    plain = copy.deepcopy(model).eval()
    folded: Any = fold_batch_norms(model).to(memory_format=torch.channels_last).eval()
    eager = functools.partial(detect, folded)
    calls: dict[str, Detect] = {PLAIN: functools.partial(detect, plain), "eager": eager}
    calls["bfloat16"] = Engine(folded, eager, "bfloat16")
    converting = {}
    for runtime in RUNTIMES:
        with tempfile.TemporaryDirectory() as cache:
            engine = Engine(folded, eager, runtime, cache=Path(cache))
            began = time.perf_counter()
            engine(images[0])
            if engine.name == runtime:
                calls[runtime], converting[runtime] = engine, time.perf_counter() - began
    return calls, converting


@torch.no_grad()
def spread(model: Detr, images: list[Array]) -> None:
    """Gives the cells of an untrained DETR scores that differ, as training does; else each engine takes others as queries."""
    model.train()(torch.from_numpy(images[0]).permute(0, 3, 1, 2).float().div_(255))  # sets the batch norms' statistics
    for layer in model.class_layers():
        for key in layer.tensors:
            weight = model.get_parameter(key)
            weight.add_(torch.randn_like(weight) * 0.1)
    model.eval()


def measured(calls: dict[str, Detect], images: list[Array], rounds: int) -> dict[str, list[float]]:
    """{engine: images a second of each round}; in a round each engine takes all images, and one round before is not timed."""
    rates: dict[str, list[float]] = {engine: [] for engine in calls}
    for turn in range(rounds + 1):
        for engine, call in calls.items():
            began = time.perf_counter()
            for batch in images:
                call(batch)
            if turn:
                rates[engine].append(sum(map(len, images)) / (time.perf_counter() - began))
    return rates


def accuracy(run: str, data: str) -> list[str]:
    """A table of the AP of each engine."""
    lines = ["| engine | AP | AP50 |", "|---|---|---|"]
    for engine in ENGINES[1:]:
        score = evaluate(run, data, engine=engine, device="cpu").score
        lines.append(f"| {engine} | {score.ap:.4f} | {score.ap50:.4f} |")
    return lines


if __name__ == "__main__":
    main()
