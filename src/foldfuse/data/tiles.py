"""Tiles: overlapping parts of one size that cover an image, and their pixels on the network's input.

A window is the xyxy of a tile, in whole pixels of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from foldfuse.data.images import PAD_VALUE, ImageArray, Letterbox

OVERLAP = 0.2  # of a tile's side that its neighbour shows too: an object of this size lies wholly in one of the two
Window = tuple[int, int, int, int]


def tile_shares(number: int) -> float:
    """The sides of a tile, of `number` in a row, that make the side of the image: 1.8 for 2, since neighbours overlap."""
    return number - (number - 1) * OVERLAP


def tile_windows(width: int, height: int, *, columns: int, rows: int) -> list[Window]:
    """The windows of columns x rows tiles on an image of width x height pixels, row after row; all have one size."""
    (lefts, w), (tops, h) = _starts(width, columns), _starts(height, rows)
    return [(left, top, left + w, top + h) for top in tops for left in lefts]


def _starts(side: int, number: int) -> tuple[Sequence[int], int]:
    """Where each tile of a row begins, and the side of a tile, in pixels."""
    tile = min(side, math.ceil(side / tile_shares(number) - 1e-9))
    return [round(i * (side - tile) / max(1, number - 1)) for i in range(number)], tile


def letterboxed_tile(
    image: ImageArray, window: Window, *, size: tuple[int, int], canvas: tuple[int, int]
) -> ImageArray:
    """The canvas (*canvas, 3) with a tile on it, at the top left.

    Args:
        image: (H, W, 3); it may have been shrunk by `load_image`.
        window: the tile, in pixels of the image before that.
        size: (width, height) of the image before that.
        canvas: (height, width) of the network's input.
    """
    scale = (image.shape[1] / size[0], image.shape[0] / size[1])
    x1, x2 = (min(x * scale[0], image.shape[1]) for x in window[::2])
    y1, y2 = (min(y * scale[1], image.shape[0]) for y in window[1::2])
    left, top = math.floor(x1), math.floor(y1)
    cut = Image.fromarray(image[top : math.ceil(y2), left : math.ceil(x2)])
    width, height = Letterbox(window[2] - window[0], window[3] - window[1], canvas).size
    box = (x1 - left, y1 - top, x2 - left, y2 - top)
    out = np.full((*canvas, 3), PAD_VALUE, np.uint8)
    out[:height, :width] = np.asarray(cut.resize((width, height), Image.Resampling.BILINEAR, box))
    return out
