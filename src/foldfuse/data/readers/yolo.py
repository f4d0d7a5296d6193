"""Reads YOLO datasets: a YAML with `names` and `train`, and one label file per image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from foldfuse.data.readers.image_rows import Row, _document, _images, _pictures
from foldfuse.errors import InputError


def _yolo(source: Path, pictures: Path | None) -> tuple[Row, Path]:
    """The document of a split: `pictures`, or what the YAML calls `train`."""
    try:
        facts = yaml.safe_load(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{source}: there is no such file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: is not YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(facts, dict) or not isinstance(facts.get("names"), dict | list):
        raise InputError(f"{source}: has no 'names'. Expected the YAML of a YOLO dataset, with 'names' and 'train'.")
    names = facts["names"]
    numbered = names if isinstance(names, dict) else dict(enumerate(names))
    if not all(isinstance(key, int) and key >= 0 for key in numbered):
        raise InputError(
            f"{source}: the keys of 'names' are {sorted(map(str, numbered))}, expected whole numbers from 0."
        )
    if pictures is None:
        if "train" not in facts:
            raise InputError(f"{source}: has no 'train'. Expected the folder of the pictures to learn from.")
        root = source.parent / (facts.get("path") or "")
        wanted = facts["train"] if isinstance(facts["train"], list) else [facts["train"]]
        paths = [picture for part in wanted for picture in _split(_entry(root, source, str(part)))]
    else:
        paths = _pictures(pictures)
    if not paths:
        raise InputError(f"{source}: names no picture to read. Expected pictures such as .jpg or .png.")
    images = _images(paths, source)
    drawn: list[Row] = []
    for row, path in zip(images, paths, strict=True):
        drawn += _yolo_objects(_labels_of(path), row, numbered)
    return _document(images, {key: str(name) for key, name in numbered.items()}, drawn), source


def _entry(root: Path, source: Path, entry: str) -> Path:
    """A folder or list that a YAML names, below its `path` or beside itself."""
    for found in (root / entry, source.parent / entry, source.parent / entry.removeprefix("../")):
        if found.exists():
            return found
    raise InputError(f"{source}: 'train' is {entry!r}, but there is no {root / entry}. Mend 'path' or 'train' in it.")


def _split(part: Path) -> list[Path]:
    """The pictures of a folder, folders in it included, or of a list of pictures."""
    if part.is_dir():
        return _pictures(part, deep=True)
    lines = [line.strip() for line in part.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [part.parent / line for line in lines]


def _labels_of(picture: Path) -> Path:
    """Where YOLO keeps the labels of a picture: under labels/ instead of the last images/, else beside it."""
    parts = list(picture.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[:-1][::-1].index("images")
        parts[last] = "labels"
    return Path(*parts).with_suffix(".txt")


def _yolo_objects(path: Path, image: Row, names: dict[int, Any]) -> list[Row]:
    """The annotations in one label file; a picture without one shows nothing."""
    if not path.is_file():
        return []
    objects = []
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
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
            x1, y1 = cx - w / 2, cy - h / 2
        else:
            xs, ys = values[1::2], values[2::2]
            x1, y1, w, h = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
        scale = (image["width"], image["height"], image["width"], image["height"])
        bbox = [value * side for value, side in zip((x1, y1, w, h), scale, strict=True)]
        objects.append({"image_id": image["id"], "category_id": int(values[0]), "bbox": bbox, "iscrowd": 0})
    return objects
