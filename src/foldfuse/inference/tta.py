"""Test-time augmentation (TTA): the views of an image that a detector predicts, and the inverse of each view.

The scale of a view changes the size of the network's input: it gets more or fewer pixels than in training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foldfuse.boxes import hflip, vflip
from foldfuse.detections import Array, Detections
from foldfuse.errors import InputError

_VIEW = re.compile(r"(?P<scale>\d+(\.\d+)?)(?P<hflip>\+hflip)?(?P<vflip>\+vflip)?")


@dataclass(frozen=True, slots=True)
class View:
    """A TTA view: a scale and flips of the input image.

    Attributes:
        scale: the scale relative to the recipe's image size.
        hflip, vflip: whether the input is mirrored left-right, top-bottom.
    """

    scale: float = 1.0
    hflip: bool = False
    vflip: bool = False

    @staticmethod
    def parse(text: str) -> View:
        """The view with this name: a scale, then optionally "+hflip", then optionally "+vflip"; such as "1.25+hflip".

        Raises:
            InputError: the text has another form, or the scale is not in 0.25..4.
        """
        match = _VIEW.fullmatch(text)
        if match is None or not 0.25 <= float(match["scale"]) <= 4:
            raise InputError(
                f"the view {text!r} is not a scale in 0.25..4 with '+hflip' or '+vflip', such as 1.25+hflip."
            )
        return View(float(match["scale"]), bool(match["hflip"]), bool(match["vflip"]))

    def __str__(self) -> str:
        return f"{self.scale:g}{'+hflip' if self.hflip else ''}{'+vflip' if self.vflip else ''}"

    def image_size(self, base: int, stride: int) -> int:
        """The longest side, in pixels, that an image has in this view: `base` times the scale, a multiple of `stride`."""
        return max(stride, int(base * self.scale / stride + 0.5) * stride)

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
    first: dict[tuple[int, bool, bool], View] = {}
    return {v: first.setdefault((v.image_size(image_size, stride), v.hflip, v.vflip), v) for v in views}
