"""Calibration of a member's scores to the chance that a box is right, so that the scores of different detectors can be averaged.

The calibrated score is sigmoid(slope x logit(score) + offset), two numbers a member: Platt's scaling on the logit (Guo et al.,
arXiv:1706.04599). The target of a box is the share of the metric's IoU thresholds at which it is a true positive, so that for AP
it grows with the IoU, as MoCaE (arXiv:2309.14976) has it; Gilg et al. (arXiv:2112.01901) show why detectors need this.
Differences: a ridge pulls the two numbers to 1 and 0, the identity, since a fold has some sixty images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foldfuse.detections import Array
from foldfuse.ensemble.logistic import fit_logistic, logit, sigmoid
from foldfuse.evaluation import kernels
from foldfuse.evaluation.matching import Matches

RIDGE = 1.0
MIN_SLOPE = 0.05  # a member whose scores say nothing, or the opposite, still keeps their order
BINS = np.linspace(-14, 14, 281)  # of the logit: boxes of nearly equal score are fitted as one


@dataclass(frozen=True)
class Calibration:
    """The calibration of one member: sigmoid(slope x logit(score) + offset)."""

    slope: float
    offset: float

    def apply(self, scores: Array) -> Array:
        """The calibrated scores; the order of the scores stays."""
        return sigmoid(np.clip(self.slope * logit(scores), -60, 60) + self.offset)


def targets_of(matches: Matches) -> tuple[Array, Array]:
    """(n,) the share of IoU thresholds at which a box is right, and (n,) of thresholds at which it is not ignored: its weight."""
    counted = (matches.status != kernels.IGNORED).sum(1)
    right = (matches.status == kernels.TRUE).sum(1)
    return right / np.maximum(counted, 1), counted / matches.status.shape[1]


@dataclass(frozen=True, eq=False)
class ScoreBins:
    """The boxes of a member, by fold and by bins of the logit of their score.

    Attributes:
        weights, targets, logits: (K, B) the sums over the boxes of weight, weight x target and weight x logit.
    """

    weights: Array
    targets: Array
    logits: Array


def bin_scores(matches: Matches, fold_of: Array) -> ScoreBins:
    """The bins of a member's own matches; (I,) `fold_of` is the fold of each image, in 0..K-1."""
    targets, weights = targets_of(matches)
    logits = logit(matches.scores)
    shape = int(fold_of.max()) + 1, len(BINS)
    cells = fold_of[matches.image] * shape[1] + np.searchsorted(BINS, logits).clip(0, shape[1] - 1)

    def total(values: Array) -> Array:
        return np.bincount(cells, weights=values, minlength=shape[0] * shape[1]).reshape(shape)

    return ScoreBins(total(weights), total(weights * targets), total(weights * logits))


def fit_calibration(bins: ScoreBins, left_out: frozenset[int]) -> Calibration:
    """The calibration from the images of all folds but `left_out`; the identity where they hold no box."""
    folds = [fold for fold in range(len(bins.weights)) if fold not in left_out]
    weights, targets, logits = (a[folds].sum(0) for a in (bins.weights, bins.targets, bins.logits))
    seen = weights > 0
    if not seen.any():
        return Calibration(1.0, 0.0)
    mean = logits[seen] / weights[seen]
    columns = np.stack([mean, np.ones(len(mean))], 1)
    ridge = np.full(2, RIDGE)
    slope, offset = fit_logistic(columns, targets[seen] / weights[seen], weights[seen], mean, ridge).tolist()
    return Calibration(max(1 + slope, MIN_SLOPE), offset)
