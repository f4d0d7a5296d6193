"""How fast detectors train beside a plain loop: images a second, in processes of their own that take turns.

    python benchmarks/training.py --data bccd --rounds 3 --steps 8

DETECTORS are recipes or composed detectors (compose:BACKBONE+NECK+HEAD); by default EfficientDet-Lite0, ResNet-18,
Swin-T and MobileNetV4.

Plain is what one writes first: every image is decoded by Pillow at its full size when it is needed, then PyTorch's own
convolutions in its default layout, nothing frozen, AdamW as it comes, no average of the weights. "same parts" is our
training with nothing frozen either, so that both learn the same; "as it comes" is our training by default. Ours is computed as
the autotuner finds fastest (`precision=auto`), which is shown in the last column.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("FOLDFUSE_SHARED", Path(__file__).parents[2] / "shared")) / "data"
KINDS = ("plain", "same parts", "as it comes")
DETECTORS = (
    "efficientdet_lite0",
    "compose:timm:resnet18+fpn+dense",
    "swin_tiny_fpn",
    "compose:timm:mobilenetv4_conv_small+fpn+dense",
)


def main() -> None:
    """Measure, and print a row for each detector and kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detectors", nargs="*", default=list(DETECTORS))
    parser.add_argument("--data", default="bccd")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--worker", choices=KINDS, help="measure this kind in this process, and print its numbers")
    asked = parser.parse_args()
    if asked.worker:
        (name,) = asked.detectors
        print(json.dumps(worker(name, asked.worker, asked.data, asked.steps, asked.image_size)))
        return
    print("| detector | kind | images/s | ratio | images per processor second | ratio | computed in |")
    print("|---|---|---|---|---|---|---|")
    for name in asked.detectors:
        found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        settings: dict[str, set[str]] = {kind: set() for kind in KINDS}
        for _ in range(asked.rounds):
            for kind in KINDS:
                command = [sys.executable, __file__, name, "--worker", kind, "--data", asked.data]
                command += ["--steps", str(asked.steps), "--image-size", str(asked.image_size)]
                shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                *numbers, setting = json.loads(shown.splitlines()[-1])
                found[kind].append((numbers[0], numbers[1]))
                settings[kind].add(setting)
        middle = {kind: [statistics.median(column) for column in zip(*rows)] for kind, rows in found.items()}
        for kind, (wall, cpu) in middle.items():
            base = middle["plain"]
            numbers = (wall, wall / base[0], cpu, cpu / base[1])
            shown = [f"{value:.2f}" for value in numbers] + ["; or ".join(sorted(settings[kind]))]
            print(f"| {name} | {kind} | {' | '.join(shown)} |", flush=True)


def worker(name: str, kind: str, data: str, steps: int, image_size: int) -> tuple[float, float, str]:
    """Images a second of wall clock and of processor time, after two steps that are not counted; and the setting."""
    from foldfuse.system import host

    if kind != "plain":
        host.tune_malloc()
    import torch

    from foldfuse.data.images import canvas_for
    from foldfuse.data.readers.coco import read
    from foldfuse.models import make_detector
    from foldfuse.models.backbones import timm_cnn
    from foldfuse.models.detection import efficientdet
    from foldfuse.recipes import RECIPES, Recipe, load_recipe

    recipe = replace(load_recipe(name) if name in RECIPES else Recipe(name), image_size=image_size)
    if kind != "as it comes":
        recipe = replace(recipe, frozen_stages=0)
    if kind == "plain":
        efficientdet.use_fast_cpu_layers = lambda module: None  # PyTorch's own convolutions
        timm_cnn.use_fast_cpu_layers = lambda module: None
    samples = read(ROOT / data / "train.json").samples
    torch.manual_seed(0)
    model: Any = make_detector(recipe.detector, 3, pretrained=False)
    canvas = canvas_for(samples, image_size=image_size, stride=model.stride)
    marks, setting = (plain if kind == "plain" else ours)(model, recipe, samples, canvas, 2 + steps)
    (wall_0, cpu_0), (wall_1, cpu_1) = marks[2], marks[-1]
    images = steps * recipe.batch_size
    return images / (wall_1 - wall_0), images / (cpu_1 - cpu_0), setting


Marks = list[tuple[float, float]]


def ours(model: Any, recipe: Any, samples: Any, canvas: tuple[int, int], steps: int) -> tuple[Marks, str]:
    """The clocks before each step of `fit` and after the last; and how it is computed."""
    from foldfuse.data.images import ImageCache
    from foldfuse.training.autotune import autotune
    from foldfuse.training.batches import Batches
    from foldfuse.training.budget import Budget
    from foldfuse.training.loop import fit
    from foldfuse.training.session import TrainingSession

    images = ImageCache.load(samples, longest=round(recipe.image_size * (1 + recipe.scale_jitter)))
    batches = Batches(samples, images, recipe, canvas, 0)
    with tempfile.TemporaryDirectory() as folder:  # an empty memory
        first, memory = batches.batch(0), Path(folder) / "autotune.json"
        tuned = autotune(model, first, frozen_stages=recipe.frozen_stages, seconds=math.inf, key="", memory=memory)
    assert tuned is not None
    marks = [now()]
    fit(
        model,
        batches,
        recipe,
        TrainingSession(Budget(steps=steps), progress=lambda share: marks.append(now())),
        log=[],
        config=tuned.config,
    )
    return marks, str(tuned.config)


def plain(model: Any, recipe: Any, samples: Any, canvas: tuple[int, int], steps: int) -> tuple[Marks, str]:
    """The clocks before each step of a plain loop and after the last; and how it is computed."""
    import torch

    from foldfuse.data.images import ImageCache
    from foldfuse.training.batches import Batches

    batches = Batches(samples, ImageCache(samples, 10**6, ()), recipe, canvas, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=False)
    model.train()
    marks = [now()]
    for step in range(steps):
        images, targets = batches.batch(step, mosaic=step / steps < recipe.mosaic_until)
        loss = sum(model.loss(model(images.contiguous().float() / 255), targets).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        marks.append(now())
    return marks, "float32, channels first"


def now() -> tuple[float, float]:
    """Wall clock and processor time, seconds."""
    return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    main()
