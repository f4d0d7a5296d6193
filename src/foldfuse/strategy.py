"""Strategies: what a campaign trains next, as functions of what the ledger knows and of the time. No torch, no files.

A strategy is asked again whenever something has been done. It names the next segment and the seconds it may train, or
says that training is over. Because it keeps nothing in mind, a campaign that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from foldfuse.ledger import Row
from foldfuse.recipes import Recipe
from foldfuse.tta import View, parse_views

MARGIN = 0.01  # share of the deadline kept free at the end, against surprises
FINISH = 5.0  # seconds for the last submission and report
VIEWS = parse_views(["1", "1+hflip", "1.25"])
TRUNK_SHARE = 0.5  # of the training time; the branches share the rest alike
PREDICTING_SHARE = 0.3  # of the deadline: predictions that would need more are done with fewer views
SHORTEST = 5.0  # seconds: with less a member is not begun
CROPS_LEARNT, CROPS_PER_PICTURE = 1500, 30  # what the second opinion looks at
CROP_COST = 0.007  # seconds of one crop: seen on one slow core
OPINION_SHARE = 0.1  # of the deadline: a second opinion that would need more is not asked for
PIXEL_COST = 0.03 / 256**2  # seconds of one pixel's prediction, until one has been measured


@dataclass(frozen=True)
class Segment:
    """A piece of training that ends with a member.

    Attributes:
        name: of the member, and of its folder.
        recipe: how it is trained.
        seed: of its random choices.
        share: how much of the training time it is to have, against others of the same plan.
        parent: the segment whose last state it begins with; None for a start from the recipe's weights.
        fold: that it does not learn from.
    """

    name: str
    recipe: Recipe
    seed: int
    share: float
    parent: str | None = None
    fold: int = 0


@dataclass(frozen=True)
class Standing:
    """All that a strategy looks at.

    Attributes:
        recipe: that members are made of.
        sizes: image sizes that are allowed; empty for all.
        seed: of every random choice.
        deadline, used: seconds.
        num_held, num_target: pictures that each member predicts: those held back, and those to submit.
        rows: the segments so far.
        cost: seconds that one picture takes in one view at the recipe's size, where a plan has measured it.
        busy: names of segments that are being trained at this moment elsewhere; a strategy names another one, or waits.
        workers: how many segments can be trained at once.
    """

    recipe: Recipe
    sizes: tuple[int, ...]
    seed: int
    deadline: float
    used: float
    num_held: int
    num_target: int
    rows: tuple[Row, ...] = ()
    cost: float | None = None
    busy: frozenset[str] = frozenset()
    workers: int = 1

    @property
    def pictures(self) -> int:
        """How many each member predicts."""
        return self.num_held + self.num_target

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - self.used

    @property
    def states(self) -> Mapping[str, str]:
        """{segment: its state}."""
        return {row.name: row.state for row in self.rows}

    def row(self, name: str) -> Row | None:
        """What the ledger knows of a segment; None where it has not begun."""
        return next((row for row in self.rows if row.name == name), None)


@dataclass(frozen=True)
class Next:
    """What to do next.

    Attributes:
        segment: to train; None where training is over.
        seconds: that it may have had in all when it ends.
        left_out: names of planned segments for which no time is left.
        wait: nothing can be begun until a busy segment ends; training is not over.
    """

    segment: Segment | None
    seconds: float = 0.0
    left_out: tuple[str, ...] = ()
    wait: bool = False


Strategy = Callable[[Standing], Next]


def trunk_and_branches(standing: Standing) -> Next:
    """The trunk, then its branches, each with its share of the time that is left for training."""
    planned, states = plan(standing), standing.states
    for i, part in enumerate(planned):
        if states.get(part.name, "running") != "running":
            continue
        row = standing.row(part.name)
        had = row.seconds if row is not None else 0.0
        seconds = training_seconds(planned[i:], standing)
        if seconds < SHORTEST and not had:
            return Next(None, left_out=tuple(p.name for p in planned[i:]))
        if row is None and part.parent is not None and states[part.parent] == "failed":
            part = adopted(part, standing)
        return Next(part, max(seconds, had))
    return Next(None)


def adopted(part: Segment, standing: Standing) -> Segment:
    """A branch whose trunk failed: it goes on from the first that did not fail, or is a trunk itself."""
    whole = next((row.name for row in standing.rows if row.state == "done" and row.kind == "train"), None)
    if whole is not None:
        return replace(part, parent=whole)
    own = replace(standing.recipe, image_size=part.recipe.image_size, batch_size=part.recipe.batch_size)
    return replace(part, recipe=level(own), parent=None)


def plan(standing: Standing) -> tuple[Segment, ...]:
    """The trunk first, then its branches: sizes around the recipe's, each with a seed of its own."""
    recipe, size = standing.recipe, standing.recipe.image_size
    sides = [max(128, round(size * 0.8 / 32) * 32), size, round(size * 1.2 / 32) * 32]
    if standing.sizes:
        sides = [min(standing.sizes, key=lambda allowed: (abs(allowed - side), allowed)) for side in sides]
    made: list[Segment] = []
    for i, side in enumerate(sides):
        own = replace(recipe, image_size=side, batch_size=batch_size(recipe, side))
        seed = standing.seed * 1000 + i
        if i == 0:
            made.append(Segment(f"trunk-{side}", level(own), seed, TRUNK_SHARE))
        else:
            share = (1 - TRUNK_SHARE) / (len(sides) - 1)
            made.append(Segment(f"branch{i}-{side}", falling(own), seed, share, parent=made[0].name))
    return tuple(made)


def level(recipe: Recipe) -> Recipe:
    """The recipe of a trunk: the learning rate stays up."""
    return replace(recipe, decay_from=1.0)


def falling(recipe: Recipe) -> Recipe:
    """The recipe of what goes on from a trunk: the learning rate falls to 0."""
    return replace(recipe, warmup=0.0, decay_from=0.0, mosaic_until=min(0.4, recipe.mosaic_until))


def batch_size(recipe: Recipe, side: int) -> int:
    """Pictures of a step at another size. Its memory goes with the pixels: larger pictures come fewer at a time."""
    return max(2, min(recipe.batch_size, round(recipe.batch_size * (recipe.image_size / side) ** 2)))


def training_seconds(parts: Sequence[Segment], standing: Standing) -> float:
    """Seconds that the first of `parts` may train in all: what it had, and its share of what is left for training.

    What a segment that was killed had already counts against its share.
    """
    row = standing.row(parts[0].name)
    had = row.seconds if row is not None else 0.0
    share = parts[0].share * (1 - had / row.budget if row is not None and row.budget else 1)
    free = standing.left - reserve(parts, standing)
    return had + free * share / (share + sum(p.share for p in parts[1:]))


def reserve(parts: Sequence[Segment], standing: Standing) -> float:
    """Seconds that must be kept for all but the training of `parts`: their predictions, the choice, the delivery."""
    per_picture = sum(cost_of(part, standing) for part in parts) * sum(v.scale**2 for v in views(standing))
    held_back = MARGIN * standing.deadline + FINISH + search_seconds(standing.deadline) + 4.0 * len(parts)
    return held_back + opinion_seconds(standing) + standing.pictures * per_picture


def search_seconds(deadline: float) -> float:
    """Seconds for the last choice of the ensemble."""
    return min(60.0, max(3.0, 0.012 * deadline))


def opinion_seconds(standing: Standing) -> float:
    """Seconds for the second opinion; 0 where it would take too much of the deadline."""
    seconds = CROP_COST * (CROPS_LEARNT + CROPS_PER_PICTURE * standing.pictures)
    return seconds if seconds <= OPINION_SHARE * standing.deadline else 0.0


def cost_of(part: Segment, standing: Standing) -> float:
    """Seconds that one picture takes in one view: as measured, else taken from members measured at other sizes."""
    measured = {row.name: row for row in standing.rows if "cost" in row.result and row.recipe}
    if part.name in measured:
        return float(measured[part.name].result["cost"])
    per_pixel = [row.result["cost"] / row.recipe["image_size"] ** 2 for row in measured.values()]
    guess = PIXEL_COST if standing.cost is None else standing.cost / standing.recipe.image_size**2
    return part.recipe.image_size**2 * (max(per_pixel) if per_pixel else guess)


def views(standing: Standing) -> tuple[View, ...]:
    """As many of `VIEWS` as a fair share of the deadline allows for all members."""
    once = standing.pictures * sum(cost_of(part, standing) for part in plan(standing))
    chosen = VIEWS
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
class Outlook:
    """How the time is to be spent, as far as is known now.

    Attributes:
        segments: done, under way and planned.
        reserved: {what for: seconds that are kept for it}.
        views: in which members are to look at each picture.
    """

    segments: tuple[Part, ...]
    reserved: Mapping[str, float]
    views: tuple[str, ...]


def outlook(standing: Standing) -> Outlook:
    """The plan of trunk and branches as it is now: what is over as it was, what is to come as it is planned."""
    planned = plan(standing)
    coming = [part for part in planned if standing.states.get(part.name, "running") == "running"]
    seconds = max(0.0, training_seconds(coming, standing)) if coming else 0.0
    parts = []
    for part in planned:
        row = standing.row(part.name)
        if part not in coming:
            assert row is not None
            spent, state = row.seconds, row.state
        else:
            spent, state = seconds * part.share / coming[0].share, "planned" if row is None else row.state
        parts.append(Part(part.name, part.recipe.image_size, part.recipe.batch_size, state, round(spent, 1)))
    looks = sum(v.scale**2 for v in views(standing))
    each = sum(cost_of(part, standing) for part in coming) * looks
    reserved = {
        "predict the held-back pictures": standing.num_held * each,
        "predict the pictures to submit": standing.num_target * each,
        "choose the ensemble": search_seconds(standing.deadline),
        "a second opinion": opinion_seconds(standing),
        "the rest": MARGIN * standing.deadline + FINISH + 4.0 * len(coming),
    }
    return Outlook(tuple(parts), {k: round(v, 1) for k, v in reserved.items()}, tuple(map(str, views(standing))))
