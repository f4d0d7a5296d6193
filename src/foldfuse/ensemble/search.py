"""The search for an ensemble: bagged forward selection, then one setting after another.

Source: Caruana et al., "Ensemble Selection from Libraries of Models", ICML 2004: members are added one at a time, the one
that helps most, and one may be added again, which doubles its weight. What helps a few images helps others by chance only, so
that is done on many draws of the images, and the weights are averaged (section 2.3 there: bagging). Added here: a selection
begins with the best member or with all of them alike, whichever does better, and may drop members; then kind of fusion, IoU,
powers of the scores and skip are changed in turn, where the draws agree that it helps.

Each draw leaves out one fold. The honest score makes all choices anew for each fold, from the draws that did not see it. A
candidate is fused once and measured on all draws and choices of folds, so that these searches share nearly all their work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from foldfuse.detections import Array
from foldfuse.ensemble import trials
from foldfuse.evaluation.metrics import Matches, Measure
from foldfuse.fusion.methods import Kind

ALL = 0  # the column of `Ground.known` that is measured on all images; column k + 1 leaves out fold k
DRAWS = 30  # of images, with replacement, of which each leaves out one fold in turn; two a fold at the least
LEAST_GAIN = 5e-4  # a change must bring more than this
BELIEVED = 1.0  # and more than so many standard errors, where it is of a setting
MOST_VOTES = 12.0  # sum of the weights that forward selection may reach; with many members, twice their number
LEAST_SHARE = 0.05  # of the greatest weight: a member with less is left out
KINDS: tuple[Kind, ...] = ("wbf", "nmw", "soft_nms", "nms")
IOUS = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
SKIPS = (0.0, 0.01, 0.03, 0.05, 0.1)
FACTORS = (0.5, 2.0)  # a power may change by
POWERS = (0.25, 4.0)  # and stays between


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
        seed: of the draws.
        known: {canonical choice: (K + 1 + D,) its values on all images, without each fold, and on each of D draws}.
    """

    bench: trials.Bench
    fold_of: Array
    threads: int | None
    clock: Callable[[], float]
    seed: int = 0
    known: dict[Choice, Array] = field(default_factory=dict)

    @property
    def num_members(self) -> int:
        return len(self.bench.members)

    @property
    def num_folds(self) -> int:
        return int(self.fold_of.max()) + 1

    @property
    def num_draws(self) -> int:
        return self.num_folds * max(2, DRAWS // self.num_folds)

    @cached_property
    def times(self) -> Array:
        """(K + 1 + D, I) int64, how often each image counts in each column of `known`."""
        left_out = [self.fold_of != fold for fold in range(self.num_folds)]
        whole = np.stack([np.ones(len(self.fold_of), bool), *left_out]).astype(np.int64)
        rng = np.random.default_rng(self.seed)
        drawn = []
        for i in range(self.num_draws):
            pool = whole[i % self.num_folds + 1] if self.num_folds > 1 else whole[ALL]
            drawn.append(rng.multinomial(pool.sum(), pool / pool.sum()))
        return np.concatenate([whole, np.stack(drawn)])

    def draws(self, column: int) -> list[int]:
        """The columns of the draws that say something of `column`: all of them, or those that leave out its fold."""
        first, folds = self.num_folds + 1, self.num_folds
        return [first + i for i in range(self.num_draws) if column == ALL or i % folds == column - 1]

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

    def values(self, choice: Choice) -> Array:
        """(K + 1 + D,) its values, as in `known`."""
        key = choice.canonical
        if key not in self.known:
            self.known[key] = self.measure(key)(self.times)
        return self.known[key]

    def worth(self, choice: Choice, column: int = ALL) -> float:
        """Its value on all images, without fold `column` - 1, or on a draw."""
        return float(self.values(choice)[column])

    def error(self, choice: Choice, other: Choice, column: int) -> float:
        """The standard error of the difference of two choices."""
        return float((self.values(choice) - self.values(other))[self.draws(column)].std())


def search(ground: Ground, column: int = ALL, *, until: float) -> Choice:
    """The best choice found before the clock says `until`, knowing only the images of a column of `Ground.known`.

    It is never worse on these than the best member or plain WBF of all.
    """
    start = ground.clock()
    voted = votes(ground, column, until=start + (until - start) / 2)
    settings = (other_kinds, other_ious, other_powers, other_skips)
    chosen = settled(ground, voted, settings, column, until=until, believed=BELIEVED)
    return max([chosen, *_plain(ground)], key=lambda c: ground.worth(c, column))


def votes(ground: Ground, column: int, *, until: float) -> Choice:
    """The mean of what forward selection chooses on each draw, fused by plain WBF."""
    shares = []
    draws = ground.draws(column)
    for i, draw in enumerate(draws):
        now = ground.clock()
        best = max(_plain(ground), key=lambda c: ground.worth(c, draw))
        fair = now + (until - now) / (len(draws) - i)
        chosen = settled(ground, best, (one_less, one_more), draw, until=fair)
        weights = np.array(chosen.weights)
        shares.append(weights / weights.sum())
    mean = np.mean(shares, 0)
    kept = np.where(mean < LEAST_SHARE * mean.max(), 0, mean / mean.max())
    return replace(ground.alike(), weights=tuple(np.round(kept, 2).tolist()))


def _plain(ground: Ground) -> list[Choice]:
    """WBF of all, and each member alone."""
    return [ground.alike(), *(ground.single(i) for i in range(ground.num_members))]


def settled(
    ground: Ground,
    choice: Choice,
    moves: tuple[Callable[[Choice], Iterator[Choice]], ...],
    column: int,
    *,
    until: float,
    believed: float = 0.0,
) -> Choice:
    """`choice` after all `moves`, each to the best it offers, again and again until none helps or the time is over.

    To help is to gain more than the least gain, and more than `believed` standard errors.
    """

    def better(current: Choice, candidates: Iterator[Choice]) -> Choice:
        best, most = current, 0.0
        for candidate in candidates:
            if candidate.canonical in ground.known or ground.clock() < until:
                gain = ground.worth(candidate, column) - ground.worth(current, column)
                if gain <= max(most, LEAST_GAIN):
                    continue
                if not believed or gain > believed * ground.error(candidate, current, column):
                    best, most = candidate, gain
        return best

    while True:
        before = choice
        for move in moves:
            choice = better(choice, move(choice))
        if choice == before:
            return choice


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
    if sum(choice.weights) < max(MOST_VOTES, 2 * len(choice.weights)):
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


def other_powers(choice: Choice) -> Iterator[Choice]:
    """Half and double the power of each member's scores."""
    low, high = POWERS
    for i in choice.members:
        for factor in FACTORS:
            if low <= choice.powers[i] * factor <= high:
                yield choice.raised(i, choice.powers[i] * factor)
