"""Datasets laid out as YOLO or Pascal VOC, told as COCO documents, so that all else knows one format only.

YOLO: a YAML file with `names` and `train`; each picture of `.../images/...` has `.../labels/....txt` with a line
`class cx cy width height` (or `class x1 y1 x2 y2 ...` of a polygon) for each object, in shares of the picture.
VOC: `Annotations/*.xml` with `JPEGImages/`; corners count from 1, the last pixel included (the VOC devkit, section 7).
Objects that VOC calls difficult become crowd regions: neither learnt from nor counted, as its own scoring has it.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from foldfuse.errors import InputError

PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
XML_MOST = 2**20  # bytes of one VOC file; real ones have a few thousand

Row = dict[str, Any]


def find_layout(path: Path) -> Path | None:
    """The YAML of a YOLO dataset, the folder of a VOC one, or what else `told` takes; None where `path` is neither.

    Args:
        path: a folder, a YAML, or a VOC list of pictures such as ImageSets/Main/train.txt.
    """
    if path.is_dir():
        if facts := _yaml_in(path):
            return facts
        described = (path / "Annotations").is_dir() or (_pictures(path) and _describing(path))
        return path if described else None
    voc_list = path.suffix == ".txt" and path.is_file() and "ImageSets" in path.parts
    return path if path.suffix in (".yaml", ".yml") or voc_list else None


def told(path: Path) -> tuple[Row, Path]:
    """(COCO document, the file or folder that it comes from: pictures lie beside that, under their `file_name`).

    Args:
        path: what `find_layout` found.

    Raises:
        InputError: a file is missing or broken (it is named, with the line), or a picture cannot be read.
    """
    if path.suffix in (".yaml", ".yml"):
        return _yolo(path, None)
    if path.suffix == ".txt":
        root = next(p.parent for p in path.parents if p.name == "ImageSets")
        return _voc(root, [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()])
    if (path / "Annotations").is_dir():
        return _voc(path, None)
    facts = _describing(path)
    assert facts is not None, "find_layout gives folders of pictures only where a YAML describes them"
    return _yolo(facts, path)


def _describing(pictures: Path) -> Path | None:
    """The YAML in the three folders above a folder of pictures."""
    return next((facts for folder in list(pictures.resolve().parents)[:3] if (facts := _yaml_in(folder))), None)


def _yaml_in(folder: Path) -> Path | None:
    """The folder's data.yaml, or else its first YAML."""
    found = sorted(p for p in folder.glob("*.y*ml") if p.suffix in (".yaml", ".yml") and p.is_file())
    return next((p for p in found if p.stem == "data"), found[0] if found else None)


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


def _pictures(folder: Path, *, deep: bool = False) -> list[Path]:
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(p for p in found if p.suffix.lower() in PICTURES and p.is_file())


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


def _voc(root: Path, stems: Sequence[str] | None) -> tuple[Row, Path]:
    """The document of the pictures called `stems`, or of all that are annotated. Classes are those of all files."""
    source = root / "Annotations"
    files = {p.stem: p for p in sorted(source.glob("*.xml"))}
    if not files:
        raise InputError(f"{source}: holds no XML file. Expected one for each picture, as Pascal VOC has them.")
    trees = {stem: _tree(path) for stem, path in files.items()}
    names = sorted({_text(o, "name", files[stem]) for stem, tree in trees.items() for o in tree.iter("object")})
    labels = {name: i for i, name in enumerate(names, 1)}
    stems = list(files) if stems is None else stems
    missing = [stem for stem in stems if stem not in files]
    if missing:
        raise InputError(
            f"{source}: has no {missing[0]}.xml ({len(missing)} of {len(stems)} pictures listed lack one)."
        )
    images = _images([_voc_picture(root, files[stem], trees[stem]) for stem in stems], source)
    drawn = [
        row
        for image, stem in zip(images, stems, strict=True)
        for row in _voc_objects(files[stem], trees[stem], image, labels)
    ]
    return _document(images, {label: name for name, label in labels.items()}, drawn), source


def _tree(path: Path) -> ET.Element:
    if path.stat().st_size > XML_MOST:
        raise InputError(f"{path}: has {path.stat().st_size} bytes, expected the few thousand of a VOC annotation.")
    text = path.read_bytes()
    if b"<!ENTITY" in text:
        raise InputError(f"{path}: declares XML entities, which a VOC annotation never needs. Remove them.")
    try:
        return ET.fromstring(text)
    except ET.ParseError as error:
        raise InputError(f"{path}: is not XML ({error}).") from None


def _text(element: ET.Element, name: str, path: Path) -> str:
    found = (element.findtext(name) or "").strip()
    if not found:
        raise InputError(f"{path}: <{element.tag}> has no <{name}>.")
    return found


def _voc_picture(root: Path, path: Path, tree: ET.Element) -> Path:
    """The picture of an annotation: the name that it states, or its own, in JPEGImages/, images/ or beside."""
    stated = Path((tree.findtext("filename") or "").strip())
    names = [stated.name] if stated.suffix.lower() in PICTURES else []
    names += [path.stem + suffix for suffix in sorted(PICTURES)]
    for folder in (root / "JPEGImages", root / "images", root, root / "Annotations"):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise InputError(f"{path}: there is no picture {root / 'JPEGImages' / names[0]}.")


def _voc_objects(path: Path, tree: ET.Element, image: Row, labels: dict[str, int]) -> list[Row]:
    objects = []
    for element in tree.iter("object"):
        box = element.find("bndbox")
        if box is None:
            raise InputError(f"{path}: an <object> has no <bndbox>.")
        try:
            x1, y1, x2, y2 = (float(_text(box, name, path)) for name in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError:
            raise InputError(f"{path}: a <bndbox> holds something else than numbers.") from None
        bbox = [max(0.0, x1 - 1), max(0.0, y1 - 1)]
        bbox += [x2 - bbox[0], y2 - bbox[1]]
        difficult = (element.findtext("difficult") or "0").strip() == "1"
        category = labels[_text(element, "name", path)]
        objects.append({"image_id": image["id"], "category_id": category, "bbox": bbox, "iscrowd": int(difficult)})
    return objects


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
