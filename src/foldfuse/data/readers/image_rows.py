"""Image files on disk and their COCO rows, shared by the YOLO, VOC and image-folder readers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from foldfuse.data.readers.image_names import IMAGE_SUFFIXES, MAX_DEPTH, files_below, is_image_name
from foldfuse.errors import InputError

__all__ = ["IMAGE_SUFFIXES", "Row", "coco_document", "image_files", "image_rows", "size_of"]

Row = dict[str, Any]


def image_files(folder: Path, *, recursive: bool = False) -> list[Path]:
    """The image files in a folder, by name; hidden files are skipped."""
    return sorted(p for p in files_below(folder, depth=MAX_DEPTH if recursive else 0) if is_image_name(p.name))


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) from the header of an image file. Raises InputError where it cannot be opened."""
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be opened as an image ({error}). Replace it, or remove it.") from None


def image_rows(paths: Sequence[Path], source: Path) -> list[Row]:
    """COCO rows of image files, with file names relative to the folder of `source`.

    The ids are the numbers in the file names where every name is a number, each a different one; else 1, 2, ...
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = list(pool.map(size_of, paths))
    stems = [p.stem for p in paths]
    numbers = [int(stem) for stem in stems] if all(stem.isdecimal() for stem in stems) else []
    ids = numbers if len(set(numbers)) == len(paths) else range(1, len(paths) + 1)
    return [
        {"id": i, "file_name": os.path.relpath(path, source.parent), "width": width, "height": height}
        for i, path, (width, height) in zip(ids, paths, sizes, strict=True)
    ]


def coco_document(images: list[Row], class_names: dict[int, str], annotations: list[Row]) -> Row:
    """A COCO document; annotations get their ids and areas here."""
    return {
        "images": images,
        "categories": [{"id": key, "name": name} for key, name in sorted(class_names.items())],
        "annotations": [
            row | {"id": i, "area": row["bbox"][2] * row["bbox"][3]} for i, row in enumerate(annotations, 1)
        ],
    }
