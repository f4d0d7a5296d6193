"""Augmentation: random changes of a picture together with what is drawn on it.

One affine map per picture does scale jitter, shift, crop and flips at once, so that pixels are resampled only once.
Mosaic (Bochkovskiy et al., "YOLOv4", arXiv:2004.10934, section 3.3) puts four pictures on one canvas; copy-paste
(Ghiasi et al., arXiv:2012.07177), here of whole boxes for want of masks, brings objects of another picture.
All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageEnhance

from foldfuse.boxes import area
from foldfuse.data.images import PAD_VALUE, ImageArray
from foldfuse.detections import Annotations, Array

MIN_VISIBLE = 0.3  # an object of which less than this share remains in view is not taught
MIN_SIDE = 2.0  # pixels; nor is one whose shorter side is less
MOST_PASTED = 3  # objects at a time


@dataclass(frozen=True)
class Augmentation:
    """How strongly pictures are changed. All are probabilities or half-ranges; 0 switches a change off.

    Attributes:
        hflip, vflip: probability of mirroring left-right and top-bottom.
        scale: pictures are scaled by a factor drawn log-uniformly from 1 / (1 + scale) to 1 + scale.
        shift: half-range of the shift, in canvas sides, beyond what the scaling leaves free.
        colour: half-range of the factors of brightness, contrast and saturation.
        mosaic: probability of putting four pictures on one canvas.
    """

    hflip: float = 0.5
    vflip: float = 0.0
    scale: float = 0.4
    shift: float = 0.1
    colour: float = 0.3
    mosaic: float = 0.0


@dataclass(frozen=True, eq=False)
class LabeledImage:
    """A picture (H, W, 3) with what is drawn on it, in its own pixels."""

    image: ImageArray
    annotations: Annotations


def augment(pool: Sequence[LabeledImage], canvas: tuple[int, int], how: Augmentation, rng: Generator) -> LabeledImage:
    """One picture on a canvas of (height, width), made of the first of `pool`, or of all four as a mosaic."""
    window = (0, 0, canvas[1], canvas[0])
    made = mosaic(pool, canvas, how, rng) if len(pool) > 1 else random_affine(pool[0], canvas, window, how, rng)
    return LabeledImage(jitter_color(made.image, how.colour, rng), made.annotations)


def mosaic(pool: Sequence[LabeledImage], canvas: tuple[int, int], how: Augmentation, rng: Generator) -> LabeledImage:
    """Four pictures on one canvas, meeting at a random point of its middle half."""
    assert len(pool) == 4, f"a mosaic is made of 4 pictures, got {len(pool)}"
    height, width = canvas
    x, y = (int(rng.uniform(0.3, 0.7) * side) for side in (width, height))
    out = np.full((height, width, 3), PAD_VALUE, np.uint8)
    parts = []
    for one, (x1, y1, x2, y2) in zip(
        pool, ((0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)), strict=True
    ):
        part = random_affine(one, (y2 - y1, x2 - x1), (0, 0, x2 - x1, y2 - y1), how, rng, cover=0.7)
        out[y1:y2, x1:x2] = part.image
        transform_annotations = part.annotations.boxes + np.array([x1, y1, x1, y1])
        parts.append(
            Annotations(transform_annotations, part.annotations.labels, part.annotations.crowd, part.annotations.area)
        )
    return LabeledImage(out, _together(parts))


def copy_paste(one: LabeledImage, other: LabeledImage, rng: Generator) -> LabeledImage:
    """`one` with up to `MOST_PASTED` objects of `other` in places where they cover nothing that is drawn."""
    picture, drawn = one.image.copy(), one.annotations
    height, width = picture.shape[:2]
    chosen = rng.permutation(len(other.annotations))[: rng.integers(1, MOST_PASTED + 1)]
    for i in chosen:
        x1, y1, x2, y2 = (int(v) for v in other.annotations.boxes[i].round())
        w, h = x2 - x1, y2 - y1
        x, y = rng.uniform(size=2) * (width - w, height - h)
        if w < MIN_SIDE or h < MIN_SIDE or w > width or h > height:
            continue
        x, y = int(x), int(y)
        box = np.array([[x, y, x + w, y + h]], np.float32)
        sides = np.minimum(drawn.boxes[:, 2:], box[:, 2:]) - np.maximum(drawn.boxes[:, :2], box[:, :2])
        if (sides.min(1, initial=np.inf) > 0).any():
            continue
        picture[y : y + h, x : x + w] = other.image[y1:y2, x1:x2]
        label = other.annotations.labels[i : i + 1]
        drawn = _together([drawn, Annotations(box, label, np.zeros(1, bool), area(box))])
    return LabeledImage(picture, drawn)


def _together(parts: Sequence[Annotations]) -> Annotations:
    return Annotations(
        np.concatenate([p.boxes for p in parts]),
        np.concatenate([p.labels for p in parts]),
        np.concatenate([p.crowd for p in parts]),
        np.concatenate([p.area for p in parts]),
    )


def random_affine(
    one: LabeledImage,
    canvas: tuple[int, int],
    window: tuple[int, int, int, int],
    how: Augmentation,
    rng: Generator,
    *,
    cover: float = 0.0,
) -> LabeledImage:
    """A picture scaled, shifted and flipped at random onto a canvas of (height, width).

    Args:
        one: the picture.
        canvas: of the result.
        window: xyxy part of the canvas that is in view.
        how: ranges of the changes.
        rng: source of all randomness.
        cover: 0 scales relative to the picture just fitting the canvas; 1 to its just covering it; between, between.
    """
    height, width = one.image.shape[:2]
    fit, full = min(canvas[0] / height, canvas[1] / width), max(canvas[0] / height, canvas[1] / width)
    scale = fit ** (1 - cover) * full**cover * np.exp(rng.uniform(-1, 1) * np.log1p(how.scale))
    mirror_x, mirror_y = rng.random() < how.hflip, rng.random() < how.vflip
    offset = [
        _offset(canvas[1], width * scale, how.shift, rng),
        _offset(canvas[0], height * scale, how.shift, rng),
    ]
    # Canvas = picture * (sx, sy) + (tx, ty); a mirror is a negative scale from the far edge.
    sx, tx = (-scale, offset[0] + width * scale) if mirror_x else (scale, offset[0])
    sy, ty = (-scale, offset[1] + height * scale) if mirror_y else (scale, offset[1])
    picture = Image.fromarray(one.image).transform(
        (canvas[1], canvas[0]),
        Image.Transform.AFFINE,
        (1 / sx, 0, -tx / sx, 0, 1 / sy, -ty / sy),
        Image.Resampling.BILINEAR,
        fillcolor=(PAD_VALUE, PAD_VALUE, PAD_VALUE),
    )
    return LabeledImage(np.asarray(picture), transform_annotations(one.annotations, (sx, sy), (tx, ty), window))


def _offset(canvas: float, side: float, shift: float, rng: Generator) -> float:
    """Where the picture's near edge comes to lie: anywhere that the slack allows, and `shift` of the canvas beyond."""
    slack = canvas - side
    low, high = min(0.0, slack) - shift * canvas, max(0.0, slack) + shift * canvas
    return float(rng.uniform(low, high))


def transform_annotations(
    drawn: Annotations, scale: tuple[float, float], shift: tuple[float, float], window: tuple[int, int, int, int]
) -> Annotations:
    """Annotations under x -> x * scale + shift, cut to the xyxy `window`; those too little in view are left out."""
    x = np.sort(drawn.boxes[:, [0, 2]] * scale[0] + shift[0], 1)
    y = np.sort(drawn.boxes[:, [1, 3]] * scale[1] + shift[1], 1)
    whole = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)
    cut = np.clip(whole, window[:2] * 2, window[2:] * 2)
    sides: Array = cut[:, 2:] - cut[:, :2]
    seen = area(cut) >= MIN_VISIBLE * area(whole)
    kept = seen & (sides.min(1, initial=np.inf) >= MIN_SIDE)
    areas = drawn.area * abs(scale[0] * scale[1])
    return Annotations(cut[kept], drawn.labels[kept], drawn.crowd[kept], areas[kept])


def jitter_color(picture: ImageArray, strength: float, rng: Generator) -> ImageArray:
    """The picture with brightness, contrast and saturation each times a factor in 1 ± strength."""
    factors = rng.uniform(1 - strength, 1 + strength, 3)
    if not strength:
        return picture
    image = Image.fromarray(picture)
    for enhance, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True
    ):
        image = enhance(image).enhance(float(factor))
    return np.asarray(image)
