"""Counts the objects that never get a target in a training, mostly because its image size makes them too small.

Augmentation drops an object whose shorter side is under `MIN_SIDE` pixels, in the cached image or on the network's input, and
YOLOv5's head matches an object only with anchors of similar sides. An object has a target where at least one scale
that augmentation can draw gives it one.

Shapes: N objects, K anchors.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from foldfuse.data.augment import MIN_SIDE
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.images import canvas_for
from foldfuse.detections import Array
from foldfuse.errors import InputError, counted
from foldfuse.recipes import AUTO, MAX_IMAGE_SIZE, Recipe

MOSAIC_MIN, MOSAIC_MAX, MOSAIC_COVER = (
    0.3,
    0.7,
    0.7,
)  # of `augment.mosaic`: shares of the canvas's sides, and its `cover`
ENOUGH = 0.95  # share of the objects that a suggested image size gives a target

log = logging.getLogger(__name__)


def check_objects(model: Any, dataset: Dataset, recipe: Recipe) -> None:
    """Log how many objects never get a target.

    Args:
        model: the detector, with its anchors fitted.
        dataset: the annotated images to train on.
        recipe: image size and augmentation.

    Raises:
        InputError: no object gets one.
    """
    from foldfuse.models.detection.yolov5_head import YOLOv5Head  # loads torch, which a campaign's first check must not

    head = getattr(model, "head", None)
    anchors = head.anchors.reshape(-1, 2).cpu().numpy() if isinstance(head, YOLOv5Head) else None
    if sentence := missing_targets(dataset, recipe, stride=model.stride, anchors=anchors):
        log.warning(sentence)


def check_image_sizes(dataset: Dataset, recipes: Iterable[Recipe], image_sizes: Sequence[int]) -> None:
    """Raise InputError where no object gets a target even at the largest image size.

    Args:
        dataset: the annotated images to train on.
        recipes: the recipes to choose from.
        image_sizes: the image sizes to choose from; empty for those of the recipes.
    """
    for recipe in recipes:
        missing_targets(dataset, replace(recipe, image_size=max(image_sizes, default=recipe.image_size)))


def missing_targets(dataset: Dataset, recipe: Recipe, *, stride: int = 32, anchors: Array | None = None) -> str | None:
    """A sentence on the objects that never get a target; None where each gets one.

    Args:
        dataset: the annotated images to train on.
        recipe: image size and augmentation.
        stride, anchors: see `have_targets`.

    Raises:
        InputError: no object gets a target.
    """
    found = have_targets(dataset.samples, recipe, stride=stride, anchors=anchors)
    if not len(found) or found.all():
        return None
    reason = f"at image_size {recipe.image_size}: each has a shorter side of under {MIN_SIDE:g} pixels as the network sees it"
    reason += ", or sides unlike those of every anchor" if anchors is not None else ""
    advice = size_advice(dataset.samples, recipe, stride)
    if not found.any():
        raise InputError(
            f"{dataset.source}: none of the {counted(len(found), 'object')} gets a target {reason}. {advice}"
        )
    missing = f"{int((~found).sum())} of {counted(len(found), 'object')} never get a target"
    return f"{dataset.source}: {missing} {reason}. {advice}"


def have_targets(samples: Sequence[Sample], recipe: Recipe, *, stride: int, anchors: Array | None = None) -> Array:
    """(N,) whether a training can give each object a target; crowd regions are left out.

    Args:
        samples: annotated images.
        recipe: image size and augmentation.
        stride: the detector's.
        anchors: (K, 2) widths and heights in pixels of the anchors that alone match; None where every object is matched.
    """
    assert recipe.image_size != AUTO, "the image size is chosen first"
    canvas = canvas_for(samples, image_size=recipe.image_size, stride=stride)
    longest = longest_side(recipe)  # of a cached image
    found = [np.zeros(0, bool)]
    for sample in samples:
        assert sample.annotations is not None
        objects = sample.annotations[~sample.annotations.crowd].clipped(sample.width, sample.height)
        if not len(objects):
            continue
        shrink = min(1.0, longest / max(sample.width, sample.height))
        cached = np.array([max(1, round(side * shrink)) for side in (sample.width, sample.height)])
        sides = (objects.boxes[:, 2:] - objects.boxes[:, :2]) * (cached / (sample.width, sample.height))  # (N, 2)
        low, high = scale_range(cached, canvas, recipe)
        shorter = sides.min(1)
        seen = (shorter >= MIN_SIDE) & (shorter * high >= MIN_SIDE)
        if anchors is not None:
            seen &= _is_matched(sides, anchors, np.maximum(low, MIN_SIDE / shorter.clip(min=1e-9)), high)
        found.append(seen)
    return np.concatenate(found)


def longest_side(recipe: Recipe, *, whole: bool = False) -> int:
    """The longest side, in pixels, at which training images are cached: the largest that scale jitter and tiles can ask for.

    `whole`: of an image that is not cut into tiles.
    """
    return round(recipe.image_size * (1 + recipe.scale_jitter) * (1.0 if whole else recipe.tile_zoom))


def scale_range(cached: Array, canvas: tuple[int, int], recipe: Recipe) -> tuple[float, float]:
    """The smallest and the largest scale that augmentation can draw for a cached image of (width, height) or its tiles."""
    ratios = sorted((canvas[1] / cached[0], canvas[0] / cached[1]))
    low = high = ratios[0]
    if recipe.mosaic > 0 and recipe.mosaic_until > 0:
        base = ratios[0] ** (1 - MOSAIC_COVER) * ratios[1] ** MOSAIC_COVER
        low, high = min(low, MOSAIC_MIN * base), max(high, MOSAIC_MAX * base)
    return float(low / (1 + recipe.scale_jitter)), float(high * recipe.tile_zoom * (1 + recipe.scale_jitter))


def _is_matched(sides: Array, anchors: Array, low: Array, high: float) -> Array:
    """(N,) whether a scale in `low` (N,) to `high` brings both sides of an object within the ratio of one anchor's sides."""
    from foldfuse.models.detection.yolov5_head import MAX_SIDE_RATIO  # loads torch

    ratio = anchors[None] / sides.clip(min=1e-9)[:, None]  # (N, K, 2): the scale at which the sides are equal
    least = np.maximum(ratio.max(-1) / MAX_SIDE_RATIO, low[:, None])
    most = np.minimum(ratio.min(-1) * MAX_SIDE_RATIO, high)
    return (least <= most).any(1)


def size_advice(samples: Sequence[Sample], recipe: Recipe, stride: int) -> str:
    """A sentence with the smallest image size at which nearly all objects reach `MIN_SIDE` pixels without augmentation."""
    few, many = recipe.image_size // stride, MAX_IMAGE_SIZE // stride
    plain = replace(recipe, scale_jitter=0.0, mosaic=0.0)

    def share(size: int) -> float:
        return float(have_targets(samples, replace(plain, image_size=size * stride), stride=stride).mean())

    tiles = (
        "smaller tiles (--set tile_side=...)" if recipe.tiles else "tiles (--set tiles=0.5, then --view 1,1+tiles2x2)"
    )
    if share(many) < ENOUGH:
        return f"Train and predict on {tiles}, or cut the images into tiles, with their annotations."
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if share(middle) >= ENOUGH else (middle, many)
    size = many * stride
    return f"Take --image-size {size} or more ({share(many):.0%} are then large enough), or {tiles}."
