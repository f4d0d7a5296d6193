"""Searches for the best ensemble by a metric of the user's own, whose function is slow: the time limit bounds the calls.

The fast search proposes by AP50 (`search`). The function then scores the proposal, WBF of all members and the single members, the
best by AP50 first, and climbs from the best of them by changed members and settings, each move to its best neighbour. After the
time limit the function is called for the last score and the nested score alone, so a search takes at most some calls longer.

Nested: the whole choice, the proposal included, is repeated without each fold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from foldfuse.detections import Array, Detections, Predictions
from foldfuse.ensemble import search as fast
from foldfuse.ensemble.nested import at_same_rank
from foldfuse.ensemble.search import ALL, Candidate, SearchSpace
from foldfuse.evaluation.custom_metric import CustomMetric, CustomValues
from foldfuse.evaluation.metrics import METRICS

PROXY = METRICS["ap50"]  # of the fast search
PROXY_SHARE = 0.3  # of the time
CHOICE_SHARE = 0.6  # of the time; the rest is for the nested score and its interval
MOVES = (fast.one_less, fast.other_score_thresholds, fast.other_methods, fast.other_ious, fast.other_exponents)


@dataclass(frozen=True, eq=False)
class CustomSpace:
    """The members to search over by a custom metric, and the scores of candidates so far.

    Attributes:
        space: the members, for the fast search by PROXY.
        metric: the custom metric.
        fused: makes the fused predictions of a candidate.
        cache: {(canonical candidate, column): score}; see `SearchSpace.cache` for the columns.
    """

    space: SearchSpace
    metric: CustomMetric
    fused: Callable[[Candidate], Predictions]
    cache: dict[tuple[Candidate, int], float] = field(default_factory=dict)

    @property
    def num_candidates(self) -> int:
        """Number of candidates that the function has scored."""
        return len({candidate for candidate, _ in self.cache})

    def measure(self, candidate: Candidate) -> CustomValues:
        """The candidate's metric on any resample of the images."""
        return self.metric.of(self.fused(candidate.canonical), self.space.bench.truth)

    def score(self, candidate: Candidate, column: int = ALL) -> float:
        """The candidate's score on all images, or without fold `column` - 1: a call of the function, unless it is known."""
        key = (candidate.canonical, column)
        if key not in self.cache:
            self.cache[key] = float(self.measure(candidate)(self.space.image_counts[column][None])[0])
        return self.cache[key]

    def affordable_score(self, candidate: Candidate, column: int, *, until: float) -> float | None:
        """The candidate's score; None where it is not known and the time is over."""
        if (candidate.canonical, column) not in self.cache and self.space.clock() >= until:
            return None
        return self.score(candidate, column)


def choose(custom: CustomSpace, column: int, *, until: float) -> Candidate:
    """The best candidate by time `until` on the images of a column: of those that the function has scored, none is better."""
    space, start = custom.space, custom.space.clock()
    proposal = fast.search(space, column, until=start + PROXY_SHARE * (until - start))
    singles = sorted(map(space.single, range(space.num_members)), key=lambda c: -space.score(c, column))
    best, best_score = proposal, custom.affordable_score(proposal, column, until=until)
    for candidate in (space.uniform(), *singles):
        score = custom.affordable_score(candidate, column, until=until)
        if score is not None and (best_score is None or score > best_score):
            best, best_score = candidate, score
    while best_score is not None:
        before = best
        for move in MOVES:
            best, best_score = _best_neighbour(custom, best, best_score, move(best), column, until=until)
        if best == before:
            break
    return best


def _best_neighbour(
    custom: CustomSpace, best: Candidate, score: float, neighbours: Iterator[Candidate], column: int, *, until: float
) -> tuple[Candidate, float]:
    """The neighbour with the highest score, where that gains more than a chance; else the candidate itself."""
    found, least = (best, score), score + fast.MIN_GAIN
    for candidate in neighbours:
        value = custom.affordable_score(candidate, column, until=until)
        if value is not None and value > max(least, found[1]):
            found = candidate, value
    return found


def nested(custom: CustomSpace, reference: Candidate, *, until: float) -> CustomValues | None:
    """The metric of the images when each fold is fused by the candidate chosen without it; None where there is no time for it.

    As in `nested.nested_search`, each score is replaced by the score at the same rank in `reference`.
    """
    space = custom.space
    candidates = []
    for fold in range(space.num_folds):
        now = space.clock()
        if now >= until:
            return None
        candidates.append(choose(custom, fold + 1, until=now + (until - now) / (space.num_folds - fold)))
    return _pooled(custom, reference, candidates)


def nested_single(custom: CustomSpace, reference: Candidate) -> CustomValues:
    """The metric when each fold's images are those of the member that is best without it; see `nested.nested_single`.

    Only members whose metric without the fold was measured can be chosen; where there is none, `reference` is.
    """
    space = custom.space
    singles = [space.single(member) for member in range(space.num_members)]
    chosen = []
    for column in range(1, space.num_folds + 1):
        known = [one for one in singles if (one.canonical, column) in custom.cache]
        chosen.append(max(known, key=lambda one: custom.score(one, column)) if known else reference)
    return _pooled(custom, reference, chosen)


def _pooled(custom: CustomSpace, reference: Candidate, candidates: Sequence[Candidate]) -> CustomValues:
    """The metric of the images when each fold is fused by its own of the candidates; see `nested`."""
    space, truth = custom.space, custom.space.bench.truth
    scale = np.sort(custom.fused(reference.canonical).scores)
    found: dict[int, Detections] = {}
    classes: tuple[str, ...] = ()
    for fold, candidate in enumerate(candidates):
        predictions = custom.fused(candidate.canonical)
        ranked = replace(predictions, scores=at_same_rank(predictions.scores, scale))
        classes = predictions.classes
        found |= {i: ranked[i] for i in _ids(truth.image_ids, space.fold_of == fold)}
    pooled = Predictions.of({i: found[i] for i in truth.image_ids.tolist()}, classes)
    return custom.metric.of(pooled, truth)


def _ids(image_ids: Array, mask: Array) -> list[int]:
    return [int(i) for i in image_ids[mask]]
