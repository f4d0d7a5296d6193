"""Reads and writes prediction files. The content decides the format of a file that is read, unless the caller names it.

Parquet (Foldfuse's own) is complete: a row for each predicted image, images without boxes too, and the class names.
COCO results JSON and YOLO folders may leave out images without boxes, so an image of the dataset that they lack counts as
predicted, without boxes. A CSV of prediction strings has a row for each image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.errors import InputError, unknown_name
from foldfuse.formats.box_table import to_predictions
from foldfuse.formats.coco_results import read_coco, write_coco
from foldfuse.formats.parquet import check_classes, read_parquet, write_parquet
from foldfuse.formats.prediction_strings import CONTEST, LAYOUTS, read_strings, write_strings
from foldfuse.formats.yolo_labels import read_yolo, write_yolo
from foldfuse.system.files import read_start

FORMATS = ("parquet", "coco_json", "yolo", *LAYOUTS)
ENDINGS = {".parquet": "parquet", ".json": "coco_json", ".csv": CONTEST.name}  # default formats of new files


@dataclass(frozen=True, eq=False)
class PredictionFile:
    """The content of a prediction file, and how it was read.

    Attributes:
        predictions: the predictions, in the order of the dataset.
        format: one of FORMATS.
        reason: the reason for the format, in words.
    """

    predictions: Predictions
    format: str
    reason: str

    def notes(self) -> list[str]:
        """Sentences for the user: the format, and a warning where boxes are repeated."""
        notes = [f"read as {self.format}: {self.reason}."]
        p = self.predictions
        columns = p.image_index, p.labels, p.scores, *p.boxes.T
        first = np.unique(np.stack(columns, 1), axis=0, return_index=True)[1]
        repeated = np.setdiff1d(np.arange(len(p.boxes)), first)
        if len(repeated):
            image_id = p.image_ids[p.image_index[repeated[0]]]
            notes.append(
                f"{len(repeated)} of {len(p.boxes)} boxes repeat another box of the same class and score, such as in image "
                f"id {image_id}. They are kept; if two files were joined, give them one by one."
            )
        return notes


def read_predictions(path: Path, dataset: Dataset, *, format: str | None = None) -> Predictions:
    """The predictions in a file of any format in FORMATS, in the order of `dataset`.

    Args:
        path: a file, or a YOLO folder.
        dataset: the dataset whose images, classes and category ids the file uses.
        format: one of FORMATS, needed where the content fits several formats.

    Raises:
        InputError: the file is missing or of no known format, its content fits several formats, or a row is broken.
    """
    return read_prediction_file(path, dataset, format=format).predictions


def read_prediction_file(path: Path, dataset: Dataset, *, format: str | None = None) -> PredictionFile:
    """The PredictionFile at `path`: its predictions, its format and the reason for the format; see `read_predictions`."""
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise unknown_name("format of predictions", format, FORMATS)
    kind, reason = _detect_format(path) if format is None else (format, "the format was given")
    if kind == "parquet":
        return PredictionFile(read_parquet(path, dataset), kind, reason)
    if kind == "coco_json":
        return PredictionFile(to_predictions(read_coco(path, dataset), dataset), kind, reason)
    if kind == "yolo":
        return PredictionFile(to_predictions(read_yolo(path, dataset), dataset), kind, reason)
    table, layout = read_strings(path, dataset, layout=LAYOUTS.get(kind))
    return PredictionFile(to_predictions(table, dataset), layout.name, reason)


def write_predictions(predictions: Predictions, path: Path, dataset: Dataset, *, format: str | None = None) -> Path:
    """Write predictions and return the path.

    Args:
        predictions: the predictions of the images of `dataset`; only Parquet and COCO results may lack some images.
        path: a file; for YOLO a folder, new or empty.
        dataset: the dataset whose file names, classes and category ids the file will use.
        format: one of FORMATS. By default the ending decides: .parquet (complete), .json (COCO results), .csv (the
            contest's); an existing folder becomes a YOLO folder.

    Raises:
        InputError: the format or ending is unknown, predictions and dataset differ in their classes, or the format
            cannot hold these predictions.
    """
    path = Path(path)
    if format is None:
        format = "yolo" if path.is_dir() else ENDINGS.get(path.suffix)
    if format is None:
        raise InputError(
            f"{path}: predictions are written as {', '.join(ENDINGS)}; choose one of these endings, or name the format."
        )
    if format not in FORMATS:
        raise unknown_name("format of predictions", format, FORMATS)
    if format != "yolo" and path.is_dir():
        raise InputError(f"{path}: is a folder, expected the name of a file for {format}.")
    check_classes(predictions.classes, dataset, str(path))
    if format == "parquet":
        write_parquet(predictions, path)
    elif format == "coco_json":
        write_coco(predictions, path, dataset)
    elif format == "yolo":
        write_yolo(predictions, path, dataset)
    else:
        write_strings(predictions, path, dataset, layout=LAYOUTS[format])
    return path


def _detect_format(path: Path) -> tuple[str, str]:
    """The format that the first bytes show ("csv" for prediction strings of any layout), and the reason."""
    if path.is_dir():
        if any(path.rglob("*.txt")):
            return "yolo", "a folder of .txt files"
        raise InputError(f"{path}: is a folder without .txt files. Give a file of predictions, or a YOLO folder.")
    start = read_start(path, what="predictions", hint="Give a .parquet, .json or .csv of predictions.")
    if start.startswith(b"PAR1"):
        return "parquet", "the file starts with Parquet's mark"
    if start.startswith(b"["):
        return "coco_json", "the file is a JSON list"
    header = start.partition(b"\n")[0]
    if b"," in header and not start.startswith(b"{"):
        return "csv", f"by the header {header.decode('utf-8', 'replace').strip()} and the numbers"
    raise InputError(
        f"{path}: is no prediction file of a known format. Expected Foldfuse's Parquet, COCO results JSON (a list), or a "
        "CSV with the header PredictionString,image_id."
    )
