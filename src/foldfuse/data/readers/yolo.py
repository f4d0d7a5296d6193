"""Reads YOLO datasets: a YAML with `names` and `train`, and one label file per image.

Each line of a label file is `class cx cy width height`, or `class x1 y1 x2 y2 ...` of a polygon, as fractions of the image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foldfuse.data.readers.image_rows import Row, coco_document, image_files, image_rows
from foldfuse.errors import InputError
from foldfuse.system.files import read_text, read_yaml


def read_yolo(source: Path, *, folder: Path | None = None) -> tuple[Row, Path]:
    """(COCO document, `source`) of the images in `folder`, or of the images that the YAML `source` lists under `train`."""
    description = _description(source)
    names = _names(description, source)
    paths = _train_images(description, source) if folder is None else image_files(folder)
    if not paths:
        raise InputError(f"{source}: names no image to read. Expected images such as .jpg or .png.")
    images = image_rows(paths, source)
    annotations: list[Row] = []
    for image, path in zip(images, paths, strict=True):
        annotations += _annotations(_label_file(path), image, names)
    return coco_document(images, {key: str(name) for key, name in names.items()}, annotations), source


def _description(source: Path) -> dict[str, Any]:
    """The mapping in the YAML."""
    value = read_yaml(source, what="the YAML of a YOLO dataset")
    if not isinstance(value, dict) or not isinstance(value.get("names"), dict | list):
        raise InputError(f"{source}: has no 'names'. Expected the YAML of a YOLO dataset, with 'names' and 'train'.")
    return value


def _names(description: dict[str, Any], source: Path) -> dict[int, Any]:
    """{class number: class name}."""
    names = description["names"]
    numbered = names if isinstance(names, dict) else dict(enumerate(names))
    if not all(isinstance(key, int) and key >= 0 for key in numbered):
        raise InputError(
            f"{source}: the keys of 'names' are {sorted(map(str, numbered))}, expected whole numbers from 0."
        )
    return numbered


def _train_images(description: dict[str, Any], source: Path) -> list[Path]:
    """The images under `train`: a folder, a text file that lists images, or several of them."""
    if "train" not in description:
        raise InputError(f"{source}: has no 'train'. Expected the folder of the training images.")
    root = source.parent / (description.get("path") or "")
    entries = description["train"] if isinstance(description["train"], list) else [description["train"]]
    return [image for entry in entries for image in _images_of(_find(root, source, str(entry)))]


def _find(root: Path, source: Path, entry: str) -> Path:
    """The folder or list that a YAML names, below its `path` or beside the YAML."""
    for path in (root / entry, source.parent / entry, source.parent / entry.removeprefix("../")):
        if path.exists():
            return path
    raise InputError(f"{source}: 'train' is {entry!r}, but there is no {root / entry}. Fix 'path' or 'train' in it.")


def _images_of(path: Path) -> list[Path]:
    """The images in a folder and the folders in it, or in a text file that lists images."""
    if path.is_dir():
        return image_files(path, recursive=True)
    lines = [line.strip() for line in read_text(path, what="a list of images").splitlines() if line.strip()]
    return [path.parent / line for line in lines]


def _label_file(image: Path) -> Path:
    """The label file of an image: under labels/ instead of the last images/ in the path, else beside the image."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[:-1][::-1].index("images")
        parts[last] = "labels"
    return Path(*parts).with_suffix(".txt")


def _annotations(path: Path, image: Row, names: dict[int, Any]) -> list[Row]:
    """The annotations in one label file; none where there is no such file."""
    if not path.is_file():
        return []
    width, height = image["width"], image["height"]
    rows = []
    for i, line in enumerate(read_text(path, what="YOLO labels").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}: line {i}"
        try:
            values = [float(word) for word in line.split()]
        except ValueError:
            raise InputError(
                f"{where}: is {line.strip()[:60]!r}, expected numbers: class cx cy width height."
            ) from None
        if len(values) < 5 or (len(values) > 5 and len(values) % 2 == 0):
            raise InputError(f"{where}: has {len(values)} numbers, expected 5: class cx cy width height.")
        if values[0] not in names:
            raise InputError(f"{where}: the class is {values[0]:g}, but 'names' has {sorted(names)}.")
        if len(values) == 5:
            cx, cy, w, h = values[1:]
            x, y = cx - w / 2, cy - h / 2
        else:
            xs, ys = values[1::2], values[2::2]
            x, y, w, h = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
        bbox = [x * width, y * height, w * width, h * height]
        rows.append({"image_id": image["id"], "category_id": int(values[0]), "bbox": bbox, "iscrowd": 0})
    return rows
