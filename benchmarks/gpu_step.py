"""Where the time of a training step goes on a card: by layers at a new size of image, by parts, on the host and on the card.

    python benchmarks/gpu_step.py --networks lite0_fpn,efficientdet_d0,swin_tiny_fpn,dfine_n --out gpu_step.json
    python benchmarks/gpu_step.py --device cpu --small  # a dry run on a CPU

It prints a JSON row for each network and writes all after each, so that a run that is stopped leaves what it has: the first and
the second step at a size that the process has not seen, with the convolutions by kind; the parts of a later step; a step with the
network as a CUDA graph, and its loss beside the network's. Weights are random and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foldfuse.system import host

host.tune_malloc()

import numpy as np
import torch
from torch import Tensor, nn

from foldfuse.detections import Annotations
from foldfuse.errors import InputError
from foldfuse.models import make_detector
from foldfuse.recipes import Recipe
from foldfuse.system.device import release_memory, synchronize
from foldfuse.system.processes import World
from foldfuse.training.cuda_graph import GraphedNetwork
from foldfuse.training.gradients import Gradients
from foldfuse.training.optimizers import Ema, make_detector_optimizer
from foldfuse.training.precision import default_config
from foldfuse.training.snapshot import Snapshot

NUM_CLASSES = 10
OBJECTS = 8  # in each image
NETWORKS = "lite0_fpn,efficientdet_d0,swin_tiny_fpn,dfine_n"

Row = dict[str, Any]


class Bench:
    """A network on a device, with a batch of noise and drawn boxes.

    Args:
        name: of the detector.
        device: where it computes.
        image_size: side of the images, pixels.
        batch_size: number of images.
        repeats: steps that are timed together.
    """

    def __init__(self, name: str, device: str, *, image_size: int, batch_size: int, repeats: int) -> None:
        torch.manual_seed(0)
        self.device, self.target, self.repeats = device, torch.device(device), repeats
        self.config = default_config(self.target)
        recipe = Recipe(
            name, image_size=image_size, batch_size=batch_size, init_weights="none", frozen_stages=0, micro_batch=0
        )
        self.model: Any = make_detector(name, NUM_CLASSES, pretrained=False)
        self.model.to(self.target, memory_format=self.config.memory_format)
        self.model.freeze(0)
        rng = np.random.default_rng(0)
        self.images = torch.from_numpy(rng.integers(0, 256, (batch_size, 3, image_size, image_size), dtype=np.uint8))
        self.targets = [drawn_boxes(rng, image_size) for _ in range(batch_size)]
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_detector_optimizer(self.model, recipe)
        self.ema = Ema(self.model, recipe.ema_decay)
        self.snapshot = Snapshot(self.model)
        self.gradients = Gradients(
            self.model, recipe, self.config, self.config.scaler(self.target), world=World(device=device), micro_batch=0
        )

    def moved(self) -> Tensor:
        """The images on the device."""
        return self.config.network_input(self.images, self.target)

    def forward(self, network: Callable[[Tensor], Any] | None = None) -> Any:
        """Raw outputs, of the model or of another network."""
        with self.config.autocast(self.target):
            return (network or self.model)(self.moved())

    def loss(self, network: Callable[[Tensor], Any] | None = None) -> Any:
        """The loss, with its graph."""
        return sum(self.model.loss(self.forward(network), self.targets).values())

    def update(self) -> None:
        """Clips the gradients and moves the weights."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 10.0)
        self.optimizer.step()

    def step(self) -> None:
        """A whole step, as the training loop makes it."""
        loss = self.gradients.compute(self.moved(), self.targets)
        self.update()
        loss.read()
        self.ema.update(self.model)

    def milliseconds(self, work: Callable[[], object]) -> float:
        """The mean of some calls after two that are not timed."""
        for _ in range(2):
            work()
        synchronize(self.device)
        began = time.perf_counter()
        for _ in range(self.repeats):
            work()
        synchronize(self.device)
        return round(1e3 * (time.perf_counter() - began) / self.repeats, 2)


def drawn_boxes(rng: np.random.Generator, image_size: int) -> Annotations:
    """Some boxes of drawn places and sizes."""
    corners = rng.uniform(0, 0.6 * image_size, (OBJECTS, 2))
    sides = rng.uniform(0.05 * image_size, 0.4 * image_size, (OBJECTS, 2))
    boxes = np.concatenate([corners, corners + sides], 1)
    return Annotations(boxes, rng.integers(0, NUM_CLASSES, OBJECTS), np.zeros(OBJECTS, bool), sides.prod(1))


def kind_of(conv: nn.Conv2d) -> str:
    """The kind of a convolution."""
    if conv.groups > 1:
        return "depthwise" if conv.groups == conv.in_channels else "grouped"
    return "1x1" if conv.kernel_size == (1, 1) else "dense"


@contextmanager
def timed_convolutions(model: nn.Module, device: str) -> Iterator[dict[str, float]]:
    """{kind: seconds of the forward passes of such convolutions in the block}; the host waits for the device at each."""
    spent: dict[str, float] = defaultdict(float)
    began: dict[nn.Module, float] = {}
    handles = []

    def before(module: nn.Module, _: object) -> None:
        synchronize(device)
        began[module] = time.perf_counter()

    def after(module: nn.Conv2d, *_: object) -> None:
        synchronize(device)
        spent[kind_of(module)] += time.perf_counter() - began[module]

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    yield spent
    for handle in handles:
        handle.remove()


def one_step(bench: Bench) -> Row:
    """Seconds of a step's passes, and of the convolutions in the forward pass."""
    synchronize(bench.device)
    times = [time.perf_counter()]
    with timed_convolutions(bench.model, bench.device) as spent:
        raw = bench.forward()
        synchronize(bench.device)
    times.append(time.perf_counter())
    loss: Any = sum(bench.model.loss(raw, bench.targets).values())
    synchronize(bench.device)
    times.append(time.perf_counter())
    loss.backward()
    synchronize(bench.device)
    times.append(time.perf_counter())
    bench.model.zero_grad(set_to_none=True)
    passes = dict(zip(("forward", "loss", "backward"), np.diff(times).tolist(), strict=True))
    return {name: round(seconds, 3) for name, seconds in {**passes, **spent}.items()}


def parts(bench: Bench) -> Row:
    """Milliseconds of the parts of a step, each measured alone."""
    pieces: dict[str, Callable[[], object]] = {
        "images to the device": bench.moved,
        "forward": bench.forward,
        "forward and loss": bench.loss,
        "whole step": bench.step,
        "clipping and optimizer": bench.update,
        "average": lambda: bench.ema.update(bench.model),
        "snapshot": bench.snapshot.take,
    }
    row: Row = {name: bench.milliseconds(work) for name, work in pieces.items()}
    if bench.device.startswith("cuda"):
        row["kernels of a step"] = kernel_milliseconds(bench)
    return row


def kernel_milliseconds(bench: Bench) -> float:
    """Milliseconds that the card computes in a step, by the profiler."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(bench.repeats):
            bench.step()
        synchronize(bench.device)
    total = sum(event.self_device_time_total for event in profile.key_averages())
    return round(total / 1e3 / bench.repeats, 2)


def graphed(bench: Bench) -> Row:
    """A step's forward and backward pass by a CUDA graph and without one: milliseconds, loss and norm of the gradients."""
    state = {key: value.clone() for key, value in bench.model.state_dict().items()}
    row: Row = {}
    for name, network in (("network", None), ("graph", GraphedNetwork(bench.model))):
        bench.model.load_state_dict(state)
        try:
            for _ in range(2):  # the first one records
                bench.model.zero_grad(set_to_none=True)
                loss = bench.loss(network)
                loss.backward()
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in bench.parameters if p.grad is not None))
            row[name] = {"loss": round(loss.item(), 4), "gradients": round(norm, 4)}

            def work(network: Any = network) -> None:
                bench.loss(network).backward()
                bench.model.zero_grad(set_to_none=True)

            row[name]["milliseconds"] = bench.milliseconds(work)
        except RuntimeError as error:  # a network that waits for the card cannot be recorded
            row[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    return row


def measure(name: str, device: str, *, image_size: int, batch_size: int, repeats: int) -> Row:
    """All measurements of a network."""
    row: Row = {"network": name, "px": image_size, "batch": batch_size}
    try:
        bench = Bench(name, device, image_size=image_size, batch_size=batch_size, repeats=repeats)
    except InputError as error:  # a package is not installed
        return row | {"failed": str(error)}
    row["first step"], row["second step"] = one_step(bench), one_step(bench)
    row["milliseconds"] = parts(bench)
    if device.startswith("cuda"):
        row["CUDA graph"] = graphed(bench)
    del bench
    release_memory(device)
    return row


def main(words: list[str] | None = None) -> None:
    """Measures each network and prints and writes its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--networks", default=NETWORKS)
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--small", action="store_true", help="two images of 128 px, for a dry run")
    parser.add_argument("--out", type=Path, default=Path("gpu_step.json"))
    asked = parser.parse_args(words)
    size, batch, repeats = (128, 2, 1) if asked.small else (asked.image_size, asked.batch_size, 10)
    result: Row = {"machine": host.describe(asked.device), "rows": []}
    began = time.perf_counter()
    first = measure("lite0_fpn", asked.device, image_size=size // 2, batch_size=2, repeats=1)
    result["first network of the process"] = {"seconds": round(time.perf_counter() - began, 1), **first}
    print(json.dumps(result), flush=True)
    for name in asked.networks.split(","):
        result["rows"].append(measure(name, asked.device, image_size=size, batch_size=batch, repeats=repeats))
        print(json.dumps(result["rows"][-1]), flush=True)
        asked.out.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
