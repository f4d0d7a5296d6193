"""Finds out whether a path is a YOLO or a Pascal VOC dataset, and reads it as a COCO document.

YOLO: a YAML file with `names` and `train`; each image `.../images/...` has a label file `.../labels/....txt`.
VOC: `Annotations/*.xml` with `JPEGImages/`.
"""

from __future__ import annotations

from pathlib import Path

from foldfuse.data.readers.image_rows import Row, image_files
from foldfuse.data.readers.voc import read_voc
from foldfuse.data.readers.yolo import read_yolo
from foldfuse.system.files import read_text


def find_layout(path: Path) -> Path | None:
    """The path that `read_layout` takes for the dataset at `path`; None where `path` is neither YOLO nor VOC.

    Args:
        path: a folder, a YAML, or a VOC list of images such as ImageSets/Main/train.txt.
    """
    if path.is_dir():
        if yaml := _yaml_in(path):
            return yaml
        described = (path / "Annotations").is_dir() or (image_files(path) and _yaml_above(path))
        return path if described else None
    is_voc_list = path.suffix == ".txt" and path.is_file() and "ImageSets" in path.parts
    return path if path.suffix in (".yaml", ".yml") or is_voc_list else None


def read_layout(path: Path) -> tuple[Row, Path]:
    """(COCO document, its source: image file names are relative to the folder of the source).

    Args:
        path: a result of `find_layout`.

    Raises:
        InputError: a file is missing or broken (it is named, with the line), or an image cannot be opened.
    """
    if path.suffix in (".yaml", ".yml"):
        return read_yolo(path)
    if path.suffix == ".txt":
        root = next(p.parent for p in path.parents if p.name == "ImageSets")
        lines = read_text(path, what="a list of images").splitlines()
        return read_voc(root, stems=[line.split()[0] for line in lines if line.strip()])
    if (path / "Annotations").is_dir():
        return read_voc(path)
    yaml = _yaml_above(path)
    assert yaml is not None, "find_layout returns a folder of images only where a YAML describes it"
    return read_yolo(yaml, folder=path)


def _yaml_above(folder: Path) -> Path | None:
    """The YAML in one of the three folders above an image folder."""
    return next((yaml for above in list(folder.resolve().parents)[:3] if (yaml := _yaml_in(above))), None)


def _yaml_in(folder: Path) -> Path | None:
    """The folder's data.yaml, or else its first YAML."""
    candidates = sorted(p for p in folder.glob("*.y*ml") if p.suffix in (".yaml", ".yml") and p.is_file())
    return next((p for p in candidates if p.stem == "data"), candidates[0] if candidates else None)
