"""COCO image rows of image files on disk, shared by the YOLO and VOC readers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from foldfuse.errors import InputError

PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}

Row = dict[str, Any]


def _pictures(folder: Path, *, deep: bool = False) -> list[Path]:
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(p for p in found if p.suffix.lower() in PICTURES and p.is_file())


def _images(paths: Sequence[Path], source: Path) -> list[Row]:
    """COCO's rows of pictures. Their ids are the numbers in the file names where those are numbers, else 1, 2, ..."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = list(pool.map(_size, paths))
    stems = [p.stem for p in paths]
    numbers = [int(stem) for stem in stems] if all(stem.isdecimal() for stem in stems) else []
    ids = numbers if len(set(numbers)) == len(paths) else range(1, len(paths) + 1)
    return [
        {"id": i, "file_name": os.path.relpath(path, source.parent), "width": width, "height": height}
        for i, path, (width, height) in zip(ids, paths, sizes, strict=True)
    ]


def _size(path: Path) -> tuple[int, int]:
    """(width, height) from the header of a picture."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a picture ({type(error).__name__}).") from None


def _document(images: list[Row], names: dict[int, str], drawn: list[Row]) -> Row:
    annotations = [row | {"id": i, "area": row["bbox"][2] * row["bbox"][3]} for i, row in enumerate(drawn, 1)]
    categories = [{"id": key, "name": name} for key, name in sorted(names.items())]
    return {"images": images, "categories": categories, "annotations": annotations}
