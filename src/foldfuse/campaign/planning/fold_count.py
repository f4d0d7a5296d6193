"""How many folds a campaign trains: as many as leave the members of each enough training steps.

Members of one fold alone leave the held-out images unlearnt by every member, and the ensemble is chosen on that fold. Members of
several folds learn all images between them, and the ensemble is chosen on all held-out images; but each has a share of the time.
"""

from __future__ import annotations

from dataclasses import dataclass

from foldfuse.campaign import constants as c
from foldfuse.errors import counted

UNLESS = "If the first base run still learns fast at its end, 1 fold is trained for longer instead."


@dataclass(frozen=True)
class FoldCount:
    """The number of folds that are trained, and why."""

    number: int
    reason: str


def choose_number(available: int, num_folds: int, *, deadline: float, step_seconds: float | None) -> FoldCount:
    """The largest of `FOLD_COUNTS` that leaves each fold as many training steps as are asked; one fold where none does.

    Args:
        available: number of folds that can be held out.
        num_folds: number of all folds.
        deadline: seconds of the campaign.
        step_seconds: seconds of a training step of a base run with the default recipe, divided by the number of devices that
            train side by side; None where there is no time to measure one.
    """
    if step_seconds is None:
        return FoldCount(1, f"1 of {num_folds} folds is trained: there is too little time for more.")
    steps = c.TRAINING_SHARE * deadline / step_seconds
    possible = [number for number in c.FOLD_COUNTS if number <= available]
    number = max((n for n in possible if steps / n >= _asked_steps(n)), default=1)
    each = f"some {counted(_rounded(steps / number), 'step')}"
    if number == 1:
        more = min((n for n in possible if n > 1), default=None)
        why = (
            f"{more} would have some {counted(_rounded(steps / more), 'step')} each, "
            f"and at least {_asked_steps(more):,} are asked"
            if more is not None
            else "the others cannot be held out"
        )
        return FoldCount(1, f"1 of {num_folds} folds is trained, with time for {each}: {why}.")
    learnt = ", and its members learn every image between them" if number == num_folds else ""
    short = deadline < c.COMPARE_DEADLINE  # then there is a single base run; see `learning.settle_folds`
    unless = f" {UNLESS}" if short else ""
    return FoldCount(
        number,
        f"{number} of {num_folds} folds are trained, with time for {each} each: the ensemble is chosen on the held-out images "
        f"of all of them{learnt}.{unless}",
    )


def as_asked(number: int, num_folds: int, *, seconds: float) -> FoldCount:
    """The number that the user asked for; its reason tells where little time is left to each fold.

    Args:
        number: number of folds to train.
        num_folds: number of all folds.
        seconds: of training, of all devices together.
    """
    reason = f"{number} of {num_folds} folds {'is' if number == 1 else 'are'} trained, as --train-folds says."
    each = seconds / number
    if number > 1 and each < c.SHORT_FOLD_SECONDS:
        reason += (
            f" Each has some {each:.0f} s of training: with fewer folds, or --train-folds auto, members learn longer."
        )
    return FoldCount(number, reason)


def _asked_steps(number: int) -> int:
    """Steps that each of so many folds must have; one fold is trained in any time."""
    return 0 if number == 1 else c.MIN_FOLD_STEPS if number == 2 else c.MIN_STEPS_OF_MANY


def _rounded(steps: float) -> int:
    """The number of steps to two digits, since the speed is measured on a few."""
    digits = max(0, len(str(int(steps))) - 2)
    return int(round(steps / 10**digits) * 10**digits)
