"""Predictions as COCO results JSON: a list of image_id, category_id, bbox and score.

Reading also takes whole COCO documents whose annotations have scores, with their own lists of images and categories; lists under
a key of an object; and objects of boxes, labels and scores by image, as torchvision's detectors return them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foldfuse.boxes import xyxy_to_xywh
from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.errors import InputError, kind_of, shown
from foldfuse.formats.box_forms import FORMS
from foldfuse.formats.box_table import BoxTable
from foldfuse.formats.raw_boxes import RawBoxes, ReadAs, parse_numbers, to_table
from foldfuse.system.atomic_files import write_text
from foldfuse.system.files import read_json

XYWH = FORMS["xywh"]
FORMATS = {f"coco_json{'' if form == XYWH else '_' + form.name.removeprefix('xywh_')}": form for form in FORMS.values()}
NAMES = {form: name for name, form in FORMATS.items()}
LIST_KEYS = ("annotations", "predictions", "results", "detections")  # of an object that holds the list
COLUMNS = {
    "image_id": ("image_id", "image", "file_name", "filename"),
    "category_id": ("category_id", "category", "label", "class"),
    "bbox": ("bbox", "box"),
    "score": ("score", "confidence"),
}
EXPECTED = "an object with image_id, category_id, bbox [left, top, width, height] and score"


def write_coco(predictions: Predictions, path: Path, dataset: Dataset) -> None:
    """Write COCO results JSON: a list of {image_id, category_id, bbox, score} in the organiser's ids, scores with all digits."""
    ids, categories = {s.id: s.organiser_id for s in dataset.samples}, dataset.organiser_category_ids
    image = [ids[i] for i in predictions.image_ids[predictions.image_index].tolist()]
    boxes = np.round(xyxy_to_xywh(predictions.boxes.astype(np.float64)), 3).tolist()
    rows = [
        f'{{"image_id": {json.dumps(i)}, "category_id": {json.dumps(categories[k])}, "bbox": {json.dumps(b)}, "score": {s}}}'
        for i, k, b, s in zip(image, predictions.labels.tolist(), boxes, score_texts(predictions), strict=True)
    ]
    write_text(path, f"[{', '.join(rows)}]")


def write_coco_dataset(predictions: Predictions, path: Path, dataset: Dataset) -> None:
    """Write a COCO document of the predicted images, whose annotations are the boxes with their scores, for annotation tools."""
    images = dataset.subset(predictions)
    predictions = predictions.select_images(images.image_ids)
    categories = dataset.organiser_category_ids
    of_box = [images.samples[i].organiser_id for i in predictions.image_index.tolist()]
    boxes = np.round(xyxy_to_xywh(predictions.boxes.astype(np.float64)), 3).tolist()
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": categories[label],
            "bbox": box,
            "area": round(box[2] * box[3], 3),
            "iscrowd": 0,
            "segmentation": [],  # some tools refuse an annotation without it
            "score": float(score),
        }
        for number, (image, label, box, score) in enumerate(
            zip(of_box, predictions.labels.tolist(), boxes, score_texts(predictions), strict=True), 1
        )
    ]
    document = {
        "info": {"description": "predictions of Foldfuse", "box_format": "xywh"},
        "images": [
            {"id": s.organiser_id, "file_name": s.file_name, "width": s.width, "height": s.height}
            for s in images.samples
        ],
        "categories": [{"id": i, "name": name} for i, name in zip(categories, dataset.classes, strict=True)],
        "annotations": annotations,
    }
    write_text(path, json.dumps(document))


def score_texts(predictions: Predictions) -> list[str]:
    """The shortest decimal of each score that keeps it apart from every other score."""
    narrow = predictions.scores.astype(np.float32)
    if np.array_equal(narrow, predictions.scores):  # a network's scores: the shortest text of a float32
        return [str(score) for score in narrow]
    return [repr(score) for score in predictions.scores.tolist()]


def read_coco(path: Path, dataset: Dataset, read_as: ReadAs) -> BoxTable:
    """The boxes of a COCO results file; an image of `dataset` without a row counts as predicted, without boxes.

    Raises:
        InputError: the file is no such list, a row is incomplete or of no known image or category, or the file can be read in
            two ways that differ.
    """
    content = read_json(path, what="COCO results JSON")
    form = FORMATS[read_as.format or "coco_json"]
    rows, document = content, None
    where: Callable[[int], str] = lambda i: f"{path}: row {i}"  # noqa: E731
    if isinstance(content, dict) and (by_image := _rows_by_image(content)) is not None:
        rows, places = by_image
        where = places.__getitem__
        form = FORMS["xyxy"] if read_as.format is None else form
    elif isinstance(content, dict):
        key = next((key for key in LIST_KEYS if isinstance(content.get(key), list)), None)
        if key is None:
            raise InputError(f"{path}: holds an object without a list of predictions, expected COCO results: a list.")
        rows, document = content[key], content
        where = lambda i: f"{path}: {key} {i}"  # noqa: E731
    if not isinstance(rows, list):
        raise InputError(f"{path}: holds {kind_of(rows)}, expected COCO results: a list of objects.")
    names = _column_names(path, rows, where)
    image_keys: list[Any] = [row[names["image_id"]] for row in rows]
    class_keys: list[Any] = [row[names["category_id"]] for row in rows]
    for column, keys in (("image_id", image_keys), ("category_id", class_keys)):
        bad = next((i for i, key in enumerate(keys) if isinstance(key, bool)), None)
        if bad is not None:
            raise InputError(f"{where(bad)}: {column} is {shown(keys[bad])}, expected an id or a name.")
    if document is not None:
        image_keys = _by_own_list(image_keys, document.get("images"), "file_name")
        own = _by_own_list(class_keys, document.get("categories"), "name")
        class_keys = own if all(isinstance(key, str) and key in dataset.classes for key in own) else class_keys
    raw = RawBoxes(
        image_keys=image_keys,
        class_keys=class_keys,
        numbers=parse_numbers([row[names["bbox"]] for row in rows], where, "'bbox'", "[left, top, width, height]", 4),
        scores=parse_numbers([row[names["score"]] for row in rows], where, "'score'", "a number", 0),
        where=where,
        form=form,
        is_form_given=read_as.format is not None,
        convention="id",
        class_word="category_id",
        option=NAMES.__getitem__,
    )
    return to_table(raw, path, dataset, read_as)


def _column_names(path: Path, rows: Sequence[Any], where: Callable[[int], str]) -> dict[str, str]:
    """{column: its key in all rows}. Raises InputError at the first row that is incomplete."""
    names = {}
    for column, known in COLUMNS.items():
        first = rows[0] if rows and isinstance(rows[0], dict) else {}
        names[column] = next((name for name in known if name in first), column)
    wanted = set(names.values())
    for i, row in enumerate(rows):
        if isinstance(row, dict) and wanted <= row.keys():
            continue
        lacking = [name for name in names.values() if name not in row] if isinstance(row, dict) else []
        if lacking == [names["score"]] and i == 0:
            raise InputError(
                f"{path}: its boxes have no scores, as annotations have none. Give predictions, each with its score."
            )
        raise InputError(f"{where(i)} is {shown(row)}, expected {EXPECTED}.")
    return names


def _by_own_list(keys: list[Any], rows: Any, name: str) -> list[Any]:
    """The names that a document's own list gives to all keys; the keys themselves where it does not."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return keys
    named = {
        row["id"]: row[name] for row in rows if isinstance(row.get("id"), (int, str)) and isinstance(row.get(name), str)
    }
    known = all(isinstance(key, (int, str)) and key in named for key in keys)
    return [named[key] for key in keys] if known else keys


def _rows_by_image(content: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]] | None:
    """The rows of an object {image: {boxes, labels, scores}} and their places; None for another object."""
    rows, places = [], []
    for image, one in content.items():
        if not isinstance(one, dict) or not all(isinstance(one.get(k), list) for k in ("boxes", "labels", "scores")):
            return None
        if not len(one["boxes"]) == len(one["labels"]) == len(one["scores"]):
            return None
        for i, (box, label, score) in enumerate(zip(one["boxes"], one["labels"], one["scores"], strict=True)):
            rows.append({"image_id": image, "category_id": label, "bbox": box, "score": score})
            places.append(f"image {shown(image)}, box {i}")
    return (rows, places) if content else None
