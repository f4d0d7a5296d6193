"""Boxes with class names and scores, drawn onto an image.

Colours are those of Okabe and Ito ("Color Universal Design", 2008), which people with any colour vision can tell apart; lines and
letters grow with the image. Pillow and numpy only.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from foldfuse.boxes import Array
from foldfuse.display import short
from foldfuse.errors import InputError, shown

Colour = tuple[int, int, int]
PALETTE: tuple[Colour, ...] = (  # Okabe and Ito, without black; then lighter and darker colours between these
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (255, 255, 255),
    (136, 34, 85),
    (153, 153, 255),
    (153, 221, 153),
    (102, 68, 0),
    (0, 68, 27),
    (255, 178, 178),
    (120, 120, 120),
    (51, 34, 136),
)
_RIM: Colour = (20, 20, 20)  # around lines and labels, so that they show on any image
_LINES = 360  # a line is the longest side / 360 wide
_LETTERS = 42  # letters are the longest side / 42 high
_MIN_LETTERS, _MIN_SMALL_LETTERS = 11, 9  # pixels; below, nothing can be read
_LONGEST_NAME = 28  # letters of a class name that are shown
_SMALL = 4.0  # a label stays off boxes smaller than this many times the label's area
_MANY = 30  # boxes, from which on letters become smaller
_FONTS = (  # tried in turn for letters that Pillow's own font lacks
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "wqy-zenhei.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
)


def colour_of(label: int) -> Colour:
    """The RGB colour of a class; classes beyond the palette share colours."""
    return PALETTE[label % len(PALETTE)]


def text_colour_on(colour: Colour) -> Colour:
    """Black or white, whichever can be read better on a colour."""
    return (0, 0, 0) if contrast(colour, (0, 0, 0)) >= contrast(colour, (255, 255, 255)) else (255, 255, 255)


def contrast(a: Colour, b: Colour) -> float:
    """The contrast ratio of two colours, 1 to 21, as WCAG 2 defines it."""
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: Colour) -> float:
    """The relative luminance of an sRGB colour, 0 to 1."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (part / 255 for part in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def open_rgb(image: Any) -> Image.Image:
    """An image as a Pillow image of mode RGB: its own pixels, upright.

    Args:
        image: a path, a Pillow image, or (H, W, 3), (H, W, 4) or (H, W) uint8 values in any form that numpy reads.

    Raises:
        InputError: the file is missing or is no image, or the array has another shape or type.
    """
    if isinstance(image, str | Path):
        try:
            with Image.open(image) as file:
                return open_rgb(ImageOps.exif_transpose(file))
        except FileNotFoundError:
            raise InputError(f"{image}: there is no such image.") from None
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{image}: cannot be decoded as an image ({shown(str(error), 100)}).") from None
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):  # more than 8 bits: the lowest value becomes black, the highest white
            values = np.asarray(image, np.float64)
            low, high = values.min(), values.max()
            image = Image.fromarray(((values - low) / max(high - low, 1e-9) * 255).astype(np.uint8))
        return image.convert("RGB")
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4))):
        raise InputError(
            f"the image is an array of shape {pixels.shape} and type {pixels.dtype}, expected (height, width, 3) and uint8, "
            "RGB values from 0 to 255."
        )
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).convert("RGB")


def draw_boxes(
    image: Image.Image, boxes: Array, labels: Array, *, scores: Array | None = None, classes: Sequence[str] = ()
) -> Image.Image:
    """A copy of an image with boxes drawn on it, each with its class and score; the size stays.

    Labels lie inside the image, beside their boxes where there is room, and neither on each other nor on small boxes; where
    there is no such place, a box has no label, and its colour tells the class.

    Args:
        image: an image; the result has mode RGB.
        boxes: (n, 4) xyxy in pixels of the image; parts outside are not drawn.
        labels: (n,) int, positions in `classes`.
        scores: (n,) in [0, 1], or None for annotations. Boxes of high score get their labels first.
        classes: class names; without them a class is shown by its number.
    """
    image = image.convert("RGB") if image.mode != "RGB" else image.copy()
    boxes, labels = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(labels, np.int64)
    shown_rows = np.isfinite(boxes).all(1)
    boxes, labels = boxes[shown_rows], labels[shown_rows]
    values = None if scores is None else np.asarray(scores, np.float64)[shown_rows]
    longest, pen = max(image.size), ImageDraw.Draw(image)
    line = max(1, round(longest / _LINES))
    areas = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(1)
    for i in np.argsort(-areas, kind="stable"):  # small boxes on top
        _outline(pen, image.size, boxes[i], line, colour_of(int(labels[i])))
    letters = longest / _LETTERS * min(1.0, (_MANY / max(len(boxes), 1)) ** 0.5)
    sizes = (max(_MIN_LETTERS, round(letters)), max(_MIN_SMALL_LETTERS, round(0.75 * letters)))
    taken = np.zeros((0, 4))
    for i in np.argsort(-areas if values is None else -values, kind="stable"):
        name = _class_text(classes, int(labels[i]))
        text = name if values is None else f"{name}  {values[i]:.2f}"
        for size in sizes:
            font = _font_for(text, size)
            if font is None:
                text = text.replace(name, f"class {int(labels[i])}")
                font = _font_for(text, size)
                assert font is not None, "Pillow's font has ASCII"
            left, _, right, _ = font.getbbox(text)
            pad = max(2, size // 5)
            width, height = right - left + 2 * pad, round(size * 1.1) + 2 * (pad // 2)
            place = _free_place(boxes[i], (width, height), image.size, line, boxes, areas, taken)
            if place is not None:
                taken = np.concatenate([taken, place[None]])
                _label(pen, place, text, font, colour_of(int(labels[i])), pad=pad, line=line)
                break
    return image


def _outline(pen: ImageDraw.ImageDraw, size: tuple[int, int], box: Array, line: int, colour: Colour) -> None:
    """The outline of a box around its pixels, as far as the image goes, with a dark rim."""
    limit = np.array([*size, *size]) - 1
    low, high = np.floor(box[:2]), np.maximum(np.ceil(box[2:]) - 1, np.floor(box[:2]))
    for width, inner, ink in ((max(1, line // 2), line, _RIM), (line, 0, colour)):
        reach = width + inner
        edge = np.concatenate([low - reach, high + reach])
        if (edge[:2] > limit[:2]).any() or (edge[2:] < 0).any():
            return  # all of it is outside
        x1, y1, x2, y2 = np.clip(edge, 0, limit).astype(int).tolist()
        pen.rectangle((x1, y1, x2, y2), outline=ink, width=width)


def _free_place(
    box: Array, label: tuple[float, float], size: tuple[int, int], line: int, boxes: Array, areas: Array, taken: Array
) -> Array | None:
    """(4,) xyxy of a label of this (width, height) inside the image, on no label and no small box; None where none is free."""
    small = boxes[areas < _SMALL * label[0] * label[1]]
    for place in _places(box, label, size, line):
        x1, y1, x2, y2 = place
        inside = x1 >= 0 and y1 >= 0 and x2 <= size[0] and y2 <= size[1]
        if inside and not _touches(place, taken) and not _touches(place, small):
            return place
    return None


def _places(box: Array, label: tuple[float, float], size: tuple[int, int], line: int) -> Iterator[Array]:
    """Places of a label by preference: above and below the box, inside it, beside it; shifted to lie in the image."""
    width, height = label
    seen = np.clip(box, 0, [*size, *size])
    x = min(max(seen[0] - line, 0), max(size[0] - width, 0))  # the label begins where the outline does
    y = min(max(seen[1] - line, 0), max(size[1] - height, 0))
    x_end = min(max(seen[2] + line - width, 0), max(size[0] - width, 0))
    is_roomy = seen[2] - seen[0] >= 1.2 * width and seen[3] - seen[1] >= 3 * height
    corners = [(x, seen[1] - line - height)]
    if is_roomy:
        corners += [(x, y)]
    corners += [
        (x, seen[3] + line),
        (x_end, seen[1] - line - height),
        (x_end, seen[3] + line),
        (seen[2] + line, y),
        (seen[0] - line - width, y),
    ]
    if is_roomy:
        corners += [(x_end, y), (x, seen[3] - height), (x_end, seen[3] - height)]
    for left, top in corners:
        left, top = np.floor(left), np.floor(top)
        yield np.array([left, top, left + width, top + height])


def _touches(place: Array, others: Array) -> bool:
    """Whether a box (4,) shares pixels with any of (n, 4) others."""
    return bool(((np.minimum(place[2:], others[:, 2:]) - np.maximum(place[:2], others[:, :2])) > 0).all(1).any())


def _label(
    pen: ImageDraw.ImageDraw,
    place: Array,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    colour: Colour,
    *,
    pad: int,
    line: int,
) -> None:
    x1, y1, x2, y2 = place.astype(int).tolist()
    pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour, outline=_RIM, width=max(1, line // 4))
    pen.text((x1 + pad, (y1 + y2) / 2), text, fill=text_colour_on(colour), font=font, anchor="lm")


def _class_text(classes: Sequence[str], label: int) -> str:
    """The name of a class as it is drawn: one line, not too long; its number where it has no name."""
    name = short(classes[label], _LONGEST_NAME) if 0 <= label < len(classes) else ""
    return name or f"class {label}"


@functools.lru_cache(maxsize=512)
def _font_for(text: str, size: int) -> Any:
    """A font that has all letters of a text; None where the machine has none."""
    for name in ("", *_FONTS):
        font = _font(name, size)
        if font is not None and all(_has_letter(name, letter) for letter in set(text) if not letter.isspace()):
            return font
    return None


@functools.lru_cache(maxsize=64)
def _font(name: str, size: int) -> Any:
    """A font of Pillow's ("") or of the machine; None where the machine lacks it."""
    if not name:
        return ImageFont.load_default(size=size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@functools.lru_cache(maxsize=4096)
def _has_letter(name: str, letter: str) -> bool:
    """Whether a font draws a letter as something else than the sign for letters that it lacks."""
    if letter.isascii():
        return True
    font = _font(name, 24)
    return bytes(font.getmask(letter)) != bytes(font.getmask("\U0010ffff"))
