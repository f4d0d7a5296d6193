"""Submissions: views that cannot be predicted in the remaining time stay out of the ensemble; the campaign's metric decides."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from foldfuse.campaign.affordable import (
    Choice,
    OutOfTime,
    by_name,
    drop_unaffordable_views,
    drop_unpredicted_views,
    in_time,
    without_light_views,
)
from foldfuse.campaign.submissions import MemberPredictions, submit_best, write_submission_folder
from foldfuse.campaign.task import Task
from foldfuse.data.readers.coco import read
from foldfuse.detections import Detections, Predictions
from foldfuse.ensemble.build import EnsembleReport
from foldfuse.ensemble.calibration import Calibration
from foldfuse.ensemble.ensemble import Ensemble, apply_ensemble
from foldfuse.ensemble.fold_ensembles import FoldEnsemble
from foldfuse.ensemble.member_views import MemberView
from foldfuse.evaluation.metrics import measure
from foldfuse.formats.predictions import read_predictions
from foldfuse.formats.sample_submission import read_sample
from foldfuse.recipes import load_recipe
from foldfuse.storage.ledger import create
from foldfuse.storage.segments import Role, SegmentRecord
from learning_samples import write_dataset

VIEWS = ("1", "1+hflip", "1.25")
PARTS = {key: (key,) for key in (MemberView(name, view) for name in ("fast", "slow") for view in VIEWS)}  # of one fold


def test_before_the_loops_of_fusion_are_compiled_the_best_member_is_submitted_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("foldfuse.campaign.submissions.are_compiled", lambda: False)
    monkeypatch.setattr("foldfuse.campaign.submissions.build_ensemble", None)
    whole = read(write_dataset(tmp_path / "d", 9))
    train, val, truth = (whole.subset(whole.image_ids[part]) for part in (slice(3), slice(3, 6), slice(6, 9)))
    task = Task(train, val, truth.without_annotations(), frozenset(), {"lite0_fpn": load_recipe("lite0_fpn")}, (), 0, 3)
    keys = [MemberView(name, "1") for name in ("good", "bad")]
    members = MemberPredictions({key: shifted(val, 9 * i) for i, key in enumerate(keys)})
    members.test = {key: shifted(truth, 0) for key in keys}
    members.new_members = ["good", "bad"]
    (tmp_path / "out").mkdir()
    with closing(create(tmp_path / "out", {}, deadline=60.0, start=time.monotonic())) as ledger:
        for name in ("good", "bad"):
            ledger.put_segment(SegmentRecord(name, Role.BASE, {}, None, 0, 0, "done", 1.0, 1.0, 0.0, 1.0, {}))
        submit_best(task, ledger, members, last=False)
        _, score, facts = ledger.latest_submission()
    assert score == pytest.approx(measure(members.val[keys[0]], val))
    assert facts["fused"]["weights"] == {"good@1": 1.0}
    assert (facts["fused"]["uniform"], facts["fused"]["nested"]) == (None, None)


def shifted(dataset, by):
    """The annotations as predictions, moved by some pixels."""
    found = {}
    for s in dataset.samples:
        boxes = (s.annotations.boxes + np.float32(by)).astype(np.float32)
        found[s.id] = Detections(boxes, np.full(len(boxes), 0.5, np.float32), s.annotations.labels)
    return Predictions.of(found, dataset.classes)


@pytest.fixture
def campaign(tmp_path):
    """(task, ledger, candidates, report) with a fast and a slow member in three views."""
    labeled = read(write_dataset(tmp_path / "d", 14))
    test = read(write_dataset(tmp_path / "t", 10, seed=9), annotated=False)
    train, val = labeled.subset(range(6, 14)), labeled.subset(range(6))
    task = Task(train, val, test, frozenset(), {"lite0_fpn": load_recipe("lite0_fpn")}, (), 0, 3)
    (tmp_path / "out").mkdir()
    ledger = create(tmp_path / "out", {}, deadline=600, start=time.monotonic())
    for name, cost in (("fast", 1.0), ("slow", 4.0)):
        ledger.put_segment(
            SegmentRecord(name, Role.BASE, {}, None, 0, 0, "done", 1.0, 1.0, 0.0, 1.0, {"image_seconds": cost})
        )
    candidates = {MemberView(name, view): shifted(val, i) for i, name in enumerate(("fast", "slow")) for view in VIEWS}
    ensemble = Ensemble(dict.fromkeys(map(str, candidates), 1.0), score_exponents={"slow@1.25": 2.0, "fast@1": 2.0})
    report = EnsembleReport(ensemble, "ap50", 0.9, None, None, ("fast@1", 0.9), 0.9, (), 1)
    yield task, ledger, candidates, report
    ledger.close()


def test_with_time_the_ensemble_stays(campaign):
    task, ledger, candidates, report = campaign
    assert drop_unaffordable_views(report, Choice(candidates, PARTS, {}, task, ledger)) is report


def test_the_views_with_the_least_weight_for_their_time_are_dropped(campaign, monkeypatch, caplog):
    task, ledger, candidates, report = campaign
    fast = MemberView("fast", "1")
    test = {fast: candidates[fast]}  # ten images: fast 10 + 15.6 s, slow 40 + 40 + 62.5 s
    monkeypatch.setattr(type(ledger), "remaining", 5.0 + 70.0)
    kept = drop_unaffordable_views(report, Choice(candidates, PARTS, test, task, ledger))
    assert set(kept.ensemble.weights) == {"fast@1", "fast@1+hflip", "fast@1.25", "slow@1+hflip"}
    assert kept.ensemble.score_exponents == {"fast@1": 2.0}
    assert kept.score == pytest.approx(measure(apply_ensemble(kept.ensemble, by_name(candidates)), task.val))
    assert "too long: slow@1, slow@1.25." in caplog.text


def test_a_predicted_view_is_never_dropped_for_its_time(campaign, monkeypatch):
    task, ledger, candidates, report = campaign
    monkeypatch.setattr(type(ledger), "remaining", 0.0)
    slow = MemberView("slow", "1")
    kept = drop_unaffordable_views(report, Choice(candidates, PARTS, {slow: candidates[slow]}, task, ledger))
    assert set(kept.ensemble.weights) == {"slow@1"}
    kept = drop_unaffordable_views(report, Choice(candidates, PARTS, {}, task, ledger))
    assert len(kept.ensemble.weights) == 1, "one view must be predicted"


def test_where_the_time_is_over_the_views_that_were_predicted_are_submitted(campaign, monkeypatch, caplog):
    task, ledger, candidates, report = campaign
    test = {MemberView("fast", view): candidates[MemberView("fast", view)] for view in VIEWS}
    kept = drop_unpredicted_views(report, Choice(candidates, PARTS, test, task, ledger))
    assert set(kept.ensemble.weights) == {f"fast@{view}" for view in VIEWS}
    assert (kept.nested_score, kept.interval) == (None, None)
    assert drop_unpredicted_views(report, Choice(candidates, PARTS, {}, task, ledger)) is None

    def slow(ensemble, candidates, task, ledger, members):
        key = MemberView("fast", "1")
        members.test[key] = Predictions.of(dict.fromkeys(task.test.image_ids, Detections.empty()), task.test.classes)
        raise OutOfTime

    monkeypatch.setattr("foldfuse.campaign.submissions.predict_test_images", slow)
    classes = task.val.classes
    val = {MemberView(n, "1"): replace(candidates[MemberView(n, "1")], classes=classes) for n in ("fast", "slow")}
    members = MemberPredictions(val=val, new_members=["fast", "slow"])
    both = replace(report, ensemble=Ensemble({"fast@1": 1.0, "slow@1": 1.0}))
    monkeypatch.setattr("foldfuse.campaign.submissions.build_ensemble", lambda *_, **__: both)
    submit_best(task, ledger, members, last=False)
    _, score, facts = ledger.latest_submission()
    assert facts["fused"]["weights"] == {"fast@1": 1.0}
    assert score == pytest.approx(measure(val[MemberView("fast", "1")], task.val))


def test_a_smaller_ensemble_is_scored_with_models_that_have_not_learnt_the_images(campaign):
    task, ledger, candidates, report = campaign
    ids = task.val.image_ids
    low = Ensemble(report.ensemble.weights, calibrations={"slow@1": Calibration(1.0, -3.0)})
    learned = replace(report, ensemble=report.ensemble, fold_ensembles=(FoldEnsemble(tuple(ids), low),))
    test = {key: p for key, p in candidates.items() if key.view == "1"}
    kept = drop_unpredicted_views(learned, Choice(candidates, PARTS, test, task, ledger))
    assert set(kept.ensemble.weights) == {"fast@1", "slow@1"}
    fused = kept.out_of_fold(by_name(candidates))
    want = apply_ensemble(low.without([n for n in low.weights if not n.endswith("@1")]), by_name(candidates))
    np.testing.assert_array_equal(fused.scores, want.scores)
    assert kept.score == pytest.approx(measure(fused, task.val))


def test_where_time_is_short_members_of_next_to_no_weight_have_no_further_views(campaign, monkeypatch, caplog):
    task, ledger, candidates, _ = campaign  # ten images: fast 10 + 10 + 15.6 s, slow 40 + 40 + 62.5 s
    for record in ledger.segments():
        weight = {"fast": 0.97, "slow": 0.03}[record.name]
        ledger.put_segment(replace(record, result={**record.result, "weight": weight}))
    choice = Choice(candidates, PARTS, {}, task, ledger)
    monkeypatch.setattr(type(ledger), "remaining", 5.0 + 3.0 + 180.0)
    assert without_light_views(choice, 3.0) is choice
    monkeypatch.setattr(type(ledger), "remaining", 5.0 + 3.0 + 120.0)
    fewer = without_light_views(choice, 3.0)
    assert {*candidates} - {*fewer.candidates} == {MemberView("slow", "1.25")}
    assert fewer.parts.keys() == fewer.candidates.keys()
    assert "next to no weight so far: slow@1.25." in caplog.text
    monkeypatch.setattr(type(ledger), "remaining", 0.0)
    assert MemberView("slow", "1") in without_light_views(choice, 3.0).candidates, "the plain view stays"


def test_a_prediction_that_would_end_late_is_given_up_once_there_is_a_submission(campaign, monkeypatch):
    _, ledger, _, _ = campaign
    ledger.clock, ledger.start, shares = (lambda: now), 0.0, []
    now = 550.0
    first = in_time(ledger, shares.append)
    ledger.add_submission(0.5, {})
    second = in_time(ledger, shares.append)
    now = 560.0
    first(0.1)  # nine times as long still: 90 s, and 40 s are left
    with pytest.raises(OutOfTime):
        second(0.1)
    second(0.5)
    assert shares == [0.1, 0.1, 0.5]


@pytest.mark.parametrize("metric", ["ap50", "f2"])
def test_the_campaigns_metric_decides(campaign, metric, caplog):
    task, ledger, candidates, _ = campaign
    val = {key: predictions for key, predictions in candidates.items() if key.view == "1"}
    test = {
        key: Predictions.of(dict.fromkeys(task.test.image_ids, Detections.empty()), predictions.classes)
        for key, predictions in val.items()
    }
    members = MemberPredictions(val=val, test=test, new_members=["fast", "slow"])
    submit_best(replace(task, metric=metric), ledger, members, last=False)
    _, score, facts = ledger.latest_submission()
    assert (facts["fused"]["metric"], facts["fused"]["value"]) == (metric, score)
    submitted = read_predictions(ledger.folder / "fused_oof.parquet", task.val)
    assert score == pytest.approx(measure(submitted, task.val, metric=metric))
    assert f"{metric.upper()} {score:.3f} out-of-fold" in caplog.text


def test_the_submission_follows_the_sample(campaign, tmp_path):
    task, ledger, candidates, report = campaign
    rows = "".join(f"{s.file_name.removesuffix('.png')},0.5 0 0 9 9\n" for s in reversed(task.test.samples))
    (tmp_path / "sample.csv").write_text(f"image_id,PredictionString\n{rows}")
    one_class = replace(task.test, classes=task.test.classes[:1], category_ids=task.test.category_ids[:1])
    sample = read_sample(tmp_path / "sample.csv", one_class, format="score_xywh")
    box = Detections(np.float32([[1, 2, 11, 22]]), np.float32([0.25]), np.array([0]))
    empty = Detections.empty()
    first = task.test.image_ids[0]
    found = Predictions.of({i: box if i == first else empty for i in task.test.image_ids}, one_class.classes)
    val = next(iter(candidates.values()))
    task = replace(task, test=one_class, sample=sample)
    write_submission_folder(val, found, report.ensemble, 0.5, {}, task=task, ledger=ledger)
    lines = (ledger.folder / "submission.csv").read_text().splitlines()
    names = [s.file_name.removesuffix(".png") for s in reversed(task.test.samples)]
    assert lines == [
        "image_id,PredictionString",
        *(f"{n}," for n in names[:-1]),
        f"{names[-1]},0.25 1.000 2.000 10.000 20.000",
    ]
