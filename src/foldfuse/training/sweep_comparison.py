"""Compares the runs of a sweep with its best by a paired bootstrap over the held-out images.

The best run is chosen on the same images, so its own score there is slightly optimistic. All runs share one training seed: the
interval tells of the choice of images, and not of the chance in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.errors import InputError, counted
from foldfuse.evaluation.bootstrap import Difference, differences_from
from foldfuse.evaluation.custom_metric import metric_label
from foldfuse.evaluation.matching import ground_truth
from foldfuse.evaluation.metrics import ResampledMetric, get_metric
from foldfuse.formats.predictions import read_predictions


@dataclass(frozen=True)
class SweepComparison:
    """The runs of a sweep compared with its best.

    Attributes:
        best: the run with the highest score; None where no run has one.
        num_images: held-out images.
        differences: {name of another run: its score minus the score of the best}.
        missing: {name of a run: why it has no difference}.
        metric: the metric of the scores.
        scores: {name of a run: its score}; empty in sweeps of earlier versions, whose metric is AP.
    """

    best: str | None = None
    num_images: int = 0
    differences: dict[str, Difference] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    metric: str = "ap"
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def equals(self) -> tuple[str, ...]:
        """The runs that cannot be told apart from the best: the interval of their difference holds 0."""
        return tuple(name for name, one in self.differences.items() if one.low <= 0 <= one.high)

    def verdict(self, name: str) -> str:
        """What the interval of a run's difference says, in a few words; "" where there is no difference."""
        if name == self.best:
            return "the best"
        if name not in self.differences:
            return ""
        return "cannot be told apart from the best" if name in self.equals else "worse than the best"

    def sentences(self) -> list[str]:
        """What the comparison says: the runs that cannot be told apart from the best, and those without a difference."""
        found = []
        if self.differences:
            images = counted(self.num_images, "held-out image")
            if self.equals:
                found.append(
                    f"Cannot be told apart from the best, {self.best}: {', '.join(self.equals)}. The 95 % interval of the "
                    f"difference in {metric_label(self.metric)} holds 0 (bootstrap of {images})."
                )
            else:
                found.append(
                    f"{self.best} is better than {', '.join(self.differences)}: the 95 % interval of the difference in "
                    f"{metric_label(self.metric)} does not hold 0 (bootstrap of {images})."
                )
        return found + [f"{name}: has no interval. {reason}" for name, reason in self.missing.items()]


def compare_runs(
    scores: Mapping[str, float], predictions: Mapping[str, Path], val: Dataset, *, metric: str = "ap"
) -> SweepComparison:
    """The SweepComparison of scored runs.

    Args:
        scores: {name: AP} of the finished runs.
        predictions: {name: the file of the run's predictions on `val`}, which may be missing.
        val: the held-out images.
        metric: what the runs are compared by.
    """
    if not scores:
        return SweepComparison(metric=metric)
    truth, measured, once = ground_truth(val), get_metric(metric), np.ones((1, len(val)), np.int64)
    values: dict[str, ResampledMetric] = {}
    missing: dict[str, str] = {}
    for name in scores:
        if not predictions[name].is_file():
            missing[name] = "Its held-out predictions were not kept: an earlier version of Foldfuse trained it."
            continue
        try:
            values[name] = measured.of(read_predictions(predictions[name], val), truth)
        except InputError as error:
            missing[name] = str(error)
    if metric != "ap":
        scores = {name: float(value(once)[0]) for name, value in values.items()}
    if not scores:
        return SweepComparison(None, len(val), missing=missing, metric=metric)
    best = max(scores, key=lambda name: scores[name])
    if best not in values:
        return SweepComparison(best, len(val), missing={best: missing[best]}, metric=metric, scores=dict(scores))
    others = {name: value for name, value in values.items() if name != best}
    differences = differences_from(values[best], others, num_images=len(val))
    return SweepComparison(best, len(val), differences, missing, metric, dict(scores))
