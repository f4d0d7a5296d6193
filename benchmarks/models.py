"""Images a second of detectors, ours beside the usual implementation of each, in one run: prints models.md's table.

    taskset -c 1 python benchmarks/models.py [--quick]

CPU time of one thread is counted, which bears neighbours on the machine better than wall clock. Both sides take turns. The
rival is run in PyTorch's default layout and in channels-last, and its better one counts; ours is in channels-last, as it
trains and predicts. "forward" is in eval mode without gradients; "folded" is that with the backbone's batch norms folded into
its convolutions, as `foldfuse predict` does; "forward + backward" is in training mode, every parameter trained, down to the
gradients of the squares of all outputs.
"""

from __future__ import annotations

from foldfuse.system import host

host.tune_malloc()  # before torch is loaded, as the command line does; it serves both sides

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

import effdet
import torch
from torch import Tensor, nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from foldfuse.models import (
    DETECTORS,
    make_detector,
)
from foldfuse.models.cpu.fold_batch_norm import fold_batch_norms

CLASSES, BATCH = 10, 4


def tensors(raw: Any) -> Iterator[Tensor]:
    """The tensors in a network's output, however nested."""
    if isinstance(raw, Tensor):
        yield raw
    elif isinstance(raw, Mapping):
        for part in raw.values():
            yield from tensors(part)
    elif isinstance(raw, list | tuple):
        for part in raw:
            yield from tensors(part)


def forward(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """A call that runs the network alone."""

    @torch.inference_mode()
    def run() -> object:
        return model(images)

    return run


def forward_and_backward(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """A call that leaves gradients in every parameter."""

    def run() -> None:
        model.zero_grad(set_to_none=True)
        sum(part.square().mean() for part in tensors(model(images)) if part.is_floating_point()).backward()

    return run


def seconds(calls: Mapping[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """The median CPU time of each call, after two turns that do not count."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 2):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn >= 2:
                taken[name].append(time.process_time() - start)
    return {name: median(values) for name, values in taken.items()}


def rival(name: str, size: int) -> nn.Module:
    """The usual implementation of `name`, built for this image size, without weights."""
    if name.startswith("efficientdet"):
        config = effdet.get_efficientdet_config(f"tf_{name}")
        config.image_size, config.num_classes = (size, size), CLASSES
        return effdet.EfficientDet(config, pretrained_backbone=False)
    whole = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)
    return Bare(whole.backbone, whole.head)


class Bare(nn.Module):
    """torchvision's SSDlite without its preprocessing of images and postprocessing of boxes."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> logits and box codes."""
        return self.head(list(self.backbone(images).values()))


def compare(name: str, size: int, turns: int) -> None:
    """Print the table's lines for one detector at one image size."""
    torch.manual_seed(0)
    ours = make_detector(name, CLASSES, pretrained=False).to(memory_format=torch.channels_last)
    theirs = rival(name, size)
    theirs_last = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
    images = torch.rand(BATCH, 3, size, size)
    last = images.to(memory_format=torch.channels_last)
    for model in (ours, theirs, theirs_last):
        model.eval()
    lean = copy.deepcopy(ours)
    lean.backbone = fold_batch_norms(lean.backbone).to(memory_format=torch.channels_last)
    calls = {"theirs": forward(theirs, images), "theirs, channels-last": forward(theirs_last, last)}
    lines = {"forward": seconds(calls | {"ours": forward(ours, last), "folded": forward(lean, last)}, turns)}
    lines["forward, folded"] = lines["forward"] | {"ours": lines["forward"]["folded"]}
    for model in (ours, theirs, theirs_last):
        model.train()
    calls = {n: forward_and_backward(m, x) for n, m, x in (("theirs", theirs, images), ("ours", ours, last))}
    calls["theirs, channels-last"] = forward_and_backward(theirs_last, last)
    lines["forward + backward"] = seconds(calls, turns)
    for what, line in lines.items():
        a, b, c = (line[key] * 1e3 / BATCH for key in ("theirs", "theirs, channels-last", "ours"))
        print(f"| {name} | {size} | {what} | {a:.1f} | {b:.1f} | {c:.1f} | {min(a, b) / c:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--only", default="", help="detectors whose names begin so")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| detector | px | pass | theirs, ms | theirs, channels-last | ours, ms | times faster |")
    print("|---|---|---|---|---|---|---|")
    for name, size in (("efficientdet_lite0", 320), ("efficientdet_lite0", 512), ("efficientdet_d0", 320),
                       ("efficientdet_d0", 512), ("yolov5n", 320)):  # fmt: skip
        if name in DETECTORS and name.startswith(given.only):
            compare(name, size, turns=5 if given.quick else 15)


if __name__ == "__main__":
    main()
