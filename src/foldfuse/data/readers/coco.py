"""Labelled pictures in COCO form: reading, choosing, writing. No pixels are touched here.

Source: the COCO data format, https://cocodataset.org/#format-data. The organiser's conventions (category ids of any
numbering, xywh boxes) end in this file: inside, labels are 0..K-1 in the order of category ids, and boxes are xyxy.

A box that sticks out of its picture is cut to it; its area stays as given. One that lies wholly outside or has no size is
an error: `foldfuse check` names all of them and mends the file.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foldfuse.boxes import xyxy_to_xywh
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.readers.layouts import find_layout, read_layout
from foldfuse.detections import Annotations
from foldfuse.errors import InputError
from foldfuse.system.atomic_files import write_text


def read(path: Path | str, *, annotated: bool = True) -> Dataset:
    """The dataset in a COCO JSON file, in `train.json` of a folder, or in a YOLO or VOC layout (see `layouts`).

    Pictures are looked for beside the JSON, then in `images/` beside it, under their `file_name`.

    Args:
        path: a COCO JSON; a folder that holds a `train.json`; the YAML or a folder of pictures of a YOLO dataset; the
            folder of a VOC dataset or one of its ImageSets lists.
        annotated: False for a test set: annotations are not read, even where the file has some.

    Raises:
        InputError: the file is missing or not COCO; an entry is broken (it is named); a picture does not exist.
    """
    document, source = load(Path(path))
    return parse(document, source, annotated=annotated)


def load(path: Path) -> tuple[Any, Path]:
    """(COCO document, its source for `parse`) of any dataset that `read` takes; nothing in it has been looked at yet.

    Raises:
        InputError: the file is missing or broken.
    """
    source, _ = locate(path)
    return read_layout(source) if find_layout(source) else (read_json(source), source)


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises InputError where it is missing or broken, naming the line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file. Give a COCO JSON, or a folder with a train.json.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not a text file; expected COCO JSON.") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: is not JSON (line {error.lineno}, column {error.colno}: {error.msg}). Was it cut off while copying?"
        ) from None


def locate(data: Path) -> tuple[Path, Path | None]:
    """The training data that `data` names, and the test JSON beside it where `data` is a folder that holds one.

    Raises:
        InputError: a folder without a train.json that is laid out neither as YOLO nor as VOC.
    """
    if not data.is_dir():
        return data, None
    if (data / "train.json").is_file():
        test = data / "test.json"
        return data / "train.json", test if test.is_file() else None
    layout = find_layout(data)
    if layout is None:
        raise InputError(
            f"{data}: holds no train.json, no YAML of a YOLO dataset and no Annotations/ of a VOC one. "
            "Give the COCO JSON itself, or name it so."
        )
    return layout, None


def parse(document: Any, source: Path, *, annotated: bool = True) -> Dataset:
    """The Dataset in a decoded COCO document. `source` names it in messages, and pictures are looked for beside it.

    Raises:
        InputError: see `read`.
    """
    images, categories, drawn = (
        _rows(document, key, source, annotated) for key in ("images", "categories", "annotations")
    )
    if not images:
        raise InputError(f"{source}: lists no images. A dataset needs at least one picture.")
    if not categories:
        raise InputError(f"{source}: lists no categories. COCO's 'categories' must name the classes.")

    categories = sorted(categories, key=lambda row: _integer(row, "id", f"{source}: a category"))
    category_ids = tuple(int(row["id"]) for row in categories)
    _no_repeats(category_ids, f"{source}: category id")
    classes = tuple(str(row.get("name", row["id"])) for row in categories)
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}

    image_ids = [_integer(row, "id", f"{source}: image {i} of the list") for i, row in enumerate(images)]
    _no_repeats(image_ids, f"{source}: image id")
    rows_of: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in image_ids}
    for i, row in enumerate(drawn):
        where = f"{source}: annotation {row.get('id', f'number {i}')}"
        image_id = _integer(row, "image_id", where)
        if image_id not in rows_of:
            raise InputError(f"{where}: is of image {image_id}, which is not in 'images'. Remove it or list the image.")
        rows_of[image_id].append(row)

    samples = tuple(
        Sample(
            id=image_id,
            path=_find(source, row, f"{source}: image {image_id}"),
            file_name=row["file_name"],
            width=_side(row, "width", f"{source}: image {image_id}"),
            height=_side(row, "height", f"{source}: image {image_id}"),
            annotations=_annotations(rows_of[image_id], row, label_of, source) if annotated else None,
        )
        for image_id, row in zip(image_ids, images, strict=True)
    )
    _no_repeats([s.file_name for s in samples], f"{source}: file_name")
    return Dataset(samples, classes, category_ids, source)


def write(dataset: Dataset, path: Path) -> Path:
    """Write `dataset` as COCO JSON; pictures stay where they are, so keep it beside them. Returns `path`."""
    annotations: list[dict[str, Any]] = []
    for sample in dataset.samples:
        drawn = sample.annotations or Annotations.empty()
        for box, label, crowd, area in zip(
            xyxy_to_xywh(drawn.boxes).tolist(),
            drawn.labels.tolist(),
            drawn.crowd.tolist(),
            drawn.area.tolist(),
            strict=True,
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": sample.id,
                    "category_id": dataset.category_ids[label],
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
    document: dict[str, Any] = {
        "images": [
            {"id": s.id, "file_name": s.file_name, "width": s.width, "height": s.height} for s in dataset.samples
        ],
        "categories": [{"id": i, "name": n} for i, n in zip(dataset.category_ids, dataset.classes, strict=True)],
    }
    if dataset.is_labeled:
        document["annotations"] = annotations
    write_text(path, json.dumps(document))
    return path


def _rows(document: Any, key: str, source: Path, annotated: bool) -> list[dict[str, Any]]:
    """The list of objects under `key`; an absent 'annotations' is an error only where they are wanted."""
    if not isinstance(document, dict):
        raise InputError(
            f"{source}: holds a {type(document).__name__}, expected a COCO object with 'images' and 'categories'."
        )
    if key == "annotations" and not annotated:
        return []
    if key not in document:
        raise InputError(f"{source}: has no {key!r}. Expected COCO JSON with 'images', 'categories' and 'annotations'.")
    rows = document[key]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{source}: {key!r} must be a list of objects.")
    return rows


def _integer(row: dict[str, Any], key: str, where: str) -> int:
    """row[key] as an int; digits in a string count, since some exporters write ids so."""
    value = row.get(key)
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
        raise InputError(f"{where}: {key!r} is {value!r}, expected a whole number.")
    return int(value)


def _side(row: dict[str, Any], key: str, where: str) -> int:
    value = _integer(row, key, where)
    if value <= 0:
        raise InputError(f"{where}: {key!r} is {value}, expected a positive number of pixels.")
    return value


def _no_repeats(names: Sequence[int | str], what: str) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise InputError(f"{what} {twice} stands there twice, expected once. 'foldfuse check --mend' mends such files.")


def find_image(source: Path, name: str) -> Path | None:
    """Where the picture that the JSON `source` calls `name` lies: beside it, or in images/ beside it."""
    for path in (source.parent / name, source.parent / "images" / name):
        if path.is_file():
            return path
    return None


def _find(source: Path, row: dict[str, Any], where: str) -> Path:
    name = row.get("file_name")
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: 'file_name' is {name!r}, expected the name of a picture.")
    path = find_image(source, name)
    if path is None:
        raise InputError(
            f"{where}: there is no picture {source.parent / name} nor {source.parent / 'images' / name}. "
            "Put the pictures beside the JSON, or in images/ beside it."
        )
    return path


def _annotations(
    rows: list[dict[str, Any]], image: dict[str, Any], label_of: dict[int, int], source: Path
) -> Annotations:
    if not rows:
        return Annotations.empty()
    boxes, labels, crowd, areas = [], [], [], []
    width, height = float(image["width"]), float(image["height"])
    for row in rows:
        where = f"{source}: annotation {row.get('id', '?')} of {image['file_name']}"
        category_id = _integer(row, "category_id", where)
        if category_id not in label_of:
            known = ", ".join(map(str, label_of))
            raise InputError(f"{where}: category_id {category_id} is not in 'categories' (known: {known}).")
        x, y, w, h = _bbox(row.get("bbox"), where)
        if w <= 0 or h <= 0:
            raise InputError(
                f"{where}: the box {row['bbox']} has no size. 'foldfuse check --mend' leaves such boxes out."
            )
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            raise InputError(
                f"{where}: the box {row['bbox']} lies outside its {width:.0f} x {height:.0f} picture. "
                "'foldfuse check --mend' leaves such boxes out."
            )
        boxes.append((max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)))
        labels.append(label_of[category_id])
        crowd.append(bool(row.get("iscrowd", 0)))
        area = row.get("area", w * h)
        if not _is_number(area):
            raise InputError(
                f"{where}: 'area' is {area!r}, expected square pixels. Leave it out, and width x height is taken."
            )
        areas.append(float(area))
    return Annotations(
        np.array(boxes, np.float64), np.array(labels, np.int64), np.array(crowd), np.array(areas, np.float64)
    )


def _bbox(value: Any, where: str) -> tuple[float, float, float, float]:
    if not is_bbox(value):
        raise InputError(f"{where}: 'bbox' is {value!r}, expected [left, top, width, height] in pixels.")
    x, y, w, h = map(float, value)
    return x, y, w, h


def is_bbox(value: Any) -> bool:
    """Whether a JSON value is a list of four finite numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
