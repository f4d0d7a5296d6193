"""Writes submissions in the organisers' formats, and reads each one back before it takes its place."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.errors import InputError, shown, unknown_name
from foldfuse.formats.coco_results import write_coco
from foldfuse.formats.prediction_strings import CONTEST, HEADER, write_strings
from foldfuse.formats.predictions import read_predictions
from foldfuse.system.atomic_files import atomic
from foldfuse.system.files import read_text

SubmissionFormat = Literal["contest_csv", "coco_json"]
WRITERS = {"contest_csv": write_strings, "coco_json": write_coco}
STEP_PX = 1e-3  # of the coordinates in a submission; a box must have a size after rounding


def write_submission(
    predictions: Predictions,
    dataset: Dataset,
    path: Path,
    format: SubmissionFormat,
    *,
    max_detections: int | None = None,
) -> Path:
    """Write a submission for all images of `dataset`. Boxes are clipped to their images; boxes of no size are left out.

    Low scores are kept: a metric that ranks boxes gains from them. The file takes its place only after it reads back with the
    same boxes.

    Raises:
        InputError: the format is unknown, or an image was not predicted.
    """
    if format not in WRITERS:
        raise unknown_name("submission format", format, WRITERS)
    if max_detections is not None and max_detections < 1:
        raise InputError(f"max_detections is {max_detections}, and must be 1 or more.")
    ready = _clip(predictions.select_images(dataset.image_ids), dataset)
    if max_detections is not None:
        ready = _best(ready, max_detections)
    with atomic(path) as temporary:
        WRITERS[format](ready, temporary, dataset)
        read_back = validate_submission(temporary, dataset, format)
        assert read_back.offsets.tolist() == ready.offsets.tolist(), f"{path}: reads back with other boxes than written"
        assert np.array_equal(read_back.labels, ready.labels), f"{path}: reads back with other labels than written"
        assert np.allclose(read_back.boxes, ready.boxes, atol=2 * STEP_PX), (
            f"{path}: boxes read back other than written"
        )
        assert np.allclose(read_back.scores, ready.scores, atol=2e-6), f"{path}: scores read back other than written"
    return path


def validate_submission(path: Path, dataset: Dataset, format: SubmissionFormat = "contest_csv") -> Predictions:
    """The predictions in a submission for `dataset`.

    A CSV must have the contest's header, and one row for every image under its file_name; an image without boxes has an empty
    string there.

    Raises:
        InputError: the file is no submission for `dataset`; the sentence names the row.
    """
    if format == "coco_json":
        return read_predictions(path, dataset, format="coco_json")
    read_back = read_predictions(path, dataset, format=CONTEST.name)
    header, *rows = csv.reader(io.StringIO(read_text(path, what="a submission"), newline=""))
    if tuple(header) != HEADER:
        raise InputError(f"{path}: line 1 is {','.join(header)!r}, expected {','.join(HEADER)!r}.")
    file_names = {sample.file_name for sample in dataset.samples}
    for number, (string, name) in enumerate(rows, 2):
        if string and not string[0].isdigit():
            raise InputError(
                f"{path}: line {number}: holds {shown(string)}, expected the words of boxes or an empty string."
            )
        if name not in file_names:
            raise InputError(f"{path}: line {number}: image_id {name!r} is no file_name of {dataset.source}.")
    if len(read_back) != len(dataset):
        lacking = next(s.file_name for s in dataset.samples if s.id not in read_back)
        raise InputError(
            f"{path}: has {len(read_back)} rows, expected {len(dataset)}, one for every image of {dataset.source}; "
            f"{lacking} has none. An image without boxes needs a row, too, with an empty string."
        )
    return read_back


def _clip(predictions: Predictions, dataset: Dataset) -> Predictions:
    """Boxes clipped to their images, without boxes that have no size in the digits of a submission."""
    sizes = np.array([[s.width, s.height] for s in dataset.samples], np.float32)[predictions.image_index]
    clipped = replace(predictions, boxes=np.clip(predictions.boxes, 0, np.tile(sizes, 2)))
    return clipped.filter(np.min(clipped.boxes[:, 2:] - clipped.boxes[:, :2], axis=1) >= 2 * STEP_PX)


def _best(predictions: Predictions, num: int) -> Predictions:
    """The `num` boxes of each image with the highest scores, in their order."""
    order = np.lexsort((-predictions.scores, predictions.image_index))  # to_predictions by image, best first
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - predictions.offsets[predictions.image_index[order]]
    return predictions.filter(rank < num)
