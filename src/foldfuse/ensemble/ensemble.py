"""Ensembles: which members, with which weights, fused how; a small JSON file that `fuse` replays.

`build` chooses one on out-of-fold predictions (`ensemble_search` holds the search) and says what the choice is worth on
images that took no part in it. No model is loaded: the predictions may be anybody's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.coco import read_json
from foldfuse.detections import Predictions
from foldfuse.ensemble import search as ensemble_search
from foldfuse.ensemble import trials
from foldfuse.ensemble.search import Candidate
from foldfuse.errors import InputError, unknown_name
from foldfuse.evaluation.bootstrap import Difference, difference
from foldfuse.evaluation.matching import check_compatible, ground_truth
from foldfuse.evaluation.metrics import get_metric
from foldfuse.fusion.methods import Method, fuse
from foldfuse.system.atomic_files import write_text


@dataclass(frozen=True)
class Ensemble:
    """How to make one set of predictions out of several.

    Attributes:
        weights: {member: its weight}.
        method: of fusion.
        iou: above which boxes match.
        score_threshold: boxes with a (calibrated) score below this are left out.
        score_exponents: {member: the power that its scores are raised to first}; 1 for those that are not named.
    """

    weights: Mapping[str, float]
    method: Method = "wbf"
    iou: float = 0.55
    score_threshold: float = 0.0
    score_exponents: Mapping[str, float] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write as a small JSON file."""
        members = [{"name": n, "weight": w, "power": self.score_exponents.get(n, 1.0)} for n, w in self.weights.items()]
        value = {"method": self.method, "iou": self.iou, "score_threshold": self.score_threshold, "members": members}
        write_text(path, json.dumps(value, indent=1) + "\n")


def read_ensemble(path: Path) -> Ensemble:
    """The ensemble in a file that `Ensemble.write` left.

    Raises:
        InputError: the file is missing or broken, or holds a value out of its range.
    """
    value = read_json(path)
    try:
        members = {str(m["name"]): (float(m["weight"]), float(m.get("power", 1.0))) for m in value["members"]}
        method, iou, score_threshold, count = (
            value["method"],
            float(value["iou"]),
            float(value["score_threshold"]),
            len(value["members"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"{path}: is not an ensemble. Expected method, iou, score_threshold and members (each with name, weight and power), "
            "as 'foldfuse ensemble' and a campaign write them."
        ) from None
    if method not in get_args(Method):
        raise unknown_name("method of fusion", str(method), get_args(Method))
    if len(members) != count or not members:
        raise InputError(
            f"{path}: has {count} members with {len(members)} names. Name each member once, and at least one."
        )
    for name, (weight, power) in members.items():
        if not (0 < weight < float("inf") and 0 < power < float("inf")):
            raise InputError(f"{path}: member {name!r} has weight {weight} and power {power}; both must be above 0.")
    return Ensemble(
        {n: w for n, (w, _) in members.items()},
        method,
        iou,
        score_threshold,
        {n: p for n, (_, p) in members.items() if p != 1},
    )


def apply_ensemble(ensemble: Ensemble, members: Mapping[str, Predictions]) -> Predictions:
    """What the ensemble makes of its members' predictions of some pictures. A lone member is left as it is.

    Raises:
        InputError: a member of the ensemble is not among `members`.
    """
    missing = [name for name in ensemble.weights if name not in members]
    if missing:
        raise InputError(
            f"the ensemble wants {missing[0]!r}, and there are only {', '.join(members)}. Give the predictions of all "
            f"its members, under these names: {', '.join(ensemble.weights)}."
        )
    if len(ensemble.weights) == 1:
        return members[next(iter(ensemble.weights))]
    parts = [_calibrated(members[name], ensemble.score_exponents.get(name, 1.0)) for name in ensemble.weights]
    return fuse(
        parts,
        method=ensemble.method,
        iou=ensemble.iou,
        score_threshold=ensemble.score_threshold,
        weights=list(ensemble.weights.values()),
    )


def _calibrated(member: Predictions, power: float) -> Predictions:
    return Predictions(
        member.image_ids,
        member.offsets,
        member.boxes,
        trials.calibrated(member.scores, power),
        member.labels,
        member.classes,
    )


@dataclass(frozen=True)
class MemberRow:
    """What one member is worth.

    Attributes:
        name: of the member.
        single_score: its own score.
        weight: in the ensemble, as a share of all weights; 0 where it was not chosen.
        leave_one_out_gain: how much the ensemble's score falls without it; None where it was not chosen or is the only one.
    """

    name: str
    single_score: float
    weight: float
    leave_one_out_gain: float | None


@dataclass(frozen=True)
class EnsembleReport:
    """An ensemble and what speaks for it.

    Attributes:
        ensemble: the choice.
        metric: what it was chosen by.
        score: its value on the images that it was chosen on, which flatters it.
        nested_score: value of ensembles chosen without the images that they are measured on; None with fewer than 2.
        interval: nested ensembles minus the best single member, over resampled images; None with fewer than 2.
        best_single: the best member, and its score.
        uniform_score: score of plain WBF of all members.
        table: a row a member, best alone first.
        num_candidates: how many candidates were fused and measured.
    """

    ensemble: Ensemble
    metric: str
    score: float
    nested_score: float | None
    interval: Difference | None
    best_single: tuple[str, float]
    uniform_score: float
    table: tuple[MemberRow, ...]
    num_candidates: int

    @property
    def leave_one_out_gain(self) -> dict[str, float]:
        """{chosen member: how much the score falls without it}; empty for a lone member."""
        return {row.name: row.leave_one_out_gain for row in self.table if row.leave_one_out_gain is not None}

    def to_dict(self) -> dict[str, Any]:
        """What it was worth, as JSON holds it, without the ensemble."""
        interval = self.interval and {"mean": self.interval.mean, "low": self.interval.low, "high": self.interval.high}
        return {
            "metric": self.metric,
            "score": self.score,
            "nested_score": self.nested_score,
            "interval": interval,
            "best_single": list(self.best_single),
            "uniform_score": self.uniform_score,
            "tried": self.num_candidates,
        }


def build_ensemble(
    members: Mapping[str, Predictions],
    dataset: Dataset,
    *,
    metric: str = "ap50",
    seconds: float = 60.0,
    folds: int = 5,
    seed: int = 0,
    threads: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> EnsembleReport:
    """The best ensemble that the search finds in the time given; never worse than the best member or WBF of all.

    Three quarters of the time are for the choice, the rest for making it again without each fold of images, to see what it
    is worth. The single members and WBF of all are always measured, however short the time.

    Args:
        members: {name: out-of-fold predictions of the pictures of `dataset`}.
        dataset: annotated.
        metric: ap50, ap, f2 or wheat.
        seconds: after which the best so far is taken.
        folds: the images are split into so many parts, at random.
        seed: of the split and the resampling.
        threads: for fusing; None for one a core.
        clock: seconds, from any start.

    Raises:
        InputError: there is no member, no such metric, or the members do not fit the dataset or each other.
    """
    if not members:
        raise InputError("there is no member to build an ensemble of. Give at least one file of predictions.")
    if folds < 2:
        raise InputError(f"folds is {folds}, and must be 2 or more: the choice is measured on images it did not see.")
    chosen_metric = get_metric(metric)
    for predictions in members.values():
        check_compatible(predictions, dataset)
    truth, names = ground_truth(dataset), list(members)
    fuse(list(members.values()), threads=threads)  # raises where a member holds a broken box or lacks an image
    num_images = len(truth.image_ids)
    fold_of = np.random.default_rng(seed).permutation(num_images) % min(folds, num_images)
    space = ensemble_search.SearchSpace(
        trials.make_bench(list(members.values()), truth, chosen_metric), fold_of, threads, clock, seed
    )

    start = clock()
    best = ensemble_search.search(space, until=start + 0.75 * seconds)
    singles = {name: space.score(space.single(i)) for i, name in enumerate(names)}
    leader = max(singles, key=lambda name: singles[name])
    nested = interval = None
    if num_images > 1:
        unseen = ensemble_search.nested(space, best, until=start + seconds)
        nested = float(unseen(np.ones((1, num_images), np.int64))[0])
        lone = space.measure(space.single(names.index(leader)))
        interval = difference(unseen, lone, num_images=num_images, seed=seed)
    return EnsembleReport(
        ensemble=_ensemble(best, names),
        metric=metric,
        score=space.score(best),
        nested_score=nested,
        interval=interval,
        best_single=(leader, singles[leader]),
        uniform_score=space.score(space.uniform()),
        table=_table_of(space, best, names, singles),
        num_candidates=len(space.cache),
    )


def _ensemble(candidate: Candidate, names: Sequence[str]) -> Ensemble:
    weights = {names[i]: candidate.weights[i] for i in candidate.members}
    powers = {names[i]: candidate.score_exponents[i] for i in candidate.members if candidate.score_exponents[i] != 1}
    return Ensemble(weights, candidate.method, candidate.iou, candidate.score_threshold, powers)


def _table_of(
    space: ensemble_search.SearchSpace, best: Candidate, names: Sequence[str], singles: Mapping[str, float]
) -> tuple[MemberRow, ...]:
    total = sum(best.weights)
    rows = []
    for i, name in enumerate(names):
        others = len(best.members) > 1 and i in best.members
        adds = space.score(best) - space.score(best.with_weight(i, 0.0)) if others else None
        rows.append(MemberRow(name, singles[name], best.weights[i] / total, adds))
    return tuple(sorted(rows, key=lambda row: -row.single_score))
