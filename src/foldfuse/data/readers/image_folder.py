"""Reads image-classification folders: one sub-folder per class; each image becomes one object that covers all of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.readers.coco import read
from foldfuse.data.readers.image_names import IMAGE_SUFFIXES
from foldfuse.data.readers.image_rows import image_files, size_of
from foldfuse.data.readers.layouts import find_layout
from foldfuse.detections import Annotations
from foldfuse.errors import InputError


def read_image_folder(
    folder: Path, *, classes: Sequence[str] | None = None, ignore_orientation: bool = False
) -> Dataset:
    """The images in the sub-folders of `folder`; the name of the sub-folder is the class.

    Args:
        folder: holds a sub-folder for each class; where `classes` are given, it may hold the images themselves, which then
            have no annotations.
        classes: the classes of a trained classifier; sub-folders of some of them are enough then. By default the classes
            are the sub-folders, by name.
        ignore_orientation: whether pixels are taken as stored, whatever an EXIF tag says.

    Raises:
        InputError: the folder has no such sub-folders, a sub-folder holds no image or is of no known class, there are fewer
            than two classes, or an image cannot be opened.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder. Give one with a sub-folder of images for each class.")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if classes is not None and not names:
        unlabeled = [(path, None) for path in image_files(folder)]
        if not unlabeled:
            raise InputError(f"{folder}: holds no image. Known endings: {', '.join(IMAGE_SUFFIXES)}.")
        return _dataset(unlabeled, folder, tuple(classes), ignore_orientation=ignore_orientation)
    if not names:
        raise InputError(f"{folder}: has no sub-folders. Expected one for each class, with its images in it.")
    known = tuple(names if classes is None else classes)
    if len(known) < 2:
        raise InputError(f"{folder}: has one sub-folder, {names[0]}. A classifier needs two classes at least.")
    labeled: list[tuple[Path, int]] = []
    for name in names:
        if name not in known:
            raise InputError(
                f"{folder / name}: is of no class that the classifier knows ({', '.join(known)}). Rename or remove it."
            )
        paths = image_files(folder / name)
        if not paths:
            deeper = any(p.is_dir() for p in (folder / name).iterdir())
            hint = f" Its sub-folders may be the classes: then give {folder / name}." if deeper else ""
            raise InputError(f"{folder / name}: holds no image. Put some in, or remove the folder.{hint}")
        labeled += [(path, known.index(name)) for path in paths]
    return _dataset(labeled, folder, known, ignore_orientation=ignore_orientation)


def read_classification(
    data: Path,
    *,
    classes: Sequence[str] | None = None,
    images: Path | None = None,
    ignore_orientation: bool = False,
) -> tuple[Dataset, bool]:
    """(dataset to classify, whether to classify whole images instead of annotated objects).

    Args:
        data: any dataset that `read` takes, or a folder with a sub-folder of images for each class.
        classes: the classes of a trained classifier; see `read_image_folder`.
        images: the folder of the images of a dataset; see `read`.
        ignore_orientation: see `read_image_folder`.

    Raises:
        InputError: `data` cannot be read, or has other classes than `classes`.
    """
    layout = find_layout(data) if data.is_dir() else None
    if data.is_dir() and (layout is None or layout.kind == "images"):
        return read_image_folder(data, classes=classes, ignore_orientation=ignore_orientation), True
    dataset = read(data, images=images, ignore_orientation=ignore_orientation)
    if classes is not None and dataset.classes != tuple(classes):
        raise InputError(
            f"{data}: has the classes {', '.join(dataset.classes)}, but the run was trained for {', '.join(classes)}."
        )
    return dataset, False


def _dataset(
    images: Sequence[tuple[Path, int | None]], folder: Path, classes: tuple[str, ...], *, ignore_orientation: bool
) -> Dataset:
    """The dataset of (image file, label) pairs; a label of None means that the image has no annotations."""
    samples = []
    for i, (path, label) in enumerate(images):
        width, height = size_of(path, ignore_orientation=ignore_orientation)
        annotations = None
        if label is not None:
            box = np.array([[0, 0, width, height]], np.float64)
            annotations = Annotations(box, np.array([label]), np.zeros(1, bool), np.array([float(width * height)]))
        samples.append(Sample(i, path, path.relative_to(folder).as_posix(), width, height, annotations))
    return Dataset(tuple(samples), classes, tuple(range(len(classes))), folder)
