"""Anchors for any image size, and boxes encoded as deltas from anchors.

Source: Lin et al., "Focal Loss", arXiv:1708.02002, section 4 (9 anchors per cell: 3 octave scales x 3 aspect ratios);
the deltas follow Ren et al., "Faster R-CNN", arXiv:1506.01497, section 3.1.2, in effdet's order (y, x, h, w).
An anchor's centre and size follow the level's true cell size, as effdet 0.4.1's do: at an image size that is no multiple of 128
the cells of P6 and P7 are smaller than 64 and 128 px, and so are their anchors. Runs of Foldfuse before recipes of format 2 were
trained with the sizes of the nominal strides (8 .. 128), and keep them (`nominal`).

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


def cell_anchors(stride: tuple[float, float], scale: float) -> Tensor:
    """(9, 2) float32 widths and heights of one cell's anchors, in pixels; `stride` is the cell's (height, width)."""
    height, width = stride
    return torch.tensor([[width * scale * s * w, height * scale * s * h] for s in SCALES for w, h in ASPECTS])


def cell_centres(size: tuple[int, int], image: tuple[int, int]) -> Tensor:
    """(H, W, 2) float32 x and y of the centres of a level's cells, in input pixels; `size` and `image` are (height, width)."""
    sides = (torch.full((), whole / cells, dtype=torch.float32) for whole, cells in zip(image, size, strict=True))
    y, x = ((torch.arange(cells) + 0.5) * side for cells, side in zip(size, sides, strict=True))
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)


@lru_cache(maxsize=32)
def make_anchors(
    sizes: tuple[tuple[int, int], ...], image: tuple[int, int], scale: float, *, nominal: bool = False
) -> Tensor:
    """(A, 4) float32 anchors, as cxcywh in input pixels.

    Args:
        sizes: (height, width) of each level, finest first; P3 is the first.
        image: (height, width) of the network's input.
        scale: side of a level's smallest anchor, in cells.
        nominal: the sizes follow the strides 8, 16, ... instead of the true cells.
    """
    levels = []
    for i, size in enumerate(sizes):
        stride = 8.0 * 2**i
        cell = (stride, stride) if nominal else (image[0] / size[0], image[1] / size[1])
        sides = cell_anchors(cell, scale).expand(*size, -1, -1)  # (H, W, 9, 2)
        centres = cell_centres(size, image)[:, :, None].expand_as(sides)
        levels.append(torch.cat([centres, sides], -1).reshape(-1, 4))
    return torch.cat(levels)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """(..., 4) deltas (y, x, log h, log w, in anchor sides) and (..., 4) cxcywh anchors -> (..., 4) xyxy in pixels."""
    centre = anchors[..., :2] + deltas[..., [1, 0]] * anchors[..., 2:]
    half = deltas[..., [3, 2]].clamp(max=MAX_LOG_SIDE).exp() * anchors[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def nearest_cells(
    points: Tensor, sizes: Sequence[tuple[int, int]], image: tuple[int, int], *, per_cell: int = PER_CELL
) -> tuple[Tensor, Tensor]:
    """The priors of the 3x3 cells around each of the (n, 2) xy points, on each of L levels.

    Returns:
        (n, L * 9 * per_cell) int64 indices of priors, and a mask of the same shape: False where the cell lies outside.
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
