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
    """What the detections of an image say of b boxes that are, or might be, annotated.

    Attributes:
        by_class: (b, K) for each class the best score x IoU of a detection at the box's place, IoU 0.5 or more.
        anywhere: (b,) the best score x IoU of any detection that touches the box.
        own: (b,) the detection that speaks for the box and its class most strongly; -1 for none.
        own_score, own_iou: (b,) its score, and its IoU with the box; 0 for none.
        fit: (b,) the best IoU with any detection of the box's class.
        fit_anywhere: (b,) the best IoU with any detection.
    """

    by_class: Array
    anywhere: Array
    own: Array
    own_score: Array
    own_iou: Array
    fit: Array
    fit_anywhere: Array


def support(evidence: ImageEvidence, boxes: Array, labels: Array, owned_by: Array, *, num_classes: int) -> Support:
    """The support of b boxes by the detections that belong to no other annotation.

    Args:
        evidence: of the image.
        boxes, labels: (b, 4) and (b,).
        owned_by: (b,) the annotation whose detection a box may take besides the free ones; -1 for none.
        num_classes: K.
    """
    found, b, n = evidence.found, len(boxes), len(evidence.found)
    by_class = np.zeros((b, num_classes))
    if not n:
        zero = np.zeros(b)
        return Support(by_class, zero, np.full(b, -1), zero, zero, zero, zero)
    iou = pairwise_iou(boxes, found.boxes.astype(np.float64))  # (b, n)
    iou = np.where((evidence.owner < 0) | (evidence.owner == owned_by[:, None]), iou, 0.0)
    strength = iou * found.scores
    rows, columns = np.nonzero(iou >= SAME_PLACE_IOU)
    np.maximum.at(by_class, (rows, found.labels[columns]), strength[rows, columns])
    is_own = found.labels == labels[:, None]
    own_strength = np.where(is_own & (iou >= MIN_IOU), strength, 0.0)
    own, every = own_strength.argmax(1), np.arange(b)
    has_own = own_strength[every, own] > 0
    return Support(
        by_class,
        strength.max(1),
        np.where(has_own, own, -1),
        np.where(has_own, found.scores[own], 0.0),
        np.where(has_own, iou[every, own], 0.0),
        np.where(is_own, iou, 0.0).max(1),
        iou.max(1),
    )
