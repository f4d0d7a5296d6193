"""Submissions: the files that organisers take, written whole and read back before they are left in place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from foldfuse.data import Dataset, read
from foldfuse.detections import Predictions
from foldfuse.errors import InputError, unknown_name
from foldfuse.files import atomic
from foldfuse.formats import read_predictions, write_coco, write_csv

Format = Literal["contest_csv", "coco_json"]
WRITERS = {"contest_csv": write_csv, "coco_json": write_coco}


def submit(
    predictions: Path,
    data: Path,
    out: Path,
    *,
    format: Format = "contest_csv",
) -> Path:
    """Write a submission from predictions, and read it back; its path comes back.

    Args:
        predictions: Parquet, COCO results JSON or CSV, of the pictures of `data`.
        data: COCO JSON of the pictures that the organiser wants predicted; annotations are not read.
        out: file to write.
        format: contest_csv (`PredictionString,image_id`) or coco_json (COCO results).

    Raises:
        InputError: a file cannot be used, or a picture of `data` has no row in the predictions.
    """
    dataset = read(data, annotated=False)
    return write_submission(read_predictions(predictions, dataset), dataset, out, format)


def write_submission(predictions: Predictions, dataset: Dataset, path: Path, format: Format) -> Path:
    """Write a submission for all pictures of `dataset`; boxes are cut to their pictures, and those of no size left out.

    The file takes its place only after it was read back and found to say the same.

    Raises:
        InputError: there is no such format, or a picture was not predicted.
    """
    if format not in WRITERS:
        raise unknown_name("submission format", format, WRITERS)
    ready = _cut(predictions.of_images(dataset.image_ids), dataset)
    with atomic(path) as temporary:
        WRITERS[format](ready, temporary, dataset)
        validate_submission(temporary, dataset, expected=ready)
    return path


def validate_submission(path: Path, dataset: Dataset, *, expected: Predictions | None = None) -> Predictions:
    """What a submission says, if it is one for `dataset`: every row makes sense, and a CSV has one for every picture.

    Args:
        path: CSV or COCO results JSON.
        dataset: the pictures that the organiser wants predicted.
        expected: what it should say, to the file's precision.

    Raises:
        InputError: it is not; the row is named.
    """
    found = read_predictions(path, dataset)
    if path.suffix == ".csv":
        with path.open(encoding="utf-8") as lines:
            rows = sum(1 for _ in lines) - 1
        if rows != len(dataset):
            raise InputError(
                f"{path}: has {rows} rows, expected {len(dataset)}: one for every picture of {dataset.source}."
            )
    if expected is not None:
        same = found.offsets.tolist() == expected.offsets.tolist() and np.array_equal(found.labels, expected.labels)
        assert same, f"{path}: reads back other than it was written"
        assert np.allclose(found.boxes, expected.boxes, atol=2e-3), f"{path}: boxes read back other than written"
        assert np.allclose(found.scores, expected.scores, atol=1e-6), f"{path}: scores read back other than written"
    return found


def _cut(predictions: Predictions, dataset: Dataset) -> Predictions:
    sides = np.array([[s.width, s.height] for s in dataset.samples], np.float32)[predictions.image_index]
    boxes = np.clip(predictions.boxes, 0, np.tile(sides, 2))
    cut = replace(predictions, boxes=boxes)
    return cut.where((cut.boxes[:, 2] > cut.boxes[:, 0]) & (cut.boxes[:, 3] > cut.boxes[:, 1]))
