"""The compiled loops of augmentation: an image scaled and mirrored onto a canvas, and the colours of a canvas changed.

Without rotation an affine map moves rows and columns separately, so bilinear sampling is a blend of two rows, which the
compiler turns into vector instructions, and then of two pixels of the blended row. Where samples lie follows Pillow's
`Image.transform` (pixel centres, no sample outside the image, edges repeated); the change of colours is Pillow's
`ImageEnhance.Brightness`, `Contrast` and `Color`, one after the other, to the bit, in one pass through tables.

Shapes: h x w x 3 uint8 images, H x W x 3 uint8 canvases.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import math

import numpy as np

from foldfuse.system.compiled import compiled

RED, GREEN, BLUE, HALF = 19595, 38470, 7471, 32768  # Pillow's weights of gray, in 1 / 65536, and the half that rounds


@compiled(error_model="numpy")
def place(image, canvas, window, scale, shift, fill):
    """Fill the xyxy `window` of `canvas` with `image`: window pixel = image pixel * scale + shift, `fill` where there is none.

    Args:
        image: (h, w, 3) uint8.
        canvas: (H, W, 3) uint8; changed within the window.
        window: x1, y1, x2, y2 in whole pixels of the canvas.
        scale: of x and y; negative mirrors.
        shift: of x and y, in pixels from the window's corner.
        fill: value of pixels outside the image.
    """
    height, width = image.shape[:2]
    x1, y1, x2, y2 = window
    columns = x2 - x1
    offset = np.empty(columns, np.uintp)  # in the row of the image, of the left one of two pixels
    weight = np.empty(columns, np.uint32)  # of the right one, in 1 / 256
    first, end = columns, 0  # the columns in which the image lies
    low, high = width, -1  # the pixels of the image's rows that are needed
    for x in range(columns):
        at = (x + 0.5 - shift[0]) / scale[0]
        if 0 <= at < width:
            first, end = min(first, x), x + 1
            left = math.floor(at - 0.5)
            part = int((at - 0.5 - left) * 256 + 0.5)
            if left < 0 or left >= width - 1:
                left, part = max(left, 0), 0
            offset[x], weight[x] = 3 * left, part
            low, high = min(low, left), max(high, left + (1 if part else 0))
    value = np.uint8(fill)
    row = np.zeros(3 * width + 3, np.uint16)
    for y in range(y2 - y1):
        line = canvas[y1 + y, x1:x2].reshape(-1)
        at = (y + 0.5 - shift[1]) / scale[1]
        if first >= end or not 0 <= at < height:
            line[:] = value
            continue
        line[: 3 * first] = value
        line[3 * end :] = value
        top = math.floor(at - 0.5)
        part = int((at - 0.5 - top) * 256 + 0.5)
        if top < 0 or top >= height - 1:
            top, part = max(top, 0), 0
        _blend_rows(
            image[top].reshape(-1), image[min(top + 1, height - 1)].reshape(-1), part, 3 * low, 3 * high + 3, row
        )
        _sample_row(row, offset, weight, first, end, line)


@compiled()
def _blend_rows(upper, lower, part, begin, end, row):
    """Set row[begin:end] to 256 times the blend of two rows, `part` / 256 of the lower one."""
    a, b = np.uint16(256 - part), np.uint16(part)
    for i in range(np.uintp(begin), np.uintp(end)):  # unsigned: numba checks no negative index
        row[i] = np.uint16(np.uint16(upper[i]) * a + np.uint16(lower[i]) * b)


@compiled()
def _sample_row(row, offset, weight, first, end, line):
    """Set the pixels first..end - 1 of `line` to blends of two pixels of `row`, which holds 256 times its values."""
    for x in range(first, end):
        i, b = offset[x], weight[x]
        a = np.uint32(256) - b
        for c in range(3):
            j = np.uintp(c)
            blend = np.uint32(row[i + j]) * a + np.uint32(row[i + j + np.uintp(3)]) * b + np.uint32(HALF)
            line[np.uintp(3 * x + c)] = np.uint8(blend >> np.uint32(16))


@compiled()
def change_colors(canvas, brightness, contrast, saturation):
    """Multiply brightness, contrast and saturation of a canvas by factors, in place."""
    values = canvas.reshape(-1)
    count = len(values) // 3
    bright = np.empty(256, np.int64)
    red, green, blue = np.empty(256, np.uint32), np.empty(256, np.uint32), np.empty(256, np.uint32)
    for v in range(256):
        bright[v] = _blend(0, v, np.float32(brightness))
        red[v], green[v], blue[v] = RED * bright[v], GREEN * bright[v], BLUE * bright[v] + HALF
    total = np.uint64(0)
    one, two = np.uintp(1), np.uintp(2)
    for p in range(np.uintp(0), np.uintp(3 * count), np.uintp(3)):
        total += np.uint64((red[values[p]] + green[values[p + one]] + blue[values[p + two]]) >> np.uint32(16))
    mean = int(total / count + 0.5)
    table = np.empty(256, np.float32)
    for v in range(256):
        table[v] = _blend(mean, bright[v], np.float32(contrast))
        level = int(table[v])
        red[v], green[v], blue[v] = RED * level, GREEN * level, BLUE * level + HALF
    factor = np.float32(saturation)
    for p in range(np.uintp(0), np.uintp(3 * count), np.uintp(3)):
        r, g, b = values[p], values[p + one], values[p + two]
        gray = np.float32(np.int32((red[r] + green[g] + blue[b]) >> np.uint32(16)))
        values[p] = _clipped(gray + factor * (table[r] - gray))
        values[p + one] = _clipped(gray + factor * (table[g] - gray))
        values[p + two] = _clipped(gray + factor * (table[b] - gray))


@compiled()
def _blend(a, b, factor):
    """What Pillow blends from two whole numbers, in single precision: a + factor * (b - a), cut to 0..255."""
    return _clipped(np.float32(a) + factor * np.float32(b - a))


@compiled()
def _clipped(value):
    return np.uint8(np.int32(min(max(value, np.float32(0)), np.float32(255))))
