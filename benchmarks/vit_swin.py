"""ViT and Swin beside timm's: images a second, forward and forward + backward, in one run.

    taskset -c 0 python benchmarks/vit_swin.py

Both take turns in one thread, timed by the CPU time that they use, and who goes first changes from turn to turn; a ratio
is the median of the turns' own ratios. Ours normalises the images; timm's takes them normalised.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from foldfuse.models.backbones.swin import swin
from foldfuse.models.backbones.vit import vit
from foldfuse.system import host

CASES = [
    ("vit_tiny", "vit_tiny_patch16_224", 224, 8),
    ("vit_tiny", "vit_tiny_patch16_224", 384, 4),
    ("vit_small", "vit_small_patch16_224", 224, 8),
    ("vit_small", "vit_small_patch16_224", 384, 4),
    ("swin_tiny", "swin_tiny_patch4_window7_224", 224, 8),
]


def seconds(work: Callable[[], None]) -> float:
    """CPU time that `work` takes."""
    began = time.process_time()
    work()
    return time.process_time() - began


def forward(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """One prediction."""

    def work() -> None:
        with torch.inference_mode():
            model.eval()(images)

    return work


def learning(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """One forward and backward pass."""

    def work() -> None:
        model.train()
        model.zero_grad()
        model(images).square().mean().backward()

    return work


def in_turn(mine: Callable[[], None], other: Callable[[], None], *, swapped: bool) -> tuple[float, float]:
    """Seconds of `mine` and of `other`, which goes first where `swapped`."""
    if swapped:
        theirs = seconds(other)
        return seconds(mine), theirs
    return seconds(mine), seconds(other)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--only", default="", help="models whose name begins so")
    options = parser.parse_args()
    turns = options.turns
    host.tune_malloc()
    torch.set_num_threads(1)
    print("| model | px | batch | pass | ours, images/s | timm, images/s | ratio | middle half of the turns |")
    print("|---|---|---|---|---|---|---|---|")
    for name, theirs_name, size, batch in CASES:
        if not name.startswith(options.only):
            continue
        is_vit = name.startswith("vit")
        ours = vit(name, 1000) if is_vit else swin(name, 1000)
        theirs = timm.create_model(theirs_name, img_size=size, drop_path_rate=0.1 if is_vit else 0.2)
        images = torch.rand(batch, 3, size, size)
        for what, kind in (("forward", forward), ("forward + backward", learning)):
            mine, other = kind(ours, images), kind(theirs, images)
            mine(), other()
            pairs = [in_turn(mine, other, swapped=bool(turn % 2)) for turn in range(turns)]
            a, b = (batch / statistics.median(column) for column in zip(*pairs, strict=True))
            low, ratio, high = statistics.quantiles([theirs_took / took for took, theirs_took in pairs], n=4)
            row = f"| {name} | {size} | {batch} | {what} | {a:.1f} | {b:.1f} | {ratio:.2f} | {low:.2f}-{high:.2f} |"
            print(row, flush=True)


if __name__ == "__main__":
    main()
