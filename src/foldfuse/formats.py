"""Predictions on disk, in and out. Which kind a file is, its content says; what was concluded can be asked for, and
overruled. What is read is also written.

Parquet (our own) keeps everything: a row per picture that was looked at, also the empty ones, and the class names.
COCO results JSON and YOLO folders may leave out pictures on which nothing was found, so every other picture of the dataset
is taken as looked at and empty. A CSV of prediction strings has a row for each picture.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foldfuse.boxes import xywh_to_xyxy, xyxy_to_xywh
from foldfuse.data import Dataset, read, read_json
from foldfuse.detections import Array, Predictions
from foldfuse.errors import InputError, unknown_name
from foldfuse.files import atomic, write_text
from foldfuse.prediction_strings import CONTEST, LAYOUTS, read_strings, write_strings
from foldfuse.rows import Rows, check, grouped, names_of, unknown_image
from foldfuse.yolo_folders import read_yolo, write_yolo

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


def convert(predictions: Path, data: Path, out: Path, *, format: str | None = None, read_as: str | None = None) -> Path:
    """Write predictions in another format; the path of what was written comes back.

    Args:
        predictions: Parquet, COCO results JSON, CSV of prediction strings or YOLO folder, of the pictures of `data`.
        data: COCO JSON of the pictures; its annotations, if it has any, are not read.
        out: file to write; for yolo a folder, new or empty.
        format: parquet, coco_json, yolo, or a layout of prediction strings, such as score_label_xywh_share. By default
            the ending of `out` says it: .parquet, .json (COCO results) or .csv (the contest's); an empty folder is yolo.
        read_as: what the file of predictions is, where its content leaves that open, such as score_xywh.

    Raises:
        InputError: a file cannot be used, or the format cannot hold these predictions.
    """
    dataset = read(data, annotated=False)
    return write_predictions(read_told(predictions, dataset, read_as=read_as), out, dataset, format=format)


def write_coco(predictions: Predictions, path: Path, dataset: Dataset) -> None:
    """Write COCO results JSON: a list of {image_id, category_id, bbox, score}, in the organiser's ids."""
    category = np.array(dataset.category_ids, np.int64)[predictions.labels].tolist()
    image = predictions.image_ids[predictions.image_index].tolist()
    boxes = np.round(xyxy_to_xywh(predictions.boxes.astype(np.float64)), 3).tolist()
    scores = np.round(predictions.scores.astype(np.float64), 6).tolist()
    rows = [
        {"image_id": i, "category_id": c, "bbox": b, "score": s}
        for i, c, b, s in zip(image, category, boxes, scores, strict=True)
    ]
    write_text(path, json.dumps(rows))


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


def _same_classes(classes: tuple[str, ...], dataset: Dataset, where: str) -> None:
    if classes != dataset.classes:
        raise InputError(
            f"{where}: speaks of the classes {', '.join(classes)}, but {dataset.source} has {', '.join(dataset.classes)}. "
            "Give the data that was predicted."
        )


def _write_parquet(predictions: Predictions, path: Path) -> None:
    offsets = pa.array(predictions.offsets, pa.int64())
    flat = pa.array(np.ascontiguousarray(predictions.boxes).reshape(-1), pa.float32())
    table = pa.table(
        {
            "image_id": pa.array(predictions.image_ids, pa.int64()),
            "boxes": pa.LargeListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(flat, 4)),
            "scores": pa.LargeListArray.from_arrays(offsets, pa.array(predictions.scores, pa.float32())),
            "labels": pa.LargeListArray.from_arrays(offsets, pa.array(predictions.labels, pa.int64())),
        }
    ).replace_schema_metadata({"foldfuse": json.dumps({"classes": list(predictions.classes)})})
    with atomic(path) as temporary:
        pq.write_table(table, temporary)


def _read_parquet(path: Path, dataset: Dataset) -> Predictions:
    types = {
        "image_id": pa.int64(),
        "boxes": pa.large_list(pa.list_(pa.float32(), 4)),
        "scores": pa.large_list(pa.float32()),
        "labels": pa.large_list(pa.int64()),
    }
    try:
        # Of the file alone: pq.read_table would take a folder called "lr=3e-4" on the way for a column.
        with pq.ParquetFile(path) as file:
            table = file.read()
        classes = tuple(json.loads(table.schema.metadata[b"foldfuse"])["classes"])
        columns = {
            name: pa.concat_arrays(table[name].cast(kind).chunks or [pa.array([], kind)])
            for name, kind in types.items()
        }
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not a Parquet file of predictions ({error}). Write it with foldfuse.") from None
    _same_classes(classes, dataset, str(path))
    image_ids = columns["image_id"].to_numpy(zero_copy_only=False)
    lengths = {name: np.diff(columns[name].offsets.to_numpy()) for name in ("boxes", "scores", "labels")}
    flat = {name: columns[name].flatten() for name in lengths}
    nulls = columns["image_id"].null_count + sum(columns[n].null_count + flat[n].null_count for n in lengths)
    if nulls or flat["boxes"].flatten().null_count:
        raise InputError(f"{path}: holds empty cells (null), expected numbers. An empty picture has lists of length 0.")
    for name in ("scores", "labels"):
        if (differ := lengths[name] != lengths["boxes"]).any():
            row = int(np.argmax(differ))
            raise InputError(
                f"{path}: row {row} has {lengths['boxes'][row]} boxes and {lengths[name][row]} {name}, expected as many."
            )
    known = np.isin(image_ids, np.array(dataset.image_ids, np.int64))
    if not known.all():
        raise unknown_image(f"{path}: row {int(np.argmin(known))}", int(image_ids[np.argmin(known)]), dataset)
    distinct, counts = np.unique(image_ids, return_counts=True)
    if (counts > 1).any():
        raise InputError(f"{path}: image id {distinct[counts > 1][0]} has {counts.max()} rows. Keep one row a picture.")
    boxes = flat["boxes"].flatten().to_numpy().reshape(-1, 4)
    scores, labels = flat["scores"].to_numpy(), flat["labels"].to_numpy()
    row_of = np.repeat(np.arange(len(image_ids)), lengths["boxes"])
    check(boxes, scores, labels, dataset, lambda i: f"{path}: row {row_of[i]} (image {image_ids[row_of[i]]}): a box")
    offsets = np.concatenate([[0], np.cumsum(lengths["boxes"])]).astype(np.int64)
    return Predictions(image_ids, offsets, boxes, np.minimum(scores, 1), labels, classes)


def _read_coco(path: Path, dataset: Dataset) -> Rows:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputError(f"{path}: holds a {type(rows).__name__}, expected COCO results: a list of objects.")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not {"image_id", "category_id", "bbox", "score"} <= row.keys():
            raise InputError(
                f"{path}: row {number} is {json.dumps(row)[:120]}, expected an object with image_id, category_id, "
                "bbox [left, top, width, height] and score."
            )
    id_of: dict[Any, int] = {
        **names_of(dataset),
        **{str(i): i for i in dataset.image_ids},
        **{i: i for i in dataset.image_ids},
    }
    label_of = {category_id: label for label, category_id in enumerate(dataset.category_ids)}
    image_ids = _looked_up(path, rows, "image_id", id_of, dataset)
    labels = _looked_up(path, rows, "category_id", label_of | {str(i): k for i, k in label_of.items()}, dataset)
    boxes = _floats(path, rows, "bbox", (4,))
    scores = _floats(path, rows, "score", ())
    with np.errstate(invalid="ignore"):  # infinite numbers are refused with their row, later
        xyxy = xywh_to_xyxy(boxes)
    return Rows(image_ids, xyxy, scores, labels, dataset.image_ids, lambda i: f"{path}: row {i}")


def _looked_up(path: Path, rows: list[dict[str, Any]], key: str, known: dict[Any, int], dataset: Dataset) -> Array:
    """(n,) int64: what `known` says of each row[key]."""
    try:
        return np.array([known[row[key]] for row in rows], np.int64)
    except (KeyError, TypeError):  # TypeError: a list cannot be looked up
        number, value = next(
            (i, row[key]) for i, row in enumerate(rows) if isinstance(row[key], (list, dict)) or row[key] not in known
        )
        where = f"{path}: row {number}"
        if key == "image_id":
            raise unknown_image(where, value, dataset) from None
        raise InputError(
            f"{where}: category_id {value!r} is not in {dataset.source} (known: {', '.join(map(str, dataset.category_ids))})."
        ) from None


def _floats(path: Path, rows: list[dict[str, Any]], key: str, shape: tuple[int, ...]) -> Array:
    """(n, *shape) float64 of each row[key]."""

    def numbers(value: Any) -> Array | None:
        try:
            found = np.array(value)
        except ValueError:  # lists of unequal lengths
            return None
        return found.astype(np.float64) if found.dtype.kind in "iuf" else None

    whole = numbers([row[key] for row in rows]) if rows else np.zeros((0, *shape))
    if whole is not None and whole.shape == (len(rows), *shape):
        return whole
    bad = next(i for i, row in enumerate(rows) if (one := numbers(row[key])) is None or one.shape != shape)
    expected = "[left, top, width, height]" if shape else "a number"
    raise InputError(f"{path}: row {bad}: {key!r} is {json.dumps(rows[bad][key])[:80]}, expected {expected}.")
