"""Image files on disk and their COCO rows, shared by the readers of all layouts but COCO's."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foldfuse.data.findings import Finding
from foldfuse.data.image_file import read_header
from foldfuse.data.readers.image_names import MAX_DEPTH, MAX_SEARCHED, UNREAD_SUFFIXES, files_below, is_image_name
from foldfuse.errors import InputError, shown
from foldfuse.system.host import usable_cores

MAX_ID = 10**18  # ids are 64-bit integers wherever they are written

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class ImageTable:
    """Images that can be opened, with their COCO rows.

    Attributes:
        paths: the image files.
        rows: a COCO row for each of `paths`, with its size.
        known: {file name: image file} of all rows.
        findings: images that cannot be opened.
    """

    paths: tuple[Path, ...]
    rows: tuple[Row, ...]
    known: Mapping[str, Path]
    findings: tuple[Finding, ...]


def image_files(folder: Path, *, recursive: bool = False) -> list[Path]:
    """The image files in a folder, by name; hidden files are skipped.

    Files of formats that are not read, such as HEIC, are among them, so that users hear of them, but where a file of the same
    name with another ending can be read.
    """
    files = list(files_below(folder, depth=MAX_DEPTH if recursive else 0))
    images = [p for p in files if is_image_name(p.name)]
    read = {p.with_suffix("") for p in images}
    unread = [p for p in files if p.suffix.lower() in UNREAD_SUFFIXES and p.with_suffix("") not in read]
    return sorted([*images, *unread])


def other_files(folder: Path) -> str:
    """A sentence on the files of a folder without images, such as .dcm; "" where there are none of them."""
    known = ("", ".txt", ".json", ".md", ".names", ".data", ".xml", ".csv", ".yaml", ".yml")
    endings = Counter(path.suffix.lower() for path in itertools.islice(files_below(folder), MAX_SEARCHED))
    found = next(((ending, count) for ending, count in endings.most_common() if ending not in known), None)
    return f" There are {found[1]} {shown(found[0])[1:-1]} files, which are not read." if found else ""


def size_of(path: Path, *, ignore_orientation: bool = False) -> tuple[int, int]:
    """(width, height) from the header of an image file, after its EXIF orientation tag, or of the pixels as stored.

    Raises:
        InputError: the file cannot be opened.
    """
    header = read_header(path)
    return header.stored_size if ignore_orientation else header.upright_size


def image_table(
    paths: Sequence[Path],
    folder: Path,
    *,
    sizes: Mapping[Path, tuple[int, int]] | None = None,
    ignore_orientation: bool = False,
) -> ImageTable:
    """The COCO rows of image files.

    Args:
        paths: the image files.
        folder: the folder of the dataset, which file names are relative to; where an image lies outside, they are relative to
            the folder that all images have in common.
        sizes: (width, height) that annotations state; the header of every other image is read.
        ignore_orientation: whether sizes from headers are those of the pixels as stored.
    """
    stated = sizes or {}

    def size(path: Path) -> tuple[int, int] | InputError:
        try:
            return stated[path] if path in stated else size_of(path, ignore_orientation=ignore_orientation)
        except InputError as error:
            return error

    with ThreadPoolExecutor(usable_cores()) as pool:
        found = list(pool.map(size, paths))
    names, ids = relative_names(paths, folder), image_ids(paths)
    rows: dict[Path, Row] = {}
    findings: list[Finding] = []
    for path, each in zip(paths, found, strict=True):
        if isinstance(each, InputError):
            findings.append(Finding("the image cannot be decoded", names[path], str(each)))
        else:
            rows[path] = {"id": ids[path], "file_name": names[path], "width": each[0], "height": each[1]}
    return ImageTable(tuple(rows), tuple(rows.values()), {names[path]: path for path in rows}, tuple(findings))


def relative_names(paths: Iterable[Path], folder: Path) -> dict[Path, str]:
    """{path: its name relative to `folder`, or to the folder that all have in common where one lies outside}.

    Images on several Windows drives have no folder in common: their names then begin with the letter of the drive.
    """
    absolute = {path: _absolute(path) for path in paths}
    top = _absolute(folder)
    if absolute and not all(path.is_relative_to(top) for path in absolute.values()):
        try:
            top = Path(os.path.commonpath([path.parent for path in absolute.values()]))
        except ValueError:
            return {path: full.as_posix().replace(":", "").lstrip("/") for path, full in absolute.items()}
    return {path: full.relative_to(top).as_posix() for path, full in absolute.items()}


def image_ids(paths: Sequence[Path]) -> dict[Path, int]:
    """{path: id}: the numbers in the file names where every name is a number, each a different one; else 1, 2, ..."""
    stems = [path.stem for path in paths]
    are_numbers = all(stem.isdecimal() and stem.isascii() for stem in stems)
    numbers = [int(stem) for stem in stems] if are_numbers and max(map(len, stems), default=0) < 4000 else []
    is_usable = len(set(numbers)) == len(paths) and max(numbers, default=0) < MAX_ID
    return dict(zip(paths, numbers if is_usable else range(1, len(paths) + 1), strict=True))


def coco_document(images: Iterable[Row], class_names: Mapping[int, str], annotations: Iterable[Row]) -> Row:
    """A COCO document; annotations get their ids and areas here. It says that its boxes are COCO's."""
    return {
        "info": {"box_format": "xywh"},
        "images": list(images),
        "categories": [{"id": key, "name": name} for key, name in sorted(class_names.items())],
        "annotations": [
            row | {"id": i, "area": row["bbox"][2] * row["bbox"][3]} for i, row in enumerate(annotations, 1)
        ],
    }


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))
