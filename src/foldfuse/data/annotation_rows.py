"""Walks the annotations of a COCO document: parses each row, and yields the usable rows and the findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foldfuse.data.box_formats import (
    LARGEST_SHARE,
    WORDS,
    BoxFormat,
    Conventions,
    recognise_boxes,
    recognise_category_ids,
    to_xywh,
)
from foldfuse.data.box_shapes import box_of_segmentation, mask_size
from foldfuse.data.findings import AnnotationRow, CategoryRow, Finding, ImageRow, Row, fixed_row
from foldfuse.data.values import Ids, flag, id_key, number, numbers, whole_number
from foldfuse.errors import shown

NO_USABLE_IMAGE = "the annotation is of no usable image"  # the kind of a finding
MAX_PX = 1e8  # a coordinate beyond is no pixel of any image
ROUNDING_PX = 0.01  # boxes written as shares with six digits stick out by less
TINY_PX = 2.0  # a side below this is more often a slip of the mouse than an object
FIX = "'foldfuse check --fix' writes a copy without it."
ORIENTED = "Foldfuse detects upright boxes: export these, or the polygons as a segmentation."
EMPTY: tuple[Any, ...] = (None, "", [], {})


@dataclass(frozen=True, slots=True, eq=False)
class _Parsed:
    """The box of one row.

    Attributes:
        row, index: the row and its place in the list.
        image: None for an annotation of no usable image.
        box: the four numbers of `bbox`; None where these are no box.
        around: xywh of the box around the segmentation; None where there is none or where it is not needed.
    """

    row: Row
    index: int
    image: ImageRow | None
    box: list[float] | None
    around: list[float] | None

    @property
    def name(self) -> str:
        """The annotation in sentences."""
        own = self.row.get("id")
        return f"annotation number {self.index}" if own is None else f"annotation {shown(own)}"


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """The rows that annotations refer to.

    Attributes:
        images: {image id: usable image}.
        first_id: {image id: id of the first row with the same file}.
        image_ids, category_ids: all ids of the document.
        categories: {category id: usable category}.
    """

    images: Mapping[int, ImageRow]
    first_id: Mapping[int, int]
    image_ids: Ids
    categories: Mapping[int, CategoryRow]
    category_ids: Ids


def walk_annotations(
    rows: Sequence[Row], source: Path, known: Known, conventions: Conventions
) -> Iterator[Finding | AnnotationRow]:
    """The usable annotations, and the findings about all annotations; findings about all of them together come first."""
    parsed = [_parse(row, number, known) for number, row in enumerate(rows)]
    box_format = yield from _box_format(parsed, source, conventions)
    class_order = yield from _class_order(rows, source, known, conventions)
    ids = Counter(whole_number(row.get("id")) for row in rows)
    renumber = any(count > 1 for id_, count in ids.items() if id_ is not None) or None in ids
    seen: set[tuple[Any, ...]] = set()  # (image, category, box, crowd) of each box so far
    may_be_plain = box_format == "xywh" and class_order is None and not renumber and not known.category_ids.renumbered
    for row, entry in zip(rows, parsed, strict=True):
        image = entry.image
        if may_be_plain and image is not None and _is_plain_row(row, entry, image, known):
            assert entry.box is not None
            x, y, w, h = entry.box
            crowd = bool(row.get("iscrowd", 0)) and not conventions.ignore_crowd_flags
            key = (image.id, row["category_id"], x, y, w, h, crowd)
            if key not in seen and crowd == bool(row.get("iscrowd", 0)):
                seen.add(key)
                area = float(row.get("area", w * h))
                yield AnnotationRow(image.id, row["category_id"], (x, y, x + w, y + h), crowd, area, False, row)
                continue
        if image is None:
            yield Finding(NO_USABLE_IMAGE, entry.name, _no_image(source, entry.name, row, known))
            continue
        where = f"{entry.name} of {image.file_name}"
        category = _category(row, known, class_order)
        if category is None:
            error = f"{source}: {where}: {_no_category(row, known)}"
            yield Finding("the annotation is of no known category", f"{where}, {shown(row.get('bbox'))}", error)
            continue
        box = yield from _box(row, entry, image, box_format, f"{source}: {where}")
        if box is None:
            continue
        x, y, w, h = box
        where = f"{where}, {shown(box if row.get('bbox') in EMPTY else row['bbox'])}"
        crowd = yield from _crowd(row, where, source, conventions)
        is_as_written = box_format == "xywh" and entry.around is None
        area = yield from _area(row, w * h, where, is_as_written=is_as_written)
        if texts := _texts(row):
            yield Finding("numbers are written as text", f"{where}: {texts}", fix="written as numbers", is_fault=False)
        key = (image.id, category.id, x, y, w, h, crowd)
        is_repeat = key in seen
        seen.add(key)
        annotation_id = whole_number(row.get("id"))
        if is_repeat:
            yield Finding("the box is annotated twice", where, is_logged=True)
        elif annotation_id is not None and ids[annotation_id] > 1:
            yield Finding("the annotation id repeats", where, fix="all renumbered")
        if min(w, h) < TINY_PX:
            yield Finding(f"the box has a side below {TINY_PX:g} px", where, fix="", is_fault=False)
        if min(x, y) < -ROUNDING_PX or max(x + w - image.width, y + h - image.height) > ROUNDING_PX:
            yield Finding("the box sticks out of its image", where, fix="", is_fault=False)

        fixed = fixed_row(row, image_id=image.row["id"], category_id=category.row["id"])
        if not _is_plain(row.get("bbox"), box):
            fixed = fixed | {"bbox": box}
        if "area" in row:
            fixed = fixed_row(fixed, area=row["area"] if area == row["area"] else area)
        if "iscrowd" in row:
            fixed = fixed_row(fixed, iscrowd=int(crowd))
        fixed = fixed | {"id": len(seen)} if renumber else fixed_row(fixed, id=annotation_id)
        yield AnnotationRow(image.id, category.id, (x, y, x + w, y + h), crowd, area, is_repeat, fixed)


def _is_plain_row(row: Row, entry: _Parsed, image: ImageRow, known: Known) -> bool:
    """Whether a row is written exactly as COCO has it, so that there is nothing to find; most rows are, and this is fast."""
    box, area = entry.box, row.get("area", 1)
    if box is None or entry.around is not None or not _is_plain(row["bbox"], box):
        return False
    x, y, w, h = box
    return (
        min(w, h) >= TINY_PX
        and min(x, y) >= 0
        and x + w <= image.width
        and y + h <= image.height
        and type(row.get("image_id")) is int
        and row["image_id"] == image.row["id"]
        and type(row.get("category_id")) is int
        and row["category_id"] in known.categories
        and type(row.get("id")) is int
        and type(area) in (int, float)
        and 0 < area <= MAX_PX**2
        and type(row.get("iscrowd", 0)) is int
        and row.get("iscrowd", 0) in (0, 1)
    )


def _parse(row: Row, index: int, known: Known) -> _Parsed:
    image_id = known.image_ids.number(row.get("image_id"))
    image = known.images.get(known.first_id.get(image_id, image_id)) if image_id is not None else None
    box = numbers(row.get("bbox"))
    if box is not None and (len(box) != 4 or max(map(abs, box)) > MAX_PX):
        box = None
    if image is None or (box is not None and min(box[2:]) > 0):
        return _Parsed(row, index, image, box, None)
    around = box_of_segmentation(row.get("segmentation"))
    if around is None or _has_other_size(row, image):
        return _Parsed(row, index, image, box, None)
    return _Parsed(row, index, image, box, list(around))


def _has_other_size(row: Row, image: ImageRow) -> bool:
    """Whether the mask of an annotation has another size than its image."""
    mask = row.get("segmentation")
    return isinstance(mask, dict) and mask_size(mask) not in (None, (image.width, image.height))


def _box_format(
    parsed: Sequence[_Parsed], source: Path, conventions: Conventions
) -> Generator[Finding, None, BoxFormat]:
    """The format to read all boxes in; a finding where it is not COCO's, or does not seem to be."""
    if conventions.box_format is not None:
        if conventions.box_format != "xywh":
            kind = f"the boxes are {WORDS[conventions.box_format]}"
            yield Finding(kind, f"{len(parsed)} annotations", fix="converted to [left, top, width, height]")
        return conventions.box_format
    given = [(p.around if p.box is None or not any(p.box) else p.box, p.image) for p in parsed]
    rows = [(box, image) for box, image in given if box is not None and image is not None]
    boxes = np.array([box for box, _ in rows], np.float64).reshape(-1, 4)
    sizes = np.array([(image.width, image.height) for _, image in rows], np.float64).reshape(-1, 2)
    found = recognise_boxes(boxes, sizes)
    if found is not None:
        words = " or ".join(WORDS[format] for format in found.formats)
        error = (
            f"{source}: the boxes look like {words}: {found.reason}. Convert them with 'foldfuse check --fix --box-format "
            f"{'|'.join(found.formats)} --out FILE'; --box-format xywh keeps them as they are."
        )
        option = f"--box-format {'|'.join(found.formats)}, or --box-format xywh to keep the boxes as they are"
        yield Finding(f"the boxes look like {words}", found.reason, error, fix="", option=option)
    return "xywh"


def _class_order(
    rows: Sequence[Row], source: Path, known: Known, conventions: Conventions
) -> Generator[Finding, None, dict[int, int] | None]:
    """{place of a class that annotations give instead of its id: category id}; None where they give ids."""
    order = sorted(known.categories)
    if conventions.category_ids == "as_given" or known.category_ids.renumbered:
        return None
    if conventions.category_ids is not None:
        first = 0 if conventions.category_ids == "from_zero" else 1
        kind = f"the annotations count the classes from {first}, and do not name their ids"
        yield Finding(kind, f"{len(rows)} annotations", fix="category ids given")
        return dict(enumerate(order, first))
    used = Counter(whole_number(row.get("category_id")) for row in rows)
    found = recognise_category_ids(order, {value for value in used if value is not None})
    if found:
        from_ = " or ".join({"from_zero": "from 0", "from_one": "from 1"}[reading] for reading in found)
        unknown = sum(count for value, count in used.items() if value is not None and value not in known.categories)
        reason = (
            f"the annotations seem to count the classes {from_}: their ids go from {min(v for v in used if v is not None)} to "
            f"{max(v for v in used if v is not None)}, and those of 'categories' from {order[0]} to {order[-1]}"
        )
        error = (
            f"{source}: {reason} ({unknown} annotations are of no known category, and the others may have the wrong name). "
            f"Correct them with 'foldfuse check --fix --category-ids {'|'.join(found)} --out FILE'."
        )
        option = f"--category-ids {'|'.join(found)}, or --category-ids as_given to leave out what has no category"
        kind = f"the annotations seem to count the classes {from_}, and not to name their ids"
        yield Finding(kind, reason, error, fix="", option=option)
    return None


def _category(row: Row, known: Known, class_order: Mapping[int, int] | None) -> CategoryRow | None:
    if class_order is not None:
        place = whole_number(row.get("category_id"))
        return known.categories.get(class_order.get(place, -1)) if place is not None else None
    category_id = known.category_ids.number(row.get("category_id"))
    return known.categories.get(category_id) if category_id is not None else None


def _no_image(source: Path, name: str, row: Row, known: Known) -> str:
    value = row.get("image_id")
    if not row:
        return f"{source}: {name}: is no object with 'image_id', 'category_id' and 'bbox'. {FIX}"
    if known.image_ids.number(value) is None and id_key(value) is None:
        return f"{source}: {name}: 'image_id' is {shown(value)}, expected the id of an image. {FIX}"
    return f"{source}: {name}: is of image {shown(value)}, which is not in 'images'. Remove it or list the image."


def _no_category(row: Row, known: Known) -> str:
    value = row.get("category_id")
    if id_key(value) is None:
        return f"'category_id' is {shown(value)}, expected the id of a category. {FIX}"
    ids = ", ".join(shown(known.categories[i].row["id"]) for i in sorted(known.categories)[:20])
    more = ", ..." if len(known.categories) > 20 else ""
    return f"category_id {shown(value)} is not in 'categories' (known: {ids}{more}). {FIX}"


def _box(
    row: Row, entry: _Parsed, image: ImageRow, box_format: BoxFormat, where: str
) -> Generator[Finding, None, list[float] | None]:
    """xywh in pixels, or None after a finding on why there is no box."""
    value = row.get("bbox")
    box = None if entry.box is None else to_xywh(entry.box, box_format, width=image.width, height=image.height)
    place = f"{entry.name} of {image.file_name}"
    if box is not None and min(box[2:]) > 0:
        entry_box = box
    elif entry.around is not None:
        entry_box = entry.around
        if box_format.startswith("shares_") and max(entry_box) <= LARGEST_SHARE:
            entry_box = to_xywh(entry_box, "shares_xywh", width=image.width, height=image.height)
        fix = "box taken from the segmentation"
        if value in EMPTY:
            yield Finding(
                "the annotation has a segmentation and no box", place, fix=fix, is_fault=False, is_logged=True
            )
        elif box is not None:
            yield Finding(
                "the box has no size, and the segmentation has", place, fix=fix, is_fault=False, is_logged=True
            )
        else:
            error = f"{where}: {_not_a_box(value)} 'foldfuse check --fix' takes the box from the segmentation."
            yield Finding("the box is not four numbers", f"{place}, {shown(value)}", error, fix=fix)
    else:
        yield _no_box(row, box, image, where, place)
        return None
    x, y, w, h = entry_box
    if x >= image.width or y >= image.height or x + w <= 0 or y + h <= 0:
        size = f"{image.width} x {image.height}"
        error = f"{where}: the box {shown(value)} lies outside its {size} image. {FIX}"
        yield Finding("the box lies outside its image", f"{place}, {shown(value)}", error)
        return None
    return entry_box


def _no_box(row: Row, box: list[float] | None, image: ImageRow, where: str, place: str) -> Finding:
    """The finding on an annotation whose box cannot be had."""
    value = row.get("bbox")
    place = f"{place}, {shown(value)}"
    if box is not None:
        return Finding("the box has no size", place, f"{where}: the box {shown(value)} has no size. {FIX}")
    values = numbers(value)
    if values is not None and len(values) in (5, 8):
        kind = "the box is oriented"
        return Finding(
            kind, place, f"{where}: 'bbox' has {len(values)} numbers, as oriented boxes have. {ORIENTED} {FIX}"
        )
    if value in EMPTY and isinstance(row.get("segmentation"), dict) and _has_other_size(row, image):
        kind = "the mask has another size than its image"
        size = shown(row["segmentation"]["size"])
        there = f"{image.width} x {image.height}"
        error = f"{where}: has no box, and its mask is of [height, width] {size} on a {there} image. Export it again."
        return Finding(kind, place, error)
    if value in EMPTY and row.get("keypoints"):
        kind = "the annotation has keypoints and no box"
        return Finding(kind, place, f"{where}: has keypoints, but neither a box nor a polygon. {FIX}")
    if value in EMPTY:
        kind = "the annotation has no box"
        return Finding(kind, place, f"{where}: has neither a box nor a polygon or mask to take it from. {FIX}")
    return Finding("the box is not four numbers", place, f"{where}: {_not_a_box(value)} {FIX}")


def _not_a_box(value: Any) -> str:
    return f"'bbox' is {shown(value)}, expected [left, top, width, height] in pixels."


def _crowd(row: Row, where: str, source: Path, conventions: Conventions) -> Generator[Finding, None, bool]:
    """Whether the annotation is a crowd region; a finding where the flag is neither yes nor no."""
    value = row.get("iscrowd", 0)
    crowd = flag(value)
    if crowd is None:
        error = (
            f"{source}: {where}: 'iscrowd' is {shown(value)}, expected 0 or 1. 'foldfuse check --fix' takes it for 0."
        )
        yield Finding("'iscrowd' is neither 0 nor 1", f"{where}: {shown(value)}", error, fix="counted as an object")
    return bool(crowd) and not conventions.ignore_crowd_flags


def _area(row: Row, box_area: float, where: str, *, is_as_written: bool) -> Generator[Finding, None, float]:
    """Square pixels: as written, or else of the box; a finding where the written area is none."""
    if "area" not in row:
        return box_area
    area = number(row["area"])
    if area is not None and area > 0 and (is_as_written or 1 <= area <= 1.01 * box_area):
        return area
    if is_as_written:
        kind = "the area is not a positive number"
        fix = "area taken from the box"
        is_logged = row["area"] is not None
        yield Finding(kind, f"{where}: {shown(row['area'])}", fix=fix, is_fault=is_logged, is_logged=is_logged)
    return box_area


def _texts(row: Row) -> str:
    """The keys of a row whose numbers are written as text."""
    keys = [key for key in ("image_id", "category_id", "area", "iscrowd") if _is_number_text(row.get(key))]
    bbox = row.get("bbox")
    if isinstance(bbox, str) or (isinstance(bbox, list) and any(isinstance(value, str) for value in bbox)):
        keys.append("bbox")
    return ", ".join(keys)


def _is_number_text(value: Any) -> bool:
    return isinstance(value, str) and number(value) is not None


def _is_plain(bbox: Any, box: Sequence[float]) -> bool:
    """Whether `bbox` is written as the numbers of `box`, so that a fixed copy keeps it."""
    return isinstance(bbox, list) and all(type(value) in (int, float) for value in bbox) and bbox == list(box)
