"""Compares the header of an image file with the size that annotations state: whether its EXIF orientation is applied.

The rule, per image: where the annotations state the size after the tag, the tag is applied; where they state the stored size,
the boxes were drawn on the stored pixels and the tag is not applied; where they state neither, the image is refused. Where both
sizes are the same (180 degrees, mirrored, square images), the tag is followed, as browsers and annotation tools do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from foldfuse.data.image_file import Header, read_header
from foldfuse.data.value_ranges import EIGHT_BITS, Depth
from foldfuse.errors import InputError


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


def inspect(path: Path, size: tuple[int, int], *, missing: str = "", ignore_orientation: bool = False) -> Inspection:
    """What the header of an image file says.

    Args:
        path: the file.
        size: the (width, height) that its annotations state.
        missing: why the path is no image file; "" where it may be one.
        ignore_orientation: whether pixels are taken as stored, whatever an EXIF tag says.
    """
    if missing or not path.exists():
        return Inspection(error=missing or f"{path}: there is no such image.", is_missing=True)
    try:
        header = read_header(path)
    except InputError as error:
        return Inspection(error=str(error))
    return judge_header(header, path, size, ignore_orientation=ignore_orientation)


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
