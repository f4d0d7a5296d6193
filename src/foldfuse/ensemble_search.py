"""The search for an ensemble: forward selection with replacement, then one setting after another.

Source: Caruana et al., "Ensemble Selection from Libraries of Models", ICML 2004: members are added one at a time, the one
that helps most, and one may be added again, which doubles its weight. Added here: kind of fusion, IoU, skip, weights and a
power for each member's scores are then improved in turn, for as long as that helps.

The honest score comes from doing all of it again without each fold. A candidate is fused once and measured on every
choice of folds, so that these searches share nearly all their work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from foldfuse import trials
from foldfuse.detections import Array
from foldfuse.fuse import Kind
from foldfuse.metrics import Matches, Measure

ALL = 0  # the column of `Ground.known` that is measured on all images; column k + 1 leaves out fold k
LEAST_GAIN = 5e-4  # a change must bring more than this
MOST_VOTES = 12.0  # sum of the weights that forward selection may reach
KINDS: tuple[Kind, ...] = ("wbf", "nmw", "soft_nms", "nms")
IOUS = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
SKIPS = (0.0, 0.01, 0.03, 0.05, 0.1)
FACTORS = (0.5, 2.0)  # a weight or a power may change by
POWERS = (0.25, 4.0)  # and a power stays between


@dataclass(frozen=True)
class Choice:
    """A candidate: weights and powers of all M members, those not chosen with a weight of 0 and a power of 1."""

    weights: tuple[float, ...]
    powers: tuple[float, ...]
    kind: Kind = "wbf"
    iou: float = 0.55
    skip: float = 0.0

    @property
    def members(self) -> tuple[int, ...]:
        """Positions of those chosen."""
        return tuple(i for i, weight in enumerate(self.weights) if weight > 0)

    def weighing(self, member: int, weight: float) -> Choice:
        """The same with another weight for one member."""
        weights = (*self.weights[:member], weight, *self.weights[member + 1 :])
        return replace(self, weights=weights) if weight else replace(self, weights=weights).raised(member, 1.0)

    def raised(self, member: int, power: float) -> Choice:
        """The same with another power for one member's scores."""
        return replace(self, powers=(*self.powers[:member], power, *self.powers[member + 1 :]))

    @property
    def canonical(self) -> Choice:
        """The one of all choices with equal results: the greatest weight is 1, and a lone member is not fused."""
        most = max(self.weights)
        weights = tuple(weight / most for weight in self.weights)
        lone = len(self.members) == 1
        return Choice(weights, (1.0,) * len(weights)) if lone else replace(self, weights=weights)


@dataclass(frozen=True, eq=False)
class Ground:
    """What is searched, and what is known so far.

    Attributes:
        bench: the members.
        fold_of: (I,) in 0..K-1.
        threads: for fusing; None for one a core.
        clock: seconds, from any start.
        known: {canonical choice: (K + 1,) its values on all images, and without each fold}.
    """

    bench: trials.Bench
    fold_of: Array
    threads: int | None
    clock: Callable[[], float]
    known: dict[Choice, Array] = field(default_factory=dict)

    @property
    def num_members(self) -> int:
        return len(self.bench.members)

    @property
    def num_folds(self) -> int:
        return int(self.fold_of.max()) + 1

    def single(self, member: int) -> Choice:
        """One member alone."""
        return Choice((0.0,) * self.num_members, (1.0,) * self.num_members).weighing(member, 1.0)

    def alike(self) -> Choice:
        """Plain WBF of all."""
        return Choice((1.0,) * self.num_members, (1.0,) * self.num_members)

    def matches(self, choice: Choice) -> Matches:
        """The matches of what the choice makes of its members."""
        chosen = choice.members
        if len(chosen) == 1:
            return trials.lone_matches(self.bench, chosen[0])
        return trials.matches(
            self.bench,
            chosen,
            kind=choice.kind,
            iou=choice.iou,
            skip=choice.skip,
            weights=[choice.weights[i] for i in chosen],
            powers=[choice.powers[i] for i in chosen],
            threads=self.threads,
        )

    def measure(self, choice: Choice) -> Measure:
        """Its value on any resampling of the images."""
        return self.bench.metric.of(self.matches(choice))

    def worth(self, choice: Choice, column: int = ALL) -> float:
        """Its value on all images, or without fold `column` - 1."""
        key = choice.canonical
        if key not in self.known:
            left_out = [self.fold_of != fold for fold in range(self.num_folds)]
            times = np.stack([np.ones(len(self.fold_of), bool), *left_out]).astype(np.int64)
            self.known[key] = self.measure(key)(times)
        return float(self.known[key][column])


def search(ground: Ground, column: int, *, until: float) -> Choice:
    """The best choice found before the clock says `until`, by the value in a column of `Ground.known`."""

    def better(current: Choice, candidates: Iterator[Choice]) -> Choice:
        """The best candidate, or `current` where none is better by more than the least gain; late ones are not tried."""
        best, least = current, ground.worth(current, column) + LEAST_GAIN
        for candidate in candidates:
            in_time = candidate.canonical in ground.known or ground.clock() < until
            if in_time and ground.worth(candidate, column) > least:
                best, least = candidate, ground.worth(candidate, column)
        return best

    def settled(current: Choice, moves: tuple[Callable[[Choice], Iterator[Choice]], ...]) -> Choice:
        """`current` after all `moves`, again and again until none helps."""
        while True:
            before = current
            for move in moves:
                current = better(current, move(current))
            if current == before:
                return current

    singles = [ground.single(i) for i in range(ground.num_members)]
    starts = [max(singles, key=lambda c: ground.worth(c, column)), ground.alike()]
    grown = [settled(start, (one_more,)) for start in starts]
    best = max([*starts, *grown], key=lambda c: ground.worth(c, column))
    return settled(best, (other_kinds, other_ious, one_less, one_more, other_weights, other_powers, other_skips))


def nested(ground: Ground, reference: Choice, *, until: float) -> Measure:
    """What the search is worth: the images of each fold are fused as the search without them would have it.

    The choices of the folds give scores on scales of their own, which would spoil a ranking of all images together. So
    a score is replaced by the one that stands at the same rank among those of `reference`; annotations take no part.
    """
    scale = np.sort(ground.matches(reference.canonical).scores)
    parts = []
    for fold in range(ground.num_folds):
        now = ground.clock()
        choice = search(ground, fold + 1, until=now + (until - now) / (ground.num_folds - fold))
        found = ground.matches(choice.canonical)
        held = ground.fold_of[found.image] == fold
        scores = at_same_rank(found.scores, scale)[held]
        parts.append((found.image[held], found.labels[held], scores, found.status[held]))
    image, labels, scores, status = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(image, kind="stable")
    pooled = Matches(ground.bench.truth, image[order], labels[order], scores[order], status[order])
    return ground.bench.metric.of(pooled)


def at_same_rank(scores: Array, scale: Array) -> Array:
    """(n,) for each score the one of the same rank from the top in the rising `scale`; 0 where that is shorter."""
    above = len(scores) - np.searchsorted(np.sort(scores), scores, side="right")
    padded = np.concatenate([np.zeros(1, scale.dtype), scale])
    return padded[np.maximum(len(scale) - above, 0)]


def one_more(choice: Choice) -> Iterator[Choice]:
    """One more vote for each member."""
    if sum(choice.weights) < MOST_VOTES:
        yield from (choice.weighing(i, weight + 1) for i, weight in enumerate(choice.weights))


def one_less(choice: Choice) -> Iterator[Choice]:
    """Without each of the members."""
    if len(choice.members) > 1:
        yield from (choice.weighing(i, 0.0) for i in choice.members)


def other_kinds(choice: Choice) -> Iterator[Choice]:
    """Fused in each other way."""
    yield from (replace(choice, kind=kind) for kind in KINDS if kind != choice.kind)


def other_ious(choice: Choice) -> Iterator[Choice]:
    """At each other IoU."""
    yield from (replace(choice, iou=iou) for iou in IOUS if iou != choice.iou)


def other_skips(choice: Choice) -> Iterator[Choice]:
    """With each other skip threshold."""
    yield from (replace(choice, skip=skip) for skip in SKIPS if skip != choice.skip)


def other_weights(choice: Choice) -> Iterator[Choice]:
    """Half and double the weight of each member."""
    yield from (choice.weighing(i, choice.weights[i] * factor) for i in choice.members for factor in FACTORS)


def other_powers(choice: Choice) -> Iterator[Choice]:
    """Half and double the power of each member's scores."""
    low, high = POWERS
    for i in choice.members:
        for factor in FACTORS:
            if low <= choice.powers[i] * factor <= high:
                yield choice.raised(i, choice.powers[i] * factor)
