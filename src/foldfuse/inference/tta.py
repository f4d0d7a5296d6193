"""Test-time augmentation (TTA): the views of an image that a detector predicts, and the inverse of each view.

The scale of a view changes the size of the network's input: it gets more or fewer pixels than in training. Tiles are predicted
one by one, each at the size of a whole image, so that small objects of large images have more pixels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from foldfuse.boxes import hflip, vflip
from foldfuse.data.tiles import tile_shares
from foldfuse.detections import Array, Detections
from foldfuse.errors import InputError

_VIEW = re.compile(
    r"(?P<scale>\d+(\.\d+)?)(\+tiles(?P<columns>[1-8])x(?P<rows>[1-8]))?(?P<hflip>\+hflip)?(?P<vflip>\+vflip)?"
)


@dataclass(frozen=True, slots=True)
class View:
    """A TTA view: a scale and flips of the input image, or of the tiles that it is cut into.

    Attributes:
        scale: the scale relative to the recipe's image size.
        hflip, vflip: whether the input is mirrored left-right, top-bottom.
        tiles: (columns, rows) of overlapping tiles that the image is cut into; (1, 1) for the whole image.
    """

    scale: float = 1.0
    hflip: bool = False
    vflip: bool = False
    tiles: tuple[int, int] = (1, 1)

    @staticmethod
    def parse(text: str) -> View:
        """The view with this name: a scale, then optionally "+tilesCxR", "+hflip" and "+vflip"; such as "1.25+hflip".

        Raises:
            InputError: the text has another form, the scale is not in 0.25..4, or the tiles are not 2 to 64.
        """
        match = _VIEW.fullmatch(text)
        if match is None or not 0.25 <= float(match["scale"]) <= 4 or match["columns"] == match["rows"] == "1":
            raise InputError(
                f"the view {text!r} is not a scale in 0.25..4 with '+tilesCxR' (columns and rows up to 8), '+hflip' or '+vflip', "
                "such as 1.25+hflip or 1+tiles2x2."
            )
        tiles = (int(match["columns"] or 1), int(match["rows"] or 1))
        return View(float(match["scale"]), bool(match["hflip"]), bool(match["vflip"]), tiles)

    def __str__(self) -> str:
        tiles = f"+tiles{self.tiles[0]}x{self.tiles[1]}" if self.is_tiled else ""
        return f"{self.scale:g}{tiles}{'+hflip' if self.hflip else ''}{'+vflip' if self.vflip else ''}"

    @property
    def is_tiled(self) -> bool:
        """Whether images are cut into tiles."""
        return self.tiles != (1, 1)

    @property
    def num_tiles(self) -> int:
        """Inputs of the network for one image."""
        return self.tiles[0] * self.tiles[1]

    @property
    def cost(self) -> float:
        """Cost of predicting an image, in units of the plain view: pixels of the network's input."""
        return self.scale**2 * self.num_tiles

    def image_size(self, base: int, stride: int) -> int:
        """The longest side, in pixels, of the network's input in this view: `base` times the scale, a multiple of `stride`."""
        return max(stride, int(base * self.scale / stride + 0.5) * stride)

    def decoded_size(self, base: int, stride: int) -> int:
        """The longest side, in pixels, that an image is decoded at: no tile then has fewer pixels than the network's input."""
        return math.ceil(self.image_size(base, stride) * tile_shares(max(self.tiles)))

    def apply(self, images: Array) -> Array:
        """(B, H, W, 3) -> (B, H, W, 3), flipped as the view says."""
        axes = tuple(axis for axis, flipped in ((1, self.vflip), (2, self.hflip)) if flipped)
        return np.flip(images, axes) if axes else images

    def invert(self, detections: Detections, canvas: tuple[int, int]) -> Detections:
        """Detections on the flipped canvas of (height, width) -> detections on the canvas before flipping."""
        boxes = detections.boxes
        if self.hflip:
            boxes = hflip(boxes, width=canvas[1])
        if self.vflip:
            boxes = vflip(boxes, height=canvas[0])
        return Detections(boxes, detections.scores, detections.labels)


PLAIN_VIEW = View()  # the image as it is, at the recipe's image size


def parse_views(texts: Sequence[str]) -> tuple[View, ...]:
    """The views with these names.

    Raises:
        InputError: there is no name, a name is no view, or two names are the same.
    """
    views = tuple(View.parse(text) for text in texts)
    if not views:
        raise InputError("no view is named; give at least one, such as 1.")
    if len(set(views)) < len(views):
        raise InputError(f"a view is named twice in {', '.join(texts)}; remove one.")
    return views


def distinct_views(views: Sequence[View], *, image_size: int, stride: int) -> dict[View, View]:
    """{view: the first of `views` that shows the network the same images}, since two scales may come to one size in pixels."""
    first: dict[tuple[int, View], View] = {}
    return {v: first.setdefault((v.image_size(image_size, stride), replace(v, scale=1.0)), v) for v in views}
