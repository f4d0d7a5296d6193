"""Recognises the layout of a dataset, and reads every layout but COCO's own.

See docs/layouts.md for all layouts. A folder may fit several; the order of `find_layout` decides.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foldfuse.data.readers.box_csv import read_box_csv
from foldfuse.data.readers.csv_columns import is_box_csv
from foldfuse.data.readers.cvat import is_cvat, read_cvat
from foldfuse.data.readers.image_names import ImageFiles, entries, is_hidden
from foldfuse.data.readers.image_rows import image_files, image_table
from foldfuse.data.readers.label_files import label_folders
from foldfuse.data.readers.loaded import Loaded
from foldfuse.data.readers.voc import XML_FOLDERS, read_voc, xml_folder
from foldfuse.data.readers.yolo import read_yolo
from foldfuse.data.readers.yolo_sources import YAML_ENDINGS, describes_yolo, has_names
from foldfuse.errors import InputError, shown

CSV_ENDINGS = (".csv", ".tsv")
Kind = Literal["coco", "yolo", "voc", "cvat", "csv", "images"]


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of a dataset.

    Attributes:
        kind: the format of its annotations; "images" for images without annotations.
        path: the file or folder that the reader takes.
        folder: the folder of images to read, of those that a YAML describes; None for all that it calls `train`.
    """

    kind: Kind
    path: Path
    folder: Path | None = None


def find_layout(path: Path) -> Layout | None:
    """The layout of the dataset at `path`; None for a folder without annotations and images.

    Args:
        path: a file or a folder.

    Raises:
        InputError: a folder holds several datasets (they are named).
    """
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or "it holds a null character").lower()
        raise InputError(f"{shown(str(path))}: is no name of a file ({reason}). Give the path of a dataset.") from None
    if is_folder:
        return _layout_of_folder(path)
    ending = path.suffix.lower()
    if ending in (*YAML_ENDINGS, ".data"):
        return Layout("yolo", path)
    if ending == ".txt":
        return Layout("voc" if "ImageSets" in path.absolute().parts else "yolo", path)
    if ending == ".xml":
        if path.is_file() and not is_cvat(path):
            raise InputError(f"{path}: is the annotation of one image. Give the folder of the dataset.")
        return Layout("cvat", path)
    return Layout("csv" if ending in CSV_ENDINGS else "coco", path)


def read_layout(
    layout: Layout, *, images: Path | None = None, annotated: bool = True, ignore_orientation: bool = False
) -> Loaded:
    """A dataset of any layout but COCO's.

    Args:
        layout: a result of `find_layout`.
        images: the folder of `--images`.
        annotated: False to leave annotations unread where they are in files of their own.
        ignore_orientation: whether sizes that no annotation states are those of the pixels as stored.

    Raises:
        InputError: the files that describe the dataset cannot be used; other broken files are findings.
    """
    path = layout.path
    match layout.kind:
        case "yolo":
            return read_yolo(
                path, folder=layout.folder, images=images, annotated=annotated, ignore_orientation=ignore_orientation
            )
        case "voc":
            listing = None if path.is_dir() else path
            root = path if listing is None else next(p.parent for p in path.absolute().parents if p.name == "ImageSets")
            return read_voc(
                root, listing=listing, images=images, annotated=annotated, ignore_orientation=ignore_orientation
            )
        case "cvat":
            return read_cvat(path, images=images, ignore_orientation=ignore_orientation)
        case "csv":
            return read_box_csv(path, images=images, annotated=annotated, ignore_orientation=ignore_orientation)
        case "images":
            return _read_images(path, ignore_orientation=ignore_orientation)
        case "coco":
            raise AssertionError("COCO JSON has a reader of its own")


def _layout_of_folder(folder: Path, *, is_inner: bool = False) -> Layout | None:
    if (folder / "train.json").is_file():
        return Layout("coco", folder / "train.json")
    if (yaml := _yaml_in(folder)) is not None:
        return Layout("yolo", yaml)
    if (data := _only(folder, ".data")) is not None:
        return Layout("yolo", data)
    if (xmls := xml_folder(folder)) is not None:
        is_inner_folder = xmls == folder and folder.name.lower() in XML_FOLDERS and not image_files(folder)
        return Layout("voc", folder.absolute().parent if is_inner_folder else folder)
    images = image_files(folder) or image_files(folder / "images", recursive=True)
    if images and has_names(folder) and _has_labels(images[0].parent):
        return Layout("yolo", folder)
    if not images and has_names(folder, only_here=True) and next((folder / "labels").rglob("*.txt"), None) is not None:
        return Layout("yolo", folder)  # the images lie in the folder of --images
    if (coco := _coco_in(folder)) is not None:
        return Layout("coco", coco)
    if (cvat := next((p for p in sorted(folder.glob("*.xml")) if is_cvat(p)), None)) is not None:
        return Layout("cvat", cvat)
    tables = [p for p in sorted(folder.glob("*.csv")) if not is_hidden(p.name) and is_box_csv(p)]
    if table := next((p for p in tables if len(tables) == 1 or p.name.lower() == "train.csv"), None):
        return Layout("csv", table)
    if tables:
        raise InputError(
            f"{folder}: has several CSV files of boxes ({', '.join(p.name for p in tables[:6])}). Give the path of one."
        )
    if image_files(folder) or (
        not is_inner and image_files(folder, recursive=True) and not folders_with_layouts(folder)
    ):
        yaml = _yaml_above(folder)
        return Layout("images", folder) if yaml is None else Layout("yolo", yaml, folder)
    return None


def folders_with_layouts(folder: Path) -> list[Path]:
    """The sub-folders that hold datasets, such as train/, valid/ and test/ of a Roboflow export."""
    found = []
    for path in [p for p in entries(folder) if p.is_dir()]:
        try:
            layout = _layout_of_folder(path, is_inner=True)
        except InputError:
            continue
        if layout is not None and layout.kind != "images" and layout.folder is None:
            found.append(path)
    return found


def images_hint(folder: Path) -> str:
    """What a folder of images lacks to be a dataset, where label files lie beside them; else ""."""
    images = image_files(folder, recursive=True)
    if images and _has_labels(images[0].parent):
        return "Text files lie where YOLO's labels do, but nothing names the classes: add a classes.txt or a data.yaml."
    above = folder.absolute().parent
    with suppress(InputError):  # a folder beside it that may not be listed
        for place in (above, above.parent):
            if (xmls := xml_folder(place)) is not None and xmls != folder:
                return f"XML files lie in {xmls}: give {place}."
    return ""


def unread_annotations(folder: Path) -> str:
    """What may be the annotations of a folder of images, in no layout that is read; "" where there is nothing."""
    if hint := images_hint(folder):
        return hint
    stems = {path.stem for path in image_files(folder, recursive=True)}
    endings = (".txt", ".xml", ".json", ".csv")
    found = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in endings and p.stem in stems and p.is_file()]
    if not found:
        return ""
    return f"{len(found)} files have the names of images, such as {found[0].relative_to(folder)}, and are not read."


def _read_images(folder: Path, *, ignore_orientation: bool) -> Loaded:
    """The images of a folder, without annotations and classes."""
    table = image_table(image_files(folder, recursive=True), folder, ignore_orientation=ignore_orientation)
    document = {"images": list(table.rows), "categories": []}
    return Loaded(document, folder, table.findings, ImageFiles(folder, None, table.known), ignore_orientation)


def _yaml_above(folder: Path) -> Path | None:
    """The YAML in one of the three folders above an image folder."""
    found = (_yaml_in(above) for above in list(folder.absolute().parents)[:3])
    return next((yaml for yaml in found if yaml is not None and describes_yolo(yaml)), None)


def _yaml_in(folder: Path) -> Path | None:
    """The folder's data.yaml, or else its only YAML with class names and images.

    Raises:
        InputError: several YAMLs describe a dataset.
    """
    paths = sorted(p for p in folder.glob("*.y*ml") if p.suffix.lower() in YAML_ENDINGS and p.is_file())
    candidates = [p for p in paths if not is_hidden(p.name)]
    if first := next((p for p in candidates if p.stem == "data"), None):
        return first
    described = [p for p in candidates if describes_yolo(p)]
    if len(described) > 1:
        raise InputError(
            f"{folder}: has several YAMLs of YOLO datasets ({', '.join(p.name for p in described[:5])}). Give the path of one."
        )
    return described[0] if described else None


def _only(folder: Path, ending: str) -> Path | None:
    paths = [p for p in sorted(folder.glob(f"*{ending}")) if p.is_file() and not is_hidden(p.name)]
    return paths[0] if len(paths) == 1 else next((p for p in paths if p.stem == "obj"), None)


def _has_labels(folder: Path) -> bool:
    """Whether text files lie where the labels of the images in `folder` may lie."""
    return any(next(labels.glob("*.txt"), None) is not None for labels, _ in label_folders(folder))


def _coco_in(folder: Path) -> Path | None:
    """The only COCO JSON in a folder, or in annotations/ in it.

    Raises:
        InputError: there are several.
    """
    inner = [p for p in entries(folder) if p.is_dir() and p.name.lower() in ("annotations", "annotation")]
    for place in (folder, *inner):
        found = [p for p in sorted(place.glob("*.json")) if not is_hidden(p.name) and _lists_images(p)]
        if len(found) > 1:
            names = ", ".join(str(p.relative_to(folder)) for p in found[:6])
            raise InputError(f"{folder}: has several COCO JSON files ({names}). Give the path of one.")
        if found:
            return found[0]
    return None


def _lists_images(path: Path) -> bool:
    """Whether a JSON file seems to be COCO's: it has a key called images, and another that COCO has; or Label Studio's."""
    try:
        if not path.is_file() or not path.stat().st_size:
            return False
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b'"original_width"') >= 0:
                return True
            return content.find(b'"images"') >= 0 and (
                content.find(b'"annotations"') >= 0 or content.find(b'"file_name"') >= 0
            )
    except (OSError, ValueError):
        return False
