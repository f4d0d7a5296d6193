"""Images to predict, in whatever form they are given: files, folders, glob patterns, datasets, Pillow images and arrays."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.decoding import eight_bits
from foldfuse.data.readers.coco import read, require_layout
from foldfuse.data.readers.image_names import IMAGE_SUFFIXES, UNREAD_SUFFIXES, split_ending
from foldfuse.data.readers.image_rows import image_ids, relative_names, size_of
from foldfuse.data.value_ranges import ValueRange, depth_of
from foldfuse.detections import Array
from foldfuse.drawing import open_rgb
from foldfuse.errors import InputError, counted, shown

_GLOB = "*?["


@dataclass(frozen=True, eq=False)
class ImageInputs:
    """Images to predict.

    Attributes:
        dataset: the images; without classes unless a dataset with classes was given alone.
        measured: ids of the images whose size was read from their file, since no annotation states it.
        repeated: how often an image was given again; it is predicted once.
    """

    dataset: Dataset
    measured: frozenset[int] = frozenset()
    repeated: int = 0


def read_paths(
    paths: Sequence[str | Path], *, images: Path | None = None, ignore_orientation: bool = False
) -> ImageInputs:
    """The images of files, folders, glob patterns and datasets of any layout, each image once.

    The ids are those of a dataset that is given alone. Otherwise they are counted as in a folder of images.

    Args:
        paths: what the user names. A glob pattern has *, ? or [ and is no file; ** stands for any folders.
        images: the folder of the images of a dataset; see `data.readers.coco.read`.
        ignore_orientation: whether pixels are taken as they are stored, whatever an EXIF tag says.

    Raises:
        InputError: nothing is given, a path does not exist, a pattern matches no image, or a dataset cannot be read.
    """
    if not paths:
        raise InputError(
            "no image is given. Give files, folders, a quoted pattern such as 'photos/*.jpg', or a dataset."
        )
    if len(paths) == 1 and (one := _dataset_at(paths[0], images, ignore_orientation)) is not None:
        return one
    parts = [_part(path, images, ignore_orientation) for path in paths]
    given = [sample for samples, _ in parts for sample in samples]
    measured_paths = {s.path for samples, measured in parts if measured for s in samples}
    by_file: dict[str, Sample] = {}
    for sample in given:
        by_file.setdefault(os.path.realpath(sample.path), sample)
    samples = tuple(by_file.values())
    files = [s.path for s in samples]
    ids, names = image_ids(files), relative_names(files, files[0].parent if files else Path())
    renamed = tuple(replace(s, id=ids[s.path], file_name=names[s.path], original_id=None) for s in samples)
    measured = frozenset(s.id for s in renamed if s.path in measured_paths)
    source = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {counted(len(paths) - 1, 'other path')}"
    return ImageInputs(Dataset(renamed, (), (), Path(source)), measured, len(given) - len(samples))


def read_anything(
    images: Any, *, ignore_orientation: bool = False, value_ranges: Mapping[str, ValueRange] | None = None
) -> ImageInputs:
    """The images that a caller in Python gives.

    Args:
        images: a path or glob pattern as `read_paths` takes one; a Dataset; one Pillow image or array; or a sequence of paths,
            Pillow images and (height, width, 3) uint8 RGB arrays, whose ids are their positions, from 0.
        ignore_orientation: see `read_paths`.
        value_ranges: values that become black and white in Pillow images of more than 8 bits; see `data.pixels.open_images`.

    Raises:
        InputError: see `read_paths`; or an item is nothing that shows an image.
    """
    if isinstance(images, Dataset):
        return ImageInputs(images)
    if isinstance(images, str | Path):
        return read_paths([images], ignore_orientation=ignore_orientation)
    is_one = isinstance(images, Image.Image | Sample) or (isinstance(images, np.ndarray) and images.ndim != 4)
    if not is_one and not isinstance(images, Iterable):
        raise InputError(f"{shown(images)} is no image. Give a path, a Pillow image, an array, or a list of them.")
    samples: list[Sample] = []
    measured: set[int] = set()
    for item in [images] if is_one else images:
        found, is_measured = _item(item, len(samples), ignore_orientation, value_ranges or {})
        for sample in found:
            if is_measured:
                measured.add(len(samples))
            samples.append(replace(sample, id=len(samples), original_id=None))
    if not samples:
        raise InputError("no image is given: the list is empty. Give at least one image.")
    return ImageInputs(Dataset(tuple(samples), (), (), Path("images")), frozenset(measured))


def _item(
    item: Any, position: int, ignore_orientation: bool, value_ranges: Mapping[str, ValueRange]
) -> tuple[Sequence[Sample], bool]:
    """The samples of an item of a list, and whether their sizes were read from their files."""
    if isinstance(item, Sample):
        return [item], False
    if isinstance(item, str | Path):
        return _part(item, None, ignore_orientation)
    pixels = _pixels(item, ignore_orientation, value_ranges)
    name = f"image_{position}"
    return [Sample(0, Path(name), name, pixels.shape[1], pixels.shape[0], None, 1, pixels=pixels)], False


def _pixels(image: Any, ignore_orientation: bool, value_ranges: Mapping[str, ValueRange]) -> Array:
    """(height, width, 3) uint8 RGB of a Pillow image, upright as its orientation tag says, or of an array.

    Values of more than 8 bits become what they become in a file: black and white are those of `value_ranges`.

    Raises:
        InputError: it is neither, or an array of another shape or type.
    """
    if isinstance(image, Image.Image):
        depth = depth_of(image)  # before the image is turned, which drops the tags of its file
        upright = image if ignore_orientation else ImageOps.exif_transpose(image)
        return np.array(eight_bits(upright, depth, value_ranges.get(depth.kind)).convert("RGB"))
    pixels = np.asarray(image)
    if not pixels.size:
        raise InputError(f"the image is an array of shape {pixels.shape}, which has no pixels. Give one that has some.")
    return np.array(open_rgb(pixels))


def _dataset_at(path: str | Path, images: Path | None, ignore_orientation: bool) -> ImageInputs | None:
    """The images of a folder or dataset; None for the file of an image and for a pattern."""
    path = Path(path)
    if _is_image(path) or _is_pattern(path):
        return None
    dataset = read(path, annotated=False, images=images, ignore_orientation=ignore_orientation)
    is_measured = require_layout(path).kind == "images"
    return ImageInputs(dataset, frozenset(dataset.image_ids) if is_measured else frozenset())


def _part(path: str | Path, images: Path | None, ignore_orientation: bool) -> tuple[Sequence[Sample], bool]:
    """The samples that a path names, and whether their sizes were read from their files."""
    path = Path(path)
    if not _is_pattern(path):
        one = _dataset_at(path, images, ignore_orientation)
        if one is not None:
            return one.dataset.samples, bool(one.measured)
        return [_sample(path, ignore_orientation)], True
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207, of any folder
    files = [p for p in found if p.is_file() and _is_image(p)]
    if not files:
        others = (
            f"; {counted(len(found), 'path')} that it matches {'is' if len(found) == 1 else 'are'} no image"
            if found
            else ""
        )
        raise InputError(
            f"{path}: no image has a name of this pattern{others}. Check the folder, and the endings: names are compared "
            "letter by letter."
        )
    return [_sample(p, ignore_orientation) for p in files], True


def _sample(path: Path, ignore_orientation: bool) -> Sample:
    width, height = size_of(path, ignore_orientation=ignore_orientation)
    return Sample(0, path, path.name, width, height, None)


def _is_image(path: Path) -> bool:
    """Whether a path is named as an image is; a missing file too, so that its error speaks of an image."""
    return split_ending(path.name)[1].lower() in (*IMAGE_SUFFIXES, *UNREAD_SUFFIXES) and not path.is_dir()


def _is_pattern(path: Path) -> bool:
    try:
        return any(letter in str(path) for letter in _GLOB) and not path.exists()
    except (OSError, ValueError) as error:
        raise InputError(f"{shown(str(path))}: is no name of a file ({error}). Give the path of an image.") from None
