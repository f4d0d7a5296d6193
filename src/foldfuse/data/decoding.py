"""Decodes image files of any depth and colour model to 8-bit RGB.

Values of more than 8 bits are scaled as `value_ranges` says. Transparent pixels are shown on white, as browsers and annotation
tools show them. An ICC profile is not applied.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from foldfuse.data.image_file import header_of, opened, stored_pixels
from foldfuse.data.value_ranges import Depth, ValueRange, extrema_of, range_of, to_8_bits, values_of
from foldfuse.errors import InputError

MEMORY_SHARE = 0.5  # of the machine's, for the largest image
MEMORY_VARIABLE = "FOLDFUSE_MAX_IMAGE_GB"
LARGE_PIXELS = 50_000_000  # images from here on are decoded one at a time
MAX_PIXELS_PER_BYTE = 10_000  # of large images: deflate shrinks to 1/1032 at most, and a byte holds 8 pixels of one bit
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}  # a pixel in Pillow's memory; 4 in other modes
_ARRAY_BYTES = 3  # a pixel of the result
_one_large = threading.Lock()


def decode(path: Path, *, longest: int | None = None, value_range: ValueRange | None = None) -> Image.Image:
    """The stored pixels of an image file as a Pillow image of mode RGB, shrunk so that no side is longer than `longest`.

    Args:
        path: the image file.
        longest: the longest side in pixels; None for the size of the file.
        value_range: values that become black and white in a file that does not state its depth; None for those of the file alone.

    Raises:
        InputError: the file is missing, cannot be decoded, or takes too much memory.
    """
    with opened(path) as file:
        header = header_of(file)
        size = shrunk(header.stored_size, longest)
        if size != header.stored_size:
            file.draft("RGB", size)
        with _within_memory(file, path):
            image = eight_bits(stored_pixels(file), header.depth, value_range)
            if size != header.stored_size:
                image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
            return image.convert("RGB")


def decode_gray(path: Path, size: tuple[int, int]) -> Image.Image:
    """The stored pixels of an image file as a Pillow image of mode L, of `size` (width, height) or larger; see `decode`."""
    with opened(path) as file:
        depth = header_of(file).depth
        file.draft("L", size)
        with _within_memory(file, path):
            return eight_bits(stored_pixels(file), depth, None).convert("L")


def extrema(path: Path) -> ValueRange:
    """The lowest and the highest value in an image file, as it stores them; infinite where no pixel has data.

    Raises:
        InputError: as `decode` does.
    """
    with opened(path) as file:
        depth = header_of(file).depth
        with _within_memory(file, path):
            image = stored_pixels(file)
            if depth.kind in ("8-bit", "16-bit colour"):
                return 0.0, float(np.asarray(image).max())
            return extrema_of(values_of(image, depth), depth)


def shrunk(size: tuple[int, int], longest: int | None) -> tuple[int, int]:
    """(width, height) with the longest side at `longest` pixels, where it is longer."""
    if longest is None or max(size) <= longest:
        return size
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def eight_bits(image: Image.Image, depth: Depth, value_range: ValueRange | None) -> Image.Image:
    """A loaded image as an image of mode L or RGB.

    Args:
        image: the image.
        depth: how it stores its values.
        value_range: values that become black and white where the depth is open; None for those of the image alone.
    """
    if depth.kind in ("16-bit", "32-bit", "float"):
        values = values_of(image, depth)
        own = value_range if value_range is not None and depth.is_open else None
        return Image.fromarray(to_8_bits(values, own or range_of(depth, [extrema_of(values, depth)]), depth))
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        shown = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert shown is not None, "profileToProfile changes an image in place only where it is asked to"
        return shown
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _on_white(image)
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """An image with transparent pixels, shown on white; where no pixel is visible at all, the colours as they are stored."""
    image = image.convert("RGBA")
    low, high = image.getchannel("A").getextrema()
    if low == 255 or high == 0:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


@contextmanager
def _within_memory(file: Image.Image, path: Path) -> Iterator[None]:
    """Allows the decoding of an opened image if it fits the memory; one large image at a time."""
    width, height = file.size
    need, limit = width * height * (_BYTES.get(file.mode, 4) + _ARRAY_BYTES), memory_limit()
    if need > limit:
        raise InputError(
            f"{path}: has {width} x {height} pixels, which take {need / 1e9:.1f} GB of memory to decode, more than the limit of "
            f"{limit / 1e9:.1f} GB. Cut it into tiles, or set {MEMORY_VARIABLE}={need // 10**9 + 1} to allow it."
        )
    if width * height < LARGE_PIXELS:
        yield
        return
    if width * height > MAX_PIXELS_PER_BYTE * (size := path.stat().st_size):
        raise InputError(
            f"{path}: has {width} x {height} pixels, its header says, which cannot be in its {size} bytes. Replace it, or remove "
            "it from the annotations."
        )
    with _one_large:
        yield


def memory_limit() -> float:
    """Bytes that decoding one image may take: FOLDFUSE_MAX_IMAGE_GB in the environment, or half of the machine's memory."""
    text = os.environ.get(MEMORY_VARIABLE)
    if text is None:
        return MEMORY_SHARE * _machine_bytes()
    try:
        limit = float(text) * 1e9
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise InputError(f"{MEMORY_VARIABLE} is {text[:60]!r}, expected a number of gigabytes, such as 8.")
    return limit


@functools.cache
def _machine_bytes() -> int:
    """The memory of the machine, or of the container, in bytes; 8 GB where the system does not tell."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 8 * 10**9
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):
        return total
