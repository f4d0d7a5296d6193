"""Where a campaign stands: all that decides what it trains next. No torch, no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from foldfuse.recipes import Recipe
from foldfuse.storage.ledger import SegmentRecord


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
        rung: 0 for a trunk; a segment is only begun when those of lower rungs are over.
        pseudo: whether it learns from what the ensemble finds in the pictures to submit, too.
    """

    name: str
    recipe: Recipe
    seed: int
    share: float
    parent: str | None = None
    fold: int = 0
    rung: int = 0
    pseudo: bool = False


@dataclass(frozen=True)
class CampaignState:
    """All that a strategy looks at.

    Attributes:
        recipes: {name: recipe} that members may be made of, the one to begin with first.
        sizes: image sizes that are allowed; empty for all.
        seed: of every random choice.
        deadline, elapsed: seconds.
        num_held, num_target: pictures that each member predicts: those held back, and those to submit.
        rows: the segments so far.
        steps: {name of a recipe: seconds of one of its steps as a trunk}, as measured; those not named are not tried.
        ranking: names of the trunks that add enough to the ensemble, the best first; empty until all have been predicted.
        cost: seconds that one picture takes in one view at the first recipe's size, where a plan has measured it.
        busy: names of segments that are being trained at this moment elsewhere; a strategy names another one, or waits.
        workers: how many segments can be trained at once.
        pseudo: whether the last branches are to learn from pseudo-labels, too.
        most_views: in which a picture is looked at, where time has turned out short; None for no such limit.
    """

    recipes: Mapping[str, Recipe]
    sizes: tuple[int, ...]
    seed: int
    deadline: float
    elapsed: float
    num_held: int
    num_target: int
    rows: tuple[SegmentRecord, ...] = ()
    steps: Mapping[str, float] = field(default_factory=dict)
    ranking: tuple[str, ...] = ()
    cost: float | None = None
    busy: frozenset[str] = frozenset()
    workers: int = 1
    pseudo: bool = False
    most_views: int | None = None

    @property
    def recipe(self) -> Recipe:
        """The one to begin with."""
        return next(iter(self.recipes.values()))

    @property
    def pictures(self) -> int:
        """How many each member predicts."""
        return self.num_held + self.num_target

    @property
    def remaining(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - self.elapsed

    @property
    def states(self) -> Mapping[str, str]:
        """{segment: its state}."""
        return {row.name: row.state for row in self.rows}

    def row(self, name: str) -> SegmentRecord | None:
        """What the ledger knows of a segment; None where it has not begun."""
        return next((row for row in self.rows if row.name == name), None)
