"""Predictions on disk, in and out. Which kind a file is, its content says; what was concluded can be asked for, and
overruled. What is read is also written.

Parquet (our own) keeps everything: a row per picture that was looked at, also the empty ones, and the class names.
COCO results JSON and YOLO folders may leave out pictures on which nothing was found, so every other picture of the dataset
is taken as looked at and empty. A CSV of prediction strings has a row for each picture.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.errors import InputError, unknown_name
from foldfuse.formats.box_table import grouped
from foldfuse.formats.coco_results import _read_coco, write_coco
from foldfuse.formats.parquet import _read_parquet, _same_classes, _write_parquet
from foldfuse.formats.prediction_strings import CONTEST, LAYOUTS, read_strings, write_strings
from foldfuse.formats.yolo_labels import read_yolo, write_yolo

FORMATS = ("parquet", "coco_json", "yolo", *LAYOUTS)
ENDINGS = {".parquet": "parquet", ".json": "coco_json", ".csv": CONTEST.name}  # what is written where only these tell


@dataclass(frozen=True)
class Sniffed:
    """As what a file of predictions was read.

    Attributes:
        format: one of FORMATS.
        why: the reason, for people.
    """

    format: str
    why: str

    def __str__(self) -> str:
        return f"read as {self.format}: {self.why}"


def read_predictions(path: Path, dataset: Dataset, *, format: str | None = None) -> Predictions:
    """The predictions in a file of any kind known here, in the order of `dataset`.

    Args:
        path: Parquet, COCO results JSON, a CSV of prediction strings, or a folder of YOLO's .txt.
        dataset: whose pictures, classes and category ids the file speaks of.
        format: one of FORMATS, for a file whose content leaves it open.

    Raises:
        InputError: the file is missing or of no known kind, its content leaves its kind open, or a row cannot be.
    """
    return read_stated(path, dataset, format=format)[0]


def read_told(path: Path, dataset: Dataset, *, read_as: str | None = None) -> Predictions:
    """As `read_predictions`; what the file was read as, and what it says twice, is told on standard error. For commands."""
    found, sniffed = read_stated(path, dataset, format=read_as)
    print(f"{path}: {sniffed}.", file=sys.stderr)
    columns = found.image_index, found.labels, found.scores, *found.boxes.T
    first = np.unique(np.stack(columns, 1), axis=0, return_index=True)[1]
    again = np.setdiff1d(np.arange(len(found.boxes)), first)
    if len(again):
        image_id = found.image_ids[found.image_index[again[0]]]
        print(
            f"{path}: {len(again)} of {len(found.boxes)} boxes stand there again with the same class and score, such as in "
            f"image id {image_id}. They are kept; if two files were joined, give them one by one.",
            file=sys.stderr,
        )
    return found


def read_stated(path: Path, dataset: Dataset, *, format: str | None = None) -> tuple[Predictions, Sniffed]:
    """As `read_predictions`, with a word on what the file was read as."""
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise unknown_name("format of predictions", format, FORMATS)
    kind, why = _kind(path) if format is None else (format, "as was asked for")
    if kind == "parquet":
        return _read_parquet(path, dataset), Sniffed(kind, why)
    if kind == "coco_json":
        return grouped(_read_coco(path, dataset), dataset), Sniffed(kind, why)
    if kind == "yolo":
        return grouped(read_yolo(path, dataset), dataset), Sniffed(kind, why)
    rows, layout = read_strings(path, dataset, layout=LAYOUTS.get(kind))
    return grouped(rows, dataset), Sniffed(layout.name, why)


def write_predictions(predictions: Predictions, path: Path, dataset: Dataset, *, format: str | None = None) -> Path:
    """Write predictions; their path comes back.

    Args:
        predictions: of the pictures of `dataset`; only Parquet and COCO results may lack some of them.
        path: a file, for a YOLO folder one that is new or empty.
        dataset: whose names, classes and category ids the file will speak of.
        format: one of FORMATS. By default the ending says it: .parquet (keeps all), .json (COCO results), .csv (the
            contest's); a folder that exists becomes YOLO's.

    Raises:
        InputError: there is no such format or ending, predictions and dataset differ in their classes, or the format
            cannot hold these predictions.
    """
    path = Path(path)
    if format is None:
        format = "yolo" if path.is_dir() else ENDINGS.get(path.suffix)
    if format is None:
        raise InputError(
            f"{path}: predictions are written as {', '.join(ENDINGS)}; choose one of these endings, or say the format."
        )
    if format not in FORMATS:
        raise unknown_name("format of predictions", format, FORMATS)
    if format != "yolo" and path.is_dir():
        raise InputError(f"{path}: is a folder, expected the name of a file for {format}.")
    _same_classes(predictions.classes, dataset, str(path))
    if format == "parquet":
        _write_parquet(predictions, path)
    elif format == "coco_json":
        write_coco(predictions, path, dataset)
    elif format == "yolo":
        write_yolo(predictions, path, dataset)
    else:
        write_strings(predictions, path, dataset, layout=LAYOUTS[format])
    return path


def _kind(path: Path) -> tuple[str, str]:
    """The kind that the first bytes show ("csv" stands for prediction strings of any layout), and the reason."""
    if path.is_dir():
        if any(path.rglob("*.txt")):
            return "yolo", "it is a folder of .txt files"
        raise InputError(f"{path}: is a folder without .txt files. Give a file of predictions, or a YOLO folder.")
    try:
        with path.open("rb") as file:
            start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}). Give a .parquet, .json or .csv of predictions."
        ) from None
    if start.startswith(b"PAR1"):
        return "parquet", "it starts with Parquet's mark"
    if start.startswith(b"["):
        return "coco_json", "it is a JSON list"
    header = start.partition(b"\n")[0]
    if b"," in header and not start.startswith(b"{"):
        return "csv", f"of its header {header.decode('utf-8', 'replace').strip()} and its numbers"
    raise InputError(
        f"{path}: is no file of predictions known here. Expected our Parquet, COCO results JSON (a list of objects), or a "
        "CSV with the header PredictionString,image_id."
    )
