"""Reads the exports of Label Studio, JSON and JSON-MIN: rectangles, polygons and ellipses in percent of the image's sides.

Source: https://labelstud.io/guide/export. Of several annotations of one task the ground truth counts, else the newest. Regions
of other kinds, such as brush masks and key points, are no boxes: they are left out, and that is logged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from foldfuse.data.findings import Finding
from foldfuse.data.readers.image_names import ImageFiles, is_image_name, name_parts
from foldfuse.data.readers.image_rows import Row, coco_document, image_ids
from foldfuse.data.readers.loaded import Loaded
from foldfuse.errors import InputError, shown

LOCAL_FILES = "?d="  # before the path of a local file
LABELS = ("rectanglelabels", "polygonlabels", "ellipselabels", "labels")  # keys of a region's labels


@dataclass(frozen=True)
class Task:
    """A task of an export.

    Attributes:
        file_name: its image.
        id: the image id that Foldfuse wrote into the task; None in other tasks.
        regions: of the annotation that counts; None for a task without one.
        annotators: number of annotations that were not cancelled.
    """

    file_name: str
    id: Any
    regions: Sequence[Mapping[str, Any]] | None
    annotators: int


def is_label_studio(document: Any) -> bool:
    """Whether a decoded JSON is an export of Label Studio, or a list of its tasks."""
    rows = [row for row in document if isinstance(row, dict)] if isinstance(document, list) else []
    if not rows:
        return False
    if isinstance(rows[0].get("data"), dict):
        return not {"annotations", "completions", "predictions"}.isdisjoint(rows[0])
    return any(True for row in rows for _ in _small_regions(row))


def read_label_studio(
    path: Path, document: Any, *, annotated: bool = True, images: Path | None = None, ignore_orientation: bool = False
) -> Loaded:
    """The dataset in an export of Label Studio.

    Args:
        path: the file.
        document: its decoded JSON.
        annotated: False to take all tasks, those without an annotation too.
        images: the folder of `--images`.
        ignore_orientation: see `Loaded`.

    Raises:
        InputError: no task is annotated, or a task names no image.
    """
    tasks = [_task(row, f"{path}: task {number}") for number, row in enumerate(document, 1)]
    findings: list[Finding] = []
    kept = [task for task in tasks if task.regions is not None or not annotated]
    if not kept:
        raise InputError(
            f"{path}: none of its {len(tasks)} tasks is annotated; predictions alone are no annotations. Export from Label "
            "Studio after annotating, as JSON, JSON-MIN, COCO or YOLO."
        )
    if len(kept) < len(tasks):
        where = (
            f"{len(tasks) - len(kept)} of {len(tasks)}, such as {next(t for t in tasks if t.regions is None).file_name}"
        )
        findings.append(Finding("tasks without an annotation are left out", where, is_fault=False, is_logged=True))
    if several := [task for task in kept if task.annotators > 1]:
        where = f"{len(several)} tasks, such as {several[0].file_name}"
        kind = "tasks have several annotations: the ground truth counts, else the newest"
        findings.append(Finding(kind, where, fix="", is_fault=False, is_logged=True))
    ids = _ids(kept)
    others: Counter[str] = Counter()
    rows: list[Row] = []
    found: list[tuple[int, str, list[float]]] = []
    for task, number in zip(kept, ids, strict=True):
        size: tuple[int, int] | None = None
        for region in task.regions or ():
            try:
                size = size or _size(region, path, task)
                read = _region(region, size, f"{path}: image {shown(task.file_name)}")
            except InputError as error:
                kind = "the boxes are oriented" if "turned" in str(error) else "the object has no usable box"
                findings.append(Finding(kind, f"{task.file_name}, region {region.get('id', '?')}", str(error)))
                continue
            if isinstance(read, str):
                others[read] += 1
            else:
                found.append((number, *read))
        width, height = size or (None, None)
        rows.append({"id": number, "file_name": task.file_name, "width": width, "height": height})
    for what, count in others.items():
        where = f"{count} {shown(what)[1:-1]}"
        findings.append(Finding("regions that are no boxes are left out", where, is_fault=False, is_logged=True))
    labels = {name: i for i, name in enumerate(sorted({name for _, name, _ in found}), 1)}
    annotations = [
        {"image_id": image, "category_id": labels[name], "bbox": box, "iscrowd": 0} for image, name, box in found
    ]
    result = coco_document(rows, {label: name for name, label in labels.items()}, annotations)
    return Loaded(result, path, tuple(findings), ImageFiles(path, images), ignore_orientation)


def _task(row: Any, where: str) -> Task:
    """A task of the export; JSON-MIN has the image and the regions at the top."""
    if not isinstance(row, dict):
        raise InputError(f"{where} is {shown(row)}, expected an object.")
    data = row.get("data")
    if not isinstance(data, dict):
        return Task(_file_name(row, where), None, list(_small_regions(row)) if _is_annotated(row) else None, 1)
    given = row.get("annotations", row.get("completions"))
    done = [a for a in given if isinstance(a, dict)] if isinstance(given, list) else []
    done = [each for each in done if not each.get("was_cancelled") and isinstance(each.get("result"), list)]
    name = _file_name(data, where)
    if not done:
        return Task(name, data.get("image_id"), None, 0)
    truth = [each for each in done if each.get("ground_truth")]
    newest = max(reversed(truth or done), key=lambda each: str(each.get("updated_at") or each.get("created_at") or ""))
    regions = [each for each in newest["result"] if isinstance(each, dict)]
    return Task(name, data.get("image_id"), regions, len(done))


def _is_annotated(row: Mapping[str, Any]) -> bool:
    """Whether a row of JSON-MIN has an annotation; an image without objects has one without regions."""
    return "annotation_id" in row or any(True for _ in _small_regions(row))


def _small_regions(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The regions of a row of JSON-MIN: lists of objects with the size of the image."""
    for value in row.values():
        if isinstance(value, list):
            yield from (each for each in value if isinstance(each, dict) and "original_width" in each)


def _file_name(data: Mapping[str, Any], where: str) -> str:
    """The image of a task: the path below the document root, or what the address ends in."""
    texts = {key: value for key, value in data.items() if isinstance(value, str) and value}
    named = {
        key: name for key, text in texts.items() if is_image_name((name_parts(name := _path(text))[0] or [""])[-1])
    }
    if not named and "image" not in texts:
        raise InputError(f"{where} names no image: its data are {shown(data)}. Export a project of images.")
    return named.get("image") or next(iter(named.values()), "") or _path(texts["image"])


def _path(text: str) -> str:
    """An image's address without what is not part of its name."""
    if LOCAL_FILES in text:
        return unquote(text.split(LOCAL_FILES, 1)[1].split("&", 1)[0]).lstrip("/")
    return text.split("?", 1)[0] if "://" in text else text


def _ids(tasks: list[Task]) -> list[int]:
    """The image ids that Foldfuse wrote into the tasks, where all have one; else as for images without ids."""
    own = [task.id for task in tasks]
    if all(type(each) is int for each in own) and len(set(own)) == len(own):
        return own
    paths = [Path(task.file_name) for task in tasks]
    found = image_ids(paths)
    return [found[path] for path in paths] if len(found) == len(paths) else list(range(1, len(paths) + 1))


def _size(region: Mapping[str, Any], path: Path, task: Task) -> tuple[int, int]:
    """(width, height) of the image, in pixels."""
    width, height = (region.get(key) for key in ("original_width", "original_height"))
    if not (isinstance(width, int) and isinstance(height, int) and 0 < width < 10**6 and 0 < height < 10**6):
        raise InputError(
            f"{path}: image {shown(task.file_name)}: a region does not state the size of its image (original_width, "
            "original_height), and its numbers are shares of it. Export again from a newer Label Studio."
        )
    return width, height


def _region(region: Mapping[str, Any], size: tuple[int, int], where: str) -> tuple[str, list[float]] | str:
    """(class name, [left, top, width, height] in pixels) of a region; the kind of a region that is no box.

    Raises:
        InputError: it is turned, has several labels, or a number is missing.
    """
    value = region["value"] if isinstance(region.get("value"), dict) else region
    key = next((key for key in LABELS if isinstance(value.get(key), list)), None)
    kind = str(region.get("type") or key or "a region without a label")
    is_polygon, is_ellipse = isinstance(value.get("points"), list), "radiusX" in value
    if key is None or not (is_polygon or is_ellipse or ("width" in value and "height" in value and "x" in value)):
        return kind
    labels = value[key]
    if len(labels) != 1 or not isinstance(labels[0], str) or not labels[0].strip():
        raise InputError(
            f"{where}: a region has the labels {shown(labels)}, expected one. Choose one label for each region."
        )
    for turn in (value.get("rotation"), region.get("image_rotation")):
        if turn and _number(turn, where) % 360:
            raise InputError(f"{where}: a region is turned by {turn:g} degrees: oriented boxes are not supported.")
    width, height = (side / 100 for side in size)
    if is_polygon:
        points = value["points"]
        if len(points) < 2 or not all(isinstance(point, list) and len(point) == 2 for point in points):
            raise InputError(f"{where}: a polygon has the points {shown(points)}, expected pairs of numbers.")
        xs, ys = ([_number(point[i], where) for point in points] for i in range(2))
        x, y, w, h = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    elif is_ellipse:
        cx, cy, rx, ry = (_number(value.get(name), where) for name in ("x", "y", "radiusX", "radiusY"))
        x, y, w, h = cx - rx, cy - ry, 2 * rx, 2 * ry
    else:
        x, y, w, h = (_number(value.get(name), where) for name in ("x", "y", "width", "height"))
    return labels[0].strip(), [x * width, y * height, w * width, h * height]


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where}: a region holds {shown(value)}, expected a number of percent.")
    return float(value)
