"""Ranks base runs by the gain that they bring to an ensemble, and promotes the runs with a significant gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.evaluation.bootstrap import bootstrap_difference
from foldfuse.evaluation.metrics import measure
from foldfuse.fusion.methods import fuse

MIN_GAIN = 0.01  # of the metric: a run that adds less to the ensemble of the runs ranked above is not promoted
MIN_PROB_BETTER = 0.95  # share of bootstrap resamples in which a promoted run improves the ensemble


class RankedRun(NamedTuple):
    """A run, and the score of the ensemble of this run and all runs ranked above.

    `prob_better` is the share of bootstrap resamples of the images in which `ensemble_score` is above the best ensemble score
    of the runs ranked above.
    """

    name: str
    ensemble_score: float
    prob_better: float


def promoted(ranking: Sequence[RankedRun]) -> list[str]:
    """Names of the best run, and of each run that adds a large enough and significant gain to the runs ranked above."""
    best, names = 0.0, list[str]()
    for run in ranking:
        if not names or (run.ensemble_score - best >= MIN_GAIN and run.prob_better >= MIN_PROB_BETTER):
            names.append(run.name)
        best = max(best, run.ensemble_score)
    return names


def rank_by_ensemble_gain(members: Mapping[str, Predictions], dataset: Dataset, *, metric: str) -> list[RankedRun]:
    """The best member, then repeatedly the member that gives the best ensemble together with the members ranked before it.

    A weaker member that finds what the others miss ranks above a stronger one that repeats them. The gain of fusing a member
    with itself, which merges its overlapping boxes, counts as the member's own.

    Args:
        members: {name: predictions of the images of `dataset`}.
        dataset: annotated images.
        metric: the name of a metric, see `evaluation.metrics`.
    """

    def score(predictions: Predictions) -> float:
        return measure(predictions, dataset, metric=metric)

    ranking: list[RankedRun] = []
    best: Predictions | None = None  # fused predictions of the best ensemble so far
    candidates = dict(members)
    while candidates:
        chosen = [members[run.name] for run in ranking]
        fused = {name: fuse([*chosen, member]) for name, member in candidates.items()}
        if not chosen:
            fused = {name: max(candidates[name], merged, key=score) for name, merged in fused.items()}
        scores = {name: score(predictions) for name, predictions in fused.items()}
        name = max(scores, key=lambda name: scores[name])
        prob_better = 1.0 if best is None else bootstrap_difference(fused[name], best, dataset, metric).prob_better
        ranking.append(RankedRun(name, scores[name], prob_better))
        best = fused[name] if best is None else max(best, fused[name], key=score)
        del candidates[name]
    return ranking
