"""An examination of a COCO document, row by row: all that is wrong with it, and a copy in which it is mended.

`data.read` stops at the first row that cannot be used; this goes through all of them, so it works on the decoded JSON.
A fault is what `data.read` refuses or what misleads training; anything else worth knowing is a note.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from foldfuse.data.images import load_image
from foldfuse.data.readers.coco import find_image, is_bbox
from foldfuse.errors import InputError

TINY_PX = 2.0  # a side below this is more often a slip of the mouse than an object
ORIENTATION_TAG = 0x0112
TURNED = range(5, 9)  # EXIF orientations that swap width and height

Row = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        kind: what it is, the same words for all of its kind.
        where: the row or the picture.
        fault: False for a mere note.
        mended: what the mended copy does about it, or "" where it is left as it is.
    """

    kind: str
    where: str
    fault: bool
    mended: str


@dataclass(frozen=True)
class Examination:
    """What was found, and the mended document.

    Attributes:
        findings: in the order of the document.
        mended: a COCO document that `data.read` takes.
    """

    findings: list[Finding] = field(default_factory=list)
    mended: Row = field(default_factory=dict)

    def fault(self, kind: str, where: str, mended: str = "left out") -> None:
        """Add a fault."""
        self.findings.append(Finding(kind, where, True, mended))

    def note(self, kind: str, where: str, mended: str = "") -> None:
        """Add a note."""
        self.findings.append(Finding(kind, where, False, mended))


def examine(document: Any, source: Path, *, pictures: bool = True) -> Examination:
    """All that is wrong with a COCO document.

    Args:
        document: decoded JSON.
        source: its file; pictures are looked for beside it.
        pictures: also decode every picture.

    Raises:
        InputError: it is no COCO document at all, or no picture or class of it can be used.
    """
    lists = {key: _list(document, key, source) for key in ("images", "categories", "annotations")}
    seen = Examination()
    images, same = _images(lists["images"], source, seen)
    if pictures:
        _look(images, source, seen)
    categories = _categories(lists["categories"], seen)
    for what, kept in (("image", images), ("category", categories)):
        if not kept:
            raise InputError(f"{source}: holds not one usable {what}, such as COCO asks for. Export the dataset again.")
    annotations = _annotations(lists["annotations"], images, same, categories, seen)

    drawn = Counter(row["image_id"] for row in annotations)
    for image_id, row in images.items():
        if not drawn[image_id]:
            seen.note("nothing is drawn on the picture", row["file_name"])
    used = Counter(row["category_id"] for row in annotations)
    for category_id, row in categories.items():
        if not used[category_id]:
            seen.note("the class never occurs", str(row["name"]))
    seen.mended.update(document)
    seen.mended.update(images=list(images.values()), categories=list(categories.values()), annotations=annotations)
    return seen


@dataclass(frozen=True)
class Trouble:
    """Why a picture cannot be used.

    Attributes:
        kind: the same words for all of its kind.
        reason: a sentence that names the file.
    """

    kind: str
    reason: str


def picture_trouble(path: Path, width: int, height: int) -> Trouble | None:
    """Why the picture cannot be used: it cannot be decoded, or is not `width` x `height` pixels. None where it can."""
    try:
        true_height, true_width = load_image(path).shape[:2]
    except InputError as error:
        return Trouble("the picture cannot be decoded", str(error))
    if (true_width, true_height) == (width, height):
        return None
    if (true_height, true_width) == (width, height) and orientation(path) in TURNED:
        advice = "as its EXIF tag turns it; save the picture upright, or redraw its boxes on the picture as stored"
    else:
        advice = "so its boxes cannot be trusted; export the dataset again"
    return Trouble(
        "the size is not the JSON's",
        f"{path}: is {true_width} x {true_height} pixels, and the JSON says {width} x {height}, {advice}.",
    )


def orientation(path: Path) -> int:
    """The EXIF orientation of a picture that can be opened, 1 (upright) to 8; 1 where none is given."""
    with Image.open(path) as image:
        return int(image.getexif().get(ORIENTATION_TAG, 1))


def _list(document: Any, key: str, source: Path) -> list[Any]:
    if not isinstance(document, dict):
        raise InputError(
            f"{source}: holds a {type(document).__name__}, expected a COCO object with 'images' and 'categories'."
        )
    rows = document.get(key, [])
    if not isinstance(rows, list):
        raise InputError(f"{source}: {key!r} is a {type(rows).__name__}, expected a list of objects.")
    return rows


def _id(row: Any, key: str = "id") -> int | None:
    """row[key] as `data.read` takes it, or None where it does not."""
    value = row.get(key) if isinstance(row, dict) else None
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value % 1 != 0:
        return None
    return int(value)


def _images(rows: list[Any], source: Path, seen: Examination) -> tuple[dict[int, Row], dict[int, int]]:
    """The usable images by id, and {id of a picture listed again: id of its first listing}."""
    images: dict[int, Row] = {}
    first_of_name: dict[str, int] = {}
    same: dict[int, int] = {}
    for number, row in enumerate(rows):
        image_id = _id(row)
        name = row.get("file_name") if isinstance(row, dict) else None
        if image_id is None or not isinstance(name, str) or not name:
            seen.fault("the image has no whole-number id or no file_name", f"image {number} of the list")
        elif image_id in images:
            seen.fault("the image id repeats", f"image {image_id} ({name})")
        elif name in first_of_name:
            same[image_id] = first_of_name[name]
            seen.fault("the picture is listed under two ids", name, "boxes joined")
        elif (path := find_image(source, name)) is None:
            seen.fault("the picture is missing", name)
        elif (good := _sized(row, image_id, path, seen)) is not None:
            images[image_id] = good
            first_of_name[name] = image_id
    return images, same


def _sized(row: Row, image_id: int, path: Path, seen: Examination) -> Row | None:
    """The row with whole numbers, its size taken from the picture where it has none; None where that fails."""
    width, height = _id(row, "width") or 0, _id(row, "height") or 0
    if width <= 0 or height <= 0:
        try:
            with Image.open(path) as image:
                width, height = image.size
        except (OSError, SyntaxError, ValueError):
            seen.fault("the picture cannot be decoded", row["file_name"])
            return None
        seen.fault("the image has no width or height", row["file_name"], "taken from the picture")
    return row | {"id": image_id, "width": width, "height": height}


def _look(images: dict[int, Row], source: Path, seen: Examination) -> None:
    """Decode every picture, and take those that cannot be used out of `images`."""

    def look(row: Row) -> tuple[Trouble | None, int]:
        path = find_image(source, row["file_name"])
        assert path is not None
        trouble = picture_trouble(path, row["width"], row["height"])
        return trouble, 1 if trouble else orientation(path)

    rows = list(images.values())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = list(pool.map(look, rows))
    for row, (trouble, turn) in zip(rows, looks, strict=True):
        if trouble is not None:
            seen.fault(trouble.kind, trouble.reason)
            del images[row["id"]]
        elif turn != 1:
            seen.note("an EXIF tag turns the picture; boxes must be drawn on it as stored", row["file_name"])


def _categories(rows: list[Any], seen: Examination) -> dict[int, Row]:
    """The usable categories by id."""
    categories: dict[int, Row] = {}
    for number, row in enumerate(rows):
        category_id = _id(row)
        if category_id is None:
            seen.fault("the category has no whole-number id", f"category {number} of the list")
        elif category_id in categories:
            seen.fault("the category id repeats", f"category {category_id} ({row.get('name')})")
        else:
            categories[category_id] = {"name": str(category_id)} | row | {"id": category_id}
    return categories


def _annotations(
    rows: list[Any], images: dict[int, Row], same: dict[int, int], categories: dict[int, Row], seen: Examination
) -> list[Row]:
    """The usable annotations, cut to their pictures, each once, with ids that do not repeat."""
    kept: list[Row] = []
    drawn: set[tuple[Any, ...]] = set()
    ids = Counter(_id(row) for row in rows)
    renumber = any(count > 1 for i, count in ids.items() if i is not None) or None in ids
    for number, row in enumerate(rows):
        image_id, category_id = _id(row, "image_id"), _id(row, "category_id")
        image = images.get(same.get(image_id, image_id)) if image_id is not None else None
        category = categories.get(category_id) if category_id is not None else None
        where = f"annotation {row.get('id', f'number {number}') if isinstance(row, dict) else f'number {number}'}"
        if image is None:
            seen.fault("the annotation is of no usable image", where)
            continue
        where = f"{where} of {image['file_name']}, {row.get('bbox')}"
        if category is None:
            seen.fault("the annotation is of no known category", where)
            continue
        why = _box_fault(row.get("bbox"), image)
        if why is not None:
            seen.fault(why, where)
            continue
        key = (image["id"], category["id"], *map(float, row["bbox"]), bool(row.get("iscrowd", 0)))
        if key in drawn:
            seen.fault("the box is drawn twice", where)
            continue
        drawn.add(key)
        if (i := _id(row)) is not None and ids[i] > 1:
            seen.fault("the annotation id repeats", where, "all renumbered")
        cut = {"bbox": _cut(row["bbox"], image)}
        if cut["bbox"] != [float(v) for v in row["bbox"]]:
            seen.note("the box sticks out of its picture", where, "cut to the picture")
        else:
            cut = {}
        if min(row["bbox"][2:]) < TINY_PX:
            seen.note(f"the box has a side below {TINY_PX:g} px", where)
        new_id = {"id": len(kept) + 1} if renumber else {}
        kept.append(row | {"image_id": image["id"], "category_id": category["id"]} | cut | new_id)
    return kept


def _box_fault(bbox: Any, image: Row) -> str | None:
    """Why an xywh box is none on its picture; None where it is one."""
    if not is_bbox(bbox):
        return "the box is not four numbers"
    x, y, w, h = bbox
    if w <= 0 or h <= 0:
        return "the box has no size"
    if x >= image["width"] or y >= image["height"] or x + w <= 0 or y + h <= 0:
        return "the box lies outside its picture"
    return None


def _cut(bbox: list[float], image: Row) -> list[float]:
    """An xywh box cut to its picture; as it is where it does not stick out."""
    x, y, w, h = map(float, bbox)
    if x >= 0 and y >= 0 and x + w <= image["width"] and y + h <= image["height"]:
        return [x, y, w, h]
    left, top = max(x, 0.0), max(y, 0.0)
    return [left, top, min(x + w, image["width"]) - left, min(y + h, image["height"]) - top]
