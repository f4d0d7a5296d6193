"""Calibration and stacking: they learn what they should, from no image that they must not see, and apply as they were tried."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ensemble_samples import some_members
from foldfuse.boxes import pairwise_iou
from foldfuse.data.dataset import Dataset
from foldfuse.detections import Detections, Predictions
from foldfuse.ensemble import build, trials
from foldfuse.ensemble import search as ensemble_search
from foldfuse.ensemble.build import build_ensemble
from foldfuse.ensemble.calibration import Calibration, bin_scores, fit_calibration
from foldfuse.ensemble.cross_fitting import FINAL
from foldfuse.ensemble.ensemble import Ensemble, apply_ensemble, read_ensemble
from foldfuse.ensemble.fold_ensembles import apply_out_of_fold
from foldfuse.ensemble.logistic import LEAST, fit_logistic, logit, sigmoid
from foldfuse.ensemble.search import SearchSpace
from foldfuse.ensemble.stack import FEATURES, Stack, Votes, vote_features
from foldfuse.errors import InputError
from foldfuse.evaluation.matching import ground_truth, match_predictions
from foldfuse.evaluation.metrics import METRICS, measure
from foldfuse.fusion.islands import make_islands
from foldfuse.fusion.methods import concatenated, fuse
from score_samples import noisy, random_dataset

FOREVER = float("inf")


def space_of(members, truth, *, metric="ap50", folds=3):
    bench = trials.make_bench(list(members.values()), ground_truth(truth), METRICS[metric])
    fold_of = np.random.default_rng(0).permutation(len(truth)) % folds
    return SearchSpace(bench, fold_of, 1, clock=lambda: 0.0, learns=True)


def relabeled(truth, space, fold):
    """The dataset with other annotations in the images of a fold: each takes those of another of its images."""
    ids = np.sort(truth.image_ids)[space.fold_of == fold].tolist()
    others = {i: truth[j].annotations for i, j in zip(ids, [*ids[1:], ids[0]], strict=True)}
    samples = (replace(s, annotations=others.get(s.id, s.annotations)) for s in truth.samples)
    return replace(truth, samples=tuple(samples))


def test_the_fit_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(400, 3))
    targets = (rng.random(400) < sigmoid(columns @ [1.0, -2.0, 0.3])).astype(float)
    want = LogisticRegression(C=1 / 7, fit_intercept=False, tol=1e-10, max_iter=1000).fit(columns, targets).coef_[0]
    got = fit_logistic(columns, targets, np.ones(400), np.zeros(400), np.full(3, 7.0))
    np.testing.assert_allclose(got, want, rtol=1e-4)
    weighted = fit_logistic(
        np.repeat(columns, 2, 0), np.repeat(targets, 2), np.full(800, 0.5), np.zeros(800), np.full(3, 7.0)
    )
    np.testing.assert_allclose(weighted, got, rtol=1e-6)
    offsets = columns @ [1.0, 0, 0]
    shifted = fit_logistic(columns, targets, np.ones(400), offsets, np.full(3, 1e9))
    np.testing.assert_allclose(shifted, 0, atol=1e-6)  # the ridge leaves the offset alone


def test_a_calibrated_score_is_the_chance_that_a_box_is_right():
    truth = random_dataset(3, images=300)
    member = noisy(truth, 1, jitter=0.03)
    distorted = replace(member, scores=member.scores**4)
    metric = METRICS["ap50"]
    matches = match_predictions(distorted, ground_truth(truth), ious=metric.ious, max_detections=100)
    bins = bin_scores(matches, np.arange(300) % 2)
    fitted = fit_calibration(bins, frozenset({1}))
    unseen = matches.image % 2 == 1
    scores, right = fitted.apply(matches.scores[unseen]), matches.status[unseen, 0] == 1
    for low, high in ((0.0, 0.3), (0.3, 0.6), (0.6, 1.0)):
        some = (scores >= low) & (scores < high)
        assert some.sum() > 30
        assert scores[some].mean() == pytest.approx(right[some].mean(), abs=0.1)
    assert abs(matches.scores[unseen].mean() - right.mean()) > 0.1  # before
    assert fit_calibration(bins, frozenset({0, 1})) == Calibration(1.0, 0.0)
    assert (np.diff(fitted.apply(np.linspace(0, 1, 50))) >= 0).all()


def slow_features(fused, members, weights, iou, threshold):
    rows = []
    for image_id in fused.image_ids.tolist():
        one = fused[image_id]
        boxes = one.boxes.astype(np.float64)
        among = pairwise_iou(boxes, boxes) if len(boxes) else np.zeros((0, 0))
        for i, (box, score, label) in enumerate(zip(boxes, one.scores, one.labels, strict=True)):
            scores, ious, share = [], [], 0.0
            for member, weight in zip(members, weights, strict=True):
                its = member[image_id]
                overlaps = pairwise_iou(its.boxes.astype(np.float64), box[None])[:, 0] if len(its) else np.zeros(0)
                found = np.flatnonzero((its.labels == label) & (overlaps > iou) & (its.scores >= threshold))
                if weight and len(found):
                    best = found[its.scores[found].argmax()]
                    scores.append(its.scores[best])
                    ious.append(overlaps[best])
                    share += weight
            above = [j for j in range(i) if one.labels[j] == label]
            others = [j for j in range(i) if one.labels[j] != label]
            rows.append(
                [
                    logit(np.array([score]))[0],
                    share / sum(weights),
                    logit(np.array([max([*scores, LEAST])]))[0] - logit(np.array([score]))[0],
                    np.std(scores) if scores else 0.0,
                    1 - np.mean(ious) if ious else 0.0,
                    max([among[i, j] for j in above], default=0.0),
                    max([among[i, j] * one.scores[j] for j in others], default=0.0),
                    math.log(1 + sum(one.scores[j] for j in above)),
                    math.log(1 + len(above)),
                    math.log(max((box[2] - box[0]) * (box[3] - box[1]), 1)) / 2,
                ]
            )
    return np.array(rows)


def features_of(fused, members, weights, iou, threshold, voters=None):
    boxes, scores, labels, begin, end = concatenated(members)
    islands = make_islands(boxes, scores, labels, begin, end, 3)
    votes = Votes(islands, *islands.by_member(scores), np.array(weights, np.float64), iou, threshold)
    return vote_features(fused, votes, voters)


def test_the_features_are_what_they_are_called():
    truth = random_dataset(2, images=15)
    members = [m.select_images(truth.image_ids) for m in some_members(truth).values()]
    for weights, iou, threshold in (([1.0, 0.5, 0.25, 1.0], 0.55, 0.0), ([1.0, 0.0, 0.0, 0.3], 0.3, 0.2)):
        fused = fuse(members, iou=iou, score_threshold=threshold, weights=weights)
        got = features_of(fused, members, weights, iou, threshold)
        np.testing.assert_allclose(got, slow_features(fused, members, weights, iou, threshold), atol=1e-6)
        assert got.shape[1] == len(FEATURES) - 1


def test_the_parts_of_a_member_are_one_voter():
    truth = random_dataset(2, images=12)
    a, b, *_ = (m.select_images(truth.image_ids) for m in some_members(truth).values())
    fused = fuse([a, b], weights=[1.0, 0.5])
    whole = features_of(fused, [a, b], [1.0, 0.5], 0.55, 0.0)
    parts = features_of(fused, [b, a, a], [0.5, 0.5, 0.5], 0.55, 0.0, voters=np.array([0, 1, 1]))
    np.testing.assert_allclose(parts, whole, atol=1e-9)
    chosen = Ensemble({"a": 1.0, "b": 0.5}, calibrations={"a": Calibration(0.8, 0.3)}, stack=replace(STACK, voters={}))
    split = chosen.with_parts({"a": ["a0", "a1"], "b": ["b"]})
    assert split.calibrations == {"a0": Calibration(0.8, 0.3), "a1": Calibration(0.8, 0.3)}
    assert split.stack == replace(STACK, voters={"a0": "a", "a1": "a"})


@pytest.mark.parametrize("metric", ["ap50", "ap"])
@pytest.mark.parametrize(("calibrated", "stacked"), [(True, False), (False, True), (True, True)])
def test_an_ensemble_applies_as_it_was_tried(metric, calibrated, stacked):
    truth = random_dataset(7, images=18)
    members = some_members(truth)
    names = list(members)
    space = space_of(members, truth, metric=metric)
    candidate = replace(
        space.uniform(), calibrated=calibrated, stacked=stacked, score_exponents=(1.0, 2.0, 1.0, 1.0), iou=0.5
    ).with_weight(2, 0.0)
    got = space.matches(candidate, FINAL)
    chosen = Ensemble({"a": 1.0, "b": 1.0, "d": 1.0}, iou=0.5, score_exponents={"b": 2.0})
    if calibrated:
        fitted = {names[i]: space.fitter.calibration(i, frozenset()) for i in candidate.members}
        chosen = replace(chosen, calibrations=fitted)
    if stacked:
        (stack,) = space.fitter.stacks(space.fusion(candidate, FINAL), [frozenset()])
        chosen = replace(chosen, stack=stack)
    chosen_metric = METRICS[metric]
    want = match_predictions(
        apply_ensemble(chosen, members),
        ground_truth(truth),
        ious=chosen_metric.ious,
        max_detections=chosen_metric.max_detections,
    )
    np.testing.assert_allclose(got.scores, want.scores, atol=1e-12)
    np.testing.assert_array_equal(got.status, want.status)


def test_no_model_sees_the_fold_that_its_variant_leaves_out():
    truth = random_dataset(7, images=18)
    members = some_members(truth)
    space = space_of(members, truth)
    other = space_of(members, relabeled(truth, space, 1))
    learned = replace(space.uniform(), calibrated=True, stacked=True)
    for candidate in (learned, replace(learned, stacked=False), replace(learned, calibrated=False)):
        np.testing.assert_array_equal(space.matches(candidate, 2).scores, other.matches(candidate, 2).scores)
        assert not np.array_equal(space.matches(candidate, 1).scores, other.matches(candidate, 1).scores)
    for candidate in (
        replace(learned, stacked=False),
        replace(learned, calibrated=False),
    ):  # an image's own annotations
        before, after = space.matches(candidate, 0), other.matches(candidate, 0)
        own = space.fold_of[before.image] == 1
        np.testing.assert_array_equal(before.scores[own], after.scores[space.fold_of[after.image] == 1])


@pytest.mark.parametrize(("calibrated", "stacked"), [(True, False), (False, True), (True, True)])
def test_no_image_is_fused_out_of_fold_by_a_model_that_has_learnt_it(calibrated, stacked):
    truth = random_dataset(7, images=18)
    members, fused = some_members(truth), []
    for annotated in (truth, relabeled(truth, space_of(members, truth), 1)):
        space = space_of(members, annotated)
        candidate = replace(space.uniform(), calibrated=calibrated, stacked=stacked)
        plain = Ensemble(dict.fromkeys(members, 1.0))
        whole, parts = build._fitted(plain, space, candidate, list(members))
        assert sorted(i for part in parts for i in part.image_ids) == sorted(truth.image_ids)
        fused.append((apply_out_of_fold(whole, parts, members), apply_ensemble(whole, members)))
    first, others = parts[1].image_ids, parts[0].image_ids
    (before, in_sample_before), (after, in_sample_after) = fused
    assert [*before.image_ids] == [*next(iter(members.values())).image_ids]
    same = [np.array_equal(before[i].scores, after[i].scores) for i in first]
    assert all(same), "the annotations of an image change its own scores"
    assert not all(np.array_equal(before[i].scores, after[i].scores) for i in others)
    assert not all(np.array_equal(in_sample_before[i].scores, in_sample_after[i].scores) for i in first)


def by_chance(seed):
    """Two members that find the same boxes, half of them right, with scores by chance: nothing tells which are right."""
    truth, rng = random_dataset(seed, images=14, crowds=0), np.random.default_rng(seed)
    ids = truth.image_ids
    rows = {i: (truth[i].annotations.boxes, truth[i].annotations.labels) for i in ids}
    found = {"a": {}, "b": {}}
    for i, other in zip(ids, [*ids[1:], ids[0]], strict=True):
        boxes, labels = (np.concatenate(pair) for pair in zip(rows[i], rows[other], strict=True))
        for one in found.values():
            one[i] = Detections(boxes.astype(np.float32), rng.uniform(0.3, 0.7, len(boxes)), labels)
    return truth, {name: Predictions.of(one, truth.classes) for name, one in found.items()}


def test_a_stack_over_scores_by_chance_gains_nothing_out_of_fold():
    honest, in_sample = [], []
    for seed in range(8):
        truth, members = by_chance(seed)
        space = space_of(members, truth, folds=5)
        plain = Ensemble(dict.fromkeys(members, 1.0))
        whole, parts = build._fitted(plain, space, replace(space.uniform(), stacked=True), list(members))
        before = measure(apply_ensemble(plain, members), truth)
        honest.append(measure(apply_out_of_fold(whole, parts, members), truth) - before)
        in_sample.append(measure(apply_ensemble(whole, members), truth) - before)
    assert np.mean(in_sample) > 0.03, "scored in-sample, it seems to gain"
    assert np.mean(honest) < np.std(honest) / np.sqrt(len(honest))


def test_the_nested_choice_knows_nothing_of_its_fold():
    truth = random_dataset(1, images=40)
    space = space_of(scales(truth), truth)
    other = space_of(scales(truth), relabeled(truth, space, 1))
    chosen = ensemble_search.search(space, 2, until=FOREVER)
    assert chosen.is_learned
    assert ensemble_search.search(other, 2, until=FOREVER) == chosen


def scales(truth: Dataset):
    """Members that find the same with scores on other scales, and one with scores by chance."""
    one, two, three = (noisy(truth, seed, jitter=0.04, keep=0.9, extra=8) for seed in (1, 2, 3))
    shuffled = np.random.default_rng(0).permutation(three.scores)
    return {"one": one, "two": replace(two, scores=two.scores**4), "three": replace(three, scores=0.5 + shuffled / 2)}


@pytest.mark.parametrize("metric", ["ap50", "f2"])
def test_a_learned_ensemble_wins_where_scores_mislead_and_its_report_holds(metric):
    truth, unseen = random_dataset(1, images=40), random_dataset(2, images=80)
    members, others = scales(truth), scales(unseen)
    report = build_ensemble(members, truth, metric=metric, seconds=FOREVER, threads=1)
    assert report.ensemble.learned
    assert report.score == pytest.approx(measure(report.out_of_fold(members), truth, metric=metric))
    assert len(report.fold_ensembles) == 5
    found = measure(apply_ensemble(report.ensemble, others), unseen, metric=metric)
    assert found > measure(fuse(list(others.values())), unseen, metric=metric)
    for name, gain in report.leave_one_out_gain.items():
        rest = report.without([name]).out_of_fold(members)
        assert gain == pytest.approx(report.score - measure(rest, truth, metric=metric))


STACK = Stack({"score": 0.1, "agreement": 1.5}, -0.5, ((3.0, 0.5), (4.0, 1.0)), {"y0": "y"})


def test_a_learned_ensemble_is_written_and_read_back(tmp_path):
    chosen = Ensemble({"x": 1.0, "y": 0.5}, calibrations={"y": Calibration(0.7, -0.2)}, stack=STACK)
    chosen.write(tmp_path / "ensemble.json")
    assert read_ensemble(tmp_path / "ensemble.json") == chosen
    plain = json.loads((tmp_path / "ensemble.json").read_text())
    assert plain["format"] == 2
    assert plain["calibrations"] == {"y": {"slope": 0.7, "offset": -0.2}}
    assert plain["stack"]["coefficients"] == {"score": 0.1, "agreement": 1.5}
    assert "calibrated scores, stacking" in repr(chosen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calibrations": {"y": {"slope": -1, "offset": 0}}}, "calibration slope -1"),
        ({"calibrations": {"y": {"slope": 1}}}, "offset"),
        ({"stack": {"coefficients": {"votes": 1.0}, "intercept": 0, "class_sizes": []}}, "called 'votes'"),
        ({"stack": {"coefficients": {}, "intercept": 0, "class_sizes": [[3, 0]]}}, "expected a spread above 0"),
    ],
)
def test_a_broken_model_is_an_input_error(tmp_path, change, message):
    path = tmp_path / "ensemble.json"
    path.write_text(json.dumps({"format": 2, "weights": {"x": 1.0, "y": 1.0}} | change))
    with pytest.raises(InputError, match=message):
        read_ensemble(path)


def test_a_stack_of_other_classes_is_an_input_error():
    truth = random_dataset(5)
    members = {"x": noisy(truth, 1), "y": noisy(truth, 2)}
    with pytest.raises(InputError, match="sizes of 2 classes, and the predictions have 3"):
        apply_ensemble(Ensemble({"x": 1.0, "y": 1.0}, stack=STACK), members)
