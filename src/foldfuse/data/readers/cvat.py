"""Reads the XML of "CVAT for images 1.1": one file for all images, with boxes, polygons and masks in pixels from 0.

Source: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/. Points, lines and tags are no objects: they
are left out, and that is logged.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

from foldfuse.data.findings import Finding
from foldfuse.data.readers.image_names import ImageFiles
from foldfuse.data.readers.image_rows import Row, coco_document
from foldfuse.data.readers.loaded import Loaded
from foldfuse.errors import InputError, shown
from foldfuse.system.files import read_start, read_xml

WHAT = "an XML of CVAT for images"
OBJECTS = ("box", "polygon", "mask", "ellipse")


def is_cvat(path: Path) -> bool:
    """Whether an XML file is CVAT's: it begins with <annotations>."""
    try:
        return b"<annotations" in read_start(path, what=WHAT)
    except InputError:
        return False


def read_cvat(path: Path, *, images: Path | None = None, ignore_orientation: bool = False) -> Loaded:
    """The dataset in an XML of CVAT.

    Raises:
        InputError: the file is no such XML, is of a video, or lists no images.
    """
    tree = read_xml(path, what=WHAT, hint="Give the annotations.xml of CVAT for images.")
    if tree.tag != "annotations":
        raise InputError(
            f"{path}: begins with <{shown(tree.tag)[1:-1]}>, expected the <annotations> of CVAT for images."
        )
    if tree.find("track") is not None:
        raise InputError(
            f"{path}: holds the tracks of a video. Export the task from CVAT as COCO or as CVAT for images."
        )
    listed = tree.findall("image")
    if not listed:
        raise InputError(f"{path}: lists no images.")
    stated = [name for label in tree.iterfind("meta//label") if (name := (label.findtext("name") or "").strip())]
    used = {e.get("label", "") for image in listed for e in image if e.tag in OBJECTS and e.get("label")}
    labels = {name: i for i, name in enumerate(dict.fromkeys([*stated, *sorted(used)]), 1)}
    findings: list[Finding] = []
    rows: list[Row] = []
    annotations: list[Row] = []
    others: Counter[str] = Counter()
    for number, image in enumerate(listed, 1):
        row = {
            "id": number,
            "file_name": image.get("name", ""),
            "width": _side(image, "width"),
            "height": _side(image, "height"),
        }
        rows.append(row)
        for element in image:
            if element.tag not in OBJECTS:
                others[element.tag] += 1
                continue
            where = f"{path}: image {shown(row['file_name'])}"
            try:
                bbox = _bbox(element, where)
                name = element.get("label") or ""
                if name not in labels:
                    raise InputError(f"{where}: a <{element.tag}> has no label.")
            except InputError as error:
                findings.append(Finding(_kind(element), f"{row['file_name']}, {element.get('label')}", str(error)))
            else:
                annotations.append({"image_id": number, "category_id": labels[name], "bbox": bbox, "iscrowd": 0})
    for tag, count in others.items():
        where = f"{count} <{tag}>" if tag.isidentifier() else f"{count}"
        findings.append(Finding("shapes that are no boxes are left out", where, is_fault=False, is_logged=True))
    document = coco_document(rows, {label: name for name, label in labels.items()}, annotations)
    return Loaded(document, path, tuple(findings), ImageFiles(path, images), ignore_orientation)


def _side(image: ET.Element, name: str) -> int | None:
    text = image.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 9 else None


def _kind(element: ET.Element) -> str:
    return "the boxes are oriented" if _rotation(element) else "the object has no usable box"


def _rotation(element: ET.Element) -> float:
    try:
        return float(element.get("rotation", "0")) % 360
    except ValueError:
        return 0.0


def _bbox(element: ET.Element, where: str) -> list[float]:
    """[left, top, width, height] of a shape. Raises InputError where it has no box, or a turned one."""
    if element.tag in ("box", "ellipse") and _rotation(element):
        raise InputError(
            f"{where}: a <{element.tag}> is turned by {_rotation(element):g} degrees: oriented boxes are not supported."
        )
    if element.tag == "polygon":
        words = [word.split(",") for word in (element.get("points") or "").split(";")]
        points = [[_float(number, element, where) for number in word] for word in words]
        if len(points) < 2 or any(len(point) != 2 for point in points):
            raise InputError(
                f"{where}: a <polygon> has the points {shown(element.get('points') or '')}, expected x,y;x,y;..."
            )
        xs, ys = [x for x, _ in points], [y for _, y in points]
        return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    names = {
        "box": ("xtl", "ytl", "xbr", "ybr"),
        "mask": ("left", "top", "width", "height"),
        "ellipse": ("cx", "cy", "rx", "ry"),
    }
    a, b, c, d = (_float(element.get(name, ""), element, where) for name in names[element.tag])
    if element.tag == "mask":
        return [a, b, c, d]
    return [a, b, c - a, d - b] if element.tag == "box" else [a - c, b - d, 2 * c, 2 * d]


def _float(text: str, element: ET.Element, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: a <{element.tag}> holds {shown(text)}, expected a number of pixels.")
    return value
