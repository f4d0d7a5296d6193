"""The gain of an ensemble over its best single member, and the one sentence that the log, the terminal and the page say about it.

Both scores are of the same images, and both are nested: each fold is fused by an ensemble chosen without the fold, and compared
with the member that is best without it. On the images that choose it, the best of many members scores better than on new ones, so
that a gain over that score would be too small. The interval is of the difference of these two scores.
"""

from __future__ import annotations

from dataclasses import dataclass

from foldfuse.evaluation.custom_metric import metric_label

CHOSEN_ALIKE = "also chosen without each fold"


@dataclass(frozen=True)
class Gain:
    """The nested cross-validation score of an ensemble minus that of the best single member.

    Attributes:
        metric: the metric of both scores.
        nested: the nested cross-validation score of the ensemble.
        baseline: what the best single member is: its name, or how it was chosen.
        baseline_score: the score of the baseline on the same images.
        low, high: the 95 % interval of `value` over bootstrap resamples of the images; low <= value <= high.
    """

    metric: str
    nested: float
    baseline: str
    baseline_score: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """The gain."""
        return self.nested - self.baseline_score

    @property
    def verdict(self) -> str:
        """What the interval says about the gain, in a few words."""
        if self.low == self.high == 0:
            return "there is no difference"
        if self.low > 0:
            return "better than chance"
        return "worse than this member" if self.high < 0 else "it may be chance"

    def sentence(self, *, digits: int = 3) -> str:
        """The gain with its baseline, its interval and the verdict."""
        return (
            f"In nested cross-validation {metric_label(self.metric)} {self.nested:.{digits}f}: a gain of "
            f"{interval_text(self.value, self.low, self.high, digits=digits)} over the best single member, {self.baseline}, "
            f"with {self.baseline_score:.{digits}f}; {self.verdict}."
        )


def interval_text(value: float, low: float, high: float, *, digits: int = 3) -> str:
    """A difference and its 95 % interval: "+0.019 (95 % interval -0.006 to +0.042)"."""
    return f"{value:+.{digits}f} (95 % interval {low:+.{digits}f} to {high:+.{digits}f})"


def make_gain(
    metric: str,
    nested: float | None,
    best_single: tuple[str, float] | None,
    interval: tuple[float, float] | None,
    nested_single: float | None = None,
) -> Gain | None:
    """The Gain from these scores; None where one of them is not known, as for a single image.

    Without a nested score of the best single member, as in earlier versions, its score on all images takes its place.
    """
    if nested is None or best_single is None or interval is None:
        return None
    (baseline, score), (low, high) = best_single, interval
    if nested_single is not None:
        baseline, score = CHOSEN_ALIKE, nested_single
    return Gain(metric, nested, baseline, score, min(low, nested - score), max(high, nested - score))
