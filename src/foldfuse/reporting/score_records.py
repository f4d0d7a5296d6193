"""Scores of a campaign as the page shows them: of the fused predictions, of crop rescoring, of each submission and class.

As in `records`, any value may be missing.
"""

from __future__ import annotations

from dataclasses import dataclass

from foldfuse.ensemble.gain import Gain, make_gain


@dataclass(frozen=True)
class ClassScore:
    """The scores of one class in the fused predictions."""

    name: str = "?"
    boxes: int | None = None
    ap: float | None = None
    ap50: float | None = None


@dataclass(frozen=True)
class EnsembleView:
    """A member in one TTA view: its share of all weights, and the score that the ensemble loses without it."""

    name: str = "?"
    view: str = "?"
    weight: float | None = None
    leave_one_out_gain: float | None = None


@dataclass(frozen=True)
class FusedScore:
    """Scores of the fused predictions on held-out images, and how they were fused.

    Attributes:
        metric: the metric that chose the ensemble; `value` is the ensemble's score by it.
        nested: the nested cross-validation score: images not used to choose the ensemble.
        best_single: the best member in one view, with its score by the metric.
        nested_single: the same of the best single member; None in campaigns of earlier versions.
        interval: the 95 % interval of `nested` minus `nested_single`, or else minus the score of `best_single`.
        parts: the members in their views.
    """

    metric: str = "ap50"
    value: float | None = None
    nested: float | None = None
    best_single: tuple[str, float] | None = None
    ap: float | None = None
    ap50: float | None = None
    ap75: float | None = None
    method: str | None = None
    iou: float | None = None
    interval: tuple[float, float] | None = None
    nested_single: float | None = None
    per_class: tuple[ClassScore, ...] = ()
    parts: tuple[EnsembleView, ...] = ()

    @property
    def gain(self) -> Gain | None:
        """The gain of the fusion over its best single member; None where the ledger does not know it."""
        return make_gain(self.metric, self.nested, self.best_single, self.interval, self.nested_single)


@dataclass(frozen=True)
class RescoringGain:
    """The gain of crop rescoring over the fusion by nested cross-validation, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rescoring:
    """The metric of the fused predictions on held-out images before and after crop rescoring; `gain` is nested."""

    before: float
    after: float
    gain: RescoringGain | None = None


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One of the submissions, each better than the one before it.

    Attributes:
        at: seconds since the start.
        ap50: AP50 of the ensemble.
        metric: the metric that chose the ensemble.
        best_single: best member in one view, with its score by that metric.
        nested, nested_single, interval: as in `FusedScore`.
        num_members: members in the ensemble, each counted once whatever its views.
    """

    at: float
    ap50: float | None = None
    metric: str | None = None
    best_single: tuple[str, float] | None = None
    nested: float | None = None
    interval: tuple[float, float] | None = None
    nested_single: float | None = None
    num_members: int | None = None

    @property
    def gain(self) -> Gain | None:
        """The gain of the ensemble over the best member in one view; None where the ledger does not know it."""
        return make_gain(self.metric or "", self.nested, self.best_single, self.interval, self.nested_single)

    @property
    def best_name(self) -> str | None:
        """The best member in one view."""
        return self.best_single[0] if self.best_single else None
