"""Writes submissions in the organisers' formats, and reads each one back before it takes its place."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.errors import InputError, shown, unknown_name
from foldfuse.formats.box_forms import FORMS
from foldfuse.formats.box_rows import write_box_rows
from foldfuse.formats.coco_results import write_coco
from foldfuse.formats.image_keys import ImageIds
from foldfuse.formats.like import read_like, write_like
from foldfuse.formats.prediction_strings import CONTEST, HEADER, LAYOUTS, write_strings
from foldfuse.formats.predictions import read_predictions
from foldfuse.formats.sample_submission import SampleSubmission
from foldfuse.system.atomic_files import atomic
from foldfuse.system.files import read_text

ImageNames = Literal["file_name", "name", "stem", "id"]
FORMATS = ("contest_csv", "coco_json", "csv_boxes", *LAYOUTS)
ENDINGS = {".csv": "contest_csv", ".json": "coco_json"}  # formats by the ending of the file
STEP_PX = 1e-3  # of the coordinates in a submission; a box must have a size after rounding


def submission_format(path: Path, format: str | None) -> str:
    """The format of a submission: the given one, else the one of the file's ending.

    Raises:
        InputError: the format is unknown, or the ending stands for none.
    """
    chosen = ENDINGS.get(path.suffix.lower()) if format is None else format
    if chosen is None:
        raise InputError(f"{path}: a submission ends in {' or '.join(ENDINGS)}; choose one of these, or add --format.")
    if chosen not in FORMATS:
        raise unknown_name("submission format", chosen, FORMATS)
    if path.suffix.lower() in ENDINGS and (chosen == "coco_json") != (path.suffix.lower() == ".json"):
        raise InputError(
            f"{path}: ends in {path.suffix}, and {chosen} is {'JSON' if chosen == 'coco_json' else 'CSV'}."
        )
    return chosen


def image_texts(dataset: Dataset, names: ImageNames) -> list[str]:
    """What names each image of a dataset in a CSV. Raises InputError where two images would have one name."""
    if names not in get_args(ImageNames):
        raise unknown_name("name of images", names, get_args(ImageNames))
    texts = {
        "file_name": [s.file_name for s in dataset.samples],
        "name": [Path(s.file_name).name for s in dataset.samples],
        "stem": [Path(s.file_name).stem for s in dataset.samples],
        "id": [str(s.organiser_id) for s in dataset.samples],
    }[names]
    if len(set(texts)) < len(texts):
        twice = next(text for i, text in enumerate(texts) if text in texts[:i])
        raise InputError(f"{dataset.source}: two images have the {names} {shown(twice)}. Name them in another way.")
    return texts


def reading_of(names: ImageNames) -> ImageIds:
    """How a file is read that names images so."""
    return "id" if names == "id" else "name"


def write_submission(
    predictions: Predictions,
    dataset: Dataset,
    path: Path | str,
    format: str | None = None,
    *,
    max_detections: int | None = None,
    like: SampleSubmission | None = None,
    image_names: ImageNames = "file_name",
) -> Path:
    """Write a submission for all images of `dataset`. Boxes are clipped to their images; boxes of no size are left out.

    Low scores are kept: a metric that ranks boxes gains from them. The file takes its place only after it reads back with the
    same boxes.

    Args:
        predictions: of all images of `dataset`.
        dataset: the test images.
        path: the file.
        format: one of FORMATS; by default the ending of `path` decides. Not used with `like`.
        max_detections: keep so many boxes of each image, those with the highest scores.
        like: the contest's sample, which decides everything about the file.
        image_names: what names an image in a CSV. Not used with `like`.

    Raises:
        InputError: the format is unknown, or an image was not predicted.
    """
    path = Path(path)
    chosen = None if like is not None else submission_format(path, format)
    if max_detections is not None and max_detections < 1:
        raise InputError(f"max_detections is {max_detections}, and must be 1 or more.")
    ready = _clip(predictions.select_images(dataset.image_ids), dataset)
    if max_detections is not None:
        ready = _best(ready, max_detections)
    with atomic(path) as temporary:
        if like is not None:
            write_like(ready, like, temporary, dataset)
            read_back = read_like(temporary, like, dataset).select_images(ready.image_ids)
        else:
            assert chosen is not None, "a format is chosen where there is no sample"
            read_back = _write(ready, temporary, dataset, chosen, image_names)
        _check_same(read_back, ready, path)
    return path


def _write(ready: Predictions, path: Path, dataset: Dataset, format: str, image_names: ImageNames) -> Predictions:
    """Write a submission without a sample, and return it as it reads back."""
    if format == "coco_json":
        write_coco(ready, path, dataset)
    elif format == "csv_boxes":
        write_box_rows(ready, path, dataset, form=FORMS["xyxy"], names=image_texts(dataset, image_names))
    else:
        layout = CONTEST if format == "contest_csv" else LAYOUTS[format]
        write_strings(ready, path, dataset, layout=layout, names=image_texts(dataset, image_names))
    if format == "contest_csv" and image_names == "file_name":
        return validate_submission(path, dataset)
    by_strings = format not in ("coco_json", "csv_boxes")
    return read_predictions(
        path,
        dataset,
        format=CONTEST.name if format == "contest_csv" else format,
        image_ids="id" if format == "coco_json" or image_names == "id" else "name",
        category_ids="id" if format == "coco_json" else "from_zero" if by_strings else "name",
    )


def _check_same(read_back: Predictions, ready: Predictions, path: Path) -> None:
    """Asserts that a submission reads back with the boxes that were written, in any order within an image."""
    assert read_back.offsets.tolist() == ready.offsets.tolist(), f"{path}: reads back with other boxes than written"
    there, here = (np.lexsort((p.boxes[:, 0], p.labels, -p.scores, p.image_index)) for p in (read_back, ready))
    assert np.array_equal(read_back.scores[there], ready.scores[here].astype(np.float32)) or np.allclose(
        read_back.scores[there], ready.scores[here], rtol=1e-6, atol=0
    ), f"{path}: scores read back other than written"
    assert sorted(read_back.labels.tolist()) == sorted(ready.labels.tolist()), (
        f"{path}: reads back with other labels than written"
    )
    written, wanted = (np.sort(p.boxes.astype(np.float64), axis=0) for p in (read_back, ready))
    assert np.allclose(written, wanted, atol=3 * STEP_PX), f"{path}: boxes read back other than written"


def validate_submission(
    path: Path, dataset: Dataset, format: Literal["contest_csv", "coco_json"] = "contest_csv"
) -> Predictions:
    """The predictions in a submission for `dataset`.

    A CSV must have the contest's header, and one row for every image under its file_name; an image without boxes has an empty
    string there.

    Raises:
        InputError: the file is no submission for `dataset`; the sentence names the row.
    """
    if format == "coco_json":
        return read_predictions(path, dataset, format="coco_json", image_ids="id", category_ids="id")
    read_back = read_predictions(path, dataset, format=CONTEST.name, image_ids="name", category_ids="from_zero")
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
            raise InputError(f"{path}: line {number}: image_id {shown(name)} is no file_name of {dataset.source}.")
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
