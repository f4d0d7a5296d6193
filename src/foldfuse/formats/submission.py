"""Submissions: the files that organisers take, written whole and read back before they are left in place."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.errors import InputError, unknown_name
from foldfuse.formats.coco_results import write_coco
from foldfuse.formats.prediction_strings import CONTEST, HEADER, write_strings
from foldfuse.formats.predictions import read_predictions
from foldfuse.system.atomic_files import atomic

Format = Literal["contest_csv", "coco_json"]
WRITERS = {"contest_csv": write_strings, "coco_json": write_coco}
STEP_PX = 1e-3  # of the coordinates in a submission; a box must keep a size after rounding


def write_submission(
    predictions: Predictions, dataset: Dataset, path: Path, format: Format, *, max_boxes: int | None = None
) -> Path:
    """Write a submission for all pictures of `dataset`; boxes are cut to their pictures, and those of no size left out.

    Low scores are kept: a metric that ranks boxes gains from them. The file takes its place only after it was read back
    and found to say the same.

    Raises:
        InputError: there is no such format, or a picture was not predicted.
    """
    if format not in WRITERS:
        raise unknown_name("submission format", format, WRITERS)
    if max_boxes is not None and max_boxes < 1:
        raise InputError(f"max_boxes is {max_boxes}, and must be 1 or more.")
    ready = _cut(predictions.select_images(dataset.image_ids), dataset)
    if max_boxes is not None:
        ready = _best(ready, max_boxes)
    with atomic(path) as temporary:
        WRITERS[format](ready, temporary, dataset)
        found = validate_submission(temporary, dataset, format)
        assert found.offsets.tolist() == ready.offsets.tolist(), f"{path}: reads back with other boxes than written"
        assert np.array_equal(found.labels, ready.labels), f"{path}: reads back with other labels than written"
        assert np.allclose(found.boxes, ready.boxes, atol=2 * STEP_PX), f"{path}: boxes read back other than written"
        assert np.allclose(found.scores, ready.scores, atol=2e-6), f"{path}: scores read back other than written"
    return path


def validate_submission(path: Path, dataset: Dataset, format: Format = "contest_csv") -> Predictions:
    """What a submission says, if it is one for `dataset`.

    Every row must make sense. A CSV must have the contest's header, and one row for every picture under its file_name;
    a picture on which nothing was found has an empty string there, and is read back as empty.

    Raises:
        InputError: it is not; the row is named.
    """
    if format == "coco_json":
        return read_predictions(path, dataset, format="coco_json")
    found = read_predictions(path, dataset, format=CONTEST.name)
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    if tuple(header) != HEADER:
        raise InputError(f"{path}: line 1 is {','.join(header)!r}, expected {','.join(HEADER)!r}.")
    file_names = {sample.file_name for sample in dataset.samples}
    for number, (_, name) in enumerate(rows, 2):
        if name not in file_names:
            raise InputError(f"{path}: line {number}: image_id {name!r} is no file_name of {dataset.source}.")
    if len(found) != len(dataset):
        lacking = next(s.file_name for s in dataset.samples if s.id not in found)
        raise InputError(
            f"{path}: has {len(found)} rows, expected {len(dataset)}, one for every picture of {dataset.source}; "
            f"{lacking} has none. A picture on which nothing was found needs a row, too, with an empty string."
        )
    return found


def _cut(predictions: Predictions, dataset: Dataset) -> Predictions:
    """Boxes cut to their pictures, without those that have no size in the digits of a submission."""
    sides = np.array([[s.width, s.height] for s in dataset.samples], np.float32)[predictions.image_index]
    cut = replace(predictions, boxes=np.clip(predictions.boxes, 0, np.tile(sides, 2)))
    return cut.filter(np.min(cut.boxes[:, 2:] - cut.boxes[:, :2], axis=1) >= 2 * STEP_PX)


def _best(predictions: Predictions, num: int) -> Predictions:
    """Of each picture the `num` boxes with the highest scores, in the order they had."""
    order = np.lexsort((-predictions.scores, predictions.image_index))  # grouped by picture, best first
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - predictions.offsets[predictions.image_index[order]]
    return predictions.filter(rank < num)
