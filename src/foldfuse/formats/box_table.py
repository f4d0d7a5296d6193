"""The table of boxes that a reader of a prediction file returns, and the checks that turn it into Predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Array, Predictions
from foldfuse.errors import InputError

OVERSHOOT = 1e-6  # a mean of scores may come out above 1 by rounding; a score this far above 1 becomes 1


@dataclass(frozen=True, eq=False)
class BoxTable:
    """Boxes in the order of a file, not checked.

    Attributes:
        image_ids: (n,) int64, all of the dataset.
        boxes: (n, 4) float64, xyxy in pixels of the original image.
        scores: (n,) float64.
        labels: (n,) int64.
        predicted: ids of the predicted images, including images without boxes.
        where: names the place of box i in the file, for messages.
        how: how images and classes were read, in words.
        notes: sentences for the user on what may be wrong.
        alternatives: {option: makes the boxes as they would be with it} of the other readings that are possible for the file.
    """

    image_ids: Array
    boxes: Array
    scores: Array
    labels: Array
    predicted: Sequence[int]
    where: Callable[[int], str]
    how: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    alternatives: Mapping[str, Callable[[], BoxTable]] = field(default_factory=dict)


def to_predictions(table: BoxTable, dataset: Dataset) -> Predictions:
    """Predictions from a table, in the order of `dataset`.

    Raises:
        InputError: a score, a box or a label is out of its range; the sentence names the first one.
    """
    check_boxes(table.boxes, table.scores, table.labels, dataset, table.where)
    predicted = set(table.predicted)
    image_ids = np.array([i for i in dataset.image_ids if i in predicted], np.int64)
    by_id = np.argsort(image_ids)
    place = by_id[np.searchsorted(image_ids, table.image_ids, sorter=by_id)]  # of each row's image in image_ids
    order = np.argsort(place, kind="stable")
    return Predictions(
        image_ids=image_ids,
        offsets=np.concatenate([[0], np.cumsum(np.bincount(place, minlength=len(image_ids)))]).astype(np.int64),
        boxes=table.boxes[order].astype(np.float64),
        scores=np.minimum(table.scores[order], 1),
        labels=table.labels[order].astype(np.int64),
        classes=dataset.classes,
    )


def check_boxes(boxes: Array, scores: Array, labels: Array, dataset: Dataset, where: Callable[[int], str]) -> None:
    """Raise InputError that names the first box with a score, corners or a label out of range."""

    def refuse(bad: Any, found: Callable[[int], str], expected: str) -> None:
        if bad.any():
            i = int(np.argmax(bad))
            raise InputError(f"{where(i)} has {found(i)}, expected {expected}.")

    last = len(dataset.classes) - 1
    percent = "; divide percentages by 100" if 2 < scores[np.isfinite(scores)].max(initial=0) <= 100 else ""
    refuse(
        ~((scores >= 0) & (scores <= 1 + OVERSHOOT)), lambda i: f"the score {scores[i]:g}", f"a number in 0..1{percent}"
    )
    refuse(~np.isfinite(boxes).all(1), lambda i: f"the corners {_corners(boxes[i])}", "finite numbers")
    refuse(
        (boxes[:, 2:] < boxes[:, :2]).any(1),
        lambda i: f"the corners {_corners(boxes[i])} (xmin, ymin, xmax, ymax)",
        "xmin <= xmax and ymin <= ymax",
    )
    refuse((labels < 0) | (labels > last), lambda i: f"the label {labels[i]}", f"0..{last}, a position in the classes")


def _corners(box: Array) -> str:
    """The four numbers of a box, for messages."""
    return " ".join(f"{v:g}" for v in box)


def image_sizes(image_ids: Array, dataset: Dataset) -> Array:
    """(n,) image ids -> (n, 2) float64, the image's width and height."""
    size_of = {s.id: (s.width, s.height) for s in dataset.samples}
    return np.array([size_of[i] for i in image_ids.tolist()], np.float64).reshape(-1, 2)
