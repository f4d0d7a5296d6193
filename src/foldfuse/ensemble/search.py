"""Searches for the best ensemble: bagged forward selection, then hill climbing over the settings of the fusion.

Source: Caruana et al., "Ensemble Selection from Libraries of Models", ICML 2004: forward selection adds the member that gains
most, again and again; adding a member twice doubles its weight. A chance gain on a few images does not carry over to others, so
the selection runs on many bootstrap resamples of the images, and the weights are averaged (section 2.3 of the paper: bagging).
Differences: a selection starts from the best member or from all members with equal weights, whichever scores higher, and may
drop members; then fusion method, IoU, score exponents and score threshold change in turn, where the resamples agree on the gain.

Each resample leaves out one fold. The nested score (see `nested`) repeats the search for each fold, from the resamples that leave
it out. A candidate is fused once and scored on all resamples and folds, so that the searches share nearly all their work.

Shapes: M members, I images, K folds, D resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from foldfuse.detections import Array
from foldfuse.ensemble import trials
from foldfuse.ensemble.cross_fitting import CrossFitter
from foldfuse.evaluation.matching import Matches
from foldfuse.evaluation.metrics import ResampledMetric
from foldfuse.fusion.methods import Method

ALL = 0  # column of `SearchSpace.cache`: all images; column k + 1 leaves out fold k
RESAMPLES = 30  # each leaves out one fold in turn; at least two a fold
MIN_GAIN = 5e-4  # of a change
MIN_STANDARD_ERRORS = 1.0  # of the gain of a changed setting
STACK_STANDARD_ERRORS = (
    0.0  # of the gain of stacking, whose trial is cross-fitted: its chance gains are as often losses
)
MAX_VOTES = 12.0  # sum of the weights in forward selection; with many members, twice their number
MIN_WEIGHT = 0.05  # as a fraction of the greatest weight; a member with less is dropped
SAME_SCORE = 1e-12  # two scores that differ by no more are equal but for rounding
METHODS: tuple[Method, ...] = ("wbf", "nmw", "soft_nms", "nms")
IOUS = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
SCORE_THRESHOLDS = (0.0, 0.01, 0.03, 0.05, 0.1)
EXPONENT_FACTORS = (0.5, 2.0)  # of one change
EXPONENTS = (0.25, 4.0)  # least and greatest


@dataclass(frozen=True)
class Candidate:
    """Weights and score exponents of all M members (0 and 1 for a member that is not chosen), and the fusion settings.

    `calibrated` candidates calibrate each member's scores before the exponents, and `stacked` ones score the fused boxes anew.
    """

    weights: tuple[float, ...]
    score_exponents: tuple[float, ...]
    method: Method = "wbf"
    iou: float = 0.55
    score_threshold: float = 0.0
    calibrated: bool = False
    stacked: bool = False

    @property
    def is_learned(self) -> bool:
        """Whether models that learn from annotations change its scores."""
        return self.calibrated or self.stacked

    @property
    def members(self) -> tuple[int, ...]:
        """Indices of the chosen members."""
        return tuple(i for i, weight in enumerate(self.weights) if weight > 0)

    def with_weight(self, member: int, weight: float) -> Candidate:
        """The candidate with another weight for one member."""
        weights = (*self.weights[:member], weight, *self.weights[member + 1 :])
        return replace(self, weights=weights) if weight else replace(self, weights=weights).with_exponent(member, 1.0)

    def with_exponent(self, member: int, exponent: float) -> Candidate:
        """The candidate with another score exponent for one member."""
        return replace(
            self, score_exponents=(*self.score_exponents[:member], exponent, *self.score_exponents[member + 1 :])
        )

    @property
    def canonical(self) -> Candidate:
        """The representative of all candidates with equal results: the greatest weight is 1, and a single member is not fused."""
        greatest = max(self.weights)
        weights = tuple(weight / greatest for weight in self.weights)
        single = len(self.members) == 1
        return Candidate(weights, (1.0,) * len(weights)) if single else replace(self, weights=weights)


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """The members to search over, and the scores of all candidates so far.

    Attributes:
        bench: the members.
        fold_of: (I,) in 0..K-1.
        threads: number of threads of the fusion; None for one per core.
        clock: seconds, from any start.
        seed: the random seed of the resamples.
        learns: whether learned candidates are tried; they need two folds.
        cache: {(canonical candidate, variant): (K + 1 + D,) its scores on all images, without each fold, and on each resample}.
            The models of a learned candidate differ by variant (see `cross_fitting`): variant 0 holds the columns for choices on
            all images, variant k + 1 those for choices without fold k. Other candidates have variant 0 alone.
    """

    bench: trials.Bench
    fold_of: Array
    threads: int | None
    clock: Callable[[], float]
    seed: int = 0
    learns: bool = False
    cache: dict[tuple[Candidate, int], Array] = field(default_factory=dict)

    @property
    def num_members(self) -> int:
        return len(self.bench.members)

    @property
    def num_candidates(self) -> int:
        """Number of candidates that were scored."""
        return len({candidate for candidate, _ in self.cache})

    @cached_property
    def fitter(self) -> CrossFitter:
        """Fits the models of learned candidates."""
        return CrossFitter(self.bench, self.fold_of, self.threads)

    @property
    def num_folds(self) -> int:
        return int(self.fold_of.max()) + 1

    @property
    def num_resamples(self) -> int:
        return self.num_folds * max(2, RESAMPLES // self.num_folds)

    @cached_property
    def image_counts(self) -> Array:
        """(K + 1 + D, I) int64, how often each image counts in each column of `known`."""
        left_out = [self.fold_of != fold for fold in range(self.num_folds)]
        whole = np.stack([np.ones(len(self.fold_of), bool), *left_out]).astype(np.int64)
        rng = np.random.default_rng(self.seed)
        resamples = []
        for i in range(self.num_resamples):
            pool = whole[i % self.num_folds + 1] if self.num_folds > 1 else whole[ALL]
            resamples.append(rng.multinomial(pool.sum(), pool / pool.sum()))
        return np.concatenate([whole, np.stack(resamples)])

    def resamples(self, column: int) -> list[int]:
        """The columns of all resamples, or for a fold's `column` of the resamples that leave out the fold."""
        first, folds = self.num_folds + 1, self.num_folds
        return [first + i for i in range(self.num_resamples) if column == ALL or i % folds == column - 1]

    def single(self, member: int) -> Candidate:
        """One member, not fused."""
        return Candidate((0.0,) * self.num_members, (1.0,) * self.num_members).with_weight(member, 1.0)

    def uniform(self) -> Candidate:
        """WBF of all members with equal weights."""
        return Candidate((1.0,) * self.num_members, (1.0,) * self.num_members)

    def variant(self, candidate: Candidate, column: int) -> int:
        """The variant of a candidate for choices on a column."""
        return column if candidate.is_learned and column <= self.num_folds else 0

    def fusion(self, candidate: Candidate, variant: int) -> trials.Fusion:
        """How the candidate fuses its members."""
        if candidate.calibrated:
            self.fitter.add_calibration(variant)
        chosen = candidate.members
        return trials.Fusion(
            chosen,
            method=candidate.method,
            iou=candidate.iou,
            score_threshold=candidate.score_threshold,
            weights=[candidate.weights[i] for i in chosen],
            score_exponents=[candidate.score_exponents[i] for i in chosen],
            calibration=variant if candidate.calibrated else None,
        )

    def matches(self, candidate: Candidate, variant: int = 0) -> Matches:
        """The matches of the candidate's fused predictions, in a variant where it is a learned one."""
        return self._matches(candidate, variant).without_empty_rows()

    def _matches(self, candidate: Candidate, variant: int) -> Matches:
        """`matches`, perhaps with empty rows."""
        if len(candidate.members) == 1:
            return trials.match_single(self.bench, candidate.members[0])
        fusion = self.fusion(candidate, variant)
        if candidate.stacked:
            return self.fitter.stacked(fusion, variant)
        return trials.fuse_and_match(self.bench, fusion, threads=self.threads)

    def measure(self, candidate: Candidate, variant: int = 0) -> ResampledMetric:
        """The candidate's metric on any resample of the images."""
        return self.bench.metric.prepare(self._matches(candidate, variant))

    def known(self, candidate: Candidate, column: int) -> bool:
        """Whether the candidate's score on a column is known."""
        key = candidate.canonical
        return (key, self.variant(key, column)) in self.cache

    def values(self, candidate: Candidate, column: int = ALL) -> Array:
        """(K + 1 + D,) the candidate's scores for choices on a column, as in `cache`."""
        key = candidate.canonical
        variant = self.variant(key, column)
        if (key, variant) not in self.cache:
            self.cache[key, variant] = self.measure(key, variant)(self.image_counts)
        return self.cache[key, variant]

    def score(self, candidate: Candidate, column: int = ALL) -> float:
        """The candidate's score on all images, without fold `column` - 1, or on a resample."""
        return float(self.values(candidate, column)[column])

    def standard_error(self, candidate: Candidate, other: Candidate, column: int) -> float:
        """The standard error of the difference of two candidates, over the resamples."""
        difference = self.values(candidate, column) - self.values(other, column)
        return float(difference[self.resamples(column)].std())


def search(space: SearchSpace, column: int = ALL, *, until: float) -> Candidate:
    """The best candidate by time `until` on the images of a column of `SearchSpace.cache`.

    The candidate is never worse on these images than the best member or WBF of all members.
    """
    start = space.clock()
    selected = bagged_selection(space, column, until=start + (until - start) / 2)
    for moves, share in SETTINGS if space.learns else (PLAIN_SETTINGS,):
        now = space.clock()
        end = now + share * (until - now)
        selected = hill_climb(space, selected, moves, column, until=end, min_standard_errors=MIN_STANDARD_ERRORS)
    return max([selected, *_plain(space)], key=lambda c: space.score(c, column))


def without_useless_members(space: SearchSpace, candidate: Candidate) -> Candidate:
    """The candidate without the members that add nothing: without them every score, of each resample too, is the same.

    Members with the least weight go first. Forward selection keeps such a member, since dropping it gains nothing.
    """
    plain = replace(candidate, stacked=False)  # quick, and a member without a vote has no part in stacking either
    for member in sorted(candidate.members, key=lambda i: candidate.weights[i]):
        if len(plain.members) > 1:
            without = plain.with_weight(member, 0.0)
            if np.abs(space.values(without) - space.values(plain)).max() <= SAME_SCORE:
                plain = without
    return replace(plain, stacked=candidate.stacked and len(plain.members) > 1)


def bagged_selection(space: SearchSpace, column: int, *, until: float) -> Candidate:
    """The mean of the weights that forward selection chooses on each resample, for fusion by WBF."""
    shares = []
    columns = space.resamples(column)
    for i, resample in enumerate(columns):
        now = space.clock()
        best = max(_plain(space), key=lambda c: space.score(c, resample))
        fair = now + (until - now) / (len(columns) - i)
        chosen = hill_climb(space, best, (one_less, one_more), resample, until=fair)
        weights = np.array(chosen.weights)
        shares.append(weights / weights.sum())
    mean = np.mean(shares, 0)
    kept = np.where(mean < MIN_WEIGHT * mean.max(), 0, mean / mean.max())
    return replace(space.uniform(), weights=tuple(np.round(kept, 2).tolist()))


def _plain(space: SearchSpace) -> list[Candidate]:
    """The candidates without a search: WBF of all members, and each single member."""
    return [space.uniform(), *(space.single(i) for i in range(space.num_members))]


def hill_climb(
    space: SearchSpace,
    candidate: Candidate,
    moves: tuple[Callable[[Candidate], Iterator[Candidate]], ...],
    column: int,
    *,
    until: float,
    min_standard_errors: float = 0.0,
) -> Candidate:
    """`candidate` after all `moves`, each to its best neighbour, repeated until no move gains or the time is over.

    A gain counts if it exceeds MIN_GAIN, and `min_standard_errors` standard errors.
    """

    def better(current: Candidate, candidates: Iterator[Candidate]) -> Candidate:
        best, best_gain = current, 0.0
        for candidate in candidates:
            if space.known(candidate, column) or space.clock() < until:
                gain = space.score(candidate, column) - space.score(current, column)
                if gain <= max(best_gain, MIN_GAIN):
                    continue
                if not min_standard_errors or gain > min_standard_errors * space.standard_error(
                    candidate, current, column
                ):
                    best, best_gain = candidate, gain
        return best

    while True:
        before = candidate
        for move in moves:
            candidate = better(candidate, move(candidate))
        if candidate == before:
            return candidate


def one_more(candidate: Candidate) -> Iterator[Candidate]:
    """The candidate with one more vote for each member in turn."""
    if sum(candidate.weights) < max(MAX_VOTES, 2 * len(candidate.weights)):
        yield from (candidate.with_weight(i, weight + 1) for i, weight in enumerate(candidate.weights))


def one_less(candidate: Candidate) -> Iterator[Candidate]:
    """The candidate without each member in turn."""
    if len(candidate.members) > 1:
        yield from (candidate.with_weight(i, 0.0) for i in candidate.members)


def other_methods(candidate: Candidate) -> Iterator[Candidate]:
    """The candidate with each other fusion method."""
    yield from (replace(candidate, method=method) for method in METHODS if method != candidate.method)


def other_ious(candidate: Candidate) -> Iterator[Candidate]:
    """The candidate with each other IoU threshold."""
    yield from (replace(candidate, iou=iou) for iou in IOUS if iou != candidate.iou)


def other_score_thresholds(candidate: Candidate) -> Iterator[Candidate]:
    """The candidate with each other score threshold."""
    yield from (
        replace(candidate, score_threshold=score_threshold)
        for score_threshold in SCORE_THRESHOLDS
        if score_threshold != candidate.score_threshold
    )


def other_exponents(candidate: Candidate) -> Iterator[Candidate]:
    """The candidate with half and with double the score exponent of each member."""
    low, high = EXPONENTS
    for i in candidate.members:
        for factor in EXPONENT_FACTORS:
            if low <= candidate.score_exponents[i] * factor <= high:
                yield candidate.with_exponent(i, candidate.score_exponents[i] * factor)


def calibration(candidate: Candidate) -> Iterator[Candidate]:
    """The candidate with calibrated scores, or without."""
    yield replace(candidate, calibrated=not candidate.calibrated)


def stacking(candidate: Candidate) -> Iterator[Candidate]:
    """The candidate with a stacking model on its own and on calibrated scores."""
    if not candidate.stacked:
        yield replace(candidate, stacked=True)
        yield replace(candidate, stacked=True, calibrated=not candidate.calibrated)


Moves = tuple[Callable[[Candidate], Iterator[Candidate]], ...]
# Moves, and the share of the time that is left for them. A stacked candidate takes several times as long as another one, so that
# stacking comes last, and is tried even where the other moves take all of their time.
PLAIN_SETTINGS: tuple[Moves, float] = (other_methods, other_ious, other_exponents, other_score_thresholds), 1.0
SETTINGS: tuple[tuple[Moves, float], ...] = (((calibration, *PLAIN_SETTINGS[0]), 0.8), ((stacking,), 1.0))
