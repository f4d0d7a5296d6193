"""The delivery: what cannot be predicted in the time that is left stays out of the ensemble."""

import time
from dataclasses import replace

import numpy as np
import pytest

from foldfuse.campaign.submissions import Found, affordable, submit_best
from foldfuse.campaign.task import Task
from foldfuse.data.readers.coco import read
from foldfuse.detections import Detections, Predictions
from foldfuse.ensemble.ensemble import Ensemble, EnsembleReport, apply_ensemble
from foldfuse.evaluation.metrics import measure
from foldfuse.formats.predictions import read_predictions
from foldfuse.recipes import load_recipe
from foldfuse.storage.ledger import SegmentRecord, create
from learning_samples import write_dataset

VIEWS = ("1", "1+hflip", "1.25")


def shifted(dataset, by):
    """The annotations as predictions, moved by some pixels."""
    found = {}
    for s in dataset.samples:
        boxes = (s.annotations.boxes + np.float32(by)).astype(np.float32)
        found[s.id] = Detections(boxes, np.full(len(boxes), 0.5, np.float32), s.annotations.labels)
    return Predictions.of(found, dataset.classes)


@pytest.fixture
def campaign(tmp_path):
    """(task, ledger, candidates, what was chosen): a quick and a slow member, of which the quick one is half predicted."""
    labelled = read(write_dataset(tmp_path / "d", 14))
    target = read(write_dataset(tmp_path / "t", 10, seed=9), annotated=False)
    held = labelled.subset(range(6))
    task = Task(
        labelled.subset(range(6, 14)), held, target, frozenset(), {"lite0_fpn": load_recipe("lite0_fpn")}, (), 0, 3
    )
    (tmp_path / "out").mkdir()
    ledger = create(tmp_path / "out", {}, deadline=600, start=time.monotonic())
    for name, cost in (("quick", 1.0), ("slow", 4.0)):
        ledger.put_segment(SegmentRecord(name, "train", {}, None, 0, 0, "done", 1.0, 1.0, 0.0, 1.0, {"cost": cost}))
    candidates = {f"{name}@{view}": shifted(held, i) for i, name in enumerate(("quick", "slow")) for view in VIEWS}
    chosen = Ensemble(dict.fromkeys(candidates, 1.0), score_exponents={"slow@1.25": 2.0, "quick@1": 2.0})
    built = EnsembleReport(chosen, "ap50", 0.9, None, None, ("quick@1", 0.9), 0.9, (), 1)
    yield task, ledger, candidates, built
    ledger.close()


def test_with_time_the_choice_stays(campaign):
    task, ledger, candidates, built = campaign
    assert affordable(built, candidates, task, ledger, Found()) is built


def test_the_views_that_bring_least_for_their_time_are_left_out(campaign, monkeypatch, capsys):
    task, ledger, candidates, built = campaign
    found = Found(target={"quick@1": candidates["quick@1"]})  # ten pictures: 10 + 15.6 s quick, 40 + 40 + 62.5 s slow
    monkeypatch.setattr(type(ledger), "remaining", 5.0 + 70.0)
    kept = affordable(built, candidates, task, ledger, found)
    assert set(kept.ensemble.weights) == {"quick@1", "quick@1+hflip", "quick@1.25", "slow@1+hflip"}
    assert kept.ensemble.score_exponents == {"quick@1": 2.0}
    assert kept.score == pytest.approx(measure(apply_ensemble(kept.ensemble, candidates), task.held))
    assert "too long: slow@1, slow@1.25." in capsys.readouterr().err


def test_what_is_predicted_already_is_never_left_out_for_its_time(campaign, monkeypatch):
    task, ledger, candidates, built = campaign
    monkeypatch.setattr(type(ledger), "remaining", 0.0)
    kept = affordable(built, candidates, task, ledger, Found(target={"slow@1": candidates["slow@1"]}))
    assert set(kept.ensemble.weights) == {"slow@1"}
    assert len(affordable(built, candidates, task, ledger, Found()).ensemble.weights) == 1, "one must be predicted"


@pytest.mark.parametrize("metric", ["ap50", "f2"])
def test_the_campaigns_metric_decides(campaign, metric, capsys):
    task, ledger, candidates, _ = campaign
    held = {"quick@1": candidates["quick@1"], "slow@1": candidates["slow@1"]}
    target = {
        name: Predictions.of(dict.fromkeys(task.target.image_ids, Detections.empty()), p.classes)
        for name, p in held.items()
    }
    submit_best(replace(task, metric=metric), ledger, Found(held=held, target=target), last=False)
    _, score, facts = ledger.latest_submission()
    assert (facts["fused"]["metric"], facts["fused"]["value"]) == (metric, score)
    submitted = read_predictions(ledger.folder / "fused_oof.parquet", task.held)
    assert score == pytest.approx(measure(submitted, task.held, metric=metric))
    assert f"{metric.upper()} {score:.3f} out-of-fold" in capsys.readouterr().err
