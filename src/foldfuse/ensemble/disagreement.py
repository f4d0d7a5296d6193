"""How much the members of an ensemble disagree on the objects of an image: what annotations of the image would settle.

Boxes of one class that overlap are one candidate: an object that some member suspects. Each member gives it a probability, the
calibrated score of its best box there, 0 where it has none. The disagreement on a candidate is the entropy of the mean
probability, in bits: query by committee with consensus entropy (Settles, "Active Learning Literature Survey", 2009, section
3.2.2). It is 1 where half of the members are sure and the others see nothing, as where all say 0.5; and 0 where all are sure.

The entropies are weighted by the difficulty of the class and summed over the image, as in PPAL (Yang et al., arXiv:2211.11612).
Differences: the difficulty is 2 minus the out-of-fold AP of the class, not a statistic of the training; and of several classes
that are suspected at one place only the one with the greatest disagreement counts, since a weak network suspects all of them.

Shapes: C candidates, M members, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foldfuse.boxes import pairwise_iou
from foldfuse.detections import Array, Detections

SAME_IOU = 0.5  # boxes of a class that overlap more are one candidate
LEAST_SCORE = 0.02  # boxes of lower calibrated scores suspect nothing
LEAST_PROBABILITY = 0.1  # candidates with a lower mean are clutter: many of them would outweigh the others


@dataclass(frozen=True, eq=False)
class Candidates:
    """The objects that the members suspect in an image.

    Attributes:
        boxes: (C, 4) xyxy in pixels: the box with the highest score.
        labels: (C,).
        probabilities: (C, M) of each member.
    """

    boxes: Array
    labels: Array
    probabilities: Array

    @property
    def means(self) -> Array:
        """(C,) the mean probability over the members."""
        means: Array = self.probabilities.mean(1)
        return means

    def disagreements(self, difficulties: Array) -> Array:
        """(C,) the entropy of the mean probability, in bits, times the (K,) difficulty of its class; 0 where another counts."""
        p = np.clip(self.means, 1e-9, 1 - 1e-9)
        entropies: Array = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
        values = entropies * difficulties[self.labels]
        is_same = pairwise_iou(self.boxes, self.boxes) > SAME_IOU
        for row in np.argsort(-values, kind="stable"):
            if values[row]:
                others = is_same[row] & (np.arange(len(values)) != row)
                values[others] = 0.0
        return values


def find_candidates(members: Sequence[Detections]) -> Candidates:
    """The candidates of an image, those of the highest scores first.

    Args:
        members: the calibrated detections of each member.
    """
    num_members = len(members)
    suspected = [one[one.scores >= LEAST_SCORE] for one in members]
    owner = np.repeat(np.arange(num_members), [len(one) for one in suspected])
    boxes = np.concatenate([one.boxes for one in suspected]).astype(np.float64)
    scores = np.concatenate([one.scores for one in suspected]).astype(np.float64)
    labels = np.concatenate([one.labels for one in suspected]).astype(np.int64)
    is_same = (pairwise_iou(boxes, boxes) > SAME_IOU) & (labels[:, None] == labels)
    np.fill_diagonal(is_same, True)  # a box without area too
    is_free = np.ones(len(boxes), bool)
    firsts, probabilities = [], []
    for row in np.argsort(-scores, kind="stable"):
        if not is_free[row]:
            continue
        joined = np.flatnonzero(is_same[row] & is_free)
        is_free[joined] = False
        probability = np.zeros(num_members)
        np.maximum.at(probability, owner[joined], scores[joined])
        if probability.mean() >= LEAST_PROBABILITY:
            firsts.append(row)
            probabilities.append(probability)
    return Candidates(boxes[firsts], labels[firsts], np.array(probabilities).reshape(-1, num_members))


def class_difficulties(classes: Sequence[str], average_precisions: Mapping[str, float | None]) -> Array:
    """(K,) the difficulty of each class: 2 - AP, in 1..2.

    Args:
        classes: the class names.
        average_precisions: {class: its out-of-fold AP}; a class without one counts as AP 0, since no held-out image has it. Where
            the mapping is empty nothing is known, and all classes have the difficulty 1.
    """
    if not average_precisions:
        return np.ones(len(classes))
    return np.array([2.0 - (average_precisions.get(name) or 0.0) for name in classes])
