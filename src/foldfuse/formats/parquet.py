"""Predictions as Parquet: one row per image, with the class names in the metadata.

Ids alone do not tell an image where Foldfuse has numbered the images itself: the file names are kept, and compared in reading.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.errors import InputError
from foldfuse.formats.box_table import check_boxes
from foldfuse.system.atomic_files import atomic
from foldfuse.system.files import parse_json, read_start

logger = logging.getLogger(__name__)


def check_classes(classes: tuple[str, ...], dataset: Dataset, where: str) -> None:
    """Raise InputError unless the classes equal the classes of `dataset`, in the same order."""
    if classes != dataset.classes:
        raise InputError(
            f"{where}: has the classes {', '.join(classes)}, but {dataset.source} has {', '.join(dataset.classes)}. "
            "Give the data that was predicted."
        )


def is_parquet(path: Path) -> bool:
    """Whether a path is a file that starts as Parquet does."""
    return path.is_file() and read_start(path, what="predictions", num_bytes=4) == b"PAR1"


def parquet_classes(path: Path) -> tuple[tuple[str, ...], tuple[int | str, ...]]:
    """The class names of a Parquet file of predictions, and the category ids, () in files that do not keep them.

    Raises:
        InputError: the file is no such file.
    """
    try:
        with pq.ParquetFile(path) as file:
            about = parse_json(file.schema_arrow.metadata[b"foldfuse"], path, what="the facts of predictions")
        return tuple(map(str, about["classes"])), tuple(
            i if isinstance(i, str) else int(i) for i in about.get("category_ids", ())
        )
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: is not a Parquet file of predictions ({error}). Write it with foldfuse convert.")


def write_parquet(predictions: Predictions, path: Path, dataset: Dataset) -> None:
    """Write predictions as Parquet, complete: images without boxes, the classes and the learnt images too."""
    facts: dict[str, list[Any]] = {
        "classes": list(predictions.classes),
        "category_ids": list(dataset.organiser_category_ids),
    }
    if predictions.learnt_ids:
        facts["learnt_ids"] = sorted(predictions.learnt_ids)
    name_of = {sample.id: sample.file_name for sample in dataset.samples}
    offsets = pa.array(predictions.offsets, pa.int64())
    boxes = np.ascontiguousarray(predictions.boxes).reshape(-1)
    is_single = bool((boxes.astype(np.float32) == boxes).all())  # as a network's boxes are; files may hold others
    flat = pa.array(boxes, pa.float32() if is_single else pa.float64())
    table = pa.table(
        {
            "image_id": pa.array(predictions.image_ids, pa.int64()),
            "file_name": pa.array([name_of.get(int(i), "") for i in predictions.image_ids], pa.string()),
            "boxes": pa.LargeListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(flat, 4)),
            "scores": pa.LargeListArray.from_arrays(offsets, pa.array(predictions.scores, pa.float64())),
            "labels": pa.LargeListArray.from_arrays(offsets, pa.array(predictions.labels, pa.int64())),
        }
    ).replace_schema_metadata({"foldfuse": json.dumps(facts)})
    with atomic(path) as temporary:
        pq.write_table(table, temporary)


def read_parquet(path: Path, dataset: Dataset, *, by_name: bool = False) -> Predictions:
    """The predictions in a file that `write_parquet` wrote.

    Args:
        path: the file.
        dataset: the images that were predicted.
        by_name: whether images may be found by their file names where their ids are of another list, such as the numbers that a
            folder of images has; a log line says so.

    Raises:
        InputError: the file is damaged, or has other classes or images than `dataset`.
    """
    types = {
        "image_id": pa.int64(),
        "boxes": pa.large_list(pa.list_(pa.float64(), 4)),
        "scores": pa.large_list(pa.float64()),
        "labels": pa.large_list(pa.int64()),
    }
    try:
        # pq.read_table would take a folder in the path called "lr=3e-4" for a column.
        with pq.ParquetFile(path) as file:
            table = file.read()
        facts = parse_json(table.schema.metadata[b"foldfuse"], path, what="the facts of predictions")
        classes = tuple(facts["classes"])
        learnt_ids = frozenset(map(int, facts.get("learnt_ids", ())))
        columns = {
            name: pa.concat_arrays(table[name].cast(kind).chunks or [pa.array([], kind)])
            for name, kind in types.items()
        }
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from None
    check_classes(classes, dataset, str(path))
    image_ids = columns["image_id"].to_numpy(zero_copy_only=False)
    lengths = {name: np.diff(columns[name].offsets.to_numpy()) for name in ("boxes", "scores", "labels")}
    flat = {name: columns[name].flatten() for name in lengths}
    nulls = columns["image_id"].null_count + sum(columns[n].null_count + flat[n].null_count for n in lengths)
    if nulls or flat["boxes"].flatten().null_count:
        raise InputError(
            f"{path}: holds empty cells (null), expected numbers. An image without boxes has lists of length 0."
        )
    for name in ("scores", "labels"):
        if (differ := lengths[name] != lengths["boxes"]).any():
            row = int(np.argmax(differ))
            raise InputError(
                f"{path}: row {row} has {lengths['boxes'][row]} boxes and {lengths[name][row]} {name}, expected the same number."
            )
    names = table["file_name"].to_pylist() if "file_name" in table.column_names else []
    if by_name and (of_name := _ids_by_name(names, image_ids.tolist(), dataset)):
        logger.info("%s: its images are found by their file names; their ids are of another list.", path)
        learnt_ids = frozenset(of_name[i] for i in learnt_ids if i in of_name)
        image_ids = np.array([of_name[i] for i in image_ids.tolist()], np.int64)
    known = np.isin(image_ids, np.array(dataset.image_ids, np.int64))
    if not known.all():
        raise InputError(
            f"{path}: row {int(np.argmin(known))}: {image_ids[np.argmin(known)]} names no image of {dataset.source} ("
            f"{int((~known).sum())} of the file's {len(known)} images are unknown). Give the data that was predicted."
        )
    if names:
        _check_names(names, image_ids.tolist(), dataset, path)
    distinct, counts = np.unique(image_ids, return_counts=True)
    if (counts > 1).any():
        raise InputError(f"{path}: image id {distinct[counts > 1][0]} has {counts.max()} rows. Keep one row per image.")
    boxes = flat["boxes"].flatten().to_numpy().reshape(-1, 4)
    scores, labels = flat["scores"].to_numpy(), flat["labels"].to_numpy()
    row_of = np.repeat(np.arange(len(image_ids)), lengths["boxes"])
    check_boxes(
        boxes, scores, labels, dataset, lambda i: f"{path}: row {row_of[i]} (image {image_ids[row_of[i]]}): a box"
    )
    offsets = np.concatenate([[0], np.cumsum(lengths["boxes"])]).astype(np.int64)
    return Predictions(image_ids, offsets, boxes, np.minimum(scores, 1), labels, classes, learnt_ids)


def _ids_by_name(names: Sequence[Any], image_ids: Sequence[int], dataset: Dataset) -> dict[int, int]:
    """{id in the file: id in the dataset} by the file names, with as many folders as both have.

    Empty where the ids fit already, or where not every name is that of one image.
    """
    name_of = {sample.id: sample.file_name for sample in dataset.samples}
    pairs = list(zip(image_ids, map(_parts, names), strict=True)) if names else []
    if all(i in name_of and parts[-1:] == _parts(name_of[i])[-1:] for i, parts in pairs):
        return {}
    by_last: dict[str, list[tuple[tuple[str, ...], int]]] = {}
    for image_id, name in name_of.items():
        parts = _parts(name)
        by_last.setdefault(parts[-1], []).append((parts, image_id))
    found = {}
    for i, parts in pairs:
        same = [
            image_id
            for own, image_id in by_last.get(parts[-1] if parts else "", ())
            if own[-len(parts) :] == parts[-len(own) :]
        ]
        if len(same) != 1:
            return {}
        found[i] = same[0]
    return found if len(set(found.values())) == len(pairs) else {}


def _parts(name: Any) -> tuple[str, ...]:
    """The folders and the file in a file name."""
    return PurePosixPath(str(name or "").replace("\\", "/")).parts


def _check_names(names: Sequence[Any], image_ids: Sequence[int], dataset: Dataset, path: Path) -> None:
    """Raises InputError where an image id belongs to another file than when the image was predicted."""
    name_of = {sample.id: sample.file_name for sample in dataset.samples}
    others = [
        (image_id, name)
        for image_id, name in zip(image_ids, names, strict=True)
        if name and _stem(str(name)) != _stem(name_of[image_id])
    ]
    if others:
        image_id, name = others[0]
        raise InputError(
            f"{path}: image id {image_id} was {str(name)[:60]} when it was predicted, and is {name_of[image_id][:60]} in "
            f"{dataset.source}; so are {len(others)} of {len(names)} images. Give the data that was predicted, or predict again."
        )


def _stem(file_name: str) -> str:
    """The name of an image whatever its folder and its ending."""
    return PurePosixPath(file_name.replace("\\", "/")).stem
