"""Annotations with errors of known kinds: what `review` learns from, drawn at random around the true ones."""

from __future__ import annotations

import numpy as np

from foldfuse.boxes import clip, pairwise_iou
from foldfuse.detections import Array
from foldfuse.evaluation.evidence import covered_share

MOVED_IOU = (0.25, 0.75)  # of a badly placed box with its object
FREE_IOU = 0.1  # a box with less overlap with every annotation is on no object
_TRIES = 60


def moved_box(
    box: Array, size: tuple[int, int], rng: np.random.Generator, *, iou: tuple[float, float] = MOVED_IOU
) -> Array | None:
    """(4,) a box that is moved and resized so far that its IoU with the old one lies in a range; None where that fails."""
    center, sides = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    for _ in range(_TRIES):
        shift = rng.uniform(-0.6, 0.6, 2) * sides
        scale = np.exp(rng.uniform(-0.6, 0.6, 2))
        half = sides * scale / 2
        corners = np.concatenate([center + shift - half, center + shift + half])
        moved = clip(corners, width=size[0], height=size[1])
        if iou[0] <= float(pairwise_iou(box[None], moved[None])[0, 0]) <= iou[1]:
            return moved
    return None


def free_box(sides: Array, size: tuple[int, int], taken: Array, rng: np.random.Generator) -> Array | None:
    """(4,) a box with these sides where nothing is annotated; None where there is no room.

    Args:
        sides: (2,) width and height.
        size: of the image.
        taken: (m, 4) the annotated boxes.
        rng: draws the place.
    """
    room = np.array(size, np.float64)
    sides = np.minimum(sides, room)
    corners = rng.uniform(0, 1, (_TRIES, 2)) * (room - sides)
    boxes = np.concatenate([corners, corners + sides], 1)
    overlap = np.maximum(pairwise_iou(boxes, taken), covered_share(boxes, taken)).max(1, initial=0)
    free = np.flatnonzero(overlap < FREE_IOU)
    return boxes[free[0]] if len(free) else None


def other_label(label: int, num_classes: int, rng: np.random.Generator) -> int:
    """Another class than `label`, each equally likely."""
    return int((label + 1 + rng.integers(num_classes - 1)) % num_classes)
