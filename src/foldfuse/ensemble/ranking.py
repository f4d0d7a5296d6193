"""Promotion: members in the order in which they are worth going on with, which is that of what they add to an ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.evaluation.bootstrap import bootstrap_difference
from foldfuse.evaluation.metrics import measure
from foldfuse.fusion.methods import fuse

LEAST_ADDED = 0.01  # of the metric: a member that adds less to those before it does not go on
SURE = 0.95  # share of the draws of the pictures in which it must add something


class Ranked(NamedTuple):
    """A member with the value of the ensemble of it and those before it.

    `sure` is the share of draws of the pictures in which that is more than the best value before it had there.
    """

    name: str
    value: float
    sure: float


def worth_going_on(ranked: Sequence[Ranked]) -> list[str]:
    """Names of the best, and of those that add enough to the ones before them, and not by chance."""
    best, names = 0.0, list[str]()
    for member in ranked:
        if not names or (member.value - best >= LEAST_ADDED and member.sure >= SURE):
            names.append(member.name)
        best = max(best, member.value)
    return names


def by_gain(members: Mapping[str, Predictions], dataset: Dataset, *, metric: str) -> list[Ranked]:
    """The best member, then each time the one with which those before it fuse best.

    A member that is good where the others are good already comes after one that is worse and sees what they do not. What a
    member gains by being fused with itself alone, since boxes that overlap are joined, counts as its own.

    Args:
        members: {name: predictions of the pictures of `dataset`}.
        dataset: annotated.
        metric: ap50, ap, f2 or wheat.
    """

    def value(predictions: Predictions) -> float:
        return measure(predictions, dataset, metric=metric)

    ranked: list[Ranked] = []
    best: Predictions | None = None  # of the best ensemble so far
    left = dict(members)
    while left:
        so_far = [members[chosen.name] for chosen in ranked]
        fused = {name: fuse([*so_far, member]) for name, member in left.items()}
        if not so_far:
            fused = {name: max(left[name], alone, key=value) for name, alone in fused.items()}
        values = {name: value(predictions) for name, predictions in fused.items()}
        name = max(values, key=lambda name: values[name])
        sure = 1.0 if best is None else bootstrap_difference(fused[name], best, dataset, metric).prob_better
        ranked.append(Ranked(name, values[name], sure))
        best = fused[name] if best is None else max(best, fused[name], key=value)
        del left[name]
    return ranked
