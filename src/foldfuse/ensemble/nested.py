"""Nested cross-validation: each fold is scored with what was chosen without it, be it an ensemble or the best single member."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foldfuse.detections import Array
from foldfuse.ensemble.search import Candidate, SearchSpace, search
from foldfuse.evaluation.matching import Matches
from foldfuse.evaluation.metrics import ResampledMetric


def nested_search(space: SearchSpace, reference: Candidate, *, until: float) -> ResampledMetric:
    """Nested cross-validation: each fold's images are fused by the candidate that the search chooses without the fold.

    The candidates of the folds have scores on different scales, which would spoil a ranking of all images together. So each
    score is replaced by the score at the same rank in `reference`; annotations play no part in this.
    """

    def choose(fold: int) -> Candidate:
        now = space.clock()
        return search(space, fold + 1, until=now + (until - now) / (space.num_folds - fold))

    return _pooled(space, reference, choose)


def nested_single(space: SearchSpace, reference: Candidate) -> ResampledMetric:
    """Nested cross-validation of the best single member: each fold's images are those of the member that is best without it.

    The best member of many is partly the luckiest: on the images that chose it, it scores better than on others. `reference` is
    the best member of all images, as for `nested_search`.
    """
    singles = [space.single(member) for member in range(space.num_members)]
    return _pooled(space, reference, lambda fold: max(singles, key=lambda one: space.score(one, fold + 1)))


def _pooled(space: SearchSpace, reference: Candidate, choose: Callable[[int], Candidate]) -> ResampledMetric:
    """The metric where each fold's images are fused by the candidate that `choose` gives for the fold; see `nested_search`."""
    scale = np.sort(space.matches(reference.canonical).scores)
    parts = []
    for fold in range(space.num_folds):
        candidate = choose(fold).canonical
        matches = space.matches(candidate, space.variant(candidate, fold + 1))
        held_out = space.fold_of[matches.image] == fold
        scores = at_same_rank(matches.scores, scale)[held_out]
        parts.append((matches.image[held_out], matches.labels[held_out], scores, matches.status[held_out]))
    image, labels, scores, status = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(image, kind="stable")
    pooled = Matches(space.bench.truth, image[order], labels[order], scores[order], status[order])
    return space.bench.metric.prepare(pooled)


def at_same_rank(scores: Array, scale: Array) -> Array:
    """(n,) for each score, the value in the sorted `scale` with the same rank from the top; 0 where `scale` is shorter."""
    above = len(scores) - np.searchsorted(np.sort(scores), scores, side="right")
    padded = np.concatenate([np.zeros(1, scale.dtype), scale])
    return padded[np.maximum(len(scale) - above, 0)]
