"""Fits calibrations and stacking models in a search such that no image is scored with a model that has learnt from it.

The images are in K folds. A *variant* names the images that a model may learn from. In variant 0 a model for the images of fold j
learns from the other folds; in variant k + 1, of the search that leaves out fold k, from the folds other than j and k, and the
model for fold k itself from all others. So nothing in variant k + 1 depends on the annotations of fold k, and the nested score
stays honest. FINAL is for images that are not here: its models learn from all folds.

A stacking model learns from fused boxes whose calibrations were fitted without their own fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from foldfuse.detections import Array, Predictions
from foldfuse.ensemble.calibration import Calibration, ScoreBins, bin_scores, fit_calibration
from foldfuse.ensemble.stack import Stack, Votes, fit_stack, rescored, vote_features
from foldfuse.ensemble.trials import Bench, Fusion, fuse_members, match_single
from foldfuse.evaluation.matching import Matches, match_predictions

FINAL = -1


@dataclass(frozen=True, eq=False)
class CrossFitter:
    """The calibrations and stacking models of a search.

    Attributes:
        bench: the members.
        fold_of: (I,) the fold of each image, in 0..K-1.
        threads: number of threads of the fusion; None for one per core.
    """

    bench: Bench
    fold_of: Array
    threads: int | None
    _bins: list[ScoreBins] = field(default_factory=list)
    _calibrations: dict[tuple[int, frozenset[int]], Calibration] = field(default_factory=dict)

    def left_out(self, variant: int, fold: int) -> frozenset[int]:
        """The folds that a model for the images of `fold` may not learn from."""
        if variant == FINAL:
            return frozenset()
        return frozenset({fold} if variant == 0 else {fold, variant - 1})

    def calibration(self, member: int, left_out: frozenset[int]) -> Calibration:
        """The calibration of a member, fitted without some folds."""
        if not self._bins:
            self._bins.extend(
                bin_scores(match_single(self.bench, i), self.fold_of) for i in range(len(self.bench.members))
            )
        if (member, left_out) not in self._calibrations:
            self._calibrations[member, left_out] = fit_calibration(self._bins[member], left_out)
        return self._calibrations[member, left_out]

    def add_calibration(self, variant: int) -> None:
        """Give the bench the calibrated scores of a variant."""
        islands, pool = self.bench.islands, self.bench.scores
        if variant in pool.own:
            return
        folds = self.fold_of[islands.row_image]
        calibrated = []
        for member, scores in enumerate(pool.own[None]):
            own_folds, result = folds[islands.members == member], scores.copy()
            for fold in np.unique(own_folds).tolist():
                rows = own_folds == fold
                result[rows] = self.calibration(member, self.left_out(variant, fold)).apply(scores[rows])
            calibrated.append(result)
        pool.own[variant] = calibrated

    def stacked(self, fusion: Fusion, variant: int) -> Matches:
        """The matches of fused boxes with the scores of stacking models."""
        fused, features, matches = self._fused(fusion)
        scores = np.empty(len(matches.scores))
        folds = self.fold_of[matches.image]
        for fold in np.unique(folds).tolist():
            rows = folds == fold
            model = fit_stack(features, matches, ~np.isin(self.fold_of, list(self.left_out(variant, fold))))
            scores[rows] = model.scores(features[rows], matches.labels[rows])
        return self._matches(rescored(fused, scores))

    def stacks(self, fusion: Fusion, left_out: Sequence[frozenset[int]]) -> list[Stack]:
        """For each set of folds, the stacking model that learns from the images of all other folds."""
        _, features, matches = self._fused(fusion)
        return [fit_stack(features, matches, ~np.isin(self.fold_of, list(folds))) for folds in left_out]

    def _fused(self, fusion: Fusion) -> tuple[Predictions, Array, Matches]:
        """Fused boxes, their features and their matches, rows alike."""
        bench = self.bench
        fused = fuse_members(bench, fusion, threads=self.threads)
        first = bench.scores.add(fusion.chosen, fusion.score_exponents, fusion.calibration)
        shares, scores = fusion.shares(bench.islands.num_members), bench.scores.values
        votes = Votes(bench.islands, scores, first, shares, fusion.iou, fusion.score_threshold)
        features = vote_features(fused, votes)
        return fused, features, self._matches(fused)

    def _matches(self, predictions: Predictions) -> Matches:
        metric = self.bench.metric
        return match_predictions(predictions, self.bench.truth, ious=metric.ious, max_detections=metric.max_detections)
