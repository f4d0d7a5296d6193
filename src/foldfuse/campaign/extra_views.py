"""Further TTA views at the end of a campaign, where time is left over: the ensemble is chosen again with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from foldfuse.campaign import constants as c
from foldfuse.campaign.affordable import OutOfTime, in_time
from foldfuse.campaign.current_state import delivery_seconds
from foldfuse.campaign.planning.allocation import candidate_views, margin_seconds, search_seconds
from foldfuse.campaign.planning.segments import member_name
from foldfuse.campaign.submissions import MemberPredictions, submit_best
from foldfuse.campaign.task import VAL, Task, predictions_path
from foldfuse.ensemble.member_views import MemberView
from foldfuse.formats.predictions import write_predictions
from foldfuse.inference.detector import load_detector, predict_views
from foldfuse.inference.tta import View
from foldfuse.storage.ledger import Ledger
from foldfuse.storage.segments import SegmentRecord
from foldfuse.system.device import choose_device, release_memory
from foldfuse.system.progress import no_progress


@dataclass(frozen=True)
class MemberCost:
    """A member of the submission, and what it costs to predict with it.

    Attributes:
        weight: its share of all weights.
        image_seconds: seconds of one image in the plain view, by all its segments.
        views: the TTA views that it has predicted.
        segments: records of its segments, one for each fold.
    """

    weight: float
    image_seconds: float
    views: frozenset[View]
    segments: tuple[SegmentRecord, ...] = ()


def next_view(
    members: Sequence[MemberCost], *, num_images: int, seconds: float, views: Sequence[View] = c.VIEWS
) -> tuple[MemberCost, View, float] | None:
    """The member and view to predict next, and the seconds that takes; None where no further view has time.

    The view is the first one that a member lacks, of the member with the most weight for each second.

    Args:
        members: members of the submission.
        num_images: held-out images of a fold, and test images.
        seconds: that may be spent.
        views: the campaign's, which come before `EXTRA_VIEWS`.
    """
    found = []
    for member in members:
        missing = [view for view in (*views, *c.EXTRA_VIEWS) if view not in member.views]
        if missing and member.weight > 0:
            cost = num_images * member.image_seconds * missing[0].cost
            if cost <= seconds:
                found.append((member.weight / max(cost, 1e-9), member, missing[0], cost))
    if not found:
        return None
    _, best, view, cost = max(found, key=lambda each: each[0])
    return best, view, cost


def spend_on_views(task: Task, ledger: Ledger, members: MemberPredictions, *, reserved: float = 0.0) -> None:
    """Predicts further views with members of the submission while there is time, and submits where the ensemble gets better.

    A submission with crop rescoring stays as it is: another ensemble would need another rescorer.

    Args:
        task, ledger, members: of the campaign.
        reserved: seconds for what comes after it, other than the report.
    """
    latest = ledger.latest_submission()
    if latest is None or latest[2].get("rescoring"):
        return
    costs = _members(latest[2].get("fused") or {}, ledger)
    num_images = len(task.val_in(task.folds[0])) + len(task.test)
    search = search_seconds(ledger.deadline) if reserved else c.FIRST_SEARCH_SECONDS  # what comes after may not be late
    reserved += margin_seconds(ledger.deadline) + delivery_seconds(ledger) + search
    views = candidate_views(tiles=task.offers_tiles)
    spent, added = 0.0, []  # of the next submission's predictions of test images
    while chosen := next_view(costs, num_images=num_images, seconds=ledger.remaining - reserved - spent, views=views):
        member, view, cost = chosen
        try:
            with ledger.timed(f"out-of-fold, view {view}", "predict"):
                for segment in member.segments:
                    _predict(segment, view, task, ledger, members)
        except OutOfTime:
            break
        spent += cost * len(task.test) / num_images
        added.append(f"{member_name(member.segments[0])}@{view}")
        costs = [replace(m, views=m.views | {view}) if m is member else m for m in costs]
    if not added:
        return
    ledger.log(f"Time is left over: the ensemble is chosen again, with {', '.join(added)}.")
    left = ledger.remaining - reserved + search - spent
    submit_best(task, ledger, members, last=True, seconds=max(c.FIRST_SEARCH_SECONDS, left))


def _members(fused: dict[str, list[dict[str, object]]], ledger: Ledger) -> list[MemberCost]:
    """The members of the submission that this campaign can predict with."""
    weights: dict[str, float] = {}
    for part in fused.get("parts") or ():
        name = str(part["name"])
        weights[name] = weights.get(name, 0.0) + float(str(part["weight"]))
    segments: dict[str, list[SegmentRecord]] = {}
    for record in ledger.segments():
        if record.state == "done" and not record.role.is_external and "image_seconds" in record.result:
            segments.setdefault(member_name(record), []).append(record)
    costs = []
    for name, weight in weights.items():
        own = segments.get(name, [])
        views = [frozenset(map(View.parse, record.result.get("predicted_views", ()))) for record in own]
        if own:
            seconds = sum(float(record.result["image_seconds"]) for record in own)
            costs.append(MemberCost(weight, seconds, frozenset.intersection(*views), tuple(own)))
    return costs


def _predict(segment: SegmentRecord, view: View, task: Task, ledger: Ledger, members: MemberPredictions) -> None:
    """Predicts the held-out images of a segment in one more view, and records it. Raises OutOfTime where that takes too long."""
    run, val = members.runs[segment.name], task.val_in(segment.fold)
    model, classes = load_detector(run, task.device)
    try:
        predicted = predict_views(
            model,
            val.samples,
            classes,
            image_size=run.recipe.image_size,
            views=[view],
            engine="auto",
            progress=in_time(ledger, no_progress),
        )
    finally:
        del model
        release_memory(choose_device(task.device))
    write_predictions(predicted[view], predictions_path(run.folder, VAL, str(view)), val)
    record = next(record for record in ledger.segments() if record.name == segment.name)
    views = [*record.result["predicted_views"], str(view)]
    ledger.put_segment(replace(record, result={**record.result, "predicted_views": views}))
    members.val[MemberView(segment.name, str(view))] = predicted[view]
