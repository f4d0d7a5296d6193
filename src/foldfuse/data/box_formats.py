"""Recognises annotations that follow another convention than COCO's, by all of them together.

COCO's `bbox` is [left, top, width, height] in pixels, and `category_id` is an id of 'categories'. Exporters also write corners,
centres, shares of the image's sides, and classes counted from 0 or from 1. One box does not show it; many boxes do. The
thresholds were set on 83 public datasets, none of which they take for anything but COCO.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from foldfuse.detections import Array

BoxFormat = Literal["xywh", "xyxy", "cxcywh", "shares_xywh", "shares_xyxy", "shares_cxcywh"]
CategoryIds = Literal["as_given", "from_zero", "from_one"]

WORDS = {
    "xywh": "[left, top, width, height] in pixels",
    "xyxy": "corners [x1, y1, x2, y2]",
    "cxcywh": "[centre x, centre y, width, height]",
    "shares_xywh": "[left, top, width, height] as shares of the image's sides",
    "shares_xyxy": "corners [x1, y1, x2, y2] as shares of the image's sides",
    "shares_cxcywh": "[centre x, centre y, width, height] as shares of the image's sides",
}
LARGEST_SHARE = 1.5
SMALLEST_SIDE_PX = 8  # of an image whose boxes may be distinguished from shares
MOST = 0.95  # of the boxes must fit another format
NEARLY_ALL = 0.99  # where little else tells two formats apart


@dataclass(frozen=True)
class Conventions:
    """How to read the annotations of a document; None leaves it to the annotations themselves.

    Attributes:
        box_format: the meaning of the four numbers in `bbox`.
        category_ids: whether `category_id` is an id, or the place of the class in the order of ids, counted from 0 or 1.
        ignore_crowd_flags: reads crowd regions as objects.
    """

    box_format: BoxFormat | None = None
    category_ids: CategoryIds | None = None
    ignore_crowd_flags: bool = False


AS_FOUND = Conventions()


@dataclass(frozen=True)
class Recognised:
    """A box format other than COCO's, and the reason in words. Several formats where the boxes leave it open."""

    formats: tuple[BoxFormat, ...]
    reason: str


def recognise_boxes(boxes: Array, sizes: Array) -> Recognised | None:
    """The format that boxes seem to have, if it is not COCO's.

    Args:
        boxes: (n, 4) float64, `bbox` as it is written.
        sizes: (n, 2) float64, width and height of the image of each box.
    """
    if not len(boxes):
        return None
    x, y, w, h = boxes.T
    width, height = sizes.T
    is_share = (np.abs(boxes) <= LARGEST_SHARE).all(1)
    if is_share.mean() >= (1 if len(boxes) < 20 else MOST) and np.median(sizes) >= SMALLEST_SIDE_PX:
        return _shares(boxes[is_share])
    over_x, over_y = x + w - width, y + h - height
    is_far_out = (over_x > 0.05 * width + 1) | (over_y > 0.05 * height + 1)
    num_out = int(is_far_out.sum())
    fits_corners = (w > x) & (h > y) & (x >= -1) & (y >= -1) & (w <= 1.02 * width + 1) & (h <= 1.02 * height + 1)
    if num_out >= max(2, 0.1 * len(boxes)) and fits_corners.mean() >= MOST:
        return Recognised(
            ("xyxy",),
            f"{num_out} of {len(boxes)} boxes stick far out of their images as COCO's [left, top, width, height], and "
            f"{_all_or(fits_corners)} fit as corners",
        )
    fits_centre = (np.abs(x - width / 2) + w / 2 <= width / 2 + 1) & (np.abs(y - height / 2) + h / 2 <= height / 2 + 1)
    is_out = (over_x > 1) | (over_y > 1)
    num_out = int(is_out.sum())
    if num_out >= max(5, 0.03 * len(boxes)) and fits_centre.mean() >= NEARLY_ALL:
        depth = np.maximum(over_x / np.maximum(w, 1), over_y / np.maximum(h, 1))[is_out]
        if (
            np.median(depth) >= 0.25
        ):  # boxes at a border stick out by up to half their side, not by a slip of some pixels
            return Recognised(
                ("cxcywh",),
                f"{num_out} of {len(boxes)} boxes stick out to the right or below as COCO's [left, top, width, height], and "
                f"{_all_or(fits_centre)} fit with x and y as their centre",
            )
    return None


def _shares(boxes: Array) -> Recognised:
    x, y, w, h = boxes.T
    fits = {
        "shares_xyxy": (w > x) & (h > y) & (w <= 1.01) & (h <= 1.01),
        "shares_cxcywh": (np.abs(x - 0.5) + w / 2 <= 0.51) & (np.abs(y - 0.5) + h / 2 <= 0.51),
        "shares_xywh": (x + w <= 1.01) & (y + h <= 1.01),
    }
    formats = tuple(format for format, fit in fits.items() if fit.mean() >= NEARLY_ALL)
    if len(formats) > 1 and len(boxes) >= 20 and "shares_xyxy" in formats and "shares_xywh" not in formats:
        formats = ("shares_xyxy",)  # no centres of 20 boxes are all left of and above their sizes
    reason = f"no number of {len(boxes)} boxes is above {LARGEST_SHARE:g}"
    return Recognised(formats or tuple(fits), reason)  # type: ignore[arg-type]


def _all_or(mask: Array) -> str:
    return "all" if mask.all() else f"{int(mask.sum())}"


def to_xywh(box: list[float], box_format: BoxFormat, *, width: int, height: int) -> list[float]:
    """A box of any format as COCO's [left, top, width, height] in pixels."""
    a, b, c, d = box
    if box_format.startswith("shares_"):
        a, b, c, d = a * width, b * height, c * width, d * height
    if box_format.endswith("cxcywh"):
        return [a - c / 2, b - d / 2, c, d]
    return [a, b, c - a, d - b] if box_format.endswith("xyxy") else [a, b, c, d]


def recognise_category_ids(known: Collection[int], used: Collection[int]) -> tuple[CategoryIds, ...]:
    """How annotations seem to count the classes, if not by ids: the readings that explain every unknown id; () if none does.

    Args:
        known: the ids of the categories.
        used: the category ids of all annotations.
    """
    known, used = set(known), set(used)
    if used <= known:
        return ()
    found: list[CategoryIds] = []
    for reading, first in (("from_zero", 0), ("from_one", 1)):
        places = set(range(first, first + len(known)))
        unknown = places - known  # one stray id is not yet a way of counting where ids have gaps
        if used <= places and len(used & unknown) >= 0.5 * len(unknown):
            found.append(reading)  # type: ignore[arg-type]
    return tuple(found)
