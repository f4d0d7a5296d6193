"""Chooses an ensemble on out-of-fold predictions and estimates its score by nested cross-validation.

The search works on predictions alone and loads no model, so the predictions may come from any tool.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.ensemble import cross_fitting, custom_search, trials
from foldfuse.ensemble import search as ensemble_search
from foldfuse.ensemble.custom_search import CustomSpace
from foldfuse.ensemble.ensemble import Ensemble, apply_ensemble
from foldfuse.ensemble.fold_ensembles import FoldEnsemble, apply_out_of_fold
from foldfuse.ensemble.gain import Gain, make_gain
from foldfuse.ensemble.nested import nested_search, nested_single
from foldfuse.ensemble.search import Candidate
from foldfuse.ensemble.stack import Stack
from foldfuse.errors import InputError
from foldfuse.evaluation.bootstrap import MIN_SAMPLES, Difference, affordable_samples, difference
from foldfuse.evaluation.custom_metric import CustomMetric, check_ranks
from foldfuse.evaluation.matching import check_compatible, ground_truth, require_unlearnt
from foldfuse.evaluation.metrics import get_metric, measure
from foldfuse.fusion.methods import fuse

CHOICE_SHARE, NESTED_SHARE = 0.7, 0.2  # of the time, for the choice of the ensemble and for the nested choices


@dataclass(frozen=True)
class MemberScore:
    """The scores of one member.

    Attributes:
        name: the name of the member.
        single_score: the member's own score; None where there was no time to measure it by a custom metric.
        weight: the weight as a fraction of all weights; 0 for a member that was not chosen.
        leave_one_out_gain: the ensemble's score minus its score without the member; None for a member that was not chosen or is
            the only one, and where there was no time for it.
    """

    name: str
    single_score: float | None
    weight: float
    leave_one_out_gain: float | None


@dataclass(frozen=True)
class EnsembleReport:
    """A chosen ensemble and its scores.

    Attributes:
        ensemble: the best candidate.
        metric: the metric that the ensemble maximises.
        score: the score of the ensemble on the images that chose it, which is optimistic; each image is fused with models that
            have not learnt from it.
        nested_score: nested cross-validation: each fold is scored with an ensemble chosen without it; None with one image, and
            where the ensemble was changed after the choice.
        interval: `nested_score` minus `nested_single`, over bootstrap resamples; None where `nested_score` is.
        best_single: the best member, and its score on all images, which is optimistic: they chose it.
        uniform_score: the score of WBF of all members with equal weights.
        table: the scores of all members, by falling single score.
        num_candidates: number of candidates that were fused and scored.
        fold_ensembles: the ensemble with models fitted without each part of the images; none where nothing is fitted.
        nested_single: nested cross-validation of the best single member: each fold is scored with the member that is best
            without it; None where `nested_score` is.
    """

    ensemble: Ensemble
    metric: str
    score: float
    nested_score: float | None
    interval: Difference | None
    best_single: tuple[str, float]
    uniform_score: float
    table: tuple[MemberScore, ...]
    num_candidates: int
    fold_ensembles: tuple[FoldEnsemble, ...] = ()
    nested_single: float | None = None

    def out_of_fold(self, members: Mapping[str, Predictions]) -> Predictions:
        """The members fused, none of the images that chose the ensemble with a model that has learnt from it."""
        return apply_out_of_fold(self.ensemble, self.fold_ensembles, members)

    def without(self, names: Collection[str]) -> EnsembleReport:
        """The report with the ensemble without some members; its scores are still those of the whole ensemble."""
        rest = tuple(one.without(names) for one in self.fold_ensembles)
        return replace(self, ensemble=self.ensemble.without(names), fold_ensembles=rest)

    @property
    def gain(self) -> Gain | None:
        """The gain over the best single member, with the interval of this very difference; None without a nested score."""
        interval = (self.interval.low, self.interval.high) if self.interval else None
        return make_gain(self.metric, self.nested_score, self.best_single, interval, self.nested_single)

    @property
    def leave_one_out_gain(self) -> dict[str, float]:
        """{chosen member: its leave-one-out gain}; empty for an ensemble of one member."""
        return {row.name: row.leave_one_out_gain for row in self.table if row.leave_one_out_gain is not None}


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
    """The best ensemble that the search finds in the given time; never worse than the best member or WBF of all members.

    Seven tenths of the time choose the ensemble; two tenths repeat the choice without each fold, for the nested score; the rest
    measures what each member adds, those with the greatest weights first. The single members and WBF of all members are always
    scored, however short the time.

    Args:
        members: {name: out-of-fold predictions of the images of `dataset`}.
        dataset: annotated.
        metric: the name of a metric, see `evaluation.metrics`.
        seconds: seconds after which the search returns the best candidate so far.
        folds: number of random parts of the images.
        seed: the random seed of the folds and of the bootstrap.
        threads: number of threads of the fusion; None for one per core.
        clock: seconds, from any start.

    Raises:
        InputError: there is no member, the metric is unknown, or the members do not fit the dataset or each other.
    """
    start = clock()
    if not members:
        raise InputError("there is no member to build an ensemble of. Give at least one file of predictions.")
    if folds < 2:
        raise InputError(
            f"folds is {folds}, and must be 2 or more: each fold is scored with an ensemble chosen on the others."
        )
    chosen_metric = get_metric(metric)
    for name, predictions in members.items():
        check_compatible(predictions, dataset)
        require_unlearnt(predictions, name, "weights chosen on them would favour it")
    fuse(list(members.values()), threads=threads)  # raises where a member holds a broken box or lacks an image
    empty = {name: predictions for name, predictions in members.items() if not len(predictions.boxes)}
    if len(empty) < len(members):  # a member that found nothing adds nothing
        members = {name: predictions for name, predictions in members.items() if name not in empty}
    else:
        empty = {}
    truth, names = ground_truth(dataset), list(members)
    matched_for = chosen_metric
    if isinstance(matched_for, CustomMetric):
        check_ranks(matched_for, truth)
        matched_for = custom_search.PROXY
    num_images = len(truth.image_ids)
    fold_of = np.random.default_rng(seed).permutation(num_images) % min(folds, num_images)
    space = ensemble_search.SearchSpace(
        trials.make_bench(list(members.values()), truth, matched_for),
        fold_of,
        threads,
        clock,
        seed,
        learns=num_images > 1 and matched_for is chosen_metric,
    )

    if isinstance(chosen_metric, CustomMetric):
        custom = CustomSpace(space, chosen_metric, lambda c: apply_ensemble(_ensemble(c, names), members))
        return _by_custom_metric(custom, names, list(empty), metric, until=start + seconds)
    best = ensemble_search.search(space, until=start + CHOICE_SHARE * seconds)
    singles = {name: space.score(space.single(i)) for i, name in enumerate(names)}
    leader = max(singles, key=lambda name: singles[name])
    nested = single_score = interval = None
    if num_images > 1:
        whole = np.ones((1, num_images), np.int64)
        nested_metric = nested_search(space, best, until=start + (CHOICE_SHARE + NESTED_SHARE) * seconds)
        single = nested_single(space, space.single(names.index(leader)))
        nested, single_score = float(nested_metric(whole)[0]), float(single(whole)[0])
        interval = difference(nested_metric, single, num_images=num_images, seed=seed)
    best = ensemble_search.without_useless_members(space, best)
    ensemble, score = _ensemble(best, names), space.score(best)
    fold_ensembles: tuple[FoldEnsemble, ...] = ()
    if best.is_learned:
        ensemble, fold_ensembles = _fitted(ensemble, space, best, names)
        score = measure(apply_out_of_fold(ensemble, fold_ensembles, members), dataset, metric=metric)
    report = EnsembleReport(
        ensemble=ensemble,
        metric=metric,
        score=score,
        nested_score=nested,
        interval=interval,
        best_single=(leader, singles[leader]),
        uniform_score=space.score(space.uniform()),
        table=(),
        num_candidates=space.num_candidates,
        fold_ensembles=fold_ensembles,
        nested_single=single_score,
    )
    gains = _leave_one_out_gains(
        report,
        space,
        best,
        lambda one: measure(one.out_of_fold(members), dataset, metric=metric),
        until=start + seconds,
    )
    total = sum(ensemble.weights.values())
    rows = (MemberScore(n, singles[n], ensemble.weights.get(n, 0.0) / total, gains.get(n)) for n in names)
    unused = (MemberScore(name, measure(p, dataset, metric=metric), 0.0, None) for name, p in empty.items())
    return replace(report, table=(*sorted(rows, key=_falling), *unused))


def _by_custom_metric(
    custom: CustomSpace, names: Sequence[str], empty: Sequence[str], metric: str, *, until: float
) -> EnsembleReport:
    """The best ensemble by a custom metric, as `build_ensemble` reports it; a score that there is no time for is None."""
    space, start = custom.space, custom.space.clock()
    num_images, share = len(space.fold_of), custom_search.CHOICE_SHARE
    best = custom_search.choose(custom, ensemble_search.ALL, until=start + share * (until - start))
    score = custom.score(best)
    gains = {}
    for i in best.members if len(best.members) > 1 else ():
        without = custom.affordable_score(best.with_weight(i, 0.0), ensemble_search.ALL, until=until)
        gains[i] = None if without is None else score - without
    singles = {
        i: custom.affordable_score(space.single(i), ensemble_search.ALL, until=start) for i in range(space.num_members)
    }
    known = {i: value for i, value in singles.items() if value is not None}
    leader = max(known, key=lambda i: known[i]) if known else max(singles, key=lambda i: space.score(space.single(i)))
    singles[leader] = leader_score = custom.score(space.single(leader))
    nested = single_score = interval = None
    pooled = custom_search.nested(custom, best, until=until) if num_images > 1 else None
    if pooled is not None:
        whole, single = np.ones((1, num_images), np.int64), custom_search.nested_single(custom, space.single(leader))
        nested, single_score = float(pooled(whole)[0]), float(single(whole)[0])  # measures their time
        samples = affordable_samples([pooled, single], until - space.clock())
        if samples >= MIN_SAMPLES:
            interval = difference(pooled, single, num_images=num_images, samples=samples, seed=space.seed)
    total = sum(best.weights)
    rows = [MemberScore(name, singles[i], best.weights[i] / total, gains.get(i)) for i, name in enumerate(names)]
    rows += [MemberScore(name, None, 0.0, None) for name in empty]
    return EnsembleReport(
        ensemble=_ensemble(best, names),
        metric=metric,
        score=score,
        nested_score=nested,
        interval=interval,
        best_single=(names[leader], leader_score),
        uniform_score=custom.score(space.uniform()),
        table=tuple(sorted(rows, key=_falling)),
        num_candidates=custom.num_candidates,
        nested_single=single_score,
    )


def _falling(row: MemberScore) -> tuple[bool, float]:
    return (row.single_score is None, -(row.single_score or 0.0))


def _ensemble(candidate: Candidate, names: Sequence[str]) -> Ensemble:
    weights = {names[i]: candidate.weights[i] for i in candidate.members}
    exponents = {names[i]: candidate.score_exponents[i] for i in candidate.members if candidate.score_exponents[i] != 1}
    return Ensemble(weights, candidate.method, candidate.iou, candidate.score_threshold, exponents)


def _fitted(
    ensemble: Ensemble, space: ensemble_search.SearchSpace, best: Candidate, names: Sequence[str]
) -> tuple[Ensemble, tuple[FoldEnsemble, ...]]:
    """The ensemble with the models of a learned candidate, fitted on all images, and one for each fold, fitted without it."""
    fitter, candidate = space.fitter, best.canonical
    variants = [cross_fitting.FINAL, *range(1, space.num_folds + 1)]
    left_out = [frozenset[int](), *(frozenset({fold}) for fold in range(space.num_folds))]
    stacks: list[Stack | None] = [None] * len(variants)
    if (
        best.stacked and best.calibrated
    ):  # the stacking model learns from scores that are calibrated without its fold too
        both = zip(variants, left_out, strict=True)
        stacks = [fitter.stacks(space.fusion(candidate, variant), [folds])[0] for variant, folds in both]
    elif best.stacked:
        stacks = [*fitter.stacks(space.fusion(candidate, cross_fitting.FINAL), left_out)]
    fitted = []
    for folds, stack in zip(left_out, stacks, strict=True):
        found = {names[i]: fitter.calibration(i, folds) for i in best.members if best.calibrated}
        fitted.append(replace(ensemble, calibrations=found, stack=stack))
    ids_of = (space.bench.truth.image_ids[space.fold_of == fold] for fold in range(space.num_folds))
    return fitted[0], tuple(FoldEnsemble(tuple(i.tolist()), one) for i, one in zip(ids_of, fitted[1:], strict=True))


def _leave_one_out_gains(
    report: EnsembleReport,
    space: ensemble_search.SearchSpace,
    best: Candidate,
    value: Callable[[EnsembleReport], float],
    *,
    until: float,
) -> dict[str, float]:
    """{chosen member: the score - the score without it}; models stay as they are. Empty for an ensemble of one member.

    Learned fusion takes long: there, members for which no time is left are missing, those with the least weights first.
    """
    names = report.ensemble.weights
    if len(best.members) == 1:
        return {}
    if best.is_learned:
        by_weight = sorted(names, key=lambda name: -names[name])
        return {n: report.score - value(report.without([n])) for n in by_weight if space.clock() < until}
    return {
        name: report.score - space.score(best.with_weight(i, 0.0)) for i, name in zip(best.members, names, strict=True)
    }
