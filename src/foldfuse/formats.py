"""Predictions on disk: our Parquet, COCO results JSON, and the contest's CSV. Which one a file is, its content says.

Parquet keeps everything: a row per picture that was looked at, also the empty ones, and the class names. COCO results
name only pictures on which something was found, so reading them takes every other picture as looked at and empty.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foldfuse.boxes import xywh_to_xyxy, xyxy_to_xywh
from foldfuse.data import Dataset
from foldfuse.detections import Array, Predictions
from foldfuse.errors import InputError
from foldfuse.files import atomic, write_text

CSV_HEADER = ("PredictionString", "image_id")


def read_predictions(path: Path, dataset: Dataset) -> Predictions:
    """The predictions in a file of any kind known here, for the pictures of `dataset`, in its order.

    Args:
        path: Parquet, COCO results JSON, or the contest's CSV.
        dataset: whose pictures, classes and category ids the file speaks of.

    Raises:
        InputError: the file is missing, is of no known kind, or holds a row that cannot be: it is named.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}). Give a .parquet, .json or .csv of predictions."
        ) from None
    if start.startswith(b"PAR1"):
        found = _read_parquet(path, dataset)
    elif start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        found = _read_coco(path, dataset)
    elif b"," in start.splitlines()[0] if start else False:
        found = _read_csv(path, dataset)
    else:
        raise InputError(
            f"{path}: is no predictions file known here. Expected our Parquet, COCO results JSON (a list), or a CSV "
            f"with the header {','.join(CSV_HEADER)}."
        )
    return found


def write_predictions(predictions: Predictions, path: Path, dataset: Dataset) -> Path:
    """Write predictions as the ending of `path` says: .parquet (keeps all), .json (COCO results), .csv (the contest's).

    Raises:
        InputError: the ending is another one.
    """
    writers: dict[str, Callable[[Predictions, Path, Dataset], None]] = {
        ".parquet": _write_parquet,
        ".json": write_coco,
        ".csv": write_csv,
    }
    path = Path(path)
    if path.suffix not in writers:
        raise InputError(f"{path}: predictions are written as {', '.join(writers)}; choose one of these endings.")
    writers[path.suffix](predictions, path, dataset)
    return path


def _write_parquet(predictions: Predictions, path: Path, dataset: Dataset) -> None:
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
    try:
        table = pq.read_table(path).combine_chunks()
        classes = tuple(json.loads(table.schema.metadata[b"foldfuse"])["classes"])
        boxes, scores, labels = (table[name].combine_chunks() for name in ("boxes", "scores", "labels"))
        image_ids = table["image_id"].to_numpy()
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not a Parquet file of predictions ({error}).") from None
    if classes != dataset.classes:
        raise InputError(
            f"{path}: speaks of the classes {', '.join(classes)}, but {dataset.source} has {', '.join(dataset.classes)}. "
            "Give the data that was predicted."
        )
    if isinstance(boxes, pa.ChunkedArray):  # of no rows
        return _checked(Predictions.of({}, classes), path, dataset)
    _no_repeats(path, image_ids)
    found = Predictions(
        image_ids=image_ids.astype(np.int64),
        offsets=boxes.offsets.to_numpy().astype(np.int64),
        boxes=boxes.values.flatten().to_numpy().reshape(-1, 4),
        scores=scores.values.to_numpy(),
        labels=labels.values.to_numpy(),
        classes=classes,
    )
    return _checked(found, path, dataset)


def write_coco(predictions: Predictions, path: Path, dataset: Dataset) -> None:
    """Write COCO results JSON: a list of {image_id, category_id, bbox, score}, in the organiser's ids."""
    category = np.array(dataset.category_ids, np.int64)[predictions.labels].tolist()
    image = predictions.image_ids[predictions.image_index].tolist()
    boxes = np.round(xyxy_to_xywh(predictions.boxes.astype(np.float64)), 3).tolist()
    scores = np.round(predictions.scores.astype(np.float64), 6).tolist()
    rows = (
        {"image_id": i, "category_id": c, "bbox": b, "score": s}
        for i, c, b, s in zip(image, category, boxes, scores, strict=True)
    )
    write_text(path, json.dumps(list(rows)))


def _read_coco(path: Path, dataset: Dataset) -> Predictions:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not JSON ({error}). Was it cut off while copying?") from None
    label_of = {category_id: label for label, category_id in enumerate(dataset.category_ids)}
    known = set(dataset.image_ids)
    images, labels, boxes, scores = [], [], [], []
    for number, row in enumerate(rows):
        where = f"{path}: row {number}"
        try:
            image_id, category_id = int(row["image_id"]), int(row["category_id"])
            box, score = [float(v) for v in row["bbox"]], float(row["score"])
            if len(box) != 4:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"{where} is {json.dumps(row)[:120]}, expected image_id, category_id, bbox [left, top, width, height] and score."
            ) from None
        if image_id not in known:
            raise InputError(
                f"{where}: image_id {image_id} is not in {dataset.source}. Give the data that was predicted."
            )
        if category_id not in label_of:
            raise InputError(
                f"{where}: category_id {category_id} is not in {dataset.source} (known: {list(label_of)})."
            )
        images.append(image_id)
        labels.append(label_of[category_id])
        boxes.append(box)
        scores.append(score)
    xyxy = xywh_to_xyxy(np.array(boxes, np.float64).reshape(-1, 4))
    return _checked(_grouped(images, xyxy, scores, labels, dataset), path, dataset)


def write_csv(predictions: Predictions, path: Path, dataset: Dataset) -> None:
    """Write the contest's CSV: `PredictionString,image_id`, a row for every picture of `dataset`, also the empty ones.

    image_id is the file name. The string repeats `label score xmin ymin xmax ymax ` with 0-based labels in pixels.
    """
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for sample in dataset.samples:
        found = predictions[sample.id]
        cells = (
            f"{label} {score:.6f} {x1:.3f} {y1:.3f} {x2:.3f} {y2:.3f} "
            for label, score, (x1, y1, x2, y2) in zip(
                found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True
            )
        )
        writer.writerow(("".join(cells), sample.file_name))
    write_text(path, lines.getvalue())


def _read_csv(path: Path, dataset: Dataset) -> Predictions:
    id_of = {s.file_name: s.id for s in dataset.samples}
    images: list[int] = []
    values: list[tuple[float, ...]] = []
    seen: set[str] = set()
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        header = tuple(next(rows, ()))
        if header != CSV_HEADER:
            raise InputError(f"{path}: its header is {','.join(header)}, expected {','.join(CSV_HEADER)}.")
        for number, row in enumerate(rows, 2):
            where = f"{path}: line {number}"
            if len(row) != 2:
                raise InputError(f"{where} has {len(row)} columns, expected 2: {','.join(CSV_HEADER)}.")
            text, name = row
            if name not in id_of:
                raise InputError(f"{where}: image_id {name!r} is no file_name of {dataset.source}.")
            if name in seen:
                raise InputError(f"{where}: {name!r} stands there twice. Keep one row a picture.")
            seen.add(name)
            try:
                numbers = [float(word) for word in text.split()]
            except ValueError:
                raise InputError(f"{where}: {text[:60]!r} is not numbers.") from None
            if len(numbers) % 6:
                raise InputError(
                    f"{where} has {len(numbers)} numbers, expected 6 a box: label, score, xmin, ymin, xmax, ymax."
                )
            boxes = [tuple(numbers[i : i + 6]) for i in range(0, len(numbers), 6)]
            images += [id_of[name]] * len(boxes)
            values += boxes
    table = np.array(values, np.float64).reshape(-1, 6)
    if (table[:, 0] % 1 != 0).any():
        raise InputError(f"{path}: a label is {table[:, 0][table[:, 0] % 1 != 0][0]:g}, expected a whole number.")
    return _checked(_grouped(images, table[:, 2:], table[:, 1], table[:, 0].astype(np.int64), dataset), path, dataset)


def _grouped(
    images: Sequence[int],
    boxes: Array,
    scores: Sequence[float] | Array,
    labels: Sequence[int] | Array,
    dataset: Dataset,
) -> Predictions:
    """Predictions of every picture of `dataset`, from rows in any order."""
    place = {image_id: i for i, image_id in enumerate(dataset.image_ids)}
    at = np.array([place[i] for i in images], np.int64)
    order = np.argsort(at, kind="stable")
    counts = np.bincount(at, minlength=len(dataset))
    return Predictions(
        image_ids=np.array(dataset.image_ids, np.int64),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes[order].astype(np.float32),
        scores=np.asarray(scores, np.float32)[order],
        labels=np.asarray(labels, np.int64)[order],
        classes=dataset.classes,
    )


def _no_repeats(path: Path, image_ids: Array) -> None:
    distinct, counts = np.unique(image_ids, return_counts=True)
    if (counts > 1).any():
        raise InputError(f"{path}: image id {distinct[counts > 1][0]} has {counts.max()} rows. Keep one row a picture.")


def _checked(found: Predictions, path: Path, dataset: Dataset) -> Predictions:
    """`found`, if it can be true of `dataset`. Raises InputError that names the first row that cannot."""
    beyond = set(found) - set(dataset.image_ids)
    if beyond:
        raise InputError(
            f"{path}: image id {min(beyond)} is not in {dataset.source} ({len(beyond)} such images). "
            "Give the data that was predicted."
        )

    def first(bad: Any, what: Callable[[int], Any], expected: str) -> None:
        if bad.any():
            row = int(np.argmax(bad))
            image_id = int(found.image_ids[found.image_index[row]])
            raise InputError(f"{path}: box {row} (image {image_id}) has {what(row)}, expected {expected}.")

    scores, boxes, labels = found.scores, found.boxes, found.labels
    first(~((scores >= 0) & (scores <= 1)), lambda i: f"the score {scores[i]}", "a number in 0..1")
    first(~np.isfinite(boxes).all(axis=1), lambda i: f"the corners {boxes[i].tolist()}", "finite numbers")
    first((boxes[:, 2:] < boxes[:, :2]).any(1), lambda i: f"the corners {boxes[i].tolist()}", "x1 <= x2 and y1 <= y2")
    first(
        (labels < 0) | (labels >= len(dataset.classes)),
        lambda i: f"the label {labels[i]}",
        f"0..{len(dataset.classes) - 1}",
    )
    return found
