"""Strategies: pick the segment that a campaign trains next, and for how long, from the campaign's state. No torch, no files.

The runner calls the strategy whenever work has finished. The strategy names the next segment and the seconds that it may
train, or ends the training. A strategy is a pure function of the state, so that a killed campaign resumes with the same plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from foldfuse.campaign import constants as c
from foldfuse.campaign.planning.segments import at_image_size, constant_lr, plan_segments
from foldfuse.campaign.planning.soups import pending_soups
from foldfuse.campaign.planning.state import CampaignState, Segment
from foldfuse.inference.rescorer import ENCODING_SHARE
from foldfuse.inference.tta import View
from foldfuse.storage.segments import Role


@dataclass(frozen=True)
class Decision:
    """The next step of a campaign.

    Attributes:
        segment: the segment to train; None if no segment can start: training is over, or a busy segment must finish first.
        seconds: total seconds of training when the segment ends.
        num_views: number of `candidate_views` that fit into the time from now on.
        folds: the folds that fit into the time from now on.
    """

    segment: Segment | None
    seconds: float = 0.0
    num_views: int = len(c.VIEWS)
    folds: tuple[int, ...] = (0,)


Strategy = Callable[[CampaignState], Decision]


def successive_halving(state: CampaignState) -> Decision:
    """The first segment of the plan that is neither over nor busy, with its share of the remaining training time.

    Where the time does not suffice for all segments, the last folds that have not begun, or with base runs alone, are left out,
    one after another; and where there is no member yet, the segment gets all of the time at last.
    """
    begun = {record.fold for record in state.segments if record.role != Role.BASE}
    decision = _next_segment(state)
    while decision.segment is None and not state.busy and len(state.folds) > 1 and state.folds[-1] not in begun:
        state = replace(state, folds=state.folds[:-1])
        decision = _next_segment(state)
    return decision if decision.segment is not None else _next_segment(state, alone=True)


def _next_segment(state: CampaignState, *, alone: bool = False) -> Decision:
    """The next segment of the plan; `alone` if no other is to follow where it is a first member."""
    unfinished = [segment for segment in plan_segments(state) if state.is_open(segment.name)]
    free = [segment for segment in unfinished if segment.name not in state.busy]
    if not free or free[0].round > unfinished[0].round:
        return Decision(None)
    segment, record = free[0], state.record(free[0].name)
    trained = record.seconds if record is not None else 0.0
    # A member without a soup or in fewer views is better than none, and a first member without others better than no submission.
    views = len(affordable_views(state))
    choices = [(unfinished, views, True), *((unfinished, num_views, False) for num_views in range(views, 0, -1))]
    if alone and not state.busy and not any(record.state in ("trained", "done") for record in state.segments):
        choices.append(([segment], 1, False))
    for trained_segments, num_views, soups in choices:
        seconds = training_seconds(segment, trained_segments, replace(state, max_views=num_views, soups=soups))
        if seconds >= c.MIN_SEGMENT_SECONDS or trained:
            segment = segment if trained_segments is unfinished else on_its_own(segment, state)
            break
    else:
        return Decision(None)
    if record is None and segment.parent is not None and state.state_of(segment.parent) == "failed":
        segment = with_new_parent(segment, state)
    return Decision(segment, max(seconds, trained), num_views, state.folds)


def on_its_own(segment: Segment, state: CampaignState) -> Segment:
    """The base run as a training without a cooldown run after it: its learning rate decays as the recipe says."""
    if segment.role != Role.BASE:
        return segment
    own = next(recipe for recipe in state.recipes.values() if recipe.detector == segment.recipe.detector)
    return replace(segment, recipe=at_image_size(own, segment.recipe.image_size))


def with_new_parent(segment: Segment, state: CampaignState) -> Segment:
    """The segment with another run of the same detector and fold as parent, in place of a failed one; without any, a base run."""
    done = [
        record
        for record in state.segments
        if record.state == "done" and record.role.has_checkpoint and record.fold == segment.fold
    ]
    parent = next((record.name for record in done if record.recipe["detector"] == segment.recipe.detector), None)
    if parent is not None:
        return replace(segment, parent=parent)
    own = next(recipe for recipe in state.recipes.values() if recipe.detector == segment.recipe.detector)
    return replace(segment, recipe=constant_lr(at_image_size(own, segment.recipe.image_size)), parent=None)


def training_seconds(segment: Segment, unfinished: Sequence[Segment], state: CampaignState) -> float:
    """Total seconds that `segment` may train: the seconds trained so far, plus its share of the remaining training time.

    Time that a killed segment has had counts against its share. Segments of one round share the workers.
    """
    record = state.record(segment.name)
    trained = record.seconds if record is not None else 0.0
    share = segment.share * (1 - trained / record.budget if record is not None and record.budget else 1)
    free = state.remaining - reserved_seconds(unfinished, state)
    rounds: dict[int, list[float]] = {}
    for other in unfinished:
        rounds.setdefault(other.round, []).append(share if other is segment else other.share)
    total = sum(sum(shares) / min(state.num_workers, len(shares)) for shares in rounds.values())
    return trained + free * share / total


def reserved_seconds(segments: Sequence[Segment], state: CampaignState) -> float:
    """Seconds for everything but the training of `segments`: predictions, ensemble, rescoring and delivery."""
    to_predict = (*segments, *pending_soups(state))
    per_image = sum(image_seconds(segment, state) for segment in to_predict) * view_cost(state)
    fixed = margin_seconds(state.deadline) + delivery_seconds(state) + search_seconds(state.deadline)
    overhead = overhead_seconds(len(to_predict), state)
    return fixed + overhead + rescoring_seconds(state) + pending_view_seconds(state) + state.num_images * per_image


def margin_seconds(deadline: float) -> float:
    """Seconds kept free before the deadline for surprises."""
    return min(c.MAX_MARGIN_SECONDS, c.MARGIN_SHARE * deadline)


def delivery_seconds(state: CampaignState) -> float:
    """Seconds for the last submission and the report."""
    return state.slowdown * state.reserves.delivery


def overhead_seconds(num_segments: int, state: CampaignState) -> float:
    """Seconds for the work around the training of so many segments; after the last one, only its files are written."""
    own, between = state.reserves.overhead * num_segments, state.reserves.between * max(0, num_segments - 1)
    return state.slowdown * (own + between)


def view_cost(state: CampaignState) -> float:
    """Cost of predicting an image in its views, in units of the plain view."""
    return sum(view.cost for view in affordable_views(state))


def pending_view_seconds(state: CampaignState) -> float:
    """Seconds still needed to predict the remaining TTA views of the test images with finished members.

    Before the last choice of the ensemble, members predict the test images in the plain view alone, and those of a later fold not
    at all until the fold has all its members. Members with next to no weight in the ensemble so far get no time for more views:
    it goes to the segments still to come.
    """
    measured = (r for r in state.segments if r.state == "done" and "image_seconds" in r.result)
    used = [r for r in measured if not is_light(r.result.get("weight"))]
    views, predicted = view_cost(state), state.test_predicted
    seconds = sum(
        record.result["image_seconds"]
        * (views - (c.PLAIN_VIEW.cost if predicted is None or record.name in predicted else 0.0))
        for record in used
    )
    return float(state.slowdown * state.num_test * seconds)


def is_light(weight: float | None) -> bool:
    """Whether a member has next to no part in the ensemble, by its share of all weights; no where that is not known yet."""
    return weight is not None and weight < c.LIGHT_WEIGHT


def search_seconds(deadline: float) -> float:
    """Seconds for the final choice of the ensemble."""
    return min(c.MAX_SEARCH_SECONDS, max(c.MIN_SEARCH_SECONDS, c.SEARCH_SHARE * deadline))


def rescoring_seconds(state: CampaignState) -> float:
    """Seconds for crop rescoring; 0 where it would take too much of the deadline, or wrong classes cost too little."""
    if state.class_error_cost is not None and state.class_error_cost < c.MIN_CLASS_ERROR_COST:
        return 0.0
    objects = object_crop_count(state.num_objects) * state.reserves.object_crop
    val, test = (
        state.crops_per_image * number * state.reserves.crop
        for number in (state.num_val * len(state.folds), state.num_test)
    )
    seconds = state.slowdown * ((objects + val) / ENCODING_SHARE + test)
    most = max(c.MAX_RESCORING_SHARE * state.deadline, c.SHORT_RESCORING_SECONDS)
    return seconds if seconds <= min(most, c.SHORT_RESCORING_SHARE * state.deadline) else 0.0


def object_crop_count(num_objects: int) -> int:
    """How many crops of annotated objects crop rescoring encodes: of few objects the mirror images too."""
    return 2 * num_objects if 2 * num_objects <= c.RESCORING_TRAIN_CROPS else min(num_objects, c.RESCORING_TRAIN_CROPS)


def crops_per_image(num_objects: int, num_images: int) -> int:
    """How many detections of an image crop rescoring rescores, where so many annotated images have so many objects."""
    wanted = round(c.CROPS_PER_OBJECT * num_objects / max(1, num_images))
    return max(c.MIN_CROPS_PER_IMAGE, min(c.MAX_CROPS_PER_IMAGE, wanted))


def image_seconds(segment: Segment, state: CampaignState) -> float:
    """Seconds of one image in the plain view now: as measured, else scaled by pixels from other members."""
    measured = {record.name: record for record in state.segments if "image_seconds" in record.result and record.recipe}
    if segment.name in measured:
        return state.slowdown * float(measured[segment.name].result["image_seconds"])
    alike = [record for record in measured.values() if record.recipe["detector"] == segment.recipe.detector]
    per_pixel = [
        record.result["image_seconds"] / record.recipe["image_size"] ** 2 for record in alike or measured.values()
    ]
    return state.slowdown * segment.recipe.image_size**2 * max(per_pixel, default=state.pixel_seconds)


def candidate_views(*, tiles: bool) -> tuple[View, ...]:
    """The TTA views that members may predict in, in the order of their gain per second; the plain view first."""
    return c.TILED_VIEWS if tiles else c.VIEWS


def affordable_views(state: CampaignState) -> tuple[View, ...]:
    """As many `candidate_views` as all members can predict within `MAX_PREDICTION_SHARE` of the deadline; at least one."""
    plain = state.num_images * sum(image_seconds(segment, state) for segment in plan_segments(state))
    views = candidate_views(tiles=state.tiles)[: state.max_views]
    limit = c.MAX_PREDICTION_SHARE * state.deadline
    while len(views) > 1 and plain * sum(view.cost for view in views) > limit:
        views = views[:-1]
    return views


@dataclass(frozen=True)
class PlannedSegment:
    """A line of the plan: a segment, its state, and its training time in seconds, past or planned."""

    name: str
    image_size: int
    batch_size: int
    state: str
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The plan of a campaign: the time for each segment and for all other work, as far as known now.

    Attributes:
        segments: finished, running and planned.
        reserved: {purpose: seconds reserved for it}.
        views: TTA views in which members predict each image.
    """

    segments: tuple[PlannedSegment, ...]
    reserved: Mapping[str, float]
    views: tuple[str, ...]


def make_plan(state: CampaignState) -> Plan:
    """The current plan: finished segments with their measured time, unfinished segments with their planned time."""
    planned = plan_segments(state)
    unfinished = [segment for segment in planned if state.is_open(segment.name)]
    first = max(0.0, training_seconds(unfinished[0], unfinished, state)) if unfinished else 0.0
    lines = []
    for segment in planned:
        if segment in unfinished:
            seconds = first * segment.share / unfinished[0].share
        else:
            record = state.record(segment.name)
            assert record is not None, "a finished segment has a record"
            seconds = record.seconds
        recipe = segment.recipe
        lines.append(
            PlannedSegment(
                segment.name, recipe.image_size, recipe.batch_size, state.state_of(segment.name), round(seconds, 1)
            )
        )
    to_predict = (*unfinished, *pending_soups(state))
    per_image = sum(image_seconds(segment, state) for segment in to_predict) * view_cost(state)
    other = margin_seconds(state.deadline) + delivery_seconds(state) + overhead_seconds(len(to_predict), state)
    reserved = {
        "predict the held-out images": state.num_val * per_image,
        "predict the test images": state.num_test * per_image + pending_view_seconds(state),
        "search the ensemble": search_seconds(state.deadline),
        "crop rescoring": rescoring_seconds(state),
        "overhead and margin": other,
    }
    rounded = {name: round(seconds, 1) for name, seconds in reserved.items()}
    return Plan(tuple(lines), rounded, tuple(map(str, affordable_views(state))))
