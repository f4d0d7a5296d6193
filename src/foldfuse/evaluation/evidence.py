"""Which detections speak of which annotations of an image, and how strongly.

Shapes: m annotations and n detections of one image, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foldfuse.boxes import area, pairwise_iou
from foldfuse.detections import Annotations, Array, Detections

MIN_IOU = 0.15  # a detection speaks of an annotation from this overlap on
SAME_PLACE_IOU = 0.5  # from here on the two are at one place, whatever their classes
OTHER_CLASS = 0.7  # the weight of a detection of another class when annotations choose theirs


@dataclass(frozen=True, eq=False)
class ImageEvidence:
    """The annotations and detections of one image, and which belong together.

    Attributes:
        image_id: the image.
        size: (width, height) in pixels.
        annotations: the m objects, clipped to the image: no crowd regions, and an object that is listed twice only once.
        rows: (m,) their positions among all annotations of the image.
        found: the n detections; those on a crowd region are left out.
        iou: (m, n).
        owner: (n,) the annotation that a detection belongs to, one to one; -1 for none.
    """

    image_id: int
    size: tuple[int, int]
    annotations: Annotations
    rows: Array
    found: Detections
    iou: Array
    owner: Array


def image_evidence(
    image_id: int, size: tuple[int, int], annotations: Annotations, found: Detections, *, score_threshold: float
) -> ImageEvidence:
    """The evidence of one image: annotations choose detections one to one, the best pairs (score x IoU) first.

    Args:
        image_id, size: of the image, (width, height).
        annotations: all of the image.
        found: detections; those with lower scores than `score_threshold`, and those that lie on a crowd region, are left out.
    """
    crowd = annotations.boxes[annotations.crowd]
    rows = _objects(annotations)
    objects = annotations[rows].clipped(*size)
    kept = found[found.scores >= score_threshold]
    kept = kept[np.argsort(-kept.scores, kind="stable")]
    if len(crowd):
        kept = kept[covered_share(kept.boxes, crowd).max(1, initial=0) < SAME_PLACE_IOU]
    iou = pairwise_iou(objects.boxes, kept.boxes.astype(np.float64))
    is_same = objects.labels[:, None] == kept.labels[None, :]
    value = iou * kept.scores * np.where(is_same, 1.0, OTHER_CLASS)
    value[(iou < MIN_IOU) | (~is_same & (iou < SAME_PLACE_IOU))] = 0
    owner = _one_to_one(value)
    return ImageEvidence(image_id, size, objects, rows, kept, iou, owner)


def _objects(annotations: Annotations) -> Array:
    """(m,) the rows of the objects; of rows with one box and class, which `check --fix` joins, the first."""
    rows = np.flatnonzero(~annotations.crowd)
    keys = np.c_[annotations.boxes[rows], annotations.labels[rows]]
    first = np.unique(keys, axis=0, return_index=True)[1]
    return rows[np.sort(first)]


def _one_to_one(value: Array) -> Array:
    """(n,) the row that each column of an (m, n) table belongs to, -1 for none: the greatest values first."""
    owner = np.full(value.shape[1], -1)
    rows, columns = np.nonzero(value)
    is_taken = np.zeros(value.shape[0], bool)
    for i in np.argsort(-value[rows, columns], kind="stable"):
        row, column = rows[i], columns[i]
        if owner[column] < 0 and not is_taken[row]:
            owner[column], is_taken[row] = row, True
    return owner


def covered_share(boxes: Array, others: Array) -> Array:
    """(n, 4) and (m, 4) boxes -> (n, m) share of each box that another covers."""
    top_left = np.maximum(boxes[:, None, :2], others[None, :, :2])  # (n, m, 2)
    sides = np.maximum(np.minimum(boxes[:, None, 2:], others[None, :, 2:]) - top_left, 0)
    return sides.prod(-1) / np.maximum(area(boxes), 1e-9)[:, None]


@dataclass(frozen=True, eq=False)
class Support:
    """What the detections say of one box that is, or might be, annotated.

    Attributes:
        by_class: (K,) for each class the best score x IoU of a detection at the box's place, IoU 0.5 or more.
        anywhere: the best score x IoU of any detection that touches the box.
        own: the detection that speaks for the box and its class most strongly; -1 for none.
        own_iou: its IoU with the box; 0 for none.
        fit: the best IoU with any detection of its class.
        fit_anywhere: the best IoU with any detection.
    """

    by_class: Array
    anywhere: float
    own: int
    own_iou: float
    fit: float
    fit_anywhere: float


def support(evidence: ImageEvidence, iou: Array, label: int, owned_by: int, num_classes: int) -> Support:
    """The support of a box by the detections that belong to no other annotation.

    Args:
        evidence: of the image.
        iou: (n,) IoU of the box with each detection.
        label: its class.
        owned_by: the annotation whose detection it may take besides the free ones; -1 for none.
        num_classes: K.
    """
    found = evidence.found
    is_free = (evidence.owner < 0) | (evidence.owner == owned_by)
    strength = np.where(is_free, iou * found.scores, 0.0)
    by_class = np.zeros(num_classes)
    near = iou >= SAME_PLACE_IOU
    np.maximum.at(by_class, found.labels[near], strength[near])
    is_own = is_free & (found.labels == label)
    own = np.where(is_own & (iou >= MIN_IOU), strength, 0.0)
    best = int(own.argmax()) if len(own) and own.max() > 0 else -1
    return Support(
        by_class,
        float(strength.max(initial=0)),
        best,
        0.0 if best < 0 else float(iou[best]),
        float(iou[is_own].max(initial=0)),
        float(iou[is_free].max(initial=0)),
    )
