"""`SegmentRecord`: one segment of a campaign in its ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal


class Role(StrEnum):
    """The part of a segment in the campaign's schedule, or where an external member comes from."""

    BASE = "base"  # trains at a constant learning rate from the recipe's initial weights
    EXTENDED = "extended"  # continues a promoted base run at a larger image size, still at a constant rate
    COOLDOWN = "cooldown"  # continues a base or extended run while the learning rate decays to 0
    SOUP = "soup"  # the mean of the weights of cooldown runs with one parent
    EXTERNAL_RUN = "external_run"  # a run folder trained outside the campaign
    EXTERNAL_PREDICTIONS = "external_predictions"  # another toolkit's predictions

    @property
    def has_checkpoint(self) -> bool:
        """Whether the campaign trained the member itself, so that another segment can continue it."""
        return not self.is_external and self != Role.SOUP

    @property
    def is_external(self) -> bool:
        """Whether the campaign did not train the member itself."""
        return self in (Role.EXTERNAL_RUN, Role.EXTERNAL_PREDICTIONS)


def member_of(name: str, *, role: Role | None, fold: int | None) -> str:
    """The member that a segment makes: its name without its fold. Segments of several folds with one name are one member."""
    return name if role is not None and role.is_external else name.removesuffix(f"-fold{fold}")


State = Literal["running", "trained", "done", "failed"]


@dataclass(frozen=True)
class SegmentRecord:
    """One segment in the ledger.

    Attributes:
        name: the name of the segment, of the member that it makes, and of its folder.
        role: part in the schedule.
        recipe: fields of its recipe; empty for external predictions.
        parent: the segment whose last checkpoint it starts from.
        fold: held-out fold.
        seed: the seed of its random choices.
        state: "running", "trained", "done" (the held-out images are predicted) or "failed".
        budget: seconds of training that it is given.
        seconds: seconds trained, up to its last checkpoint.
        started, ended: seconds since the campaign's start.
        result: scores and measurements for the report; "image_seconds" is the seconds that one image takes in the plain view.
    """

    name: str
    role: Role
    recipe: Mapping[str, Any]
    parent: str | None
    fold: int
    seed: int
    state: State
    budget: float
    seconds: float
    started: float
    ended: float | None
    result: Mapping[str, Any]
