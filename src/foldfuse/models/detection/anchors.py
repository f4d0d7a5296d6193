"""Anchors for any image size, and the box code that is relative to them.

Source: Lin et al., "Focal Loss", arXiv:1708.02002, section 4 (9 anchors a cell: 3 octave scales x 3 aspect ratios);
the box code is that of Ren et al., "Faster R-CNN", arXiv:1506.01497, section 3.1.2, in effdet's order (y, x, h, w).
Where we differ: an anchor's size follows the level's nominal stride (8 .. 128), and its centre the level's true cell
size, so that an image size that is no multiple of 128 changes where the anchors stand but not how large they are:
what was learnt at one size means the same at another.

Shapes: A anchors over all levels, in the order level, y, x, scale, aspect ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
ASPECTS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))  # width, height
PER_CELL = len(SCALES) * len(ASPECTS)
MAX_LOG_SIDE = 4.0  # a side is at most e^4 = 55 anchors long: keeps exp finite


def cell_anchors(stride: float, scale: float) -> Tensor:
    """(9, 2) float32 widths and heights in pixels of the anchors of one cell, `scale` strides large at the least."""
    return torch.tensor([[stride * scale * s * w, stride * scale * s * h] for s in SCALES for w, h in ASPECTS])


@lru_cache(maxsize=32)
def anchors(sizes: tuple[tuple[int, int], ...], image: tuple[int, int], scale: float) -> Tensor:
    """(A, 4) float32 cxcywh in pixels of the network's input.

    Args:
        sizes: (height, width) of each level, finest first; P3 is the first.
        image: (height, width) of the network's input.
        scale: side of the smallest anchor of a level, in strides.
    """
    parts = []
    for i, (height, width) in enumerate(sizes):
        y = (torch.arange(height) + 0.5) * (image[0] / height)
        x = (torch.arange(width) + 0.5) * (image[1] / width)
        sides = cell_anchors(8.0 * 2**i, scale)
        centre = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)  # (H, W, 2), x first
        centre = centre[:, :, None].expand(-1, -1, PER_CELL, -1)
        parts.append(torch.cat([centre, sides.expand(height, width, -1, -1)], -1).reshape(-1, 4))
    return torch.cat(parts)


def level_sizes(image: tuple[int, int], num_levels: int = 5) -> tuple[tuple[int, int], ...]:
    """(height, width) of P3, P4, ... for an input of `image` (height, width), each half of the one before, rounded up."""
    height, width = image
    sizes: list[tuple[int, int]] = []
    for level in range(1, 3 + num_levels):
        height, width = (height + 1) // 2, (width + 1) // 2
        if level >= 3:
            sizes.append((height, width))
    return tuple(sizes)


def decode(codes: Tensor, anchor: Tensor) -> Tensor:
    """(..., 4) codes (y, x, log h, log w, in anchor sides) and (..., 4) cxcywh anchors -> (..., 4) xyxy in pixels."""
    centre = anchor[..., :2] + codes[..., [1, 0]] * anchor[..., 2:]
    half = codes[..., [3, 2]].clamp(max=MAX_LOG_SIDE).exp() * anchor[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def encode(boxes: Tensor, anchor: Tensor) -> Tensor:
    """The inverse of `decode`: (..., 4) xyxy boxes of some size -> (..., 4) codes."""
    centre, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    return torch.cat(
        [((centre - anchor[..., :2]) / anchor[..., 2:]).flip(-1), (sides / anchor[..., 2:]).log().flip(-1)], -1
    )


def as_xyxy(anchor: Tensor) -> Tensor:
    """(..., 4) cxcywh -> (..., 4) xyxy."""
    return torch.cat([anchor[..., :2] - anchor[..., 2:] / 2, anchor[..., :2] + anchor[..., 2:] / 2], -1)


def nearest_cells(
    points: Tensor, sizes: Sequence[tuple[int, int]], image: tuple[int, int], *, per_cell: int = PER_CELL
) -> tuple[Tensor, Tensor]:
    """Of (n, 2) xy points: the anchors of the 3x3 cells about each on every level.

    Returns:
        (n, L * 9 * per_cell) int64 positions in `anchors`, and a mask of the same shape: False where the cell lies outside.
    """
    indices, inside = [], []
    first = 0
    step = torch.arange(-1, 2, device=points.device)
    dy, dx = torch.meshgrid(step, step, indexing="ij")
    within = torch.arange(per_cell, device=points.device)
    for height, width in sizes:
        x = (points[:, 0] * (width / image[1])).long()[:, None] + dx.flatten()  # (n, 9)
        y = (points[:, 1] * (height / image[0])).long()[:, None] + dy.flatten()
        good = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        cell = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
        indices.append((first + cell[..., None] * per_cell + within).flatten(1))
        inside.append(good[..., None].expand(-1, -1, per_cell).flatten(1))
        first += height * width * per_cell
    return torch.cat(indices, 1), torch.cat(inside, 1)
