"""Looks at the image files of a dataset before their pixels are read: they exist, they have the annotated size, the EXIF
orientation is applied or not, and which values are black and white in files of more than 8 bits.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.decoding import extrema
from foldfuse.data.inspection import Inspection, inspect
from foldfuse.data.value_ranges import COLOUR, WORDS, Depth, ValueRange, range_of
from foldfuse.errors import InputError
from foldfuse.system.host import usable_cores

FULL_16_BITS = (0.0, 65535.0)
MIN_COLOUR_HIGHEST = 64  # of the upper 8 bits of 16-bit colour: below are files of 14 bits and fewer

log = logging.getLogger(__name__)


def open_images(
    dataset: Dataset,
    *,
    ignore_orientation: bool = False,
    value_ranges: Mapping[str, ValueRange] | None = None,
    skip: Collection[int] = frozenset(),
    measured: Collection[int] = frozenset(),
    is_logged: bool = True,
) -> Dataset:
    """The dataset with how to load each image; every command that reads pixels calls this first.

    Headers are read, and of files of more than 8 bits that do not state their depth all pixels. What users should know of the
    files is logged, one line for each kind.

    Args:
        dataset: as it was read; its images need not exist.
        ignore_orientation: whether pixels are taken as they are stored, whatever an EXIF tag says.
        value_ranges: the values that become black and white in files that do not state their depth, by kind, such as those that
            a run was trained with; by default those of this dataset.
        skip: ids of images that are left as they are, since their pixels are not read.
        measured: ids of images whose size was read from their file, since no annotation states it.
        is_logged: whether to log.

    Raises:
        InputError: an image is missing or cannot be opened, or its size contradicts the annotations; with the count and an
            example. Or 16-bit colour images would be all but black.
    """
    inspections = inspect_images(dataset, ignore_orientation=ignore_orientation, skip=skip)
    refuse_unusable(inspections)
    found = extrema_of_open([(s.path, i.depth) for s, i in zip(dataset.samples, inspections, strict=True)])
    if reason := too_dark(found):
        raise InputError(f"{dataset.source}: {reason}")
    ranges = dict(value_ranges or {}) | {
        kind: each for kind, each in ranges_of(found).items() if kind not in (value_ranges or {})
    }
    if is_logged:
        for sentence in _sentences(dataset, inspections, found, ranges, measured):
            log.warning("%s: %s", dataset.source, sentence)
    samples = (
        replace(s, orientation=i.orientation, value_range=ranges.get(i.depth.kind) if i.depth.is_open else None)
        for s, i in zip(dataset.samples, inspections, strict=True)
    )
    return replace(dataset, samples=tuple(samples), value_ranges=ranges)


def open_usable_images(dataset: Dataset, *, ignore_orientation: bool = False) -> Dataset:
    """The dataset, opened as `open_images` does; an image that cannot be used is kept, and its `missing` says why.

    Raises:
        InputError: no image can be used, or 16-bit colour images would be all but black.
    """
    inspections = inspect_images(dataset, ignore_orientation=ignore_orientation)
    problems = {s.id: i.error for s, i in zip(dataset.samples, inspections, strict=True) if i.error}
    for sample, inspection in zip(dataset.samples, inspections, strict=True):
        if sample.id not in problems and inspection.depth.is_open:
            try:
                extrema(sample.path)
            except InputError as error:
                problems[sample.id] = str(error)
    if problems and len(problems) == len(dataset):
        refuse_unusable(inspections)
    opened = open_images(dataset, ignore_orientation=ignore_orientation, skip=problems)
    return replace(opened, samples=tuple(replace(s, missing=problems.get(s.id, s.missing)) for s in opened.samples))


def refuse_unusable(inspections: Sequence[Inspection], *, even_undecodable: bool = True) -> None:
    """Raises InputError, with the count and an example, where images are missing, or have another size than the annotations say.

    Args:
        inspections: of all images of a dataset.
        even_undecodable: whether to refuse images that cannot be opened, too.
    """
    kinds = (
        ("are missing", [i for i in inspections if i.is_missing]),
        ("cannot be opened", [i for i in inspections if i.error and not (i.is_missing or i.is_size_wrong)]),
        ("have another size than the annotations say", [i for i in inspections if i.is_size_wrong]),
    )
    for words, problems in kinds:
        if problems and (even_undecodable or problems[0].is_missing or problems[0].is_size_wrong):
            count = f" {len(problems)} of {len(inspections)} images {words}." if len(problems) > 1 else ""
            raise InputError(problems[0].error + count)


def open_image(sample: Sample, *, ignore_orientation: bool = False) -> Sample:
    """One sample with its orientation. Raises InputError as `open_images` does."""
    inspection = inspect_sample(sample, ignore_orientation=ignore_orientation)
    if inspection.error:
        raise InputError(inspection.error)
    return replace(sample, orientation=inspection.orientation)


def inspect_images(
    dataset: Dataset, *, ignore_orientation: bool = False, skip: Collection[int] = frozenset()
) -> list[Inspection]:
    """The inspection of each image, in the order of the samples; an empty one for images whose ids are in `skip`."""

    def one(sample: Sample) -> Inspection:
        return Inspection() if sample.id in skip else inspect_sample(sample, ignore_orientation=ignore_orientation)

    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(one, dataset.samples))


def extrema_of_open(files: Sequence[tuple[Path, Depth]]) -> list[tuple[Depth, Path, ValueRange]]:
    """The depth, the path, and the lowest and highest value of each file that has more than 8 bits and does not state its depth.

    Raises:
        InputError: such a file cannot be decoded.
    """
    looked_at = [(depth, path) for path, depth in files if depth.is_open]
    with ThreadPoolExecutor(usable_cores()) as pool:
        found = list(pool.map(lambda item: extrema(item[1]), looked_at))
    return [(depth, path, each) for (depth, path), each in zip(looked_at, found, strict=True)]


def ranges_of(found: Sequence[tuple[Depth, Path, ValueRange]]) -> dict[str, ValueRange]:
    """{kind of depth: the values that become black and white in all files of that kind}."""
    by_kind: dict[str, list[tuple[Depth, ValueRange]]] = defaultdict(list)
    for depth, _, each in found:
        if depth.kind != COLOUR:
            by_kind[depth.kind].append((depth, each))
    return {kind: range_of(some[0][0], [each for _, each in some]) for kind, some in by_kind.items()}


def too_dark(found: Sequence[tuple[Depth, Path, ValueRange]]) -> str:
    """Why 16-bit colour images cannot be used: their upper 8 bits alone are read, and hold next to nothing; "" where they do."""
    colour = [(path, high) for depth, path, (_, high) in found if depth.kind == COLOUR]
    highest = max((high for _, high in colour), default=0.0)
    if not 0 < highest < MIN_COLOUR_HIGHEST:
        return ""
    return (
        f"{len(colour)} images have 16 bits a colour, such as {colour[0][0]}, but their values stay below "
        f"{256 * (int(highest) + 1)} of 65535. Of such files the upper 8 bits are read, so they would be all but black. Convert "
        "them to 8 bits with the contrast that they should have."
    )


def _sentences(
    dataset: Dataset,
    inspections: Sequence[Inspection],
    found: Sequence[tuple[Depth, Path, ValueRange]],
    ranges: Mapping[str, ValueRange],
    measured: Collection[int],
) -> Iterator[str]:
    """What users should know of the image files."""
    pairs = list(zip(dataset.samples, inspections, strict=True))
    if turned := [s.file_name for s, i in pairs if i.orientation != 1 and s.id in measured]:
        yield (
            f"{len(turned)} of {len(dataset)} images are turned or mirrored as their EXIF tag says, such as {turned[0]}; their "
            "boxes are in pixels of the upright image."
        )
    if assumed := [s.file_name for s, i in pairs if i.is_assumed and s.id not in measured]:
        yield (
            f"{len(assumed)} of {len(dataset)} images are turned or mirrored as their EXIF tag says, such as {assumed[0]}; their "
            "size does not tell whether the boxes were drawn so. If they were drawn on the pixels as stored, add "
            "--ignore-orientation."
        )
    if paged := [s.file_name for s, i in pairs if i.has_pages]:
        yield f"{len(paged)} of {len(dataset)} images have several pages or frames, such as {paged[0]}; the first is used."
    for kind in sorted({depth.kind for depth, _, _ in found} & set(ranges)):
        of_kind = [(path, each) for depth, path, each in found if depth.kind == kind]
        low, high = ranges[kind]
        if (low, high) != FULL_16_BITS:
            yield f"{len(of_kind)} images have {WORDS[kind]} values; {low:g} is shown as black, {high:g} as white in all of them."
        beyond = [path for path, (lowest, highest) in of_kind if lowest < low or highest > high]
        if beyond:
            yield (
                f"{len(beyond)} of these images have values beyond {low:g} to {high:g}, which the run was trained with, such as "
                f"{beyond[0]}; such values are cut."
            )


def inspect_sample(sample: Sample, *, ignore_orientation: bool = False) -> Inspection:
    """What the header of a sample's file says; an image in memory has nothing to be said of."""
    if sample.pixels is not None:
        return Inspection()
    size = (sample.width, sample.height)
    return inspect(sample.path, size, missing=sample.missing, ignore_orientation=ignore_orientation)
