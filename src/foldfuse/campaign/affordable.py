"""Ensembles that can be predicted in time: views that take too long are left out, before or while they are predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from foldfuse.campaign import constants as c
from foldfuse.campaign.current_state import delivery_seconds
from foldfuse.campaign.planning.allocation import is_light
from foldfuse.campaign.planning.segments import member_name
from foldfuse.campaign.task import Task
from foldfuse.detections import Predictions
from foldfuse.ensemble.build import EnsembleReport
from foldfuse.ensemble.ensemble import Ensemble
from foldfuse.ensemble.member_views import MemberView
from foldfuse.evaluation.metrics import measure
from foldfuse.inference.tta import View
from foldfuse.storage.ledger import Ledger
from foldfuse.system.progress import Progress

Parts = Mapping[MemberView, Sequence[MemberView]]  # {candidate: the segments and views that predict for it}


class OutOfTime(Exception):
    """A prediction would not be ready before the deadline."""


@dataclass(frozen=True, eq=False)
class Choice:
    """What an ensemble is chosen from, and who predicts the test images.

    Attributes:
        candidates: {member and view: its out-of-fold predictions}.
        parts: the segments that predict the test images for each candidate.
        test: {segment and view: its predictions of the test images} so far; it may grow.
        task, ledger: of the campaign.
    """

    candidates: Mapping[MemberView, Predictions]
    parts: Parts
    test: Mapping[MemberView, Predictions]
    task: Task
    ledger: Ledger

    def test_seconds(self) -> dict[MemberView, float]:
        """{candidate: seconds that predicting the test images with it still takes}; none for one that has predicted them."""
        image_seconds = {r.name: float(r.result.get("image_seconds", 0.0)) for r in self.ledger.segments()}
        pending = {key: [part for part in parts if part not in self.test] for key, parts in self.parts.items()}
        return {
            key: len(self.task.test) * View.parse(key.view).cost * sum(image_seconds[part.member] for part in left)
            for key, left in pending.items()
            if left
        }

    @property
    def free_seconds(self) -> float:
        """Seconds that may be spent on predictions of test images."""
        return self.ledger.remaining - delivery_seconds(self.ledger)


def by_name(predictions: Mapping[MemberView, Predictions]) -> dict[str, Predictions]:
    """The predictions under the names that an Ensemble gives its members."""
    return {str(key): value for key, value in predictions.items()}


def ensemble_views(ensemble: Ensemble, candidates: Mapping[MemberView, Predictions]) -> dict[MemberView, float]:
    """{member and view: its weight} of an ensemble that was chosen from `candidates`, in the ensemble's order."""
    keys = {str(key): key for key in candidates}
    return {keys[name]: weight for name, weight in ensemble.weights.items()}


def without_light_views(choice: Choice, seconds: float) -> Choice:
    """The choice without further views of members that had next to no weight so far, where not all candidates have time.

    A view that the search chooses and that cannot be predicted has to leave the ensemble afterwards, and with it leave the nested
    score and the gain, which are those of the whole ensemble. The views that take longest go first.

    Args:
        choice: all candidates.
        seconds: of the search, which are spent before the predictions.
    """
    weights = {member_name(r): r.result.get("weight") for r in choice.ledger.segments() if r.state == "done"}
    pending = choice.test_seconds()
    light = [key for key in pending if key.view != str(c.PLAIN_VIEW) and is_light(weights.get(key.member))]
    dropped: list[MemberView] = []
    for key in sorted(light, key=lambda key: -pending[key]):
        if sum(pending.values()) - sum(pending[other] for other in dropped) <= choice.free_seconds - seconds:
            break
        dropped.append(key)
    if not dropped:
        return choice
    choice.ledger.log(
        "Not among the candidates, since time is short and their members had next to no weight so far: "
        f"{', '.join(map(str, dropped))}."
    )
    candidates = {key: p for key, p in choice.candidates.items() if key not in dropped}
    return replace(choice, candidates=candidates, parts={key: choice.parts[key] for key in candidates})


def drop_unaffordable_views(report: EnsembleReport, choice: Choice) -> EnsembleReport:
    """The ensemble without views that cannot be predicted in the remaining time.

    Views with the least weight for each second of predicting the test images go first; one view stays.
    """
    weights = ensemble_views(report.ensemble, choice.candidates)
    seconds = {key: value for key, value in choice.test_seconds().items() if key in weights}
    by_value = sorted(seconds, key=lambda key: weights[key] / max(seconds[key], 1e-9))
    dropped, free = [], choice.free_seconds
    while by_value and len(weights) > 1 and sum(seconds.get(key, 0.0) for key in weights) > free:
        dropped.append(by_value.pop(0))
        del weights[dropped[-1]]
    return without(report, dropped, choice)


def drop_unpredicted_views(report: EnsembleReport, choice: Choice) -> EnsembleReport | None:
    """The ensemble of the views whose predictions of the test images are there; None where there is none."""
    weights = ensemble_views(report.ensemble, choice.candidates)
    dropped = [key for key in weights if any(part not in choice.test for part in choice.parts[key])]
    return without(report, dropped, choice) if len(dropped) < len(weights) else None


def without(report: EnsembleReport, dropped: Sequence[MemberView], choice: Choice) -> EnsembleReport:
    """The ensemble without some of its members and views, scored anew."""
    if not dropped:
        return report
    keys = ensemble_views(report.ensemble, choice.candidates)
    in_order = [str(key) for key in keys if key in dropped]
    rest = report.without(in_order)
    choice.ledger.log(
        f"Left out of the ensemble, because predicting with it would take too long: {', '.join(in_order)}."
    )
    fused = rest.out_of_fold(by_name(choice.candidates))
    score = measure(fused, choice.task.val.subset(fused.image_ids), metric=report.metric)
    table = tuple(replace(row, leave_one_out_gain=None) for row in report.table)
    # the nested score, its interval and the gains were those of the larger ensemble
    return replace(rest, score=score, nested_score=None, interval=None, table=table)


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
