"""Walks a COCO document row by row and yields every usable row, fixed where needed, and every finding.

Reading raises the first finding that has an error sentence; `foldfuse check` shows all findings and writes the usable rows.
Source: the COCO data format, https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from foldfuse.data.findings import AnnotationRow, CategoryRow, Finding, ImageRow, Item, Row
from foldfuse.data.images import load_image
from foldfuse.data.readers.image_names import ImageFiles
from foldfuse.errors import InputError

TINY_PX = 2.0  # a side below this is more often a slip of the mouse than an object
ORIENTATION_TAG = 0x0112
SWAPPED = range(5, 9)  # EXIF orientations that swap width and height
FIX = "'foldfuse check --fix' writes a copy without it."


def walk(
    document: Any, source: Path, *, files: ImageFiles | None = None, annotated: bool = True, decode: bool = False
) -> Iterator[Item]:
    """The usable rows of a COCO document and its findings: images first, then categories, then annotations.

    A finding comes before the row that it is about.

    Args:
        document: decoded JSON.
        source: its file, named in sentences.
        files: finds the image files; by default those beside `source` and in the folders below.
        annotated: False to ignore the annotations.
        decode: also decode every image, and leave out images that cannot be decoded or have another size.

    Raises:
        InputError: the document is not COCO, or none of its images or categories can be used.
    """
    if not isinstance(document, dict):
        raise InputError(
            f"{source}: holds a {type(document).__name__}, expected a COCO object with 'images' and 'categories'."
        )
    keys = ("images", "categories", "annotations") if annotated else ("images", "categories")
    rows = {key: _list(document, key, source) for key in keys}

    images: dict[int, ImageRow] = {}
    first_id: dict[int, int] = {}  # {image id: id of the first row with the same file}
    listed = _images(rows["images"], source, files or ImageFiles(source), first_id)
    for item in _decoded(listed) if decode else listed:
        if isinstance(item, ImageRow):
            images[item.id] = item
        yield item
    categories: dict[int, CategoryRow] = {}
    for category_or_finding in _categories(rows["categories"], source):
        if isinstance(category_or_finding, CategoryRow):
            categories[category_or_finding.id] = category_or_finding
        yield category_or_finding
    for what, usable in (("images", images), ("categories", categories)):
        if not usable:
            raise InputError(f"{source}: none of its {len(rows[what])} {what} can be used. Export the dataset again.")
    if annotated:
        yield from _annotations(rows["annotations"], source, images, first_id, categories)


def image_finding(path: Path, width: int, height: int) -> Finding | None:
    """The fault of an image that cannot be decoded or is not `width` x `height` pixels; None for a good image."""
    try:
        true_height, true_width = load_image(path).shape[:2]
    except InputError as error:
        return Finding("the image cannot be decoded", str(error), str(error))
    if (true_width, true_height) == (width, height):
        return None
    if (true_height, true_width) == (width, height) and orientation(path) in SWAPPED:
        advice = "as its EXIF tag rotates it; save the image upright, or annotate the pixels as stored"
    else:
        advice = "so its boxes cannot be trusted; export the dataset again"
    reason = f"{path}: is {true_width} x {true_height} pixels, and the JSON says {width} x {height}, {advice}."
    return Finding("the size differs from the JSON's", reason, reason)


def orientation(path: Path) -> int:
    """The EXIF orientation of an image that can be opened, 1 (upright) to 8; 1 without a tag."""
    with Image.open(path) as image:
        return int(image.getexif().get(ORIENTATION_TAG, 1))


def _list(document: Row, key: str, source: Path) -> list[Row]:
    if key not in document:
        raise InputError(f"{source}: has no {key!r}. Expected COCO JSON with 'images', 'categories' and 'annotations'.")
    rows = document[key]
    if not isinstance(rows, list):
        raise InputError(f"{source}: {key!r} is a {type(rows).__name__}, and must be a list of objects.")
    if not rows and key != "annotations":
        raise InputError(f"{source}: lists no {key}. A dataset needs at least one image and one category.")
    return [row if isinstance(row, dict) else {} for row in rows]


def _whole_number(value: Any) -> int | None:
    """A JSON value as an int; None for a value that is not a whole number. Some exporters write ids as strings of digits."""
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
        return None
    return int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _not_whole(where: str, key: str, value: Any) -> str:
    return f"{where}: {key!r} is {value!r}, expected a whole number. {FIX}"


def _fixed(row: Row, **fields: Any) -> Row:
    """A copy of the row with `fields` set; the row itself where it already has equal values of the same types."""
    same = all(key in row and row[key] == value and type(row[key]) is type(value) for key, value in fields.items())
    return row if same else row | fields


def _images(rows: list[Row], source: Path, files: ImageFiles, first_id: dict[int, int]) -> Iterator[Finding | ImageRow]:
    """The usable images, and the findings about the unusable images; fills `first_id`."""
    id_of_name: dict[str, int] = {}
    for number, row in enumerate(rows):
        where = f"image {number} of the list"
        image_id, name = _whole_number(row.get("id")), row.get("file_name")
        if image_id is None:
            error = _not_whole(f"{source}: {where}", "id", row.get("id"))
            yield Finding("the image has no whole-number id", where, error)
            continue
        where = f"{source}: image {image_id}"
        if not isinstance(name, str) or not name:
            error = f"{where}: 'file_name' is {name!r}, expected the name of an image file. {FIX}"
            yield Finding("the image has no file_name", f"image {image_id}", error)
        elif image_id in first_id:
            error = f"{source}: image id {image_id} is listed twice, expected once. {FIX}"
            yield Finding("the image id repeats", f"image {image_id} ({name})", error)
        elif name in id_of_name:
            first_id[image_id] = id_of_name[name]
            error = f"{source}: file_name {name} is listed twice, expected once. 'foldfuse check --fix' joins the two."
            yield Finding("the image is listed under two ids", name, error, fix="boxes joined")
        elif not (match := files.find(name)).found:
            yield Finding("the image is missing", name, f"{where}: {files.where(name)}")
        else:
            first_id[image_id] = id_of_name[name] = image_id
            yield from _with_size(row, image_id, match.path, where)


def _with_size(row: Row, image_id: int, path: Path, where: str) -> Iterator[Finding | ImageRow]:
    """The image, and a finding where its row has no size; the size is then read from the image file."""
    width, height = _whole_number(row.get("width")) or 0, _whole_number(row.get("height")) or 0
    if width <= 0 or height <= 0:
        key = "width" if width <= 0 else "height"
        error = (
            f"{where}: {key!r} is {row.get(key)!r}, expected a positive whole number of pixels. "
            "'foldfuse check --fix' takes the size from the file."
        )
        try:
            with Image.open(path) as image:
                width, height = image.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            yield Finding("the image cannot be decoded", row["file_name"], error)
            return
        yield Finding("the image has no width or height", row["file_name"], error, fix="size taken from the file")
    fixed = _fixed(row, id=image_id, width=width, height=height)
    yield ImageRow(image_id, path, row["file_name"], width, height, fixed)


def _decoded(items: Iterator[Finding | ImageRow]) -> Iterator[Finding | ImageRow]:
    """`items` without the images that cannot be decoded or have another size; adds findings about the pixels."""
    listed = list(items)
    images = [item for item in listed if isinstance(item, ImageRow)]

    def inspect(image: ImageRow) -> tuple[Finding | None, int]:
        finding = image_finding(image.path, image.width, image.height)
        return finding, 1 if finding else orientation(image.path)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip(map(id, images), pool.map(inspect, images), strict=True))
    for item in listed:
        finding, tag = results.get(id(item), (None, 1))
        if finding is not None:
            yield finding
            continue
        if isinstance(item, ImageRow) and tag != 1:
            kind = "an EXIF tag rotates the image; its boxes must be annotated on the pixels as stored"
            yield Finding(kind, item.file_name, fix="", is_fault=False)
        yield item


def _categories(rows: list[Row], source: Path) -> Iterator[Finding | CategoryRow]:
    """The usable categories, and the findings about the unusable categories."""
    known: set[int] = set()
    for number, row in enumerate(rows):
        where = f"category {number} of the list"
        category_id = _whole_number(row.get("id"))
        if category_id is None:
            error = _not_whole(f"{source}: {where}", "id", row.get("id"))
            yield Finding("the category has no whole-number id", where, error)
        elif category_id in known:
            error = f"{source}: category id {category_id} is listed twice, expected once. {FIX}"
            where = f"category {category_id} ({row.get('name')})"
            yield Finding("the category id repeats", where, error)
        else:
            known.add(category_id)
            name = row.get("name", str(category_id))
            yield CategoryRow(category_id, str(name), _fixed(row, id=category_id, name=name))


def _annotations(
    rows: list[Row],
    source: Path,
    images: dict[int, ImageRow],
    first_id: dict[int, int],
    categories: dict[int, CategoryRow],
) -> Iterator[Finding | AnnotationRow]:
    """The usable annotations, and the findings about all annotations."""
    ids = Counter(_whole_number(row.get("id")) for row in rows)
    renumber = any(count > 1 for id_, count in ids.items() if id_ is not None) or None in ids
    seen: set[tuple[Any, ...]] = set()  # (image, category, bbox, crowd) of each box so far
    for number, row in enumerate(rows):
        name = f"annotation {row.get('id', f'number {number}')}"
        image_id, category_id = _whole_number(row.get("image_id")), _whole_number(row.get("category_id"))
        image = images.get(first_id.get(image_id, image_id)) if image_id is not None else None
        if image is None:
            yield Finding("the annotation is of no usable image", name, _no_image(source, name, row))
            continue
        where = f"{name} of {image.file_name}"
        category = categories.get(category_id) if category_id is not None else None
        fault = _category_fault(row, categories) if category is None else _box_fault(row.get("bbox"), image)
        if category is None or fault is not None:
            assert fault is not None
            error = f"{source}: {where}: {fault[1]}"
            yield Finding(fault[0], f"{where}, {row.get('bbox')}", error)
            continue
        x, y, w, h = map(float, row["bbox"])
        crowd = bool(row.get("iscrowd", 0))
        where = f"{where}, {row['bbox']}"
        key = (image.id, category.id, x, y, w, h, crowd)
        is_repeat = key in seen
        seen.add(key)
        annotation_id = _whole_number(row.get("id"))
        if is_repeat:
            yield Finding("the box is annotated twice", where)
        elif annotation_id is not None and ids[annotation_id] > 1:
            yield Finding("the annotation id repeats", where, fix="all renumbered")
        if min(w, h) < TINY_PX:
            yield Finding(f"the box has a side below {TINY_PX:g} px", where, fix="", is_fault=False)

        fixed = _fixed(row, image_id=image.id, category_id=category.id)
        area = row.get("area", w * h)
        if not _is_number(area):
            error = (
                f"{source}: {name} of {image.file_name}: 'area' is {area!r}, expected square pixels. "
                "Leave it out, and width x height is used."
            )
            yield Finding("the area is not a number", where, error, fix="area taken from the box")
            area = w * h
            fixed = fixed | {"area": area}
        box = (x, y, x + w, y + h)
        if x < 0 or y < 0 or x + w > image.width or y + h > image.height:
            yield Finding("the box sticks out of its image", where, fix="", is_fault=False)
        if renumber:
            fixed = fixed | {"id": len(seen)}
        yield AnnotationRow(image.id, category.id, box, crowd, float(area), is_repeat, fixed)


def _no_image(source: Path, name: str, row: Row) -> str:
    image_id = row.get("image_id")
    if _whole_number(image_id) is None:
        return _not_whole(f"{source}: {name}", "image_id", image_id)
    return f"{source}: {name}: is of image {image_id}, which is not in 'images'. Remove it or list the image."


def _category_fault(row: Row, categories: dict[int, CategoryRow]) -> tuple[str, str]:
    """(kind, sentence) of the fault of an annotation without a known category."""
    kind, value = "the annotation is of no known category", row.get("category_id")
    if _whole_number(value) is None:
        return kind, f"'category_id' is {value!r}, expected a whole number. {FIX}"
    known = ", ".join(map(str, sorted(categories)))
    return kind, f"category_id {value} is not in 'categories' (known: {known}). {FIX}"


def _box_fault(bbox: Any, image: ImageRow) -> tuple[str, str] | None:
    """(kind, sentence) of the fault of a `bbox` that is not a box on its image; None for a good box."""
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))):
        return (
            "the box is not four numbers",
            f"'bbox' is {bbox!r}, expected [left, top, width, height] in pixels. {FIX}",
        )
    x, y, w, h = bbox
    if w <= 0 or h <= 0:
        return "the box has no size", f"the box {bbox} has no size. {FIX}"
    if x >= image.width or y >= image.height or x + w <= 0 or y + h <= 0:
        size = f"{image.width} x {image.height}"
        return "the box lies outside its image", f"the box {bbox} lies outside its {size} image. {FIX}"
    return None
