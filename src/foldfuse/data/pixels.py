"""Looks at the image files of a dataset before their pixels are read: they exist, they have the annotated size, the EXIF
orientation is applied or not, and which values are black and white in files of more than 8 bits.

The rule, per image: where the annotations state the size after the tag, the tag is applied; where they state the stored size,
the boxes were drawn on the stored pixels and the tag is not applied; where they state neither, the image is refused. Where both
sizes are the same (180 degrees, mirrored, square images), the tag is followed, as browsers and annotation tools do.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.decoding import extrema
from foldfuse.data.image_file import Header, read_header
from foldfuse.data.value_ranges import COLOUR, EIGHT_BITS, WORDS, Depth, ValueRange, range_of
from foldfuse.errors import InputError

FULL_16_BITS = (0.0, 65535.0)
MIN_COLOUR_HIGHEST = 64  # of the upper 8 bits of 16-bit colour: below are files of 14 bits and fewer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the header of an image file says about an annotated image.

    Attributes:
        orientation: the EXIF orientation to apply on loading, 1 (none) to 8.
        has_tag: whether the file has an orientation tag other than 1.
        is_assumed: whether the orientation was applied although the stored and the upright size are the same.
        error: why the image cannot be used; "" for a good image.
        is_missing: whether the error is that there is no such file.
        is_size_wrong: whether the error is a size that contradicts the file.
        depth: how the file stores the values of its pixels.
        has_pages: whether the file has more pages or frames than the first, which alone is read.
        is_flat, is_black: whether all pixels have one colour or are all but black, where they were looked at.
    """

    orientation: int = 1
    has_tag: bool = False
    is_assumed: bool = False
    error: str = ""
    is_missing: bool = False
    is_size_wrong: bool = False
    depth: Depth = EIGHT_BITS
    has_pages: bool = False
    is_flat: bool = False
    is_black: bool = False


def open_images(
    dataset: Dataset,
    *,
    ignore_orientation: bool = False,
    value_ranges: Mapping[str, ValueRange] | None = None,
    skip: Collection[int] = frozenset(),
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
        for sentence in _sentences(dataset, inspections, found, ranges):
            log.warning("%s: %s", dataset.source, sentence)
    samples = (
        replace(s, orientation=i.orientation, value_range=ranges.get(i.depth.kind) if i.depth.is_open else None)
        for s, i in zip(dataset.samples, inspections, strict=True)
    )
    return replace(dataset, samples=tuple(samples), value_ranges=ranges)


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


def extrema_of_open(files: Sequence[tuple[Path, Depth]]) -> list[tuple[Depth, Path, ValueRange]]:
    """The depth, the path, and the lowest and highest value of each file that has more than 8 bits and does not state its depth.

    Raises:
        InputError: such a file cannot be decoded.
    """
    looked_at = [(depth, path) for path, depth in files if depth.is_open]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
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
) -> Iterator[str]:
    """What users should know of the image files."""
    pairs = list(zip(dataset.samples, inspections, strict=True))
    if assumed := [s.file_name for s, i in pairs if i.is_assumed]:
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


def inspect(sample: Sample, *, ignore_orientation: bool = False) -> Inspection:
    """What the header of a sample's file says."""
    if sample.missing or not sample.path.exists():
        return Inspection(error=sample.missing or f"{sample.path}: there is no such image.", is_missing=True)
    try:
        header = read_header(sample.path)
    except InputError as error:
        return Inspection(error=str(error))
    return judge_header(header, sample.path, (sample.width, sample.height), ignore_orientation=ignore_orientation)


def judge_header(header: Header, path: Path, size: tuple[int, int], *, ignore_orientation: bool = False) -> Inspection:
    """The inspection of an image whose annotations state the (width, height) `size`."""
    good = Inspection(has_tag=header.orientation != 1, depth=header.depth, has_pages=header.has_pages)
    if good.has_tag and not ignore_orientation and size == header.upright_size:
        return replace(good, orientation=header.orientation, is_assumed=size == header.stored_size)
    if size == header.stored_size:
        return good
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
    elif _have_one_shape(size, header.stored_size):
        advice = "the same shape, as if it had been resized after annotating; give the folder of the originals as --images DIR"
    return Inspection(error=f"{path}: {stored}, and {stated}, {advice}.", is_size_wrong=True)


def _have_one_shape(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two sizes differ by a factor alone, and by more than a tenth; sides are rounded to whole pixels."""
    return abs(a[0] - b[0]) > 0.1 * b[0] and abs(a[0] * b[1] - a[1] * b[0]) <= max(*a, *b)
