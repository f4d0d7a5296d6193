"""Datasets laid out as YOLO or Pascal VOC, told as COCO documents, so that all else knows one format only.

YOLO: a YAML file with `names` and `train`; each picture of `.../images/...` has `.../labels/....txt` with a line
`class cx cy width height` (or `class x1 y1 x2 y2 ...` of a polygon) for each object, in shares of the picture.
VOC: `Annotations/*.xml` with `JPEGImages/`; corners count from 1, the last pixel included (the VOC devkit, section 7).
Objects that VOC calls difficult become crowd regions: neither learnt from nor counted, as its own scoring has it.
"""

from __future__ import annotations

from pathlib import Path

from foldfuse.data.readers.image_rows import Row, _pictures
from foldfuse.data.readers.voc import _voc
from foldfuse.data.readers.yolo import _yolo


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


def read_layout(path: Path) -> tuple[Row, Path]:
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
