"""Crop rescoring replaces a submission only where a gain is likely and the time allows it."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from foldfuse.campaign import constants as c
from foldfuse.campaign.rescoring import _Pace, measure_class_errors, rescore_submission
from foldfuse.campaign.submissions import MemberPredictions, write_submission_folder
from foldfuse.campaign.task import Task
from foldfuse.data.readers.coco import read
from foldfuse.detections import Detections, Predictions
from foldfuse.ensemble.ensemble import Ensemble
from foldfuse.evaluation.bootstrap import Difference
from foldfuse.formats.predictions import read_predictions, write_predictions
from foldfuse.formats.submission import validate_submission
from foldfuse.inference import rescoring
from foldfuse.recipes import load_recipe
from foldfuse.storage.ledger import create
from learning_samples import write_dataset


def scored(dataset, score):
    """The annotations as predictions of one score; a box in the corner where there are none."""
    found = {}
    for s in dataset.samples:
        boxes = np.array([[1, 1, 20, 20]], np.float32) if s.annotations is None else s.annotations.boxes
        labels = np.zeros(1, np.int64) if s.annotations is None else s.annotations.labels
        found[s.id] = Detections(boxes, np.full(len(boxes), score, np.float32), labels)
    return Predictions.of(found, dataset.classes)


@pytest.fixture
def campaign(tmp_path):
    """(task, ledger, members) of a campaign with a first submission; a test image cannot be decoded."""
    labeled = read(write_dataset(tmp_path / "d", 14))
    test = read(write_dataset(tmp_path / "t", 4, seed=9), annotated=False)
    recipe = load_recipe("efficientdet_lite0", ("image_size=64",))
    train, val = labeled.subset(range(6, 14)), labeled.subset(range(6))
    task = Task(train, val, test, frozenset({2}), {"lite0": recipe}, (), 0, 3)
    (tmp_path / "out").mkdir()
    ledger = create(tmp_path / "out", {}, deadline=600, start=time.monotonic())
    decodable = test.subset(set(test.image_ids) - {2})
    write_submission_folder(
        scored(task.val, 0.4),
        scored(decodable, 0.4),
        Ensemble({"a@1": 1.0}),
        0.5,
        {"fused": {"ap": 0.1}},
        task=task,
        ledger=ledger,
    )
    yield task, ledger, MemberPredictions(score=0.5)
    ledger.close()


def fake_rescorer(monkeypatch, *, accepted, after):
    """Replaces the classifier by one with this result, and returns a list that gets the datasets it trains on."""
    trained_on = []

    def fit(val, dataset, **_):
        trained_on.append(dataset)
        changed = Predictions.of({i: val[i] for i in val.image_ids}, val.classes)
        return SimpleNamespace(
            accepted=accepted,
            after=after,
            predictions=changed,
            rescorer=None,
            gain=Difference(0.1, 0.05, 0.15, 1.0),
            to_dict=lambda: {"accepted": accepted},
        )

    def apply(_, predictions, samples):
        return scored(SimpleNamespace(samples=samples, classes=predictions.classes), 0.9)

    monkeypatch.setattr(rescoring, "fit_rescorer", fit)
    monkeypatch.setattr("foldfuse.campaign.rescoring.apply_rescorer", apply)
    return trained_on


def test_a_likely_gain_is_submitted(campaign, monkeypatch):
    task, ledger, members = campaign
    trained_on = fake_rescorer(monkeypatch, accepted=True, after=0.7)
    rescore_submission(task, ledger, members)
    assert set(trained_on[0].image_ids) == set(range(14))
    number, score, facts = ledger.latest_submission()
    assert (number, score, members.score) == (2, 0.7, 0.7)
    assert facts["rescoring"] == {"accepted": True}
    submitted = read_predictions(ledger.folder / "submission.json", task.test)
    assert [len(submitted[i].scores) for i in task.test.image_ids] == [1, 1, 0, 1]
    assert submitted[0].scores[0] == pytest.approx(0.9)
    assert len(validate_submission(ledger.folder / "submission.csv", task.test)) == 4

    rescore_submission(task, ledger, members)  # resumed
    assert len(trained_on) == 1, "a rescored submission is not rescored again"


@pytest.mark.parametrize(("accepted", "after"), [(False, 0.9), (True, 0.5)])
def test_without_a_gain_the_submission_stays(campaign, monkeypatch, accepted, after):
    task, ledger, members = campaign
    before = (ledger.folder / "submission.csv").read_bytes()
    fake_rescorer(monkeypatch, accepted=accepted, after=after)
    rescore_submission(task, ledger, members)
    assert ledger.latest_submission()[:2] == (1, 0.5)
    assert members.score == 0.5
    assert (ledger.folder / "submission.csv").read_bytes() == before


def test_without_time_for_the_test_images_the_submission_stays(campaign, monkeypatch):
    task, ledger, members = campaign
    fake_rescorer(monkeypatch, accepted=True, after=0.9)
    monkeypatch.setattr(type(ledger), "remaining", 1.0)
    rescore_submission(task, ledger, members)
    assert ledger.latest_submission()[0] == 1


def test_slow_training_of_the_classifier_is_given_up_before_the_deadline(campaign, monkeypatch, caplog):
    task, ledger, members = campaign
    now, done = [500.0], []
    ledger.start, ledger.clock = 0.0, lambda: now[0]

    def fit(*_, progress, **__):  # takes the remaining hundred seconds
        for tenths in range(1, 11):
            now[0] += 10
            progress(tenths / 10)
            done.append(tenths)

    monkeypatch.setattr(rescoring, "fit_rescorer", fit)
    rescore_submission(task, ledger, members)
    assert done == [1, 2], "the first steps show the pace"
    assert "no time left to rescore the test images" in caplog.text
    assert ledger.latest_submission()[0] == 1


@pytest.mark.parametrize(("pace", "ends_in_time"), [(1.3, True), (2.5, False)])
def test_a_slow_start_is_no_reason_to_give_up_where_the_rest_may_be_faster(campaign, monkeypatch, pace, ends_in_time):
    task, ledger, _members = campaign
    now, planned = [0.0], 100.0
    ledger.start, ledger.clock = 0.0, lambda: now[0]
    watch = _Pace(task, ledger, num_images=10)
    monkeypatch.setattr(watch, "_planned", lambda share: planned * share)
    watch._test = 0.0
    now[0] = ledger.deadline - watch._delivery - 1.2 * planned
    given_up = []
    for tenths in range(1, 11):  # the first three tenths are slower than planned, the others faster
        now[0] += planned / 10 * (pace if tenths <= 3 else 0.7)
        given_up.append(watch.is_too_slow(tenths / 10))
    assert any(given_up) is not ends_in_time


def test_where_classes_are_right_no_time_is_kept_for_rescoring(campaign, caplog):
    task, ledger, _members = campaign
    measure_class_errors(task, ledger)
    assert ledger.get("class_error_cost") == pytest.approx(0.0, abs=1e-9), "the submission has the annotated classes"
    assert "Wrong classes cost AP50 0.000" in caplog.text
    measure_class_errors(task, ledger)
    assert caplog.text.count("Wrong classes cost") == 1, "said once"


def test_wrong_classes_of_the_latest_submission_keep_time_for_rescoring(campaign, caplog):
    task, ledger, _members = campaign
    measure_class_errors(task, ledger)
    folder = ledger.folder / "submissions" / "1" / "fused_oof.parquet"
    found = read_predictions(folder, task.val)
    write_predictions(replace(found, labels=1 - found.labels), folder, task.val)
    measure_class_errors(task, ledger)
    assert ledger.get("class_error_cost") > 10 * c.MIN_CLASS_ERROR_COST
    assert caplog.text.count("Wrong classes cost") == 1, "only the first time"


def test_the_real_classifier_runs(campaign):
    task, ledger, members = campaign
    rescore_submission(task, ledger, members)
    assert ledger.latest_submission()[0] in (1, 2)
    assert members.score == ledger.latest_submission()[1]
