"""Reads Pascal VOC datasets: one XML per image, corners that count from 1."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from foldfuse.data.readers.image_rows import PICTURES, Row, _document, _images
from foldfuse.errors import InputError

XML_MOST = 2**20  # bytes of one VOC file; real ones have a few thousand


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
