"""Time that the plan does not need: reserves from measured times, an extra cooldown run, a longer last search, further views.

What a failed, killed or slow segment, predictions or crop rescoring leave over goes to the segments still to come, since the
training time of each is a share of the time that is left. This module is about the rest. Pure functions, no torch, no files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from foldfuse.campaign import constants as c
from foldfuse.campaign.planning.allocation import (
    Decision,
    affordable_views,
    image_seconds,
    reserved_seconds,
    search_seconds,
    successive_halving,
    training_seconds,
    view_cost,
    with_new_parent,
)
from foldfuse.campaign.planning.segments import base_runs, plan_segments
from foldfuse.campaign.planning.soups import planned_soups
from foldfuse.campaign.planning.state import CampaignState, Reserves
from foldfuse.inference.tta import View
from foldfuse.storage.ledger import Interval
from foldfuse.storage.segments import Role


def to_the_deadline(state: CampaignState) -> Decision:
    """Successive halving; once all its segments are over, an extra cooldown run where there is time for one."""
    decision = successive_halving(state)
    if decision.segment is not None or state.busy:
        return decision
    return extra_cooldown(state) or decision


def extra_cooldown(state: CampaignState) -> Decision | None:
    """One more cooldown run of the single base run, with its own seed; None where it has no time, or is not all there is to do.

    With several base runs or folds there is none: all members of a fold, or all folds of a member, would need one.
    """
    if len(state.folds) > 1 or len(base_runs(state)) > 1 or any(state.is_open(s.name) for s in plan_segments(state)):
        return None
    longer = replace(state, extra_cooldowns=1)
    extra = plan_segments(longer)[-1]
    least = max(c.MIN_EXTRA_SECONDS, c.MIN_EXTRA_SHARE * state.deadline)
    num_views = len(affordable_views(state))  # fewer views would cost more than the run gains
    seconds = training_seconds(extra, [extra], replace(longer, max_views=num_views))
    if seconds < least:
        return None
    failed = extra.parent is not None and state.state_of(extra.parent) == "failed"
    return Decision(with_new_parent(extra, state) if failed else extra, seconds, num_views, state.folds)


def replanned_seconds(state: CampaignState, name: str) -> tuple[float, int]:
    """Total seconds for a segment in training, by the state of now, and the number of TTA views that leaves time for.

    The seconds are those that it has trained, and its share of the time that is left.

    Views are given up before the training loses more than `1 - KEPT_SHARE` of its time.

    Args:
        state: now; the segment's record has the seconds so far and its budget.
        name: the name of the segment.
    """
    unfinished = [segment for segment in plan_segments(state) if state.is_open(segment.name)]
    segment, record = next((s for s in unfinished if s.name == name), None), state.record(name)
    assert record is not None, "a segment in training has a record"
    num_views = len(affordable_views(state))
    if segment is None:
        return record.budget, num_views
    choices = [(unfinished, number) for number in range(num_views, 0, -1)]
    if not any(other.state in ("trained", "done") for other in state.segments):
        choices.append(([segment], 1))  # a first member without others is better than none
    most = record.seconds  # near its end a segment has next to nothing left, and that is enough
    enough = max(record.seconds, c.MIN_SEGMENT_SECONDS, c.KEPT_SHARE * record.budget)
    for trained_segments, number in choices:
        seconds = training_seconds(segment, trained_segments, replace(state, max_views=number))
        if seconds >= enough:
            return seconds, number
        most = max(most, seconds)
    return most, 1


def measured_reserves(
    intervals: Iterable[Interval], *, crop_seconds: float | None = None, object_crop_seconds: float | None = None
) -> Reserves:
    """The reserves from the timeline of a campaign so far; the usual ones for work that was not done yet.

    Args:
        intervals: of the timeline.
        crop_seconds: of the crop of a detection, where it was measured.
        object_crop_seconds: of the crop of an object; `crop_seconds` by default.
    """
    every = list(intervals)
    known = [interval for interval in every if interval.end is not None]
    reserves = Reserves()
    if crop_seconds is not None:
        reserves = Reserves(crop=crop_seconds, object_crop=object_crop_seconds or crop_seconds)
    submits, reports = ([i.seconds for i in known if i.kind == kind] for kind in ("submit", "report"))
    if submits and reports:
        reserves = replace(reserves, delivery=_safe(max(submits) + max(reports)))
    trainings = sorted((i for i in every if i.kind == "train"), key=lambda i: i.start)
    gaps = [(math.inf if this.end is None else this.end, following.start) for this, following in pairwise(trainings)]
    if not gaps or min(end - begin for begin, end in gaps) < 0:  # trainings side by side leave no gaps
        return reserves
    between = [_within(known, gap, {"fuse", "submit", "report"}) for gap in gaps]
    predicted = [_within(known, gap, {"predict", "setup"}) for gap in gaps]
    rest = [end - begin - a - b for (begin, end), a, b in zip(gaps, between, predicted, strict=True)]
    return replace(reserves, overhead=_safe(max(rest)), between=_safe(max(between)))


def _safe(seconds: float) -> float:
    """The time to reserve for work that took so long before."""
    return c.RESERVE_SAFETY * max(0.0, seconds) + c.RESERVE_SECONDS


def _within(intervals: Sequence[Interval], gap: tuple[float, float], kinds: set[str]) -> float:
    """Seconds of the intervals of these kinds within a gap."""
    begin, end = gap
    return sum(i.seconds for i in intervals if i.kind in kinds and begin <= i.start < end)


def last_search_seconds(state: CampaignState) -> float:
    """Seconds for the last choice of the ensemble: as planned, longer where time is left over, shorter where it is not."""
    planned = search_seconds(state.deadline)
    spare = state.remaining - (reserved_seconds((), state) - planned)
    return min(c.MAX_SEARCH_FACTOR * planned, max(c.FIRST_SEARCH_SECONDS, spare))


def views_in_time(state: CampaignState, name: str) -> tuple[View, ...]:
    """The TTA views in which a trained segment predicts: after the last segment, no more than there is time for.

    Args:
        state: now; the segment's record has the seconds of an image.
        name: the name of the segment.
    """
    views, record = affordable_views(state), state.record(name)
    if state.still_learning and record is not None and record.role == Role.EXTENDED:
        return views[:1]  # cooldown runs take its place
    segments = plan_segments(state)
    if state.busy or any(state.is_open(s.name) for s in segments if s.name != name):
        return views  # the strategy lowers the number of views for the segments to come
    soups = (soup for soup, _ in planned_soups(state).values())
    segment = next((s for s in (*segments, *soups) if s.name == name), None)
    if segment is None:
        return views
    seconds = image_seconds(segment, state)
    records = tuple(replace(r, state="done") if r.name == name else r for r in state.segments)
    predicted = None if state.test_predicted is None else state.test_predicted | {name}  # `own` counts its test images
    for number in range(len(views), 1, -1):
        after = replace(state, segments=records, max_views=number, test_predicted=predicted)
        own = state.num_test * seconds + state.num_val * seconds * (view_cost(after) - c.PLAIN_VIEW.cost)
        if reserved_seconds((), after) + own <= state.remaining:
            return views[:number]
    return views[:1]
