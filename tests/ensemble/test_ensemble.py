"""Ensembles: trials agree with `fuse` and `measure`; the chosen ensemble and its scores keep their promises."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ensemble_samples import some_members
from foldfuse.commands.fusion import ensemble
from foldfuse.commands.fusion import fuse as fuse_files
from foldfuse.data.readers.coco import write
from foldfuse.detections import Predictions
from foldfuse.ensemble import search as ensemble_search
from foldfuse.ensemble import trials
from foldfuse.ensemble.build import build_ensemble
from foldfuse.ensemble.ensemble import Ensemble, apply_ensemble, read_ensemble
from foldfuse.ensemble.nested import at_same_rank, nested_search, nested_single
from foldfuse.ensemble.search import ALL, Candidate, SearchSpace
from foldfuse.errors import InputError
from foldfuse.evaluation.bootstrap import bootstrap_difference
from foldfuse.evaluation.kernels import EMPTY, TRUE
from foldfuse.evaluation.matching import ground_truth, match_predictions
from foldfuse.evaluation.metrics import METRICS, measure
from foldfuse.formats.predictions import read_predictions, write_predictions
from foldfuse.fusion.methods import fuse
from score_samples import noisy, predictions, random_dataset

FOREVER = float("inf")


def space_of(members, truth, metric="ap50", folds=3):
    bench = trials.make_bench(list(members.values()), ground_truth(truth), METRICS[metric])
    return SearchSpace(bench, np.random.default_rng(0).permutation(len(truth)) % folds, 1, clock=lambda: 0.0)


@pytest.mark.parametrize("method", ["wbf", "nms", "soft_nms", "nmw"])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_trial_is_fusing_and_matching(method, threads):
    truth, metric = random_dataset(1, images=20), METRICS["ap"]
    members = some_members(truth, digits=2)
    settings = {"method": method, "iou": 0.5, "score_threshold": 0.1}
    powers = {"a": 0.5, "d": 2.0}
    chosen = Ensemble({"a": 2.0, "c": 1.0, "d": 0.5}, **settings, score_exponents=powers)
    want = match_predictions(
        apply_ensemble(chosen, members), ground_truth(truth), ious=metric.ious, max_detections=metric.max_detections
    )
    with_empty_rows = trials.fuse_and_match(
        trials.make_bench(list(members.values()), ground_truth(truth), metric),
        trials.Fusion([0, 2, 3], **settings, weights=[2.0, 1.0, 0.5], score_exponents=[0.5, 1.0, 2.0]),
        threads=threads,
    )
    got = with_empty_rows.without_empty_rows()
    assert len(got.image) < len(with_empty_rows.image)
    with_empty_rows.scores[with_empty_rows.status[:, 0] == EMPTY] = np.nan
    images = np.ones((1, len(truth)), np.int64)
    for prepare in (other.prepare for other in METRICS.values()):  # empty rows do not count, whatever they hold
        np.testing.assert_array_equal(prepare(with_empty_rows)(images), prepare(want)(images))
    for column in ("image", "labels", "scores", "status"):
        np.testing.assert_array_equal(getattr(got, column), getattr(want, column))
    assert (got.status == TRUE).any()


@pytest.mark.parametrize("metric", METRICS)
def test_the_ensemble_is_never_worse_than_the_best_member_or_wbf_of_all(metric):
    truth = random_dataset(5, images=16)
    members = some_members(truth)
    built = build_ensemble(members, truth, metric=metric, seconds=FOREVER, threads=1)
    singles = {name: measure(member, truth, metric=metric) for name, member in members.items()}
    assert built.best_single[1] == pytest.approx(max(singles.values()))
    assert singles[built.best_single[0]] == max(singles.values())
    assert built.uniform_score == pytest.approx(measure(fuse(list(members.values())), truth, metric=metric))
    assert built.score >= max(built.best_single[1], built.uniform_score)
    assert built.score == pytest.approx(measure(apply_ensemble(built.ensemble, members), truth, metric=metric))
    assert sum(row.weight for row in built.table) == pytest.approx(1)
    assert {row.name: pytest.approx(row.single_score) for row in built.table} == singles


def test_useless_members_do_not_spoil_a_good_one():
    truth = random_dataset(6, images=16)
    good = noisy(truth, 1, jitter=0.01, keep=1.0, extra=0, wrong=0.0)
    noise = {f"noise{i}": noisy(truth, i, keep=0.0, extra=30) for i in range(3)}
    built = build_ensemble({"good": good} | noise, truth, seconds=FOREVER, threads=1)
    assert built.best_single[0] == "good"
    assert built.score >= measure(good, truth) > built.uniform_score
    shares = {row.name: row.weight for row in built.table}
    assert shares["good"] > 0.5


@pytest.mark.parametrize("metric", METRICS)
def test_members_that_add_nothing_are_dropped(metric):
    truth = random_dataset(4, images=24)
    good, nothing = noisy(truth, 1, jitter=0.03, keep=0.95), predictions(*[[]] * 24, ids=truth.image_ids)
    members = {"nothing": nothing, "good": good, "other": noisy(truth, 2, jitter=0.05), "none either": nothing}
    report = build_ensemble(members, truth, metric=metric, seconds=FOREVER, threads=1)
    assert set(report.ensemble.weights) <= {"good", "other"}
    assert {row.name: row.weight for row in report.table if "n" in row.name} == {"nothing": 0.0, "none either": 0.0}
    only = build_ensemble({"nothing": nothing}, truth, metric=metric, seconds=0.1)
    assert only.ensemble.weights == {"nothing": 1.0}


def test_the_leave_one_out_gain_is_the_loss_without_the_member():
    truth = random_dataset(5, images=16)
    members = some_members(truth)
    built = build_ensemble(members, truth, seconds=FOREVER, threads=1)
    assert len(built.leave_one_out_gain) > 1
    for name, gain in built.leave_one_out_gain.items():
        chosen = built.ensemble
        others = Ensemble(
            {n: w for n, w in chosen.weights.items() if n != name},
            chosen.method,
            chosen.iou,
            chosen.score_threshold,
            chosen.score_exponents,
        )
        assert gain == pytest.approx(built.score - measure(apply_ensemble(others, members), truth))


def test_without_time_the_best_member_or_wbf_of_all_is_chosen():
    truth = random_dataset(5, images=16)
    members = some_members(truth)
    built = build_ensemble(members, truth, seconds=0.0, threads=1, clock=lambda: 0.0)
    assert built.score == max(built.best_single[1], built.uniform_score)
    assert built.num_candidates <= len(members) + 1 + len(built.leave_one_out_gain)


def test_the_search_stops_at_the_end_of_its_time():
    truth = random_dataset(5, images=16)
    members = some_members(truth)
    seconds = itertools.count()  # every look at the clock is 1 s after the one before
    hurried = build_ensemble(members, truth, seconds=60.0, threads=1, clock=lambda: next(seconds))
    assert hurried.num_candidates < 60 + len(members) + 1 + len(
        hurried.leave_one_out_gain
    )  # a trial needs a look at the clock in time
    patient = build_ensemble(members, truth, seconds=FOREVER, threads=1)
    assert hurried.num_candidates < patient.num_candidates
    assert max(hurried.best_single[1], hurried.uniform_score) <= hurried.score <= patient.score


def test_leaving_a_fold_out_is_measuring_on_the_other_images():
    truth = random_dataset(7, images=18)
    members = some_members(truth)
    space = space_of(members, truth)
    candidate = Candidate((1.0, 2.0, 0.0, 1.0), (1.0, 0.5, 1.0, 1.0), "nmw", 0.5, 0.05)
    fused = apply_ensemble(Ensemble({"a": 1.0, "b": 2.0, "d": 1.0}, "nmw", 0.5, 0.05, {"b": 0.5}), members)
    ids = np.sort(truth.image_ids)
    assert space.score(candidate, ALL) == pytest.approx(measure(fused, truth))
    for fold in range(3):
        kept = ids[space.fold_of != fold].tolist()
        assert space.score(candidate, fold + 1) == pytest.approx(measure(fused.select_images(kept), truth.subset(kept)))


def ranks(scores):
    """For each score, the number of greater scores."""
    return (scores[None, :] > scores[:, None]).sum(1).tolist()


def test_the_nested_score_comes_from_images_that_took_no_part_in_the_choice():
    truth = random_dataset(7, images=18)
    members = some_members(truth)
    space, names, ids = space_of(members, truth), list(members), np.sort(truth.image_ids)
    sorted_scores = sorted(fuse(list(members.values())).scores.tolist(), reverse=True)
    held_out = {}
    for fold in range(3):
        unseen_ids = set(ids[space.fold_of == fold].tolist())
        other = noisy(truth, 50, keep=0.3, extra=9)  # what members find in the unseen images must not matter
        changed = {
            name: Predictions.of({i: (other if i in unseen_ids else m)[i] for i in ids.tolist()}, m.classes)
            for name, m in members.items()
        }
        candidate = ensemble_search.search(space_of(changed, truth), fold + 1, until=FOREVER).canonical
        chosen = Ensemble(
            {names[i]: candidate.weights[i] for i in candidate.members},
            candidate.method,
            candidate.iou,
            candidate.score_threshold,
            {names[i]: candidate.score_exponents[i] for i in candidate.members},
        )
        fused = apply_ensemble(chosen, members)
        scores = [sorted_scores[rank] if rank < len(sorted_scores) else 0.0 for rank in ranks(fused.scores)]
        fused = replace(fused, scores=np.array(scores, np.float32))
        held_out |= {i: fused[i] for i in ids[space.fold_of == fold].tolist()}
    unseen = nested_search(space, space.uniform(), until=FOREVER)
    got = float(unseen(np.ones((1, len(truth)), np.int64))[0])
    pooled = Predictions.of({int(i): held_out[i] for i in ids}, truth.classes)
    assert got == pytest.approx(measure(pooled, truth))


def test_each_fold_has_the_single_member_that_is_best_without_it():
    truth = random_dataset(7, images=18)
    members = {f"m{seed}": noisy(truth, seed, jitter=0.2, keep=0.6, extra=3) for seed in range(8)}
    space, ids = space_of(members, truth), np.sort(truth.image_ids)
    leader = max(range(len(members)), key=lambda i: space.score(space.single(i)))
    scale = np.sort(list(members.values())[leader].scores)
    chosen, held_out = [], {}
    for fold in range(3):
        others, own = ids[space.fold_of != fold].tolist(), ids[space.fold_of == fold].tolist()
        scores = {n: measure(m.select_images(np.array(others)), truth.subset(others)) for n, m in members.items()}
        chosen.append(max(scores, key=lambda name: scores[name]))
        best = members[chosen[-1]]
        ranked = replace(best, scores=at_same_rank(best.scores, scale))
        held_out |= {i: ranked[i] for i in own}
    assert len({*chosen}) > 1, "the members are so alike that luck chooses"
    found = nested_single(space, space.single(leader))
    got = float(found(np.ones((1, len(truth)), np.int64))[0])
    pooled = Predictions.of({int(i): held_out[i] for i in ids}, truth.classes)
    assert got == pytest.approx(measure(pooled, truth))
    assert got < space.score(space.single(leader))


def test_scores_take_the_values_at_the_same_rank_of_another_scale():
    scale = np.array([0.1, 0.4, 0.8], np.float32)
    got = at_same_rank(np.array([0.03, 0.9, 0.03, 0.5, 0.01], np.float32), scale)
    np.testing.assert_array_equal(got, np.float32([0.1, 0.8, 0.1, 0.4, 0.0]))
    assert not at_same_rank(scale, np.zeros(0, np.float32)).any()


def test_the_interval_is_a_paired_bootstrap_of_the_nested_choice():
    truth = random_dataset(5, images=16)
    members = {"a": noisy(truth, 1)}
    built = build_ensemble(members, truth, seconds=FOREVER, threads=1)
    assert built.nested_score == pytest.approx(built.score)
    assert built.interval == bootstrap_difference(members["a"], members["a"], truth)
    assert (built.leave_one_out_gain, built.ensemble.weights) == ({}, {"a": 1.0})


def test_one_image_is_enough_but_has_no_nested_score():
    truth = random_dataset(5, images=16)
    one = truth.subset([next(s.id for s in truth.samples if len(s.annotations) > 2)])
    built = build_ensemble({"a": noisy(one, 1), "b": noisy(one, 2)}, one, seconds=FOREVER, threads=1)
    assert built.nested_score is None
    assert built.interval is None
    assert built.score >= built.best_single[1]


def test_an_ensemble_is_written_and_read_back(tmp_path):
    chosen = Ensemble({"x@640": 2.0, "y": 0.5}, "nmw", 0.6, 0.05, {"y": 0.5})
    chosen.write(tmp_path / "ensemble.json")
    assert read_ensemble(tmp_path / "ensemble.json") == chosen
    assert json.loads((tmp_path / "ensemble.json").read_text()) == {
        "format": 1,
        "weights": {"x@640": 2.0, "y": 0.5},
        "method": "nmw",
        "iou": 0.6,
        "score_threshold": 0.05,
        "score_exponents": {"y": 0.5},
    }
    first = (tmp_path / "ensemble.json").read_bytes()
    read_ensemble(tmp_path / "ensemble.json").write(tmp_path / "ensemble.json")
    assert (tmp_path / "ensemble.json").read_bytes() == first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"members": {"a": 1}}', "is not an ensemble"),
        ("[]", "expected the JSON object of an ensemble"),
        ('{"format": 3, "weights": {"a": 1}}', "is an ensemble of format 3"),
        ('{"format": 1, "weights": {"a": 1}, "method": "wbff"}', "is not an ensemble"),
        ('{"format": 1, "weights": {}}', "at least one"),
        ('{"format": 1, "weights": {"a": -1}}', "weight -1"),
    ],
)
def test_a_broken_file_is_an_input_error(tmp_path, text, message):
    path = tmp_path / "ensemble.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_ensemble(path)


def test_bad_input_is_named():
    truth = random_dataset(5)
    a = noisy(truth, 1)
    with pytest.raises(InputError, match="no member"):
        build_ensemble({}, truth)
    with pytest.raises(InputError, match="folds is 1"):
        build_ensemble({"a": a}, truth, folds=1)
    with pytest.raises(InputError, match="Did you mean 'ap50'"):
        build_ensemble({"a": a}, truth, metric="ap5")
    with pytest.raises(InputError, match="lack 1 of"):
        build_ensemble({"a": a.select_images(truth.image_ids[1:])}, truth)
    with pytest.raises(InputError, match="has the member 'b'"):
        apply_ensemble(Ensemble({"a": 1.0, "b": 1.0}), {"a": a})
    broken = predictions([[5, 5, 1, 1, 0.5, 0]], ids=[truth.image_ids[0]])
    with pytest.raises(InputError, match="row 0"):
        build_ensemble({"a": broken}, truth.subset([truth.image_ids[0]]) if truth.samples[0].annotations else truth)


def test_the_ensemble_command_chooses_and_fuse_applies(tmp_path, capsys):
    truth = random_dataset(5, images=16)
    for sample in truth.samples:
        Image.new("L", (1, 1)).save(tmp_path / sample.file_name)
    data = write(truth, tmp_path / "truth.json")
    members = some_members(truth)
    paths = tuple(write_predictions(p, tmp_path / f"{name}.parquet", truth) for name, p in members.items())
    out = ensemble(paths, data=data, out=tmp_path / "ensemble.json", budget=FOREVER)
    printed = capsys.readouterr().out
    built = build_ensemble({n: p.select_images(truth.image_ids) for n, p in members.items()}, truth, seconds=FOREVER)
    assert read_ensemble(out) == built.ensemble
    assert f"{built.score:.4f} on the images that chose it" in printed
    assert f"{built.nested_score:.4f}" in printed
    fused = fuse_files(paths, data=data, out=tmp_path / "fused.parquet", ensemble=out)
    assert measure(read_predictions(fused, truth), truth) == pytest.approx(built.score)
    with pytest.raises(InputError, match="is given twice"):
        ensemble((paths[0], paths[0]), data=data, out=tmp_path / "no.json")
    assert not (tmp_path / "no.json").exists()
