"""Reads Pascal VOC datasets: one XML file per image.

Corners count from 1, the last pixel included (the VOC development kit, section 7). Objects that are marked difficult become
crowd regions: training and scoring ignore them, as VOC's own scoring does.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from foldfuse.data.readers.image_rows import IMAGE_SUFFIXES, Row, coco_document, image_rows
from foldfuse.errors import InputError
from foldfuse.system.files import read_xml

MAX_XML_BYTES = 2**24  # of one file; real ones have a few thousand


def read_voc(root: Path, *, stems: Sequence[str] | None = None) -> tuple[Row, Path]:
    """(COCO document, its source) of the images called `stems`, or of all annotated images.

    The classes come from all XML files, also when only some images are read.
    """
    source = root / "Annotations"
    files = {p.stem: p for p in sorted(source.glob("*.xml"))}
    if not files:
        raise InputError(f"{source}: holds no XML file. Expected one for each image, as in Pascal VOC.")
    trees = {stem: read_xml(path, what="a VOC annotation", limit=MAX_XML_BYTES) for stem, path in files.items()}
    names = sorted({_text(o, "name", files[stem]) for stem, tree in trees.items() for o in tree.iter("object")})
    labels = {name: i for i, name in enumerate(names, 1)}
    stems = list(files) if stems is None else stems
    missing = [stem for stem in stems if stem not in files]
    if missing:
        raise InputError(
            f"{source}: has no {missing[0]}.xml ({len(missing)} of {len(stems)} listed images have no XML file)."
        )
    images = image_rows([_image_of(root, files[stem], trees[stem]) for stem in stems], source)
    annotations = [
        row
        for image, stem in zip(images, stems, strict=True)
        for row in _annotations(files[stem], trees[stem], image, labels)
    ]
    return coco_document(images, {label: name for name, label in labels.items()}, annotations), source


def _text(element: ET.Element, name: str, path: Path) -> str:
    text = (element.findtext(name) or "").strip()
    if not text:
        raise InputError(f"{path}: <{element.tag}> has no <{name}>.")
    return text


def _image_of(root: Path, path: Path, tree: ET.Element) -> Path:
    """The image of an XML file: the name in <filename>, else the XML's own stem; in JPEGImages/, in images/ or beside the XML."""
    stated = Path((tree.findtext("filename") or "").strip())
    names = [stated.name] if stated.suffix.lower() in IMAGE_SUFFIXES else []
    names += [path.stem + suffix for suffix in IMAGE_SUFFIXES]
    for folder in (root / "JPEGImages", root / "images", root, root / "Annotations"):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise InputError(f"{path}: there is no image {root / 'JPEGImages' / names[0]}.")


def _annotations(path: Path, tree: ET.Element, image: Row, labels: dict[str, int]) -> list[Row]:
    rows = []
    for element in tree.iter("object"):
        box = element.find("bndbox")
        if box is None:
            raise InputError(f"{path}: an <object> has no <bndbox>.")
        try:
            x1, y1, x2, y2 = (float(_text(box, name, path)) for name in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError:
            raise InputError(f"{path}: a <bndbox> holds something else than numbers.") from None
        left, top = max(0.0, x1 - 1), max(0.0, y1 - 1)
        is_difficult = (element.findtext("difficult") or "0").strip() == "1"
        rows.append(
            {
                "image_id": image["id"],
                "category_id": labels[_text(element, "name", path)],
                "bbox": [left, top, x2 - left, y2 - top],
                "iscrowd": int(is_difficult),
            }
        )
    return rows
