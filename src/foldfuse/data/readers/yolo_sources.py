"""Reads what describes a YOLO dataset: its class names, its images, and the form of its labels.

A description is the YAML of a dataset, the `obj.data` of darknet and CVAT, a text file that lists images, or a folder with
images, labels and a `classes.txt`. Paths in it that lead nowhere here (another machine's, or Windows') are looked for
by their ends in the folder of the description.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foldfuse.data.findings import Finding
from foldfuse.data.readers.image_names import ImageFiles, entries, is_file, is_image_name, name_parts
from foldfuse.data.readers.image_rows import image_files, other_files
from foldfuse.data.readers.yolo_lines import LabelFormat
from foldfuse.errors import InputError, shown
from foldfuse.system.files import read_text, read_yaml

YAML_ENDINGS = (".yaml", ".yml")
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt", "classes.names", "predefined_classes.txt")
OTHER_MACHINE = "a path of another machine is read in the folder of the dataset"
OUTSIDE = "the images lie outside the folder of the dataset's description"
BOX_FORMATS = ("cxcywh", "xyxy", "xywh")
SPLITS = ("val", "valid", "test")


@dataclass(eq=False)
class YoloSource:
    """The description of a YOLO dataset, read.

    Attributes:
        form: class names, and the form of the label lines.
        images: the image files, in the order in which they are listed.
        findings: findings about the description.
    """

    form: LabelFormat
    images: list[Path] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def read_source(source: Path, *, folder: Path | None, images: Path | None, annotated: bool = True) -> YoloSource:
    """What describes a YOLO dataset.

    Args:
        source: a YAML, an obj.data, a text file that lists images, or a folder with a classes.txt.
        folder: the folder of images to read instead of those that a YAML calls `train`.
        images: the folder of `--images`.
        annotated: False for a list of images that may have no class names beside it.

    Raises:
        InputError: the description is broken, or names no image.
    """
    if source.is_dir():
        names = _name_file(source)
        assert names is not None, "a folder is a YOLO dataset only with a file of class names"
        found = YoloSource(LabelFormat(_listed_names(names)))
        found.images = _images_of_folder(images or source)
    elif source.suffix.lower() in YAML_ENDINGS:
        found = _read_yaml(source, folder, images)
    elif source.suffix.lower() == ".data":
        found = _read_darknet(source, images)
    else:
        found = _read_list(source, images, annotated=annotated)
    if not found.images and not any(f.error for f in found.findings):
        root = folder or (source if source.is_dir() else source.parent)
        raise InputError(
            f"{source}: names no image to read.{other_files(root)} Expected images such as .jpg or .png, there or in "
            "the folder of --images."
        )
    first = dict.fromkeys(found.images)
    if len(first) < len(found.images):
        repeats = f"{len(found.images) - len(first)} times"
        found.findings.append(Finding("an image is listed twice", repeats, fix="listed once", is_fault=False))
        found.images = list(first)
    return found


def describes_yolo(path: Path) -> bool:
    """Whether a YAML has the class names and the images of a dataset."""
    try:
        value = read_yaml(path, what="the YAML of a YOLO dataset")
    except InputError:
        return False
    return isinstance(value, dict) and "names" in value and any(key in value for key in ("train", *SPLITS, "path"))


def has_names(folder: Path, *, only_here: bool = False) -> bool:
    """Whether a folder has a file of class names, as labelImg, Label Studio and darknet write it; or the folder above."""
    found = _name_file(folder)
    return found is not None and not (only_here and found.parent not in (folder, folder / "labels"))


def _name_file(folder: Path) -> Path | None:
    for place in (folder, folder / "labels", folder.parent, folder.parent / "labels"):
        for name in NAME_FILES:
            if (place / name).is_file():
                return place / name
    return None


def _images_of_folder(folder: Path) -> list[Path]:
    """The images in images/ of a folder, or in the folder itself."""
    inner = folder / "images"
    return image_files(inner if inner.is_dir() else folder, recursive=True)


# YAML


def _read_yaml(source: Path, folder: Path | None, images: Path | None) -> YoloSource:
    value = read_yaml(source, what="the YAML of a YOLO dataset", hint="Give the YAML of the dataset, or its folder.")
    if not isinstance(value, dict) or not value.get("names"):
        raise InputError(f"{source}: has no 'names'. Expected the YAML of a YOLO dataset, with 'names' and 'train'.")
    form = _yaml_form(value, source)
    names = form.names
    found = YoloSource(form)
    if (count := value.get("nc")) is not None and str(count) != str(len(names)):
        text = f"'nc' is {shown(str(count))}, and 'names' has {len(names)} classes"
        found.findings.append(Finding("'nc' differs from the number of 'names'", text, fix="", is_logged=True))
    if folder is not None:
        found.images = image_files(folder, recursive=True)
        return found
    places = _Places(source, _roots(value.get("path"), source, images, found))
    entries = value.get("train")
    if not entries:
        others = [key for key in SPLITS if value.get(key)]
        hint = f" It has {', '.join(map(repr, others))}: give the folder of that one to read it." if others else ""
        raise InputError(f"{source}: has no 'train'. Expected the folder of the training images.{hint}")
    for entry in entries if isinstance(entries, list) else [entries]:
        found.images += _images_of_entry(str(entry), places, found, images)
    others = [key for key in SPLITS if value.get(key) and value.get(key) != entries]
    if others:
        where = ", ".join(f"{key}: {shown(str(value[key]))}" for key in others)
        kind = "other images of the YAML are not read; give their folder to read them"
        found.findings.append(Finding(kind, where, fix="", is_fault=False))
    return found


def _yaml_form(value: Mapping[str, Any], source: Path) -> LabelFormat:
    """The class names and the form of the labels that a YAML states."""
    task = str(value.get("task") or "").lower()
    return LabelFormat(
        _names(value["names"], source),
        kpt_shape=_kpt_shape(value, source),
        is_oriented=task == "obb",
        is_segmented=task in ("segment", "seg"),
        box_format=_box_format(value, source),
    )


def _box_format(value: Mapping[str, Any], source: Path) -> str | None:
    form = value.get("box_format")
    if form not in (None, *BOX_FORMATS):
        raise InputError(f"{source}: 'box_format' is {shown(str(form))}, expected {', '.join(BOX_FORMATS)}.")
    return form


def _names(names: Any, source: Path) -> Mapping[int, str]:
    """{class number: class name}; YAML 1.1's booleans stay the words that are written."""
    if isinstance(names, str):
        path = source.parent / names.replace("\\", "/")
        if not is_file(path):
            raise InputError(
                f"{source}: 'names' is {shown(names)}, expected the class names, or a file that lists them."
            )
        return _listed_names(path)
    if isinstance(names, list):
        return {i: _class_name(name, i) for i, name in enumerate(names)}
    if not isinstance(names, dict):
        raise InputError(f"{source}: 'names' is {shown(str(names))}, expected the class names.")
    keys = {key: str(key).strip() for key in names}
    if not all(key.isdecimal() and key.isascii() and len(key) <= 9 for key in keys.values()):
        some = ", ".join(sorted(keys.values())[:5])
        raise InputError(f"{source}: the keys of 'names' are {shown(some)}, expected whole numbers from 0.")
    numbered = {int(text): names[key] for key, text in keys.items()}
    if len(numbered) < len(names):
        raise InputError(f"{source}: 'names' has two names for one number. Keep one of them.")
    return {number: _class_name(name, number) for number, name in sorted(numbered.items())}


def _class_name(name: Any, number: int) -> str:
    return str(number) if name is None else str(name).strip()


def _kpt_shape(value: Mapping[str, Any], source: Path) -> tuple[int, int] | None:
    shape = value.get("kpt_shape")
    if shape is None:
        return None
    ok = isinstance(shape, list) and len(shape) == 2 and all(re.fullmatch(r"\d{1,4}", str(n)) for n in shape)
    if not ok or int(shape[0]) < 1 or int(shape[1]) not in (2, 3):
        raise InputError(f"{source}: 'kpt_shape' is {shown(str(shape))}, expected [keypoints, 2] or [keypoints, 3].")
    return int(shape[0]), int(shape[1])


def _roots(path: Any, source: Path, images: Path | None, found: YoloSource) -> list[Path]:
    """The folders that entries of a YAML are relative to: `--images`, the YAML's `path`, and the YAML's own folder."""
    own = source.parent
    roots = [images] if images is not None else []
    if path is not None and str(path).strip():
        parts, is_absolute = name_parts(str(path))
        stated = Path(str(path)) if is_absolute else own.joinpath(*parts)
        if _is_folder(stated):
            roots.append(stated)
        else:
            ends = [own.joinpath(*parts[-n:]) for n in range(len(parts), 0, -1)]
            end = next((end for end in ends if _is_folder(end)), own)
            roots.append(end)
            where = f"'path' is {shown(str(path))}; {end if end.parts else 'the folder of the YAML'} is read"
            found.findings.append(Finding(OTHER_MACHINE, where, fix="", is_fault=False, is_logged=True))
    return [*dict.fromkeys([*roots, own])]


# darknet and lists


def _read_darknet(source: Path, images: Path | None) -> YoloSource:
    """`obj.data`: lines `key = value` with names and train, as darknet and CVAT's "YOLO 1.1" write them."""
    text = read_text(source, what="the .data file of a darknet dataset", limit=2**20)
    pairs = [line.partition("=") for line in text.splitlines() if "=" in line and not line.lstrip().startswith("#")]
    value = {key.strip().lower(): rest.strip() for key, _, rest in pairs}
    if not value.get("names"):
        raise InputError(
            f"{source}: has no 'names'. Expected the .data file of a darknet dataset, with names and train."
        )
    places = _Places(source, [*([images] if images is not None else []), source.parent], is_loose=True)
    name_file = places.find(value["names"])
    if name_file is None:
        raise InputError(f"{source}: 'names' is {shown(value['names'])}, and there is no such file beside it.")
    found = YoloSource(LabelFormat(_listed_names(name_file)))
    count = value.get("classes")
    if count is not None and count != str(len(found.form.names)):
        text = f"'classes' is {shown(count)}, and {name_file.name} has {len(found.form.names)}"
        found.findings.append(Finding("'classes' differs from the number of names", text, fix="", is_logged=True))
    if "train" not in value:
        hint = " It has 'valid': give that list to read it." if "valid" in value else ""
        raise InputError(f"{source}: has no 'train'. Expected the list of the training images.{hint}")
    found.images += _images_of_entry(value["train"], places, found, images)
    return found


def _read_list(source: Path, images: Path | None, *, annotated: bool) -> YoloSource:
    """A text file that lists images, with the class names in a file or YAML beside it."""
    names = _name_file(source.parent)
    if names is not None and names != source:
        found = YoloSource(LabelFormat(_listed_names(names)))
    else:
        yaml = next((p for p in entries(source.parent) if p.suffix.lower() in YAML_ENDINGS and describes_yolo(p)), None)
        if yaml is None and annotated:
            raise InputError(
                f"{source}: lists images, but no class names lie beside it. Expected obj.names, classes.txt "
                "or a YAML with 'names'."
            )
        value = {} if yaml is None else read_yaml(yaml, what="the YAML of a YOLO dataset")
        form = LabelFormat({}) if yaml is None else _yaml_form(value, yaml)
        found = YoloSource(form)
    found.images = _listed_images(source, _Places(source, [source.parent]), found, images)
    return found


def _listed_names(path: Path) -> Mapping[int, str]:
    """{class number: class name} of a file with a class name on each line."""
    text = read_text(path, what="class names, one on each line", limit=2**22)
    names = [line.strip() for line in text.splitlines()]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise InputError(f"{path}: is empty, expected class names, one on each line.")
    if "" in names:
        raise InputError(f"{path}: line {names.index('') + 1} is empty, expected a class name on each line.")
    return dict(enumerate(names))


# images


@dataclass(frozen=True, eq=False)
class _Places:
    """The folders that paths of a description are relative to."""

    source: Path
    roots: list[Path]
    is_loose: bool = False  # whether folders that a path begins with may be missing, as data/ of darknet

    def find(self, entry: str) -> Path | None:
        """The file or folder that an entry names, as it is written, or by the longest end that exists below a root."""
        parts, is_absolute = name_parts(entry)
        if is_absolute and _exists(Path(entry)):
            return Path(entry)
        tops = [] if is_absolute else [root.joinpath(*parts) for root in self.roots]
        down = [part for part in parts if part != ".."]
        shortest = 1 if self.is_loose or is_absolute or ".." in parts else len(down)
        ends = [root.joinpath(*down[-n:]) for n in range(len(down), max(shortest, 1) - 1, -1) for root in self.roots]
        if not parts:
            ends = list(self.roots)
        return next((path for path in (*tops, *ends) if _exists(path)), None)

    def is_inside(self, path: Path) -> bool:
        """Whether a path lies in the folder of the description, or in one that the user has named."""
        absolute = os.path.normpath(path.absolute())
        return any(Path(absolute).is_relative_to(os.path.normpath(root.absolute())) for root in self.roots)


def _images_of_entry(entry: str, places: _Places, found: YoloSource, images: Path | None) -> list[Path]:
    """The images of one entry: a folder, a text file that lists images, an image, or a pattern such as images/*.jpg."""
    if "*" in entry:
        pattern = "/".join(name_parts(entry)[0])
        try:
            return sorted({p for root in places.roots for p in root.glob(pattern) if is_image_name(p.name)})
        except (ValueError, OSError, NotImplementedError):
            raise InputError(
                f"{places.source}: 'train' is {shown(entry)}, expected a folder, a list or images/*.jpg."
            ) from None
    path = places.find(entry)
    if path is None and images is not None:
        path = images
    if path is None:
        raise InputError(
            f"{places.source}: 'train' is {shown(entry)}, but there is no {places.roots[0].joinpath(*name_parts(entry)[0])}. Fix "
            "'path' or 'train' in it, or give the folder of the images as --images DIR."
        )
    if name_parts(entry)[1] and path != Path(entry):
        where = f"'train' is {shown(entry)}; {path} is read"
        found.findings.append(Finding(OTHER_MACHINE, where, fix="", is_fault=False, is_logged=True))
    if not places.is_inside(path) or not _is_below(path, places.source.parent):
        found.findings.append(Finding(OUTSIDE, str(path), fix="", is_fault=False, is_logged=path != images))
    if path.is_dir():
        return image_files(path, recursive=True)
    if is_image_name(path.name):
        return [path]
    return _listed_images(path, places, found, images)


def _is_below(path: Path, folder: Path) -> bool:
    return Path(os.path.normpath(path.absolute())).is_relative_to(os.path.normpath(folder.absolute()))


def _listed_images(source: Path, places: _Places, found: YoloSource, images: Path | None) -> list[Path]:
    """The images that the lines of a text file name, relative to the list, the dataset's folder or any folder above."""
    text = read_text(source, what="a list of images, one on each line", limit=2**30)
    entries = [line.strip() for line in text.splitlines() if line.strip()]
    roots = [*dict.fromkeys([*places.roots, source.parent])]
    files = [ImageFiles(root, images) for root in roots]
    listed: list[Path] = []
    for number, entry in enumerate(entries, 1):
        path = next(_places_of(entry, roots, files), None)
        if path is None:
            error = f"{source}: line {number}: there is no image {shown(entry)}. Give the folder of the images as --images DIR."
            found.findings.append(Finding("the listed image is missing", entry, error))
        else:
            listed.append(path)
    if entries and not listed:
        raise InputError(
            f"{source}: none of its {len(entries)} images is there, such as {shown(entries[0])}. Give the folder of the images "
            "as --images DIR."
        )
    allowed = [places.source.parent, *([images] if images is not None else [])]
    outside = [path for path in listed if not any(_is_below(path, folder) for folder in allowed)]
    if outside:
        where = f"{len(outside)} of {len(listed)} listed images, such as {outside[0]}"
        found.findings.append(Finding(OUTSIDE, where, fix="", is_fault=False, is_logged=True))
    return listed


def _places_of(entry: str, roots: list[Path], files: list[ImageFiles]) -> Iterator[Path]:
    """The image files that a line of a list may mean, the most likely one first."""
    parts, is_absolute = name_parts(entry)
    if is_absolute and is_image_name(Path(entry).name) and _exists(Path(entry)):
        yield Path(entry)
    if not is_absolute:
        yield from (path for root in roots if _exists(path := root.joinpath(*parts)))
    ends = ["/".join(parts[-n:]) for n in range(len(parts), 0, -1)]
    yield from (path for end in ends for root in roots if _exists(path := root / end))
    yield from (match.path for each in files if (match := each.find(entry)).found)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
