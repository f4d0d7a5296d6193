"""Arithmetic on (..., 4) boxes of numpy arrays. No function knows classes or images.

Boxes are xyxy in pixels unless the name says otherwise; a width is x2 - x1, without a "+ 1".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SIDE_DIGITS = 9  # of a pixel


def xywh_to_xyxy(boxes: Array) -> Array:
    """(..., 4) left, top, width, height -> (..., 4) xyxy."""
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)


def xyxy_to_xywh(boxes: Array) -> Array:
    """(..., 4) xyxy -> (..., 4) left, top, width, height."""
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)


def xyxy_to_xywh_of_file(boxes: Array) -> Array:
    """(..., 4) xyxy -> (..., 4) float64 left, top, width, height with the very sides that a file in xywh holds.

    Left + width is rounded to a double, and subtracting the left again does not undo that; rounding to 1e-9 pixels does. An
    IoU that equals a threshold must not fall below it.
    """
    xywh = xyxy_to_xywh(boxes.astype(np.float64))
    xywh[..., 2:] = xywh[..., 2:].round(SIDE_DIGITS)
    return xywh


def area(boxes: Array) -> Array:
    """(..., 4) boxes -> (...) areas in pixels squared; 0 for an inverted box."""
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def clip(boxes: Array, *, width: float, height: float) -> Array:
    """(..., 4) boxes -> (..., 4) boxes clipped to the image; a box wholly outside becomes a box without area on the border."""
    return np.stack(
        [
            boxes[..., 0].clip(0, width),
            boxes[..., 1].clip(0, height),
            boxes[..., 2].clip(0, width),
            boxes[..., 3].clip(0, height),
        ],
        -1,
    )


def pairwise_iou(a: Array, b: Array) -> Array:
    """(n, 4) and (m, 4) boxes -> (n, m) IoU in [0, 1]; 0 where the union is empty."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])  # (n, m, 2)
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])  # (n, m, 2)
    sides = np.maximum(bottom_right - top_left, 0)
    overlap = sides[..., 0] * sides[..., 1]  # (n, m)
    union = area(a)[:, None] + area(b)[None, :] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def hflip(boxes: Array, *, width: float) -> Array:
    """Mirror (..., 4) boxes left-right in an image `width` pixels wide; a second flip restores the boxes."""
    return np.stack([width - boxes[..., 2], boxes[..., 1], width - boxes[..., 0], boxes[..., 3]], -1)


def vflip(boxes: Array, *, height: float) -> Array:
    """Mirror (..., 4) boxes top-bottom in an image `height` pixels high; a second flip restores the boxes."""
    return np.stack([boxes[..., 0], height - boxes[..., 3], boxes[..., 2], height - boxes[..., 1]], -1)
