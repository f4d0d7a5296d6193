"""Promotion: members in the order in which they are worth going on with, which is that of what they add to an ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from foldfuse.data import Dataset
from foldfuse.detections import Predictions
from foldfuse.fuse import fuse
from foldfuse.metrics import measure

LEAST_ADDED = 0.01  # of the metric: a member that adds less to those before it does not go on


def worth_going_on(ranked: Sequence[tuple[str, float]]) -> list[str]:
    """Names of the best, and of those that add enough to the ones before them, of what `by_gain` gave."""
    values = [0.0, *(value for _, value in ranked)]
    return [name for i, (name, value) in enumerate(ranked) if i == 0 or value - max(values[: i + 1]) >= LEAST_ADDED]


def by_gain(members: Mapping[str, Predictions], dataset: Dataset, *, metric: str) -> list[tuple[str, float]]:
    """The best member, then each time the one with which those before it fuse best; with the value of the ensemble so far.

    A member that is good where the others are good already comes after one that is worse and sees what they do not.

    Args:
        members: {name: predictions of the pictures of `dataset`}.
        dataset: annotated.
        metric: ap50, ap, f2 or wheat.
    """
    chosen: list[tuple[str, float]] = []
    while len(chosen) < len(members):
        so_far = [members[name] for name, _ in chosen]
        values = {
            name: measure(fuse([*so_far, member]) if so_far else member, dataset, metric=metric)
            for name, member in members.items()
            if name not in dict(chosen)
        }
        best = max(values, key=lambda name: values[name])
        chosen.append((best, values[best]))
    return chosen
