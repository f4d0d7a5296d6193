"""Predictions as COCO results JSON: a list of image_id, category_id, bbox and score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from foldfuse.boxes import xywh_to_xyxy, xyxy_to_xywh
from foldfuse.data.dataset import Dataset
from foldfuse.detections import Array, Predictions
from foldfuse.errors import InputError, kind_of, shown
from foldfuse.formats.box_table import BoxTable, image_names, unknown_image
from foldfuse.system.atomic_files import write_text
from foldfuse.system.files import read_json


def write_coco(predictions: Predictions, path: Path, dataset: Dataset) -> None:
    """Write COCO results JSON: a list of {image_id, category_id, bbox, score}, in the organiser's ids."""
    category = np.array(dataset.category_ids, np.int64)[predictions.labels].tolist()
    image = predictions.image_ids[predictions.image_index].tolist()
    boxes = np.round(xyxy_to_xywh(predictions.boxes.astype(np.float64)), 3).tolist()
    scores = np.round(predictions.scores.astype(np.float64), 6).tolist()
    rows = [
        {"image_id": i, "category_id": c, "bbox": b, "score": s}
        for i, c, b, s in zip(image, category, boxes, scores, strict=True)
    ]
    write_text(path, json.dumps(rows))


def read_coco(path: Path, dataset: Dataset) -> BoxTable:
    """The boxes of a COCO results file; an image of `dataset` without a row counts as predicted, without boxes.

    Raises:
        InputError: the file is no such list, or a row is incomplete or of no known image or category.
    """
    rows = read_json(path, what="COCO results JSON")
    if not isinstance(rows, list):
        raise InputError(f"{path}: holds {kind_of(rows)}, expected COCO results: a list of objects.")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not {"image_id", "category_id", "bbox", "score"} <= row.keys():
            raise InputError(
                f"{path}: row {number} is {shown(row)}, expected an object with image_id, category_id, "
                "bbox [left, top, width, height] and score."
            )
    id_of: dict[Any, int] = {
        **image_names(dataset),
        **{str(i): i for i in dataset.image_ids},
        **{i: i for i in dataset.image_ids},
    }
    label_of = {category_id: label for label, category_id in enumerate(dataset.category_ids)}
    image_ids = _look_up(path, rows, "image_id", id_of, dataset)
    labels = _look_up(path, rows, "category_id", label_of | {str(i): k for i, k in label_of.items()}, dataset)
    boxes = _floats(path, rows, "bbox", (4,))
    scores = _floats(path, rows, "score", ())
    with np.errstate(invalid="ignore"):  # to_predictions refuses infinite numbers, and names the row
        xyxy = xywh_to_xyxy(boxes)
    return BoxTable(image_ids, xyxy, scores, labels, dataset.image_ids, lambda i: f"{path}: row {i}")


def _look_up(path: Path, rows: list[dict[str, Any]], key: str, known: dict[Any, int], dataset: Dataset) -> Array:
    """(n,) int64: the value in `known` of each row[key]."""
    try:
        return np.array([known[row[key]] for row in rows], np.int64)
    except (KeyError, TypeError):  # TypeError: a list cannot be looked up
        number, value = next(
            (i, row[key]) for i, row in enumerate(rows) if isinstance(row[key], (list, dict)) or row[key] not in known
        )
        where = f"{path}: row {number}"
        if key == "image_id":
            raise unknown_image(where, value, dataset) from None
        raise InputError(
            f"{where}: category_id {value!r} is not in {dataset.source} (known: {', '.join(map(str, dataset.category_ids))})."
        ) from None


def _floats(path: Path, rows: list[dict[str, Any]], key: str, shape: tuple[int, ...]) -> Array:
    """(n, *shape) float64 of each row[key]."""

    def numbers(value: Any) -> Array | None:
        try:
            array = np.array(value)
        except ValueError:  # lists of unequal lengths
            return None
        return array.astype(np.float64) if array.dtype.kind in "iuf" else None

    whole = numbers([row[key] for row in rows]) if rows else np.zeros((0, *shape))
    if whole is not None and whole.shape == (len(rows), *shape):
        return whole
    bad = next(i for i, row in enumerate(rows) if (one := numbers(row[key])) is None or one.shape != shape)
    expected = "[left, top, width, height]" if shape else "a number"
    raise InputError(f"{path}: row {bad}: {key!r} is {json.dumps(rows[bad][key])[:80]}, expected {expected}.")
