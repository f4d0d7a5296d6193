"""The data of the browser page: names as text, boxes as compact columns of numbers in base64."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from foldfuse.boxes import Array
from foldfuse.data.dataset import Dataset
from foldfuse.detections import Annotations, Predictions
from foldfuse.evaluation.diagnosis import best_threshold
from foldfuse.evaluation.matching import MATCH_IOU, ground_truth, match_predictions

_WHOLE = ("u1", "u2", "u4")  # types of whole numbers, the smallest first
Column = dict[str, str]


def page_data(dataset: Dataset, layers: Mapping[str, Predictions], *, title: str) -> dict[str, Any]:
    """All that the page shows besides pixels, as plain values that JSON holds.

    Args:
        dataset: the images; an image without annotations has `annotations` None.
        layers: {name: predictions of some images of `dataset`}.
        title: the heading of the page.
    """
    samples = dataset.samples
    has_annotations = any(s.annotations is not None for s in samples)
    return {
        "title": title,
        "classes": list(dataset.classes),
        "names": [s.file_name for s in samples],
        "widths": column(np.array([s.width for s in samples])),
        "heights": column(np.array([s.height for s in samples])),
        "annotations": _annotation_columns(dataset) if has_annotations else None,
        "layers": [_layer(name, predictions, dataset) for name, predictions in layers.items()],
    }


def column(values: Array) -> Column:
    """Numbers in the smallest type that holds each of them exactly, little-endian, in base64."""
    flat = np.asarray(values, np.float64).ravel()
    kind = next((t for t in (*_WHOLE, "f4") if _is_exact(flat, t)), "f8")
    return {"type": kind, "data": base64.b64encode(flat.astype(f"<{kind}").tobytes()).decode("ascii")}


def _is_exact(values: Array, kind: str) -> bool:
    if kind in _WHOLE and len(values) and not (values.min() >= 0 and values.max() <= np.iinfo(kind).max):
        return False
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(kind).astype(np.float64), values))


def _annotation_columns(dataset: Dataset) -> dict[str, Column]:
    """The annotations in the order of the images; crowd regions come last in their image, as scoring has it."""
    parts = [s.annotations or Annotations.empty() for s in dataset.samples]
    parts = [part[np.argsort(part.crowd, kind="stable")] for part in parts]
    return {
        "known": column(np.array([s.annotations is not None for s in dataset.samples])),
        "counts": column(np.array([len(part) for part in parts])),
        "boxes": column(np.concatenate([part.boxes for part in parts])),
        "labels": column(np.concatenate([part.labels for part in parts])),
        "crowd": column(np.concatenate([part.crowd for part in parts])),
    }


def _layer(name: str, predictions: Predictions, dataset: Dataset) -> dict[str, Any]:
    """One set of predictions in the order of the images, the boxes of an image by falling score."""
    known = np.array([s.id in predictions for s in dataset.samples], bool)
    found = predictions.select_images([s.id for s in dataset.samples if s.id in predictions])
    order = np.lexsort((-found.scores, found.image_index))
    counts = np.zeros(len(dataset), np.int64)
    counts[known] = np.diff(found.offsets)
    return {
        "name": name,
        "best": _best_threshold(found, dataset),
        "known": column(known),
        "counts": column(counts),
        "boxes": column(found.boxes[order]),
        "scores": column(found.scores[order]),
        "labels": column(found.labels[order]),
    }


def _best_threshold(predictions: Predictions, dataset: Dataset) -> float | None:
    """The score threshold with the best F1 at IoU 0.5; None where no predicted image has an object, or nothing is found."""
    judged = dataset.subset([s.id for s in dataset.samples if s.annotations is not None and s.id in predictions])
    if not any((~s.annotations.crowd).any() for s in judged.samples if s.annotations is not None):
        return None
    matches = match_predictions(predictions.select_images(judged.image_ids), ground_truth(judged), ious=(MATCH_IOU,))
    best = best_threshold(matches)
    return best.score if best.f1 else None
