"""The search for an ensemble: bagged forward selection, then one setting after another.

Source: Caruana et al., "Ensemble Selection from Libraries of Models", ICML 2004: members are added one at a time, the one
that helps most, and one may be added again, which doubles its weight. What helps a few images helps others by chance only, so
that is done on many draws of the images, and the weights are averaged (section 2.3 there: bagging). Added here: a selection
begins with the best member or with all of them alike, whichever does better, and may drop members; then method of fusion, IoU,
powers of the scores and score threshold are changed in turn, where the draws agree that it helps.

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
from foldfuse.evaluation.matching import Matches
from foldfuse.evaluation.metrics import ResampledMetric
from foldfuse.fusion.methods import Method

ALL = 0  # the column of `SearchSpace.cache` that is measured on all images; column k + 1 leaves out fold k
DRAWS = 30  # of images, with replacement, of which each leaves out one fold in turn; two a fold at the least
LEAST_GAIN = 5e-4  # a change must bring more than this
BELIEVED = 1.0  # and more than so many standard errors, where it is of a setting
MOST_VOTES = 12.0  # sum of the weights that forward selection may reach; with many members, twice their number
LEAST_SHARE = 0.05  # of the greatest weight: a member with less is left out
METHODS: tuple[Method, ...] = ("wbf", "nmw", "soft_nms", "nms")
IOUS = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
SCORE_THRESHOLDS = (0.0, 0.01, 0.03, 0.05, 0.1)
EXPONENT_FACTORS = (0.5, 2.0)  # a power may change by
EXPONENTS = (0.25, 4.0)  # and stays between


@dataclass(frozen=True)
class Candidate:
    """A candidate: weights and powers of all M members, those not chosen with a weight of 0 and a power of 1."""

    weights: tuple[float, ...]
    score_exponents: tuple[float, ...]
    method: Method = "wbf"
    iou: float = 0.55
    score_threshold: float = 0.0

    @property
    def members(self) -> tuple[int, ...]:
        """Positions of those chosen."""
        return tuple(i for i, weight in enumerate(self.weights) if weight > 0)

    def with_weight(self, member: int, weight: float) -> Candidate:
        """The same with another weight for one member."""
        weights = (*self.weights[:member], weight, *self.weights[member + 1 :])
        return replace(self, weights=weights) if weight else replace(self, weights=weights).with_exponent(member, 1.0)

    def with_exponent(self, member: int, power: float) -> Candidate:
        """The same with another power for one member's scores."""
        return replace(
            self, score_exponents=(*self.score_exponents[:member], power, *self.score_exponents[member + 1 :])
        )

    @property
    def canonical(self) -> Candidate:
        """The one of all choices with equal results: the greatest weight is 1, and a lone member is not fused."""
        most = max(self.weights)
        weights = tuple(weight / most for weight in self.weights)
        lone = len(self.members) == 1
        return Candidate(weights, (1.0,) * len(weights)) if lone else replace(self, weights=weights)


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """What is searched, and what is known so far.

    Attributes:
        bench: the members.
        fold_of: (I,) in 0..K-1.
        threads: for fusing; None for one a core.
        clock: seconds, from any start.
        seed: of the draws.
        cache: {canonical candidate: (K + 1 + D,) its values on all images, without each fold, and on each of D draws}.
    """

    bench: trials.Bench
    fold_of: Array
    threads: int | None
    clock: Callable[[], float]
    seed: int = 0
    cache: dict[Candidate, Array] = field(default_factory=dict)

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
    def image_counts(self) -> Array:
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

    def single(self, member: int) -> Candidate:
        """One member alone."""
        return Candidate((0.0,) * self.num_members, (1.0,) * self.num_members).with_weight(member, 1.0)

    def uniform(self) -> Candidate:
        """Plain WBF of all."""
        return Candidate((1.0,) * self.num_members, (1.0,) * self.num_members)

    def matches(self, candidate: Candidate) -> Matches:
        """The matches of what the candidate makes of its members."""
        chosen = candidate.members
        if len(chosen) == 1:
            return trials.match_single(self.bench, chosen[0])
        return trials.fuse_and_match(
            self.bench,
            chosen,
            method=candidate.method,
            iou=candidate.iou,
            score_threshold=candidate.score_threshold,
            weights=[candidate.weights[i] for i in chosen],
            score_exponents=[candidate.score_exponents[i] for i in chosen],
            threads=self.threads,
        )

    def measure(self, candidate: Candidate) -> ResampledMetric:
        """Its value on any resampling of the images."""
        return self.bench.metric.prepare(self.matches(candidate))

    def values(self, candidate: Candidate) -> Array:
        """(K + 1 + D,) its values, as in `known`."""
        key = candidate.canonical
        if key not in self.cache:
            self.cache[key] = self.measure(key)(self.image_counts)
        return self.cache[key]

    def score(self, candidate: Candidate, column: int = ALL) -> float:
        """Its value on all images, without fold `column` - 1, or on a draw."""
        return float(self.values(candidate)[column])

    def error(self, candidate: Candidate, other: Candidate, column: int) -> float:
        """The standard error of the difference of two choices."""
        return float((self.values(candidate) - self.values(other))[self.draws(column)].std())


def search(space: SearchSpace, column: int = ALL, *, until: float) -> Candidate:
    """The best candidate found before the clock says `until`, knowing only the images of a column of `SearchSpace.cache`.

    It is never worse on these than the best member or plain WBF of all.
    """
    start = space.clock()
    voted = bagged_selection(space, column, until=start + (until - start) / 2)
    settings = (other_methods, other_ious, other_exponents, other_score_thresholds)
    chosen = hill_climb(space, voted, settings, column, until=until, believed=BELIEVED)
    return max([chosen, *_plain(space)], key=lambda c: space.score(c, column))


def bagged_selection(space: SearchSpace, column: int, *, until: float) -> Candidate:
    """The mean of what forward selection chooses on each draw, fused by plain WBF."""
    shares = []
    draws = space.draws(column)
    for i, draw in enumerate(draws):
        now = space.clock()
        best = max(_plain(space), key=lambda c: space.score(c, draw))
        fair = now + (until - now) / (len(draws) - i)
        chosen = hill_climb(space, best, (one_less, one_more), draw, until=fair)
        weights = np.array(chosen.weights)
        shares.append(weights / weights.sum())
    mean = np.mean(shares, 0)
    kept = np.where(mean < LEAST_SHARE * mean.max(), 0, mean / mean.max())
    return replace(space.uniform(), weights=tuple(np.round(kept, 2).tolist()))


def _plain(space: SearchSpace) -> list[Candidate]:
    """WBF of all, and each member alone."""
    return [space.uniform(), *(space.single(i) for i in range(space.num_members))]


def hill_climb(
    space: SearchSpace,
    candidate: Candidate,
    moves: tuple[Callable[[Candidate], Iterator[Candidate]], ...],
    column: int,
    *,
    until: float,
    believed: float = 0.0,
) -> Candidate:
    """`candidate` after all `moves`, each to the best it offers, again and again until none helps or the time is over.

    To help is to gain more than the least gain, and more than `believed` standard errors.
    """

    def better(current: Candidate, candidates: Iterator[Candidate]) -> Candidate:
        best, most = current, 0.0
        for candidate in candidates:
            if candidate.canonical in space.cache or space.clock() < until:
                gain = space.score(candidate, column) - space.score(current, column)
                if gain <= max(most, LEAST_GAIN):
                    continue
                if not believed or gain > believed * space.error(candidate, current, column):
                    best, most = candidate, gain
        return best

    while True:
        before = candidate
        for move in moves:
            candidate = better(candidate, move(candidate))
        if candidate == before:
            return candidate


def nested(space: SearchSpace, reference: Candidate, *, until: float) -> ResampledMetric:
    """What the search is worth: the images of each fold are fused as the search without them would have it.

    The choices of the folds give scores on scales of their own, which would spoil a ranking of all images together. So
    a score is replaced by the one that stands at the same rank among those of `reference`; annotations take no part.
    """
    scale = np.sort(space.matches(reference.canonical).scores)
    parts = []
    for fold in range(space.num_folds):
        now = space.clock()
        candidate = search(space, fold + 1, until=now + (until - now) / (space.num_folds - fold))
        found = space.matches(candidate.canonical)
        held = space.fold_of[found.image] == fold
        scores = at_same_rank(found.scores, scale)[held]
        parts.append((found.image[held], found.labels[held], scores, found.status[held]))
    image, labels, scores, status = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(image, kind="stable")
    pooled = Matches(space.bench.truth, image[order], labels[order], scores[order], status[order])
    return space.bench.metric.prepare(pooled)


def at_same_rank(scores: Array, scale: Array) -> Array:
    """(n,) for each score the one of the same rank from the top in the rising `scale`; 0 where that is shorter."""
    above = len(scores) - np.searchsorted(np.sort(scores), scores, side="right")
    padded = np.concatenate([np.zeros(1, scale.dtype), scale])
    return padded[np.maximum(len(scale) - above, 0)]


def one_more(candidate: Candidate) -> Iterator[Candidate]:
    """One more vote for each member."""
    if sum(candidate.weights) < max(MOST_VOTES, 2 * len(candidate.weights)):
        yield from (candidate.with_weight(i, weight + 1) for i, weight in enumerate(candidate.weights))


def one_less(candidate: Candidate) -> Iterator[Candidate]:
    """Without each of the members."""
    if len(candidate.members) > 1:
        yield from (candidate.with_weight(i, 0.0) for i in candidate.members)


def other_methods(candidate: Candidate) -> Iterator[Candidate]:
    """Fused in each other way."""
    yield from (replace(candidate, method=method) for method in METHODS if method != candidate.method)


def other_ious(candidate: Candidate) -> Iterator[Candidate]:
    """At each other IoU."""
    yield from (replace(candidate, iou=iou) for iou in IOUS if iou != candidate.iou)


def other_score_thresholds(candidate: Candidate) -> Iterator[Candidate]:
    """With each other score threshold."""
    yield from (
        replace(candidate, score_threshold=score_threshold)
        for score_threshold in SCORE_THRESHOLDS
        if score_threshold != candidate.score_threshold
    )


def other_exponents(candidate: Candidate) -> Iterator[Candidate]:
    """Half and double the power of each member's scores."""
    low, high = EXPONENTS
    for i in candidate.members:
        for factor in EXPONENT_FACTORS:
            if low <= candidate.score_exponents[i] * factor <= high:
                yield candidate.with_exponent(i, candidate.score_exponents[i] * factor)
