"""Boxes as tables, as COCO results, and for pandas and supervision, which are imported only when they are used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from foldfuse.boxes import Array, xyxy_to_xywh
from foldfuse.display import MAX_ROWS, short, table_html
from foldfuse.errors import InputError, shown


def to_frame(columns: Mapping[str, Any]) -> Any:
    """A pandas DataFrame of some columns. Raises InputError where pandas is not installed."""
    return _package("pandas").DataFrame(dict(columns))


def to_supervision(boxes: Array, scores: Array, labels: Array, names: Sequence[str]) -> Any:
    """A `supervision.Detections` of one image: xyxy, confidence, class_id and data["class_name"].

    Args:
        boxes: (n, 4) xyxy in pixels.
        scores: (n,) in [0, 1].
        labels: (n,) int.
        names: the class name of each of the n boxes.

    Raises:
        InputError: supervision is not installed.
    """
    return _package("supervision").Detections(
        xyxy=boxes.astype(np.float32),
        confidence=scores.astype(np.float32),
        class_id=labels.astype(int),
        data={"class_name": np.array(names, dtype=str)},
    )


def of_supervision(detections: Any, classes: Sequence[str]) -> tuple[Array, Array, Array, tuple[str, ...]]:
    """(boxes, scores, labels, class names) of a `supervision.Detections`.

    Args:
        detections: of one image; boxes without a confidence get the score 1, boxes without a class the label 0.
        classes: the class names by label; without them the names in data["class_name"], each with its class_id, are taken.

    Raises:
        InputError: a class_id is negative, or is no position in `classes`.
    """
    boxes = np.asarray(detections.xyxy, np.float32).reshape(-1, 4)
    n = len(boxes)
    scores = np.ones(n, np.float32) if detections.confidence is None else np.asarray(detections.confidence, np.float32)
    labels = np.zeros(n, np.int64) if detections.class_id is None else np.asarray(detections.class_id, np.int64)
    names = (getattr(detections, "data", None) or {}).get("class_name")
    if not classes and names is not None and n and labels.min() >= 0:
        known = {int(label): str(name) for label, name in zip(labels, names, strict=True)}
        classes = [known.get(label, f"class {label}") for label in range(int(labels.max()) + 1)]
    if n and (labels.min() < 0 or (classes and labels.max() >= len(classes))):
        bad = labels.min() if labels.min() < 0 else labels.max()
        raise InputError(f"a box has the class_id {bad}, expected a position in the {len(classes)} classes, from 0.")
    return boxes, scores, labels, tuple(classes)


def counts_by_class(labels: Array, classes: Sequence[str], *, most: int = 5) -> str:
    """How many labels are of each class, the most frequent first, as "2 Metal, 1 Paper"; at most `most` classes are named."""
    found, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    named = [f"{counts[i]:,} {class_name(classes, int(found[i]))}" for i in order[:most]]
    rest = len(found) - len(named)
    return ", ".join(named) + (
        f", {counts[order[most:]].sum():,} of {rest} other class{'' if rest == 1 else 'es'}" if rest > 0 else ""
    )


def class_name(classes: Sequence[str], label: int) -> str:
    """The name of a class on one short line; its number where it has no name."""
    return short(classes[label], 40) if 0 <= label < len(classes) else f"class {label}"


def columns(boxes: Array, scores: Array, labels: Array, classes: Sequence[str]) -> dict[str, Any]:
    """The columns of a table of boxes."""
    names = [classes[label] if 0 <= label < len(classes) else f"class {label}" for label in labels.tolist()]
    corners = {name: boxes[:, i] for i, name in enumerate(("x1", "y1", "x2", "y2"))}
    return {"class": names, "label": labels, "score": scores, **corners}


def counts_html(labels: Array, classes: Sequence[str]) -> str:
    """A table of how many labels are of each class, the most frequent first; "" without a label."""
    found, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MAX_ROWS]
    rows = [(class_name(classes, int(found[i])), int(counts[i])) for i in order]
    return table_html(["class", "boxes"], rows, more=len(found) - len(rows)) if rows else ""


def boxes_html(
    boxes: Array,
    scores: Array,
    labels: Array,
    classes: Sequence[str],
    *,
    most: int = MAX_ROWS,
    images: Callable[[int], str] | None = None,
) -> str:
    """A table of the boxes with the highest scores, corners as whole pixels.

    Args:
        boxes, scores, labels: of all boxes.
        classes: class names by label.
        most: at most so many boxes are shown.
        images: the name of the image of a box, by its position; by default there is no such column.
    """
    best = np.argsort(-scores, kind="stable")[:most].tolist()
    rows: list[list[object]] = []
    for i in best:
        name = [] if images is None else [images(i)]
        corners = (round(float(v)) for v in boxes[i])
        rows.append([*name, class_name(classes, int(labels[i])), float(scores[i]), *corners])
    heads = [*(() if images is None else ("image",)), "class", "score", "x1", "y1", "x2", "y2"]
    return table_html(heads, rows, more=len(boxes) - len(best))


def coco_rows(
    image_ids: Sequence[int | str], boxes: Array, scores: Array, labels: Array, category_ids: Sequence[int | str]
) -> list[dict[str, Any]]:
    """COCO results: a dict of image_id, category_id, bbox [left, top, width, height] and score for each box.

    Without category ids, labels count from 1.
    """
    xywh = np.round(xyxy_to_xywh(boxes.astype(np.float64)), 3).tolist()
    narrow = scores.astype(np.float32)  # of a network's scores: the shortest decimal of a float32
    shortest = [float(str(v)) for v in narrow] if np.array_equal(narrow, scores) else scores.tolist()
    categories = [category_ids[k] if len(category_ids) else k + 1 for k in labels.tolist()]
    return [
        {"image_id": image, "category_id": category, "bbox": box, "score": score}
        for image, category, box, score in zip(image_ids, categories, xywh, shortest, strict=True)
    ]


def _package(name: str) -> Any:
    """An optional package. Raises InputError with how to install it where it is absent."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise InputError(f"{name} cannot be imported: {shown(str(error))}.") from None
        raise InputError(f"this needs {name}, which is not installed. Install it with: pip install {name}") from None
