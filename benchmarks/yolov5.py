"""Images a second of YOLOv5n beside torchvision's SSDlite at like arithmetic, in one run: prints yolov5.md's tables.

    taskset -c 0 python benchmarks/yolov5.py [--quick]

SSDlite (ssdlite320_mobilenet_v3_large) works at 320 px. YOLOv5n is run at two multiples of 32: the last with less arithmetic than
that, and the first with as much or more. models.py explains the timing and the passes.
"""

from __future__ import annotations

from foldfuse.system import host

host.tune_malloc()  # before torch is loaded, as the command line does; it serves both sides

import argparse
import copy
import warnings

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from foldfuse.models import make_detector
from foldfuse.models.cpu.fold_batch_norm import fold_batch_norms
from models import BATCH, CLASSES, forward, forward_and_backward, rival, seconds

RIVAL_SIZE = 320


def gflops(model: nn.Module, size: int) -> float:
    """1e9 multiplications and additions, each counted, of one image's forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.rand(1, 3, size, size))
    return counter.get_total_flops() / 1e9


def sizes_about(model: nn.Module, wanted: float) -> tuple[int, int]:
    """The multiples of 32 next to `wanted` GFLOPs from below and from above."""
    size = 64
    while gflops(model, size) < wanted:
        size += 32
    return size - 32, size


def lines(size: int, turns: int) -> None:
    """Print the table's lines of YOLOv5n at one size."""
    torch.manual_seed(0)
    ours = make_detector("yolov5n", CLASSES, pretrained=False).to(memory_format=torch.channels_last).eval()
    theirs = rival("ssdlite", RIVAL_SIZE).eval()
    theirs_last = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
    lean = copy.deepcopy(ours)
    lean.backbone = fold_batch_norms(lean.backbone).to(memory_format=torch.channels_last)
    images, there = torch.rand(BATCH, 3, size, size), torch.rand(BATCH, 3, RIVAL_SIZE, RIVAL_SIZE)
    images, there_last = (x.to(memory_format=torch.channels_last) for x in (images, there))
    calls = {"theirs": forward(theirs, there), "last": forward(theirs_last, there_last)}
    passed = seconds(calls | {"ours": forward(ours, images), "lean": forward(lean, images)}, turns)
    for model in (ours, theirs, theirs_last):
        model.train()
    calls = {"theirs": forward_and_backward(theirs, there), "last": forward_and_backward(theirs_last, there_last)}
    trained = seconds(calls | {"ours": forward_and_backward(ours, images)}, turns)
    for what, taken, which in (
        ("forward", passed, "ours"),
        ("forward, folded", passed, "lean"),
        ("forward + backward", trained, "ours"),
    ):
        a, b, c = (taken[key] * 1e3 / BATCH for key in ("theirs", "last", which))
        print(f"| {size} | {what} | {a:.1f} | {b:.1f} | {c:.1f} | {min(a, b) / c:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    ours, theirs = make_detector("yolov5n", CLASSES, pretrained=False), rival("ssdlite", RIVAL_SIZE)
    wanted = gflops(theirs, RIVAL_SIZE)
    sizes = sizes_about(ours, wanted)
    print("| network | px | GFLOPs a image |\n|---|---|---|")
    print(f"| SSDlite | {RIVAL_SIZE} | {wanted:.2f} |")
    for size in sizes:
        print(f"| YOLOv5n | {size} | {gflops(ours, size):.2f} |")
    print("\n| YOLOv5n at, px | pass | SSDlite, ms | SSDlite, channels-last | YOLOv5n, ms | times faster |")
    print("|---|---|---|---|---|---|")
    for size in sizes:
        lines(size, turns=5 if given.quick else 15)


if __name__ == "__main__":
    main()
