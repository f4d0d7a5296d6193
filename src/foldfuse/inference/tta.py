"""Test-time augmentation: the views of a picture that a detector is shown, and the way back from each.

A view's scale is true multi-scale: the network is given more or fewer pixels, on a canvas of another size. Nothing is
resized onto the size it was trained at.
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
    """One way to show a picture to a detector.

    Attributes:
        scale: of the recipe's image size.
        hflip, vflip: whether the canvas is mirrored left-right, top-bottom.
    """

    scale: float = 1.0
    hflip: bool = False
    vflip: bool = False

    @staticmethod
    def parse(text: str) -> View:
        """The view that `text` names: a scale, then perhaps "+hflip", then perhaps "+vflip"; such as "1.25+hflip".

        Raises:
            InputError: it is not of that form, or the scale is not in 0.25..4.
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
        """The longest side, in pixels, that a picture has in this view: `base` times the scale, a multiple of `stride`."""
        return max(stride, int(base * self.scale / stride + 0.5) * stride)

    def apply(self, images: Array) -> Array:
        """(B, H, W, 3) canvases as the detector is to see them."""
        axes = tuple(axis for axis, flipped in ((1, self.vflip), (2, self.hflip)) if flipped)
        return np.flip(images, axes) if axes else images

    def invert(self, found: Detections, canvas: tuple[int, int]) -> Detections:
        """What was found on the mirrored canvas of (height, width), where it is on the unmirrored one."""
        boxes = found.boxes
        if self.hflip:
            boxes = hflip(boxes, width=canvas[1])
        if self.vflip:
            boxes = vflip(boxes, height=canvas[0])
        return Detections(boxes, found.scores, found.labels)


def parse_views(texts: Sequence[str]) -> tuple[View, ...]:
    """The views that `texts` name.

    Raises:
        InputError: there is none, one is not a view, or one is named twice.
    """
    views = tuple(View.parse(text) for text in texts)
    if not views:
        raise InputError("no view is named; give at least one, such as 1.")
    if len(set(views)) < len(views):
        raise InputError(f"a view is named twice in {', '.join(texts)}; remove one.")
    return views
