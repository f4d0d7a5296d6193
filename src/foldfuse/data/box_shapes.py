"""Boxes from polygons and run-length masks, where annotations have no `bbox`.

Source: the COCO data format (https://cocodataset.org/#format-data) and its compressed run lengths, as defined by `rleFrString`
in pycocotools (BSD-2-Clause); checked against pycocotools.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foldfuse.data.values import numbers, whole_number

MAX_RUNS = 10_000_000
Box = tuple[float, float, float, float]


def box_of_segmentation(segmentation: Any) -> Box | None:
    """The xywh box around a COCO segmentation in pixels: a polygon, several polygons, or a mask as run lengths.

    None where there is no segmentation, where it cannot be read, or where it has no extent.
    """
    if isinstance(segmentation, dict):
        return _box_of_runs(segmentation)
    if not isinstance(segmentation, list) or not segmentation:
        return None
    polygons = segmentation if isinstance(segmentation[0], (list, tuple)) else [segmentation]
    if all(isinstance(p, (list, tuple)) and len(p) == 2 for p in polygons) and len(polygons) >= 3:
        polygons = [[value for point in polygons for value in point]]  # [[x, y], [x, y], ...]
    points: list[float] = []
    for polygon in polygons:
        values = numbers(polygon)
        if values is None or len(values) < 4 or len(values) % 2:
            return None
        points += values
    xs, ys = points[::2], points[1::2]
    box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
    return box if box[2] > 0 and box[3] > 0 else None


def _box_of_runs(mask: dict[str, Any]) -> Box | None:
    """The xywh box around a mask as run lengths, which go down the columns and begin with the background."""
    counts = mask.get("counts")
    size = mask_size(mask)
    if size is None:
        return None
    width, height = size
    runs = _decompressed(counts) if isinstance(counts, str) else _whole_numbers(counts)
    if runs is None or any(run < 0 for run in runs) or sum(runs) > height * width:
        return None
    left, top, right, bottom = width, height, 0, 0
    at = 0
    for i, run in enumerate(runs):
        if i % 2 and run:
            first, last = divmod(at, height), divmod(at + run - 1, height)  # (column, row)
            left, right = min(left, first[0]), max(right, last[0] + 1)
            spans_columns = last[0] > first[0]
            top = 0 if spans_columns else min(top, first[1])
            bottom = height if spans_columns else max(bottom, last[1] + 1)
        at += run
    return (float(left), float(top), float(right - left), float(bottom - top)) if right > left else None


def mask_size(mask: dict[str, Any]) -> tuple[int, int] | None:
    """(width, height) of a mask as run lengths; None where it states none."""
    size = mask.get("size")
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        return None
    height, width = whole_number(size[0]), whole_number(size[1])
    return None if height is None or width is None or height <= 0 or width <= 0 else (width, height)


def _whole_numbers(values: Any) -> Sequence[int] | None:
    if not isinstance(values, (list, tuple)) or len(values) > MAX_RUNS:
        return None
    found = [whole_number(value) for value in values]
    return None if None in found else [value for value in found if value is not None]


def _decompressed(text: str) -> Sequence[int] | None:
    """The run lengths in COCO's compressed text: 5 bits a character; from the third on, differences."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60 or len(runs) > MAX_RUNS:
            return None
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if not shift else None
