"""What a GPU does: every command on it, its predictions beside the CPU's, and its speed beside a plain PyTorch loop.

    python benchmarks/gpu.py --quick
    python benchmarks/gpu.py --device cpu --small  # a dry run on a CPU

Each command and each network is measured in a few seconds, in a few more without --quick; the commands took four minutes on one
H200 whose machine read CUDA's libraries from a cold disk. It writes gpu.json and gpu.md into --out, "." by default, after the
commands and after each network; put both into benchmarks/ with the name of the card, or into an issue.

Before: install this package with a torch for the card, with the extras export and transformers (for ONNX and D-FINE; without them
these rows are missing): `pip install -e ".[export,transformers]"`. Nothing is downloaded: networks have random weights, or those
that come with the package, and the images are drawn. So to a machine without a network carry the wheels of these packages alone.

CUDA predictions agree with those of the CPU where at least 98 % of the boxes with a score of 0.1 or more (of the 100 best at
least) have a partner of the same class with an IoU of 0.9 or more and a score within 0.02: cuDNN's TF32 rounds differently.

"Plain" is what one writes first: the same augmentation made in the loop itself, float32, PyTorch's default layout, AdamW as it
comes. "Ours" is the training loop as `foldfuse train` runs it, with nothing frozen. The first third
of the time is not counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from foldfuse.system import host

host.tune_malloc()

import numpy as np
import torch

from foldfuse.data.dataset import Dataset
from foldfuse.data.images import ImageCache, canvas_for
from foldfuse.data.readers.coco import read
from foldfuse.demo import synthetic
from foldfuse.errors import InputError
from foldfuse.inference.detector import predict_views
from foldfuse.inference.tta import PLAIN_VIEW
from foldfuse.models import make_detector
from foldfuse.recipes import Recipe
from foldfuse.system.device import release_memory, synchronize
from foldfuse.system.processes import World
from foldfuse.training.batches import Batches
from foldfuse.training.budget import Budget
from foldfuse.training.loading import open_loader
from foldfuse.training.loop import fit
from foldfuse.training.precision import PRECISIONS, ComputeConfig, default_config
from foldfuse.training.session import TrainingSession
from gpu_commands import run_commands

NETWORKS = ("lite0_fpn", "efficientdet_d0", "swin_tiny_fpn", "dfine_n")

Row = dict[str, Any]


def measure(
    name: str, dataset: Dataset, device: str, *, image_size: int, batch_size: int, seconds: float, compiled: bool = True
) -> Row:
    """Images a second of loading, training and prediction of one network, and the peak memory of the trainings.

    Args:
        name: a detector.
        dataset: annotated images.
        device: where it computes.
        image_size, batch_size: of the training.
        seconds: of each measurement.
        compiled: whether a compiled network is measured too, which takes a minute.
    """
    recipe = Recipe(
        name, image_size=image_size, batch_size=batch_size, init_weights="none", frozen_stages=0, mosaic=0.5
    )
    target = torch.device(device)
    model: Any = make_detector(name, len(dataset.classes), pretrained=False)
    canvas = canvas_for(dataset.samples, image_size=image_size, stride=model.stride)
    images = ImageCache.load(dataset.samples, longest=round(image_size * (1 + recipe.scale_jitter)))
    batches = Batches(dataset.samples, images, recipe, canvas, 0)
    row: Row = {"network": name, "px": image_size, "batch": batch_size, "loading": _loading(batches, target, seconds)}
    default = default_config(target)
    configs = {"default": default}
    if target.type == "cuda":
        configs |= {each: replace(default, precision=each) for each in PRECISIONS if each != default.precision}
        configs["CUDA graph"] = replace(default, graphed=True)
        if compiled:
            configs["compiled"] = replace(default, compiled=True)
    trainings = {
        key: lambda config=config: _ours(name, batches, recipe, device, config, seconds)
        for key, config in configs.items()
    }
    trainings["plain"] = lambda: _plain(name, batches, target, seconds)
    row["training"] = {key: _with_memory(run, device) for key, run in trainings.items()}
    model.to(target, memory_format=torch.channels_last).eval()
    row["prediction"] = _prediction(model, dataset, image_size, seconds)
    release_memory(device)
    return row


def _loading(batches: Batches, device: torch.device, seconds: float) -> float:
    """Images a second of the loader alone."""
    with open_loader(batches, device) as loader:
        loader.get(0)
        began, step = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            step += 1
            loader.get(step)
        return round(step * batches.recipe.batch_size / (time.perf_counter() - began), 1)


def _with_memory(run: Callable[[], Row], device: str) -> Row:
    """The numbers of a training with its peak memory; why there are none where it failed."""
    release_memory(device)
    on_card = device.startswith("cuda")
    if on_card:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        row = run()
    except (RuntimeError, InputError, FloatingPointError) as error:  # such as out of memory, or no compiler
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    return row | ({"peak_mb": round(torch.cuda.max_memory_allocated(device) / 2**20)} if on_card else {})


def _ours(name: str, batches: Batches, recipe: Recipe, device: str, config: ComputeConfig, seconds: float) -> Row:
    """Images a second, the share of the time that the steps waited for images, and the seconds of the first step."""
    torch.manual_seed(0)
    model: Any = make_detector(name, num_classes(batches), pretrained=False)
    model = model.to(device)
    first: list[Row] = []
    if not config.compiled:
        fit(model, batches, recipe, TrainingSession(Budget(steps=1), World(device=device)), log=first, config=config)
    log: list[Row] = []
    extra = 30.0 if config.compiled else 0.0  # the first step compiles
    session = TrainingSession(Budget(seconds=1.5 * seconds + extra), World(device=device))
    fit(model, batches, recipe, session, log=log, config=config)
    return _rate(log, recipe.batch_size, seconds) | {"first_step": round((first or log)[0]["seconds"], 2)}


def num_classes(batches: Batches) -> int:
    """One more than the largest label."""
    labels = [sample.annotations.labels for sample in batches.samples if sample.annotations is not None]
    return int(np.concatenate(labels).max()) + 1


def _rate(log: list[Row], batch_size: int, seconds: float) -> Row:
    """Images a second of the last `seconds`, of two steps at least, and the share of that time that was waited for images."""
    if len(log) < 2:
        return {"failed": "not even two steps were made in the time"}
    first = next(i for i, row in enumerate(log) if row["seconds"] >= log[-1]["seconds"] - seconds)
    log = log[min(first, len(log) - 2) :]
    taken = max(log[-1]["seconds"] - log[0]["seconds"], 1e-9)
    waited = log[-1]["data_wait"] - log[0]["data_wait"]
    return {"images_per_second": round((len(log) - 1) * batch_size / taken, 1), "waiting": round(waited / taken, 3)}


def _plain(name: str, batches: Batches, device: torch.device, seconds: float) -> Row:
    """The same of a plain loop."""
    torch.manual_seed(0)
    model: Any = make_detector(name, num_classes(batches), pretrained=False)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    log: list[Row] = []
    began, waited, step = time.perf_counter(), 0.0, 0
    while not log or log[-1]["seconds"] < 1.5 * seconds or step < 3:
        before = time.perf_counter()
        images, targets = batches.batch(step)
        waited += time.perf_counter() - before
        loss = sum(model.loss(model(images.contiguous().to(device).float() / 255), targets).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        synchronize(str(device))
        step += 1
        log.append({"seconds": time.perf_counter() - began, "data_wait": waited})
    return _rate(log, batches.recipe.batch_size, seconds) | {"first_step": round(log[0]["seconds"], 2)}


def _prediction(model: Any, dataset: Dataset, image_size: int, seconds: float) -> float:
    """Images a second in the plain view, from files."""
    samples = dataset.samples[:64]
    options = {"image_size": image_size, "views": [PLAIN_VIEW]}
    predict_views(model, samples[:16], dataset.classes, **options)  # libraries and kernels are loaded
    began, done = time.perf_counter(), 0
    while not done or time.perf_counter() - began < seconds:
        predict_views(model, samples, dataset.classes, **options)
        done += len(samples)
    return round(done / (time.perf_counter() - began), 1)


def page(result: Row) -> str:
    """The page with all numbers."""
    machine = result["machine"]
    how = (
        f"`python benchmarks/gpu.py{' --quick' if result['quick'] else ''}` on {machine['device']}, {machine['cpu']}, "
        f"{machine['cores']} cores; torch {machine['torch']}, foldfuse {machine['foldfuse']}."
    )
    lines = [
        f"# {machine['device']}",
        "",
        how,
        "",
    ]
    if result.get("commands"):
        lines += ["| command | on | seconds |", "|---|---|---|"]
        lines += [
            f"| {row['command']} | {row['on']} | {row['failed'] if 'failed' in row else row['seconds']} |"
            for row in result["commands"]
        ]
        lines += ["", f"{result['boxes_as_on_the_cpu']:.2%} of the boxes are those of the CPU.", ""]
    lines += [
        "| network | px | batch | loading | prediction | training | images/s | waiting for data | first step, s | memory, MB |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    for row in result["speeds"]:
        if "failed" in row:
            lines.append(f"| {row['network']} | | | | | {row['failed']} | | | | |")
            continue
        for kind, numbers in row["training"].items():
            first = f"| {row['network']} | {row['px']} | {row['batch']} | {row['loading']} | {row['prediction']} "
            if "failed" in numbers:
                lines.append(f"{first}| {kind} | {numbers['failed']} | | | |")
                continue
            wait = f"{numbers['waiting']:.0%}"
            once = f"{wait} | {numbers['first_step']} | {numbers.get('peak_mb', '')}"
            lines.append(f"{first}| {kind} | {numbers['images_per_second']} | {once} |")
    lines += ["", "Loading, prediction and training are images a second. The memory is the peak of a training."]
    return "\n".join(lines) + "\n"


def main(words: list[str] | None = None) -> None:
    """Runs the commands, measures the speeds, and writes gpu.json and gpu.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter measurements, and no compiled networks")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--small", action="store_true", help="small images and short measurements, for a dry run")
    parser.add_argument("--no-commands", action="store_true", help="speeds alone")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    asked = parser.parse_args(words)
    began = time.perf_counter()
    size, batch, seconds = (64, 2, 1.5) if asked.small else (640, 8, 1.5 if asked.quick else 4.0)
    result: Row = {"quick": asked.quick, "machine": host.describe(asked.device), "speeds": []}
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        if not asked.no_commands:
            result |= run_commands(asked.device, Path(place) / "commands", quick=asked.quick)
            write(result, asked.out, began)
        number = 8 if asked.small else 64
        data = synthetic.make_dataset(Path(place) / "data", num_images=number, num_test_images=1, seed=0)
        dataset = read(data / "train.json")
        sizes = {"image_size": size, "batch_size": batch, "seconds": seconds}
        for name in asked.networks.split(","):
            try:
                row = measure(name, dataset, asked.device, compiled=not asked.quick, **sizes)
            except InputError as error:  # a package is not installed
                row = {"network": name, "failed": str(error)}
            result["speeds"].append(row)
            print(json.dumps(row), flush=True)
            write(result, asked.out, began)
    failed = [row["command"] for row in result.get("commands", ()) if "failed" in row]
    outcome = f"failed: {', '.join(failed)}" if failed else "all good"
    print(f"gpu: {outcome}, in {result['seconds']} s; {asked.out / 'gpu.md'}")
    if failed:
        raise SystemExit(1)


def write(result: Row, out: Path, began: float) -> None:
    """Writes what has been measured so far, so that a run that is stopped leaves it."""
    result["seconds"] = round(time.perf_counter() - began)
    (out / "gpu.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    (out / "gpu.md").write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()
