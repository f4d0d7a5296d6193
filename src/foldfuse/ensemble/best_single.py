"""The best single member as an ensemble, for a caller that has no time to compile the loops of the fusion."""

from __future__ import annotations

from collections.abc import Mapping

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.ensemble.build import EnsembleReport, MemberScore
from foldfuse.ensemble.ensemble import Ensemble
from foldfuse.evaluation.coco import score_predictions
from foldfuse.evaluation.metrics import measure


def best_single_member(members: Mapping[str, Predictions], dataset: Dataset, *, metric: str = "ap50") -> EnsembleReport:
    """The best single member as an ensemble; nothing is fused, and nothing is searched."""
    scores = {name: _single_score(predictions, dataset, metric) for name, predictions in members.items()}
    ordered = sorted(scores, key=lambda name: -scores[name])
    best = ordered[0]
    table = tuple(MemberScore(name, scores[name], float(name == best), None) for name in ordered)
    score = scores[best]
    return EnsembleReport(Ensemble({best: 1.0}), metric, score, None, None, (best, score), score, table, 0)


def _single_score(predictions: Predictions, dataset: Dataset, metric: str) -> float:
    """The metric of a member, for AP without a compiled loop."""
    if metric not in ("ap50", "ap"):
        return measure(predictions, dataset, metric=metric)
    score = score_predictions(predictions, dataset)
    return (score.ap50 if metric == "ap50" else score.ap) or 0.0
