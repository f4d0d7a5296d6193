"""Augmentation: random changes of an image together with its annotations.

One affine map per image does scale jitter, translation, crop and flips at once, so that pixels are resampled only once.
Mosaic (Bochkovskiy et al., "YOLOv4", arXiv:2004.10934, section 3.3) puts four images on one canvas. Copy-paste (Ghiasi et al.,
arXiv:2012.07177) brings objects of another image; here whole boxes are pasted, as there are no masks. A random tile stands for a
large image with small objects.
All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image

from foldfuse.boxes import area
from foldfuse.data.images import PAD_VALUE, ImageArray
from foldfuse.data.kernels import change_colors, place
from foldfuse.detections import Annotations, Array

MIN_VISIBLE = 0.3  # an object is dropped where a smaller share of its area remains in view
MIN_SIDE = 2.0  # pixels; an object is dropped where its shorter side is smaller
MAX_PASTED = 3  # objects at a time
TILES_AT_OBJECTS = 0.5  # share of the random tiles that lie about an object; the others lie anywhere
MAX_IGNORED = 0.5  # share of a tile that objects cut off too much may take


@dataclass(frozen=True)
class Augmentation:
    """The strengths of the augmentations, each a probability or a half-range; 0 switches an augmentation off.

    Attributes:
        hflip, vflip: probability of mirroring left-right and top-bottom.
        scale_jitter: images are scaled by a log-uniform factor in 1 / (1 + scale_jitter) to 1 + scale_jitter.
        translate: half-range of the translation, in canvas sides, beyond the slack that the scaling leaves.
        color_jitter: half-range of the factors of brightness, contrast and saturation.
        mosaic: probability of putting four images on one canvas.
    """

    hflip: float = 0.5
    vflip: float = 0.0
    scale_jitter: float = 0.4
    translate: float = 0.1
    color_jitter: float = 0.3
    mosaic: float = 0.0


@dataclass(frozen=True, eq=False)
class LabeledImage:
    """An image (H, W, 3) with its annotations, in its own pixels."""

    image: ImageArray
    annotations: Annotations


def augment(pool: Sequence[LabeledImage], canvas: tuple[int, int], how: Augmentation, rng: Generator) -> LabeledImage:
    """An augmented image on a canvas of (height, width): the one image of `pool`, or a mosaic of its four."""
    made = mosaic(pool, canvas, how, rng) if len(pool) > 1 else random_affine(pool[0], canvas, how, rng)
    return LabeledImage(jitter_color(made.image, how.color_jitter, rng), made.annotations)


def mosaic(pool: Sequence[LabeledImage], canvas: tuple[int, int], how: Augmentation, rng: Generator) -> LabeledImage:
    """Four images on one canvas, meeting at a random point near its middle."""
    assert len(pool) == 4, f"a mosaic is made of 4 images, got {len(pool)}"
    height, width = canvas
    x, y = (int(rng.uniform(0.3, 0.7) * side) for side in (width, height))
    out = np.empty((height, width, 3), np.uint8)
    parts = []
    quarters = ((0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height))
    for one, (x1, y1, x2, y2) in zip(pool, quarters, strict=True):
        scale, shift = draw_affine(one, (y2 - y1, x2 - x1), how, rng, cover=0.7)
        place(np.ascontiguousarray(one.image), out, (x1, y1, x2, y2), scale, shift, PAD_VALUE)
        shift = (shift[0] + x1, shift[1] + y1)
        parts.append(transform_annotations(one.annotations, scale, shift, (x1, y1, x2, y2)))
    return LabeledImage(out, _concat(parts))


def copy_paste(one: LabeledImage, other: LabeledImage, rng: Generator) -> LabeledImage:
    """`one` with up to `MAX_PASTED` objects of `other`, at places where they cover no annotated object."""
    image, annotations = one.image.copy(), one.annotations
    height, width = image.shape[:2]
    chosen = rng.permutation(len(other.annotations))[: rng.integers(1, MAX_PASTED + 1)]
    for i in chosen:
        x1, y1, x2, y2 = (int(v) for v in other.annotations.boxes[i].round())
        w, h = x2 - x1, y2 - y1
        x, y = rng.uniform(size=2) * (width - w, height - h)
        if w < MIN_SIDE or h < MIN_SIDE or w > width or h > height:
            continue
        x, y = int(x), int(y)
        box = np.array([[x, y, x + w, y + h]], np.float32)
        sides = np.minimum(annotations.boxes[:, 2:], box[:, 2:]) - np.maximum(annotations.boxes[:, :2], box[:, :2])
        if (sides.min(1, initial=np.inf) > 0).any():
            continue
        image[y : y + h, x : x + w] = other.image[y1:y2, x1:x2]
        label = other.annotations.labels[i : i + 1]
        annotations = _concat([annotations, Annotations(box, label, np.zeros(1, bool), area(box))])
    return LabeledImage(image, annotations)


def _concat(parts: Sequence[Annotations]) -> Annotations:
    return Annotations(
        np.concatenate([p.boxes for p in parts]),
        np.concatenate([p.labels for p in parts]),
        np.concatenate([p.crowd for p in parts]),
        np.concatenate([p.area for p in parts]),
    )


def random_tile(one: LabeledImage, side: float, rng: Generator) -> LabeledImage | None:
    """A random part of an image with `side` of its width and height; None where most of it shows objects that are cut off.

    An object of which less than MIN_VISIBLE is in the tile is ignored: it has no box, and the gray of the padding covers it, so
    that it is not learnt as background. Objects in view are not covered.
    """
    height, width = one.image.shape[:2]
    w, h = max(1, round(width * side)), max(1, round(height * side))
    x, y = (int(v) for v in rng.integers(0, (width - w + 1, height - h + 1)))
    if len(one.annotations) and rng.random() < TILES_AT_OBJECTS:
        x1, y1, x2, y2 = one.annotations.boxes[rng.integers(len(one.annotations))]
        x, y = _start_about(x1, x2, w, width, rng), _start_about(y1, y2, h, height, rng)
    window = (0, 0, w, h)
    annotations = transform_annotations(one.annotations, (1.0, 1.0), (-x, -y), window)
    image = one.image[y : y + h, x : x + w]
    boxes = one.annotations.boxes - [x, y, x, y]
    clipped = np.clip(boxes, (0, 0) * 2, (w, h) * 2)
    ignored = clipped[(area(clipped) > 0) & (area(clipped) < MIN_VISIBLE * area(boxes))]
    if area(ignored).sum() > MAX_IGNORED * w * h:
        return None
    if len(ignored):
        image = _covered(image, ignored, annotations.boxes)
    return LabeledImage(image, annotations)


def _start_about(low: float, high: float, tile: int, side: int, rng: Generator) -> int:
    """Where a tile begins that shows all of low..high, or nothing else where that is longer; within 0..side."""
    first, last = sorted((math.ceil(high - tile), math.floor(low)))
    return int(np.clip(rng.integers(first, last + 1), 0, side - tile))


def _covered(image: ImageArray, boxes: Array, objects: Array) -> ImageArray:
    """A copy of the image with gray in `boxes`, except within the boxes of `objects`."""
    out = image.copy()
    for x1, y1, x2, y2 in _pixels(boxes):
        out[y1:y2, x1:x2] = PAD_VALUE
    for x1, y1, x2, y2 in _pixels(objects):
        out[y1:y2, x1:x2] = image[y1:y2, x1:x2]
    return out


def _pixels(boxes: Array) -> Array:
    """(n, 4) int64: the whole pixels that boxes touch."""
    return np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], 1).astype(np.int64)


def shrink(one: LabeledImage, factor: int) -> LabeledImage:
    """The image with one pixel for each factor x factor, their mean; objects that become too small are dropped."""
    image = np.asarray(Image.fromarray(one.image).reduce(factor))
    window = (0, 0, image.shape[1], image.shape[0])
    return LabeledImage(image, transform_annotations(one.annotations, (1 / factor, 1 / factor), (0.0, 0.0), window))


def random_affine(one: LabeledImage, canvas: tuple[int, int], how: Augmentation, rng: Generator) -> LabeledImage:
    """An image scaled, translated and flipped at random onto a canvas of (height, width)."""
    scale, shift = draw_affine(one, canvas, how, rng)
    image, window = np.empty((*canvas, 3), np.uint8), (0, 0, canvas[1], canvas[0])
    place(np.ascontiguousarray(one.image), image, window, scale, shift, PAD_VALUE)
    return LabeledImage(image, transform_annotations(one.annotations, scale, shift, window))


def draw_affine(
    one: LabeledImage, canvas: tuple[int, int], how: Augmentation, rng: Generator, *, cover: float = 0.0
) -> tuple[tuple[float, float], tuple[float, float]]:
    """A random scale and shift, each of x and y, with canvas = image * scale + shift.

    Args:
        one: the image.
        canvas: (height, width).
        how: ranges of the changes.
        rng: source of all randomness.
        cover: the base of the scale: 0 fits the image inside the canvas, 1 covers the canvas with it; values between
            interpolate.
    """
    height, width = one.image.shape[:2]
    fit, full = min(canvas[0] / height, canvas[1] / width), max(canvas[0] / height, canvas[1] / width)
    scale = float(fit ** (1 - cover) * full**cover * np.exp(rng.uniform(-1, 1) * np.log1p(how.scale_jitter)))
    mirror_x, mirror_y = rng.random() < how.hflip, rng.random() < how.vflip
    left = _offset(canvas[1], width * scale, how.translate, rng)
    top = _offset(canvas[0], height * scale, how.translate, rng)
    # A mirror is a negative scale from the far edge.
    sx, tx = (-scale, left + width * scale) if mirror_x else (scale, left)
    sy, ty = (-scale, top + height * scale) if mirror_y else (scale, top)
    return (sx, sy), (tx, ty)


def _offset(canvas: float, side: float, translate: float, rng: Generator) -> float:
    """The position of the image's near edge: anywhere in the slack, and up to `translate` of the canvas beyond it."""
    slack = canvas - side
    low, high = min(0.0, slack) - translate * canvas, max(0.0, slack) + translate * canvas
    return float(rng.uniform(low, high))


def transform_annotations(
    annotations: Annotations,
    scale: tuple[float, float],
    shift: tuple[float, float],
    window: tuple[int, int, int, int],
) -> Annotations:
    """Annotations under x -> x * scale + shift, clipped to the xyxy `window`; objects too little in view are dropped."""
    x = np.sort(annotations.boxes[:, [0, 2]] * scale[0] + shift[0], 1)
    y = np.sort(annotations.boxes[:, [1, 3]] * scale[1] + shift[1], 1)
    unclipped = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)
    clipped = np.clip(unclipped, window[:2] * 2, window[2:] * 2)
    sides: Array = clipped[:, 2:] - clipped[:, :2]
    visible = area(clipped) >= MIN_VISIBLE * area(unclipped)
    kept = visible & (sides.min(1, initial=np.inf) >= MIN_SIDE)
    areas = annotations.area * abs(scale[0] * scale[1])
    return Annotations(clipped[kept], annotations.labels[kept], annotations.crowd[kept], areas[kept])


def jitter_color(image: ImageArray, strength: float, rng: Generator) -> ImageArray:
    """The image with brightness, contrast and saturation each multiplied by a factor in 1 ± strength, as Pillow does it."""
    factors = rng.uniform(1 - strength, 1 + strength, 3)
    if not strength:
        return image
    jittered = np.array(image)
    change_colors(jittered, *factors.tolist())
    return jittered
