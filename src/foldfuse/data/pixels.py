"""Looks at the image files of a dataset before their pixels are read: they exist, they have the annotated size, and the EXIF
orientation is applied or not.

The rule, per image: where the annotations state the size after the tag, the tag is applied; where they state the stored size,
the boxes were drawn on the stored pixels and the tag is not applied; where they state neither, the image is refused. Where both
sizes are the same (180 degrees, mirrored, square images), the tag is followed, as browsers and annotation tools do.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.image_file import Header, read_header
from foldfuse.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the header of an image file says about an annotated image.

    Attributes:
        orientation: the EXIF orientation to apply on loading, 1 (none) to 8.
        has_tag: whether the file has an orientation tag other than 1.
        is_assumed: whether the orientation was applied although the stored and the upright size are the same.
        error: why the image cannot be used; "" for a good image.
        is_size_wrong: whether the error is a size that contradicts the file.
    """

    orientation: int = 1
    has_tag: bool = False
    is_assumed: bool = False
    error: str = ""
    is_size_wrong: bool = False


def open_images(dataset: Dataset, *, ignore_orientation: bool = False, skip: Collection[int] = frozenset()) -> Dataset:
    """The dataset with the orientation that loading applies to each image; every command that reads pixels calls this first.

    Args:
        dataset: as it was read; its images need not exist.
        ignore_orientation: whether pixels are taken as they are stored, whatever an EXIF tag says.
        skip: ids of images that are left as they are, since their pixels are not read.

    Raises:
        InputError: an image is missing or cannot be opened, or its size contradicts the annotations; with the count and an
            example.
    """
    inspections = inspect_images(dataset, ignore_orientation=ignore_orientation, skip=skip)
    unusable = [i for i in inspections if i.error and not i.is_size_wrong]
    contradicted = [i for i in inspections if i.is_size_wrong]
    for problems, words in ((unusable, "cannot be used"), (contradicted, "have another size than the annotations say")):
        if problems:
            count = "" if len(problems) == 1 else f" ({len(problems)} of {len(dataset)} images {words}.)"
            raise InputError(problems[0].error + count)
    log_assumed(dataset, inspections)
    samples = (replace(s, orientation=i.orientation) for s, i in zip(dataset.samples, inspections, strict=True))
    return replace(dataset, samples=tuple(samples))


def open_image(sample: Sample, *, ignore_orientation: bool = False) -> Sample:
    """One sample with its orientation. Raises InputError as `open_images` does."""
    inspection = inspect(sample, ignore_orientation=ignore_orientation)
    if inspection.error:
        raise InputError(inspection.error)
    return replace(sample, orientation=inspection.orientation)


def inspect_images(
    dataset: Dataset, *, ignore_orientation: bool = False, skip: Collection[int] = frozenset()
) -> list[Inspection]:
    """The inspection of each image, in the order of the samples; an empty one for images whose ids are in `skip`."""

    def one(sample: Sample) -> Inspection:
        return Inspection() if sample.id in skip else inspect(sample, ignore_orientation=ignore_orientation)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, dataset.samples))


def log_assumed(dataset: Dataset, inspections: list[Inspection]) -> None:
    """Logs how many images were turned by their tag alone, with an example."""
    assumed = [s.file_name for s, i in zip(dataset.samples, inspections, strict=True) if i.is_assumed]
    if assumed:
        log.warning(
            "%s: %d of %d images are turned or mirrored as their EXIF tag says, such as %s; their size does not tell whether "
            "the boxes were drawn so. If they were drawn on the pixels as stored, add --ignore-orientation.",
            dataset.source,
            len(assumed),
            len(dataset),
            assumed[0],
        )


def inspect(sample: Sample, *, ignore_orientation: bool = False) -> Inspection:
    """What the header of a sample's file says."""
    if sample.missing:
        return Inspection(error=sample.missing)
    try:
        header = read_header(sample.path)
    except InputError as error:
        return Inspection(error=str(error))
    return judge_header(header, sample.path, (sample.width, sample.height), ignore_orientation=ignore_orientation)


def judge_header(header: Header, path: Path, size: tuple[int, int], *, ignore_orientation: bool = False) -> Inspection:
    """The inspection of an image whose annotations state the (width, height) `size`."""
    has_tag = header.orientation != 1
    if has_tag and not ignore_orientation and size == header.upright_size:
        return Inspection(header.orientation, has_tag, is_assumed=size == header.stored_size)
    if size == header.stored_size:
        return Inspection(1, has_tag)
    stated = f"the annotations say {size[0]} x {size[1]}"
    stored = "is {} x {} pixels".format(*header.stored_size)
    advice = "so its boxes cannot be trusted; export the dataset again"
    if header.orientation != 1:
        stored += " as stored"
        if header.upright_size != header.stored_size:
            stored += ", {} x {} after its EXIF orientation tag".format(*header.upright_size)
        if size == header.upright_size:
            advice = "which is its size after its EXIF orientation tag; leave out --ignore-orientation"
    elif size == (header.height, header.width):
        advice = "the same turned by 90 degrees, and no EXIF tag says so; turn the image or export the dataset again"
    return Inspection(error=f"{path}: {stored}, and {stated}, {advice}.", is_size_wrong=True)
