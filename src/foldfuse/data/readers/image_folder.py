"""Folders of pictures with a sub-folder for each class, read as a Dataset whose every picture is one object, all of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.readers.coco import locate, read
from foldfuse.data.readers.layouts import find_layout
from foldfuse.detections import Annotations
from foldfuse.errors import InputError

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"}


def read_image_folder(folder: Path, *, classes: Sequence[str] | None = None) -> Dataset:
    """The pictures in the sub-folders of `folder`; a class is called as its sub-folder.

    Args:
        folder: holds a sub-folder for each class; where `classes` are given, it may hold the pictures themselves.
        classes: that a classifier knows; sub-folders of some of them are enough then. By default the classes are the
            sub-folders, by name.

    Raises:
        InputError: the folder is no such folder, a sub-folder holds no picture or is of no known class, there are fewer
            than two classes, or a picture cannot be opened.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder. Give one with a sub-folder of pictures for each class.")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if classes is not None and not names:
        found = [(path, None) for path in _pictures(folder)]
        if not found:
            raise InputError(f"{folder}: holds no picture. Known endings: {', '.join(sorted(PICTURES))}.")
        return _dataset(found, folder, tuple(classes))
    if not names:
        raise InputError(f"{folder}: has no sub-folders. Expected one for each class, with its pictures in it.")
    known = tuple(names if classes is None else classes)
    if len(known) < 2:
        raise InputError(f"{folder}: has one sub-folder, {names[0]}. A classifier needs two classes at least.")
    for name in names:
        if name not in known:
            raise InputError(
                f"{folder / name}: is of no class that the classifier knows ({', '.join(known)}). Rename or remove it."
            )
        if not _pictures(folder / name):
            deeper = any(p.is_dir() for p in (folder / name).iterdir())
            hint = f" Its sub-folders may be the classes: then give {folder / name}." if deeper else ""
            raise InputError(f"{folder / name}: holds no picture. Put some in, or remove the folder.{hint}")
    return _dataset([(path, known.index(name)) for name in names for path in _pictures(folder / name)], folder, known)


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith("."))


def _dataset(found: Sequence[tuple[Path, int | None]], folder: Path, classes: tuple[str, ...]) -> Dataset:
    samples = []
    for i, (path, label) in enumerate(found):
        width, height = _size(path)
        whole = np.array([[0, 0, width, height]], np.float64)
        drawn = Annotations(whole, np.array([label or 0]), np.zeros(1, bool), np.array([float(width * height)]))
        name = path.relative_to(folder).as_posix()
        samples.append(Sample(i, path, name, width, height, None if label is None else drawn))
    return Dataset(tuple(samples), classes, tuple(range(len(classes))), folder)


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as file:
            return file.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be opened as a picture ({error}). Replace it, or remove it.") from None


def read_classification(data: Path, *, classes: Sequence[str] | None = None) -> tuple[Dataset, bool]:
    """The dataset to classify, and whether it is of whole pictures: a folder with sub-folders rather than of objects.

    Args:
        data: anything that `data.read` takes, or a folder of pictures with a sub-folder for each class.
        classes: that a classifier knows; see `read_image_folder`.

    Raises:
        InputError: it cannot be read.
    """
    if data.is_dir() and not (data / "train.json").is_file() and find_layout(data) is None:
        return read_image_folder(data, classes=classes), True
    dataset = read(locate(data)[0])
    if classes is not None and dataset.classes != tuple(classes):
        raise InputError(
            f"{data}: has the classes {', '.join(dataset.classes)}, but the run was trained for {', '.join(classes)}."
        )
    return dataset, False
