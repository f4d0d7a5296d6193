"""The forms in which files give the four numbers of a box, and the judgement whether a file's numbers have the form they should.

A form is a choice of numbers (corners, corner and size, or centre and size) in pixels or as shares of the image's sides. The form
of a file is known from its format or its header. Numbers that cannot be meant so are refused, not read: all of them are small
enough for shares, or many boxes leave their images and would not in another form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from foldfuse.boxes import xywh_to_xyxy, xyxy_to_xywh
from foldfuse.detections import Array
from foldfuse.errors import InputError

SLACK = 0.02  # fraction of the width or height by which a plausible box may reach beyond its image
MAX_NORMALIZED = 1.5  # coordinates that never exceed this are shares, not pixels
MIN_FIT = 0.9  # a form is doubted where fewer of the boxes fit into their images
MIN_OTHER_FIT = 0.98  # ... and refused where at least so many fit in another form
SMALLEST_IMAGE = 4  # pixels; in smaller images pixels and shares look alike


@dataclass(frozen=True)
class BoxForm:
    """The meaning of the four numbers of a box.

    Attributes:
        box: "xyxy", "xywh" (left, top, width, height) or "cxcywh" (centre, width, height).
        normalized: whether the numbers are shares of the image's width and height instead of pixels.
    """

    box: str
    normalized: bool = False

    @property
    def name(self) -> str:
        """The form's name, such as "xyxy" or "xywh_normalized"."""
        return f"{self.box}_normalized" if self.normalized else self.box

    def to_xyxy(self, numbers: Array, sizes: Array) -> Array:
        """(n, 4) numbers of this form and (n, 2) widths and heights -> (n, 4) xyxy in pixels, not checked."""
        with np.errstate(invalid="ignore", over="ignore"):  # infinite numbers are refused later, with their row
            boxes = numbers * (np.tile(sizes, 2) if self.normalized else 1)
            if self.box == "cxcywh":
                boxes = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], 1)
            return boxes if self.box == "xyxy" else xywh_to_xyxy(boxes)

    def from_xyxy(self, boxes: Array, sizes: Array) -> Array:
        """The inverse of `to_xyxy`: (n, 4) float64."""
        boxes = boxes.astype(np.float64)
        if self.box != "xyxy":
            boxes = xyxy_to_xywh(boxes)
        if self.box == "cxcywh":
            boxes = np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], 1)
        return boxes / (np.tile(sizes, 2) if self.normalized else 1)

    def fits(self, numbers: Array, sizes: Array) -> Array:
        """(n,) bool: whether each box has x1 <= x2 and y1 <= y2 and lies in its image, up to SLACK."""
        boxes = self.to_xyxy(numbers, sizes)
        limits = np.tile(sizes, 2)
        inside = ((boxes >= -SLACK * limits) & (boxes <= (1 + SLACK) * limits)).all(1)
        return np.asarray(inside & (boxes[:, 2:] >= boxes[:, :2]).all(1))


FORMS = {form.name: form for form in (BoxForm(b, n) for b, n in product(("xyxy", "xywh", "cxcywh"), (False, True)))}


def look_normalized(numbers: Array, sizes: Array) -> bool:
    """Whether the numbers of all boxes are small enough to be shares, in images where pixels would be larger."""
    return bool(len(numbers) and 0 < numbers.max() <= MAX_NORMALIZED and sizes.max() > SMALLEST_IMAGE)


def check_form(numbers: Array, sizes: Array, form: BoxForm, path: Path, option: Callable[[BoxForm], str]) -> str:
    """A note for the user on boxes that leave their images; "" where there is nothing to say.

    Args:
        numbers: (n, 4) as the file has them.
        sizes: (n, 2) widths and heights of the images.
        form: the form of the file's format.
        path: names the file.
        option: the name of the format with boxes of another form.

    Raises:
        InputError: the numbers look like another form; the sentence names the option that reads them.
    """
    if not len(numbers):
        return ""
    shares = look_normalized(numbers, sizes)
    fit = float(form.fits(numbers, sizes).mean())
    if shares != form.normalized and (shares or fit < MIN_FIT):
        meant = "shares of the image's sides" if shares else "pixels"
    elif fit < MIN_FIT:
        meant = "another form"
    else:
        return ""
    others = [
        other
        for other in FORMS.values()
        if other != form and other.normalized == shares and other.fits(numbers, sizes).mean() >= MIN_OTHER_FIT
    ]
    if not others and meant == "another form":
        if fit >= 0.5:
            return ""
        return (
            f"{round((1 - fit) * len(numbers))} of {len(numbers)} boxes leave their images by more than {SLACK:.0%}: were they "
            "predicted on images of another size?"
        )
    if not others:
        others = [BoxForm(form.box, shares)]
    ways = " or ".join(f"--input-format {option(other)}" for other in others)
    if meant == "another form":
        leaving = len(numbers) - int(form.fits(numbers, sizes).sum())
        meant = " or ".join(_WORDS[other.box] for other in others)
        found = f"{leaving} of {len(numbers)} boxes do not fit into their images as {form.box}, and all fit as {meant}"
    else:
        found = f"the boxes look like {meant}: their numbers are {numbers.min():g} to {numbers.max():g}"
    raise InputError(
        f"{path}: {found}. Read them with {ways}; if they are right as they are, with --input-format {option(form)}."
    )


_WORDS = {
    "xyxy": "corners (left, top, right, bottom)",
    "xywh": "left, top, width, height",
    "cxcywh": "centre, width, height",
}
