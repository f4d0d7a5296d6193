"""Boxes as a file of predictions lists them, in any order, before they are known to be good; and what makes them so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Array, Predictions
from foldfuse.errors import InputError

OVERSHOOT = 1e-6  # a mean of scores may come out above 1 by rounding; it is taken as 1


@dataclass(frozen=True, eq=False)
class Rows:
    """Boxes in the order of a file.

    Attributes:
        image_ids: (n,) int64, all of the dataset.
        boxes: (n, 4) float64, xyxy in pixels of the original image.
        scores: (n,) float64.
        labels: (n,) int64.
        looked: ids of the pictures that the file speaks of, also the empty ones.
        where: the place in the file of box i, for messages.
    """

    image_ids: Array
    boxes: Array
    scores: Array
    labels: Array
    looked: Sequence[int]
    where: Callable[[int], str]


def grouped(rows: Rows, dataset: Dataset) -> Predictions:
    """The rows as Predictions of the pictures looked at, in the order of `dataset`.

    Raises:
        InputError: a score, a box or a label cannot be; the first one is named.
    """
    check(rows.boxes, rows.scores, rows.labels, dataset, rows.where)
    looked = set(rows.looked)
    image_ids = np.array([i for i in dataset.image_ids if i in looked], np.int64)
    by_id = np.argsort(image_ids)
    place = by_id[np.searchsorted(image_ids, rows.image_ids, sorter=by_id)]  # of each row's picture in image_ids
    order = np.argsort(place, kind="stable")
    return Predictions(
        image_ids=image_ids,
        offsets=np.concatenate([[0], np.cumsum(np.bincount(place, minlength=len(image_ids)))]).astype(np.int64),
        boxes=rows.boxes[order].astype(np.float32),
        scores=np.minimum(rows.scores[order], 1).astype(np.float32),
        labels=rows.labels[order].astype(np.int64),
        classes=dataset.classes,
    )


def check(boxes: Array, scores: Array, labels: Array, dataset: Dataset, where: Callable[[int], str]) -> None:
    """Nothing, if all of it can be. Raises InputError that names the first box that cannot."""

    def first(bad: Any, found: Callable[[int], str], expected: str) -> None:
        if bad.any():
            i = int(np.argmax(bad))
            raise InputError(f"{where(i)} has {found(i)}, expected {expected}.")

    last = len(dataset.classes) - 1
    first(~((scores >= 0) & (scores <= 1 + OVERSHOOT)), lambda i: f"the score {scores[i]:g}", "a number in 0..1")
    first(~np.isfinite(boxes).all(1), lambda i: f"the corners {corners(boxes[i])}", "finite numbers")
    first(
        (boxes[:, 2:] < boxes[:, :2]).any(1),
        lambda i: f"the corners {corners(boxes[i])} (xmin, ymin, xmax, ymax)",
        "xmin <= xmax and ymin <= ymax",
    )
    first((labels < 0) | (labels > last), lambda i: f"the label {labels[i]}", f"0..{last}, a position in the classes")


def corners(box: Array) -> str:
    """The four numbers as a reader wants them."""
    return " ".join(f"{v:g}" for v in box)


def names_of(dataset: Dataset) -> dict[str, int]:
    """{what a file may call a picture: image id}: its file_name; where unique, also the bare name, the stem and the id."""
    names: dict[str, set[int]] = {}
    for sample in dataset.samples:
        path = Path(sample.file_name)
        for name in (path.with_suffix("").as_posix(), path.name, path.stem, str(sample.id)):
            names.setdefault(name, set()).add(sample.id)
    unique = {name: next(iter(ids)) for name, ids in names.items() if len(ids) == 1}
    return unique | {sample.file_name: sample.id for sample in dataset.samples}


def sides_of(image_ids: Array, dataset: Dataset) -> Array:
    """(n,) image ids -> (n, 2) float64, width and height of each one's picture."""
    size_of = {s.id: (s.width, s.height) for s in dataset.samples}
    return np.array([size_of[i] for i in image_ids.tolist()], np.float64).reshape(-1, 2)


def unknown_image(where: str, name: Any, dataset: Dataset) -> InputError:
    """An InputError for a picture that the dataset does not have, or that more than one may be."""
    return InputError(
        f"{where}: {name!r} names no picture of {dataset.source}, or more than one. It calls them such as "
        f"{dataset.samples[0].file_name!r}; give the data that was predicted."
    )
