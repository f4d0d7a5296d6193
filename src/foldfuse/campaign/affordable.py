"""Ensembles that can be predicted in time: views that take too long are left out, before or while they are predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from foldfuse.campaign import constants as c
from foldfuse.campaign.current_state import delivery_seconds
from foldfuse.campaign.task import Task
from foldfuse.detections import Predictions
from foldfuse.ensemble.build import EnsembleReport
from foldfuse.ensemble.ensemble import Ensemble, apply_ensemble
from foldfuse.ensemble.member_views import MemberView
from foldfuse.evaluation.metrics import measure
from foldfuse.inference.tta import View
from foldfuse.storage.ledger import Ledger
from foldfuse.system.progress import Progress

Parts = Mapping[MemberView, Sequence[MemberView]]  # {candidate: the segments and views that predict for it}


class OutOfTime(Exception):
    """A prediction would not be ready before the deadline."""


class Predicted(Protocol):
    """What has predicted the test images."""

    @property
    def test(self) -> Mapping[MemberView, Predictions]:
        """{segment and view: its predictions}."""


def by_name(predictions: Mapping[MemberView, Predictions]) -> dict[str, Predictions]:
    """The predictions under the names that an Ensemble gives its members."""
    return {str(key): value for key, value in predictions.items()}


def ensemble_views(ensemble: Ensemble, candidates: Mapping[MemberView, Predictions]) -> dict[MemberView, float]:
    """{member and view: its weight} of an ensemble that was chosen from `candidates`, in the ensemble's order."""
    keys = {str(key): key for key in candidates}
    return {keys[name]: weight for name, weight in ensemble.weights.items()}


def drop_unaffordable_views(
    report: EnsembleReport,
    candidates: Mapping[MemberView, Predictions],
    task: Task,
    ledger: Ledger,
    members: Predicted,
    *,
    parts: Parts,
) -> EnsembleReport:
    """The ensemble without views that cannot be predicted in the remaining time.

    Views with the least weight for each second of predicting the test images go first; one view stays. `parts` are the segments
    that predict the test images for each candidate.
    """
    image_seconds = {record.name: float(record.result.get("image_seconds", 0.0)) for record in ledger.segments()}
    weights = ensemble_views(report.ensemble, candidates)
    pending = {key: [part for part in parts[key] if part not in members.test] for key in weights}
    seconds = {
        key: len(task.test) * View.parse(key.view).cost * sum(image_seconds[part.member] for part in left)
        for key, left in pending.items()
        if left
    }
    free = ledger.remaining - delivery_seconds(ledger)
    by_value = sorted(seconds, key=lambda key: weights[key] / max(seconds[key], 1e-9))
    dropped = []
    while by_value and len(weights) > 1 and sum(seconds.get(key, 0.0) for key in weights) > free:
        dropped.append(by_value.pop(0))
        del weights[dropped[-1]]
    return without(report, dropped, candidates, task, ledger)


def drop_unpredicted_views(
    report: EnsembleReport,
    candidates: Mapping[MemberView, Predictions],
    task: Task,
    ledger: Ledger,
    members: Predicted,
    *,
    parts: Parts,
) -> EnsembleReport | None:
    """The ensemble of the views whose predictions of the test images are there; None where there is none."""
    weights = ensemble_views(report.ensemble, candidates)
    dropped = [key for key in weights if any(part not in members.test for part in parts[key])]
    return without(report, dropped, candidates, task, ledger) if len(dropped) < len(weights) else None


def without(
    report: EnsembleReport,
    dropped: Sequence[MemberView],
    candidates: Mapping[MemberView, Predictions],
    task: Task,
    ledger: Ledger,
) -> EnsembleReport:
    """The ensemble without some of its members and views, scored anew."""
    if not dropped:
        return report
    keys = ensemble_views(report.ensemble, candidates)
    in_order = [str(key) for key in keys if key in dropped]
    ensemble = report.ensemble.without(in_order)
    ledger.log(f"Left out of the ensemble, because predicting with it would take too long: {', '.join(in_order)}.")
    fused = apply_ensemble(ensemble, by_name(candidates))
    score = measure(fused, task.val.subset(fused.image_ids), metric=report.metric)
    table = tuple(replace(row, leave_one_out_gain=None) for row in report.table)
    # the nested score, its interval and the gains were those of the larger ensemble
    return replace(report, ensemble=ensemble, score=score, nested_score=None, interval=None, table=table)


def in_time(ledger: Ledger, progress: Progress) -> Progress:
    """A progress that raises OutOfTime where the work, at its pace so far, would not end in time for a submission.

    Before the first submission it never does: a late submission is better than none.
    """
    if ledger.latest_submission() is None:
        return progress
    began, delivery = ledger.elapsed, delivery_seconds(ledger)

    def check(share: float) -> None:
        progress(share)
        left = (ledger.elapsed - began) * (1 / share - 1) if share >= c.PACE_SHARE else 0.0
        if left > ledger.remaining - delivery:
            raise OutOfTime

    return check
