"""The values of pixels in files of more than 8 bits, and which of them are black and white.

Where a file states its depth, black is 0 and white the highest value of that depth. 16-bit files rarely do: cameras and scanners
write 10, 12 or 14 bits into them. Their white is the highest value of the smallest of these depths that holds the values of all
images of a dataset, so that a value looks the same in every image. 32-bit and float values have no depth: black and white are the
lowest and the highest value in the dataset, but for values from 0 to 1 and from 0 to 255 as usual.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from foldfuse.detections import Array

ValueRange = tuple[float, float]  # the values that become 0 and 255
Kind = Literal["8-bit", "16-bit", "16-bit colour", "32-bit", "float"]
COLOUR: Kind = "16-bit colour"  # Pillow reads the upper 8 bits
WORDS = {"16-bit": "16-bit", "32-bit": "32-bit", "float": "floating-point"}

DEPTHS = (8, 10, 12, 14, 16)  # bits
USUAL_FLOATS = (1.0, 255.0)  # white in float files, where the values use more than the lower half
_BITS_TAG, _PHOTOMETRIC_TAG, _SAMPLE_FORMAT_TAG = 258, 262, 339  # TIFF 6.0, sections 8 and 19
_NODATA_TAG = 42113  # of GDAL: the value of pixels without data, as text


@dataclass(frozen=True, slots=True)
class Depth:
    """How an image file stores the values of its pixels.

    Attributes:
        kind: 8 bits or fewer; 16 bits, gray or colour; 32-bit whole numbers; floats.
        stated: the highest value, where the file states it; None where it does not, or for 8 bits.
        is_inverted: whether the lowest value is white.
        is_unsigned: whether 32-bit numbers have no sign.
        nodata: the value of pixels without data; None where there is no such value.
    """

    kind: Kind = "8-bit"
    stated: float | None = None
    is_inverted: bool = False
    is_unsigned: bool = False
    nodata: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether the values of all images have to be looked at, to know which of them are black and white."""
        return self.kind != "8-bit" and self.stated is None


EIGHT_BITS = Depth()


def depth_of(image: Image.Image) -> Depth:
    """The depth of an opened image that is not loaded yet."""
    kind = _kind(image)
    if kind == "8-bit":
        return EIGHT_BITS
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits = _first(tags.get(_BITS_TAG)) or 16  # MaxSampleValue is no depth: it is the highest value of the one image
        stated = 2.0**bits - 1 if kind == "16-bit" and bits < 16 else None
        return Depth(
            kind,
            stated=stated,
            is_inverted=tags.get(_PHOTOMETRIC_TAG) == 0 and kind != "16-bit colour",
            is_unsigned=kind == "32-bit" and _first(tags.get(_SAMPLE_FORMAT_TAG, 1)) == 1,
            nodata=_number(tags.get(_NODATA_TAG)),
        )
    if image.format == "PPM" and kind != "float":
        return Depth(kind, stated=65535.0)  # Pillow scales values by the highest value that the file states
    return Depth(kind)


def range_of(depth: Depth, extrema: Iterable[ValueRange]) -> ValueRange:
    """The values that become black and white, from the lowest and the highest value of each image."""
    if depth.stated is not None:
        return 0.0, depth.stated
    pairs = [pair for pair in extrema if all(map(math.isfinite, pair))]
    if not pairs:
        return 0.0, 1.0
    low, high = min(low for low, _ in pairs), max(high for _, high in pairs)
    if depth.kind != "float" and low >= 0 and high < 2 ** DEPTHS[-1]:
        return 0.0, float(2 ** next(bits for bits in DEPTHS if high < 2**bits) - 1)
    if depth.kind == "float" and low >= 0:
        for white in USUAL_FLOATS:
            if white / 2 < high <= white:
                return 0.0, white
    return low, high if high > low else low + 1.0


def values_of(image: Image.Image, depth: Depth) -> Array:
    """(H, W) values of a loaded image of more than 8 bits; NaN stands for pixels without data in floats."""
    values = np.asarray(image)
    if values.dtype.kind == "i" and depth.is_unsigned:
        values = values.view(np.uint32)
    if depth.nodata is not None and values.dtype.kind == "f":
        values = np.where(values == np.float32(depth.nodata), np.float32(np.nan), values)
    return values


def extrema_of(values: Array, depth: Depth) -> ValueRange:
    """The lowest and the highest value of the pixels with data; infinite where there are none."""
    known = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if depth.nodata is not None and values.dtype.kind != "f":
        known = values[values != depth.nodata]
    return (float(known.min()), float(known.max())) if known.size else (math.inf, -math.inf)


def to_8_bits(values: Array, value_range: ValueRange, depth: Depth) -> Array:
    """(H, W) uint8: black and white at the ends of the range; values beyond it and pixels without data are cut to it."""
    low, high = value_range
    if values.dtype == np.uint16:
        table = _scaled(np.arange(2**16), low, high)
        table = 255 - table if depth.is_inverted else table
        table[np.arange(2**16) == depth.nodata] = 0
        shown: Array = table[values]
        return shown
    out = np.empty(values.shape, np.uint8)
    rows = max(1, 2**22 // max(1, values.shape[1]))
    for start in range(0, len(values), rows):  # in blocks, since float64 takes eight times the memory
        block = values[start : start + rows]
        part = _scaled(np.nan_to_num(block, nan=low), low, high)
        part = 255 - part if depth.is_inverted else part
        part[~np.isfinite(block) | (block == depth.nodata)] = 0
        out[start : start + rows] = part
    return out


def _scaled(values: Array, low: float, high: float) -> Array:
    scaled: Array = np.rint(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    return scaled


def _kind(image: Image.Image) -> Kind:
    if image.mode == "F":
        return "float"
    if image.mode.startswith("I;16"):
        return "16-bit"
    if image.mode == "I":
        if image.format == "TIFF":
            return "32-bit" if _first(image.tag_v2.get(_BITS_TAG)) == 32 else "16-bit"  # type: ignore[attr-defined]
        return "16-bit" if image.format in ("PPM", "PNG") else "32-bit"
    arguments = [tile[3] for tile in getattr(image, "tile", ())[:1]]
    modes = [str(each[0] if isinstance(each, tuple) and each else each) for each in arguments]
    return COLOUR if any(";16" in mode for mode in modes) else "8-bit"


def _first(value: object) -> int | None:
    """The first number of a TIFF tag."""
    first = value[0] if isinstance(value, tuple) and value else value
    return int(first) if isinstance(first, int | float) else None


def _number(text: object) -> float | None:
    try:
        return float(str(text).strip("\0 "))
    except ValueError:
        return None
