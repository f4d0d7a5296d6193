"""Pseudo-labels: confident predictions of the ensemble on the test images, as annotations for a last member to train on.

Pseudo-labels are fold-safe: neither the ensemble's members nor the member that trains on the labels see the held-out images,
so that its predictions of the held-out images stay out-of-fold. Source: Lee, "Pseudo-Label", 2013; for detectors Sohn et al.,
arXiv:2005.04757. Difference: the score threshold is the best for F1 on the held-out images, where the papers fix it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Annotations, Detections, Predictions
from foldfuse.evaluation.diagnosis import best_threshold
from foldfuse.evaluation.matching import MATCH_IOU, NO_LIMIT, ground_truth, match_predictions


def confident_predictions(val_predictions: Predictions, val: Dataset, test_predictions: Predictions) -> Predictions:
    """The boxes of the test images that score at least the threshold with the best F1 on the held-out images.

    No box is confident where no prediction of the held-out images is correct.
    """
    matches = match_predictions(val_predictions, ground_truth(val), ious=(MATCH_IOU,), max_detections=NO_LIMIT)
    threshold = best_threshold(matches).score
    return test_predictions.filter(test_predictions.scores >= (threshold or np.inf))


def pseudo_labeled(test: Dataset, predictions: Predictions) -> Dataset:
    """The images of `test` with predicted boxes, which become their annotations.

    Images without a box are left out: no confident box does not mean no object.
    """
    samples = (
        replace(sample, annotations=_as_annotations(predictions[sample.id]))
        for sample in test.samples
        if sample.id in predictions and len(predictions[sample.id])
    )
    return replace(test, samples=tuple(samples))


def _as_annotations(detections: Detections) -> Annotations:
    boxes = detections.boxes.astype(np.float64)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return Annotations(boxes, detections.labels, np.zeros(len(boxes), bool), area)
