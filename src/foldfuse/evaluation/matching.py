"""Which detections are right: matching with what people drew, precision and recall, and the score at which F1 is best.

A detection is right where it overlaps a box of its own class, taken by no better detection, with an IoU of at least
0.5; what mostly covers a crowd region counts neither way. This is the matching of COCO's AP50 but for its limit of 100
detections a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from foldfuse.boxes import Array, area, pairwise_iou
from foldfuse.data.dataset import Dataset
from foldfuse.detections import Annotations, Detections, Predictions

MATCH_IOU = 0.5


@dataclass(frozen=True, eq=False)
class Match:
    """How the detections of one picture meet what people drew on it.

    Attributes:
        is_tp: (n,) bool; each detection: it found a box of its class.
        not_ignored: (n,) bool; False for those on a crowd region, which are neither right nor wrong.
        matched_detection: (m,) int64; for each annotation the detection that found it, -1 where none did.
    """

    is_tp: Array
    not_ignored: Array
    matched_detection: Array


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision at 101 recalls (0, 0.01 .. 1) of one class, by COCO's rule of the best precision still to come."""

    name: str
    boxes: int
    precision: Array


def match(found: Detections, drawn: Annotations) -> Match:
    """The Match of one picture, in which the highest score chooses first."""
    finder = np.full(len(drawn), -1, np.int64)
    right, counted = np.zeros(len(found), bool), np.ones(len(found), bool)
    if not len(found) or not len(drawn):
        return Match(right, counted, finder)
    same = found.labels[:, None] == drawn.labels[None, :]  # (n, m)
    iou = np.where(same & ~drawn.crowd[None, :], pairwise_iou(found.boxes.astype(np.float64), drawn.boxes), 0)
    candidates = np.flatnonzero(iou.max(1) >= MATCH_IOU)
    for i in candidates[np.argsort(-found.scores[candidates], kind="stable")]:
        free = np.where(finder < 0, iou[i], 0)
        best = int(free.argmax())
        if free[best] >= MATCH_IOU:
            finder[best], right[i] = i, True
    if drawn.crowd.any():
        covered = _share_inside(found.boxes, drawn.boxes[drawn.crowd])
        on_crowd = (covered >= MATCH_IOU) & same[:, drawn.crowd]
        counted = right | ~on_crowd.any(1)
    return Match(right, counted, finder)


def matches(dataset: Dataset, predictions: Predictions) -> dict[int, Match]:
    """{image id: Match} of the labelled pictures that were predicted."""
    return {
        s.id: match(predictions[s.id], s.annotations)
        for s in dataset.samples
        if s.annotations is not None and s.id in predictions
    }


def precision_recall(dataset: Dataset, predictions: Predictions, matched: Mapping[int, Match]) -> list[Curve]:
    """One Curve for each class that is drawn on a matched picture, in the order of classes."""
    if not matched:
        return []
    drawn = [s.annotations for s in dataset.samples if s.id in matched and s.annotations is not None]
    truth = np.concatenate([a.labels[~a.crowd] for a in drawn])
    known = [(predictions[i], m) for i, m in matched.items()]
    scores = np.concatenate([d.scores[m.not_ignored] for d, m in known])
    labels = np.concatenate([d.labels[m.not_ignored] for d, m in known])
    right = np.concatenate([m.is_tp[m.not_ignored] for _, m in known])
    curves = []
    for label, name in enumerate(dataset.classes):
        boxes = int((truth == label).sum())
        if not boxes:
            continue
        own = labels == label
        hits = right[own][np.argsort(-scores[own], kind="stable")].cumsum()
        precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
        at = np.searchsorted(hits / boxes, np.linspace(0, 1, 101))
        curves.append(Curve(name, boxes, np.append(precision, 0.0)[np.minimum(at, len(hits))]))
    return curves


def best_threshold(dataset: Dataset, predictions: Predictions, matched: Mapping[int, Match]) -> float:
    """The score at which cutting gives the best F1 over all matched pictures; 0 where nothing is right at any."""
    drawn = sum(
        int((~s.annotations.crowd).sum()) for s in dataset.samples if s.id in matched and s.annotations is not None
    )
    known = [(predictions[i], m) for i, m in matched.items()]
    scores = np.concatenate([np.zeros(0), *(d.scores[m.not_ignored] for d, m in known)])
    right = np.concatenate([np.zeros(0, bool), *(m.is_tp[m.not_ignored] for _, m in known)])
    if not right.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    f1 = 2 * right[order].cumsum() / (np.arange(1, len(order) + 1) + drawn)
    last_of_its_score = np.append(np.diff(scores[order]) != 0, True)  # equal scores are cut together
    return float(scores[order][np.where(last_of_its_score, f1, -1).argmax()])


def f1_of(found: Detections, drawn: Annotations) -> float:
    """F1 of one picture's detections; 1 where nothing is drawn and nothing was found."""
    result = match(found, drawn)
    whole = int(result.not_ignored.sum()) + int((~drawn.crowd).sum())
    return 2 * int(result.is_tp.sum()) / whole if whole else 1.0


def _share_inside(boxes: Array, regions: Array) -> Array:
    """(n, 4), (m, 4) -> (n, m): the share of each box that lies in each region."""
    top_left = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    return area(np.concatenate([top_left, bottom_right], -1)) / np.maximum(area(boxes)[:, None], 1e-9)
