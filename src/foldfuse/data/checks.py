"""Walks a COCO document row by row and yields every usable row, fixed where needed, and every finding.

Reading raises the first finding that has an error sentence; `foldfuse check` shows all findings and writes the usable rows.
Source: the COCO data format, https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from foldfuse.data.annotation_rows import FIX, Known, walk_annotations
from foldfuse.data.box_formats import AS_FOUND, Conventions
from foldfuse.data.findings import AnnotationRow, CategoryRow, Finding, ImageRow, Item, Row, fixed_row
from foldfuse.data.image_file import read_header
from foldfuse.data.images import has_one_colour, is_all_but_black, load_image
from foldfuse.data.inspection import Inspection, judge_header
from foldfuse.data.judgement import judge
from foldfuse.data.pixels import FULL_16_BITS, extrema_of_open, ranges_of, too_dark
from foldfuse.data.readers.image_names import ImageFiles
from foldfuse.data.value_ranges import WORDS, Depth
from foldfuse.data.values import Ids, is_text, whole_number
from foldfuse.data.values import name as class_name
from foldfuse.errors import InputError, kind_of, shown
from foldfuse.system.host import usable_cores

MAX_SIDE_PX = 1_000_000


def walk(
    document: Any,
    source: Path,
    *,
    files: ImageFiles | None = None,
    annotated: bool = True,
    decode: bool = False,
    conventions: Conventions = AS_FOUND,
    ignore_orientation: bool = False,
) -> Iterator[Item]:
    """The usable rows of a COCO document and its findings: images first, then categories, then annotations.

    A finding comes before the row that it is about.

    Args:
        document: decoded JSON.
        source: its file, named in sentences.
        files: finds the image files; by default those beside `source` and in the folders below.
        annotated: False to ignore the annotations.
        decode: also decode every image, and leave out images that are missing, cannot be decoded or have another size. By
            default no image file is needed, but for sizes that the rows do not state.
        conventions: how to read boxes and category ids that do not follow COCO.
        ignore_orientation: whether pixels are taken as stored, whatever an EXIF tag says.

    Raises:
        InputError: the document is not COCO.
    """
    if not isinstance(document, dict):
        raise InputError(f"{source}: holds {kind_of(document)}, expected a COCO object with 'images' and 'categories'.")
    keys = ("images", "categories", "annotations") if annotated else ("images",)
    rows = {key: _list(document, key, source) for key in keys}
    if not annotated:  # a test set may have no categories
        rows["categories"] = _list(document, "categories", source) if document.get("categories") else []

    image_ids, category_ids = (Ids(row.get("id") for row in rows[key]) for key in ("images", "categories"))
    images: dict[int, ImageRow] = {}
    first_id: dict[int, int] = {}  # {image id: id of the first row with the same file}
    finder = files or ImageFiles(source)
    listed = _images(rows["images"], image_ids, source, finder, first_id, ignore_orientation=ignore_orientation)
    for item in _decoded(listed, ignore_orientation=ignore_orientation) if decode else listed:
        if isinstance(item, ImageRow):
            images[item.id] = item
        yield item
    yield from _renumbered("image", image_ids)
    categories: dict[int, CategoryRow] = {}
    for category_or_finding in _categories(rows["categories"], category_ids, source):
        if isinstance(category_or_finding, CategoryRow):
            categories[category_or_finding.id] = category_or_finding
        yield category_or_finding
    yield from _renumbered("category", category_ids)
    if annotated and images and categories:
        info = document.get("info")
        if conventions.box_format is None and isinstance(info, dict) and info.get("box_format") == "xywh":
            conventions = replace(conventions, box_format="xywh")  # a fixed copy says so
        known = Known(images, first_id, image_ids, categories, category_ids)
        annotations = []
        for row_or_finding in walk_annotations(rows["annotations"], source, known, conventions):
            if isinstance(row_or_finding, AnnotationRow):
                annotations.append(row_or_finding)
            yield row_or_finding
        yield from judge(list(images.values()), list(categories.values()), annotations)


def _no_id(row: Row, other: str) -> str:
    """The sentence on a row without a usable id; `other` is the key that a row needs besides."""
    if not row:
        return f"is no object with 'id' and {other!r}."
    return f"'id' is {shown(row.get('id'))}, expected a whole number or a word."


def _renumbered(what: str, ids: Ids) -> Iterator[Finding]:
    """A note where ids are no whole numbers within 64 bits."""
    if ids.renumbered:
        raw, value = next(iter(ids.renumbered.items()))
        kind = f"{what} ids are no whole numbers of 64 bits; Foldfuse numbers them in the order of the list"
        where = f"{len(ids.renumbered)} ids, such as {shown(raw)} as {value}"
        yield Finding(kind, where, fix="", is_fault=False, is_logged=True)


def image_finding(path: Path, width: int, height: int, *, ignore_orientation: bool = False) -> Finding | None:
    """The fault of an image that cannot be decoded or is not `width` x `height` pixels; None for a good image."""
    return _inspected(path, width, height, ignore_orientation=ignore_orientation)[0]


def _inspected(path: Path, width: int, height: int, *, ignore_orientation: bool) -> tuple[Finding | None, Inspection]:
    """The fault of an image, and what its header says; the image is decoded too."""
    try:
        header = read_header(path)
        inspection = judge_header(header, path, (width, height), ignore_orientation=ignore_orientation)
        image = load_image(path)
        is_flat = has_one_colour(image)
        is_black = not is_flat and is_all_but_black(image)
    except InputError as error:
        return Finding("the image cannot be decoded", str(error), str(error)), Inspection(error=str(error))
    if inspection.error:
        return Finding("the size differs from the annotations'", inspection.error, inspection.error), inspection
    return None, replace(inspection, is_flat=is_flat, is_black=is_black)


def _list(document: Row, key: str, source: Path) -> list[Row]:
    if key not in document:
        raise InputError(f"{source}: has no {key!r}. Expected COCO JSON with 'images', 'categories' and 'annotations'.")
    rows = document[key]
    if not isinstance(rows, list):
        raise InputError(f"{source}: {key!r} is {kind_of(rows)}, and must be a list of objects.")
    if not rows and key != "annotations":
        raise InputError(f"{source}: lists no {key}. A dataset needs at least one image and one category.")
    return [row if isinstance(row, dict) else {} for row in rows]


def _images(
    rows: list[Row], ids: Ids, source: Path, files: ImageFiles, first_id: dict[int, int], *, ignore_orientation: bool
) -> Iterator[Finding | ImageRow]:
    """The usable images, and the findings about the unusable images; fills `first_id`."""
    id_of_file: dict[str, int] = {}
    for number, row in enumerate(rows):
        where = f"image {number} of the list"
        raw, name = row.get("id"), row.get("file_name")
        image_id = ids.number(raw)
        if image_id is None:
            yield Finding("the image has no id", where, f"{source}: {where}: {_no_id(row, 'file_name')} {FIX}")
            continue
        where = f"{source}: image {shown(raw)}"
        if not isinstance(name, str) or not name.strip() or not is_text(name):
            error = f"{where}: 'file_name' is {shown(name)}, expected the name of an image file. {FIX}"
            yield Finding("the image has no file_name", f"image {shown(raw)}", error)
            continue
        if image_id in first_id:
            error = f"{source}: image id {shown(raw)} is listed twice, expected once. {FIX}"
            yield Finding("the image id repeats", f"image {shown(raw)} ({name})", error)
            continue
        match = files.find(name)
        file = os.path.normpath(match.path)
        if file in id_of_file:
            first_id[image_id] = id_of_file[file]
            error = f"{source}: file_name {name} is listed twice, expected once. 'foldfuse check --fix' joins the two."
            yield Finding("the image is listed under two ids", name, error, fix="boxes joined")
        else:
            first_id[image_id] = id_of_file[file] = image_id
            missing = "" if match.found else f"{where}: {files.where(name)}"
            for item in _with_size(row, image_id, match.path, missing, where, ignore_orientation=ignore_orientation):
                if isinstance(item, ImageRow):
                    item = replace(item, original_id=ids.original(raw), row=fixed_row(item.row, id=ids.fixed(raw)))
                yield item


def _with_size(
    row: Row, image_id: int, path: Path, missing: str, where: str, *, ignore_orientation: bool
) -> Iterator[Finding | ImageRow]:
    """The image, and a finding where its row has no size; the size is then read from the image file."""
    width, height = whole_number(row.get("width")) or 0, whole_number(row.get("height")) or 0
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
        if missing:
            yield Finding("the image is missing", row["file_name"], missing)
            return
        key = "height" if 0 < width <= MAX_SIDE_PX else "width"
        is_unstated = row.get(key) in (None, "", 0, -1)
        error = (
            f"{where}: {key!r} is {shown(row.get(key))}, expected a positive whole number of pixels. "
            "'foldfuse check --fix' takes the size from the file."
        )
        try:
            header = read_header(path)
        except InputError as reason:
            yield Finding("the image cannot be decoded", row["file_name"], str(reason) if is_unstated else error)
            return
        width, height = header.stored_size if ignore_orientation else header.upright_size
        yield Finding(
            "the image has no width or height",
            row["file_name"],
            "" if is_unstated else error,
            fix="size taken from the file",
            is_fault=not is_unstated,
        )
    fixed = fixed_row(row, width=width, height=height)
    yield ImageRow(image_id, path, row["file_name"], width, height, fixed, missing)


def _decoded(items: Iterator[Finding | ImageRow], *, ignore_orientation: bool) -> Iterator[Finding | ImageRow]:
    """`items` without the images that are missing, cannot be decoded or have another size; adds findings about the pixels."""
    listed = list(items)
    images = [item for item in listed if isinstance(item, ImageRow)]

    def inspect(image: ImageRow) -> tuple[Finding | None, Inspection]:
        if image.missing:
            return Finding("the image is missing", image.file_name, image.missing), Inspection()
        return _inspected(image.path, image.width, image.height, ignore_orientation=ignore_orientation)

    with ThreadPoolExecutor(usable_cores()) as pool:
        results = dict(zip(map(id, images), pool.map(inspect, images), strict=True))
    for item in listed:
        finding, inspection = results.get(id(item), (None, Inspection()))
        if finding is not None:
            yield finding
        elif isinstance(item, ImageRow):
            yield from (Finding(kind, item.file_name, fix="", is_fault=False) for kind in _notes(inspection))
            yield replace(item, orientation=inspection.orientation)
        else:
            yield item
    flat = [image for image in images if results[id(image)][1].is_flat]
    if 1 < len(images) < 2 * len(flat):
        where = f"{len(flat)} of {len(images)} images, such as {flat[0].file_name}"
        yield Finding("most images have one colour all over", where, fix="")
    usable = [(image.path, results[id(image)][1]) for image in images if results[id(image)][0] is None]
    yield from _depth_findings([(path, inspection.depth) for path, inspection in usable])


def _notes(inspection: Inspection) -> Iterator[str]:
    """The kinds of the notes on an image."""
    if inspection.is_assumed:
        yield "the image is turned or mirrored as its EXIF tag says, and its size does not tell whether the boxes are"
    elif inspection.orientation != 1:
        yield "the image is turned as its EXIF tag says"
    elif inspection.has_tag:
        yield "the image has an EXIF orientation tag, and its boxes are drawn on the pixels as stored"
    if inspection.has_pages:
        yield "the image has several pages or frames, and the first is used"
    if inspection.is_flat:
        yield "all pixels of the image have one colour"
    if inspection.is_black:
        yield "the image is all but black"


def _depth_findings(files: Sequence[tuple[Path, Depth]]) -> Iterator[Finding]:
    """Findings about images of more than 8 bits: which values are shown as black and white."""
    found = extrema_of_open(files)
    if reason := too_dark(found):
        yield Finding("16-bit colour images are all but black", reason, reason, fix="")
    ranges = ranges_of(found)
    for depth, path, _ in found:
        if depth.kind in ranges and ranges[depth.kind] != FULL_16_BITS:
            low, high = ranges[depth.kind]
            kind = f"the image has {WORDS[depth.kind]} values; {low:g} is shown as black, {high:g} as white"
            yield Finding(kind, path.name, fix="", is_fault=False)


def _categories(rows: list[Row], ids: Ids, source: Path) -> Iterator[Finding | CategoryRow]:
    """The usable categories, and the findings about the unusable categories."""
    known: set[int] = set()
    first_of_name: dict[str, str] = {}
    first_alike: dict[str, str] = {}
    for number, row in enumerate(rows):
        where = f"category {number} of the list"
        raw = row.get("id")
        category_id = ids.number(raw)
        if category_id is None:
            yield Finding("the category has no id", where, f"{source}: {where}: {_no_id(row, 'name')} {FIX}")
            continue
        where = f"category {shown(raw)} ({shown(row.get('name'))})"
        if category_id in known:
            error = f"{source}: category id {shown(raw)} is listed twice, expected once. {FIX}"
            yield Finding("the category id repeats", where, error)
            continue
        known.add(category_id)
        name = class_name(row.get("name"))
        if name is None:
            name = str(raw).strip() if isinstance(raw, str) else str(category_id)
            fix = f"called {shown(name)}"
            if row.get("name") in (None, "") or isinstance(row.get("name"), str):
                yield Finding("the category has no name", where, fix="called by its id", is_logged=True)
            else:
                error = (
                    f"{source}: {where}: 'name' is {shown(row.get('name'))}, expected text. "
                    f"'foldfuse check --fix' writes a copy in which it is {fix}."
                )
                yield Finding("the name of the category is no text", where, error, fix="called by its id")
        if name in first_of_name:
            both = f"{first_of_name[name]} and {where}"
            yield Finding("two categories have one name", both, fix="", is_logged=True)
        elif (alike := " ".join(name.casefold().split())) in first_alike:
            both = f"{first_alike[alike]} and {where}"
            yield Finding(
                "two category names differ in case or blanks alone", both, fix="", is_fault=False, is_logged=True
            )
        else:
            first_of_name[name] = first_alike[alike] = where
        fixed = fixed_row(row, id=ids.fixed(raw), name=name)
        yield CategoryRow(category_id, name, fixed, ids.original(raw))
