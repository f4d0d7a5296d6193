"""Strategies: what a campaign trains next and for how long, from where it stands. No torch, no files.

A strategy is asked again whenever something has been done. It names the next segment and the seconds it may train, or
says that training is over. Because it keeps nothing in mind, a campaign that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from foldfuse.campaign.planning.segments import level, plan, sized
from foldfuse.campaign.planning.state import CampaignState, Segment
from foldfuse.inference.tta import View, parse_views

MARGIN = 0.01  # share of the deadline kept free at the end, against surprises
FINISH = 5.0  # seconds for the last submission and report
VIEWS = parse_views(["1", "1+hflip", "1.25"])
PREDICTING_SHARE = 0.3  # of the deadline: predictions that would need more are done with fewer views
SHORTEST = 5.0  # seconds: with less a member is not begun
CROPS_LEARNT, CROPS_PER_PICTURE = 1500, 30  # what the second opinion looks at
CROP_COST = 0.007  # seconds of one crop: seen on one slow core
OPINION_SHARE = 0.1  # of the deadline: a second opinion that would need more is not asked for
PIXEL_COST = 0.03 / 256**2  # seconds of one pixel's prediction, until one has been measured


@dataclass(frozen=True)
class Decision:
    """What to do next.

    Attributes:
        segment: to train; None where nothing can be begun: training is over, or a busy segment must end first.
        seconds: that it may have had in all when it ends.
        views: in how many of `VIEWS` pictures may be looked at from now on, so that there is time for it.
    """

    segment: Segment | None
    seconds: float = 0.0
    views: int = len(VIEWS)


Strategy = Callable[[CampaignState], Decision]


def successive_halving(standing: CampaignState) -> Decision:
    """The first segment of the plan that is not over nor busy, with its share of the time that is left for training."""
    planned = plan(standing)
    open_now = [part for part in planned if standing.states.get(part.name, "running") == "running"]
    free = [part for part in open_now if part.name not in standing.busy]
    if not free or free[0].rung > open_now[0].rung:
        return Decision(None)
    part = free[0]
    row = standing.row(part.name)
    had = row.seconds if row is not None else 0.0
    for number in range(len(views(standing)), 0, -1):  # a member in fewer views is worth more than none
        seconds = training_seconds(part, open_now, replace(standing, most_views=number))
        if seconds >= SHORTEST or had:
            break
    else:
        return Decision(None)
    if row is None and part.parent is not None and standing.states[part.parent] == "failed":
        part = adopted(part, standing)
    return Decision(part, max(seconds, had), number)


def adopted(part: Segment, standing: CampaignState) -> Segment:
    """What was to go on from a segment that failed: it goes on from the first of its detector that did not, or is a trunk."""
    whole = [row for row in standing.rows if row.state == "done" and row.kind == "train"]
    near = next((row.name for row in whole if row.recipe["detector"] == part.recipe.detector), None)
    if near is not None:
        return replace(part, parent=near)
    own = next(r for r in standing.recipes.values() if r.detector == part.recipe.detector)
    return replace(part, recipe=level(sized(own, part.recipe.image_size)), parent=None)


def training_seconds(part: Segment, coming: Sequence[Segment], standing: CampaignState) -> float:
    """Seconds that `part` may train in all: what it had, and its share of what is left for training.

    What a segment that was killed had already counts against its share. Segments of one rung are trained side by side
    where there are workers for them.
    """
    row = standing.row(part.name)
    had = row.seconds if row is not None else 0.0
    share = part.share * (1 - had / row.budget if row is not None and row.budget else 1)
    free = standing.remaining - reserve(coming, standing)
    rungs: dict[int, list[float]] = {}
    for other in coming:
        rungs.setdefault(other.rung, []).append(share if other is part else other.share)
    rounds = sum(sum(shares) / min(standing.workers, len(shares)) for shares in rungs.values())
    return had + free * share / rounds


def reserve(parts: Sequence[Segment], standing: CampaignState) -> float:
    """Seconds that must be kept for all but the training of `parts`: predictions, the choice, the delivery."""
    per_picture = sum(cost_of(part, standing) for part in parts) * looks(standing)
    held_back = MARGIN * standing.deadline + FINISH + search_seconds(standing.deadline) + 4.0 * len(parts)
    owed = owed_seconds(standing)
    return held_back + opinion_seconds(standing) + owed + standing.pictures * per_picture


def looks(standing: CampaignState) -> float:
    """How many plain views a picture's views cost."""
    return sum(v.scale**2 for v in views(standing))


def owed_seconds(standing: CampaignState) -> float:
    """Seconds for the views of the pictures to submit that members which are done have not been asked for yet.

    Before the last choice members are asked for their plain views alone.
    """
    done = [row for row in standing.rows if row.state == "done" and "cost" in row.result]
    more = max(0.0, looks(standing) - VIEWS[0].scale ** 2)
    return float(standing.num_target * more * sum(row.result["cost"] for row in done))


def search_seconds(deadline: float) -> float:
    """Seconds for the last choice of the ensemble."""
    return min(60.0, max(3.0, 0.012 * deadline))


def opinion_seconds(standing: CampaignState) -> float:
    """Seconds for the second opinion; 0 where it would take too much of the deadline."""
    seconds = CROP_COST * (CROPS_LEARNT + CROPS_PER_PICTURE * standing.pictures)
    return seconds if seconds <= OPINION_SHARE * standing.deadline else 0.0


def cost_of(part: Segment, standing: CampaignState) -> float:
    """Seconds that one picture takes in one view: as measured, else taken from members measured at other sizes."""
    measured = {row.name: row for row in standing.rows if "cost" in row.result and row.recipe}
    if part.name in measured:
        return float(measured[part.name].result["cost"])
    alike = [row for row in measured.values() if row.recipe["detector"] == part.recipe.detector]
    per_pixel = [row.result["cost"] / row.recipe["image_size"] ** 2 for row in alike or measured.values()]
    guess = PIXEL_COST if standing.cost is None else standing.cost / standing.recipe.image_size**2
    return part.recipe.image_size**2 * (max(per_pixel) if per_pixel else guess)


def views(standing: CampaignState) -> tuple[View, ...]:
    """As many of `VIEWS` as a fair share of the deadline allows for all members."""
    once = standing.pictures * sum(cost_of(part, standing) for part in plan(standing))
    chosen = VIEWS[: standing.most_views]
    while len(chosen) > 1 and once * sum(v.scale**2 for v in chosen) > PREDICTING_SHARE * standing.deadline:
        chosen = chosen[:-1]
    return chosen


@dataclass(frozen=True)
class Part:
    """A line of the plan: a segment, how far it is, and the seconds that it has had or is to have."""

    name: str
    image_size: int
    batch_size: int
    state: str
    seconds: float


@dataclass(frozen=True)
class Plan:
    """How the time is to be spent, as far as is known now.

    Attributes:
        segments: done, under way and planned.
        reserved: {what for: seconds that are kept for it}.
        views: in which members are to look at each picture.
    """

    segments: tuple[Part, ...]
    reserved: Mapping[str, float]
    views: tuple[str, ...]


def outlook(standing: CampaignState) -> Plan:
    """The plan as it is now: what is over as it was, what is to come as it is planned."""
    planned = plan(standing)
    coming = [part for part in planned if standing.states.get(part.name, "running") == "running"]
    seconds = max(0.0, training_seconds(coming[0], coming, standing)) if coming else 0.0
    parts = []
    for part in planned:
        row = standing.row(part.name)
        if part not in coming:
            assert row is not None
            spent, state = row.seconds, row.state
        else:
            spent, state = seconds * part.share / coming[0].share, "planned" if row is None else row.state
        parts.append(Part(part.name, part.recipe.image_size, part.recipe.batch_size, state, round(spent, 1)))
    each = sum(cost_of(part, standing) for part in coming) * looks(standing)
    reserved = {
        "predict the held-back pictures": standing.num_held * each,
        "predict the pictures to submit": standing.num_target * each + owed_seconds(standing),
        "choose the ensemble": search_seconds(standing.deadline),
        "a second opinion": opinion_seconds(standing),
        "the rest": MARGIN * standing.deadline + FINISH + 4.0 * len(coming),
    }
    return Plan(tuple(parts), {k: round(v, 1) for k, v in reserved.items()}, tuple(map(str, views(standing))))
