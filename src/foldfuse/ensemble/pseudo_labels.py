"""Pseudo-labels: what the ensemble is sure of in the pictures to submit, as annotations for a last member to learn from.

They are fold-safe: neither the ensemble's members nor who learns from its labels ever see the held-back pictures, so that what
is found there stays out-of-fold. Source: Lee, "Pseudo-Label", 2013; for detectors Sohn et al., arXiv:2005.04757, whose fixed
threshold is replaced by the one at which F1 is best on the held-back pictures.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Annotations, Detections, Predictions
from foldfuse.evaluation.diagnosis import best_threshold
from foldfuse.evaluation.matching import MATCH_IOU, NO_LIMIT, ground_truth, match_predictions


def sure(held_predictions: Predictions, held: Dataset, target_predictions: Predictions) -> Predictions:
    """Those of an ensemble's boxes in the pictures to submit that score no less than is best for F1 on the held-back ones.

    Nothing is sure where nothing that was found in the held-back pictures is right.
    """
    matches = match_predictions(held_predictions, ground_truth(held), ious=(MATCH_IOU,), max_detections=NO_LIMIT)
    least = best_threshold(matches).score
    return target_predictions.filter(target_predictions.scores >= (least or np.inf))


def labelled(target: Dataset, found: Predictions) -> Dataset:
    """The pictures of `target` in which something was found, with that as their annotations.

    The others are left out: that nothing was sure in them does not mean that nothing is there.
    """
    samples = (
        replace(sample, annotations=_drawn(found[sample.id]))
        for sample in target.samples
        if sample.id in found and len(found[sample.id])
    )
    return replace(target, samples=tuple(samples))


def _drawn(found: Detections) -> Annotations:
    boxes = found.boxes.astype(np.float64)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return Annotations(boxes, found.labels, np.zeros(len(boxes), bool), area)
