"""Every network of a campaign runs on the device of its request."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from campaign_samples import campaign_state, noisy
from foldfuse.campaign import rescoring, submissions
from foldfuse.campaign.execution import jobs, workers
from foldfuse.campaign.planning import estimates
from foldfuse.campaign.submissions import MemberPredictions
from foldfuse.campaign.task import Task
from foldfuse.data.readers.coco import read
from foldfuse.ensemble.ensemble import Ensemble
from foldfuse.ensemble.member_views import MemberView
from foldfuse.recipes import load_recipe
from foldfuse.storage.ledger import create
from foldfuse.storage.run import Run, RunMetadata
from foldfuse.training import step_cost
from foldfuse.training.precision import ComputeConfig
from learning_samples import write_dataset

DEVICE = "cuda:1"


class DeviceSeen(Exception):
    """Ends the work as soon as the device is known."""


@pytest.fixture
def task(tmp_path, monkeypatch):
    """A task on a device that need not exist: choosing it always succeeds."""
    for module in (jobs, submissions, rescoring, step_cost):
        monkeypatch.setattr(module, "choose_device", lambda name: name, raising=False)
    whole = read(write_dataset(tmp_path / "d", 16))
    train, val, test = (whole.subset(whole.image_ids[part]) for part in (slice(6), slice(6, 12), slice(12, 16)))
    recipe = load_recipe("efficientdet_lite0", ["image_size=64", "batch_size=2"])
    return Task(train, val, test.without_annotations(), frozenset(), {"lite0": recipe}, (), 0, 3, device=DEVICE)


@pytest.fixture
def run(task, tmp_path):
    return Run.create(tmp_path / "run", task.recipes["lite0"], RunMetadata(classes=task.train.classes))


def seen_by(monkeypatch, module, name, device_of):
    """The devices that a function of a module is called with; each call ends the work."""
    devices = []

    def record(*arguments, **options):
        devices.append(str(device_of(*arguments, **options)))
        raise DeviceSeen

    monkeypatch.setattr(module, name, record, raising=False)
    return devices


@pytest.fixture(autouse=True)
def no_threads_to_settle(monkeypatch):
    """Cards have no threads to measure, but these are not there."""
    for module in (workers, submissions):
        monkeypatch.setattr(module, "settle_threads", lambda *_, **__: False)


def test_measuring_a_candidate(task, monkeypatch):
    model = SimpleNamespace(stride=32)
    devices = seen_by(monkeypatch, model, "to", lambda device, **_: device)
    monkeypatch.setattr(step_cost, "make_detector", lambda *_, **__: model)
    monkeypatch.setattr(step_cost, "current_device", lambda name: nullcontext())
    monkeypatch.setattr(step_cost, "default_config", lambda device, **_: ComputeConfig())
    with pytest.raises(DeviceSeen):
        estimates.measure_candidates(campaign_state(recipes=task.recipes), task.train, device=task.device)
    assert devices == [DEVICE]


def test_training_in_this_process(task, run, monkeypatch, tmp_path):
    devices = seen_by(monkeypatch, workers, "train_segment", lambda *_, device, **__: device)
    (tmp_path / "out").mkdir()
    ledger = create(tmp_path / "out", {}, deadline=60, start=0.0)
    local = workers.LocalWorker(task, ledger)
    local.prepare(64)
    with pytest.raises(DeviceSeen):
        local.start(workers.SegmentJob(run, 1.0, None, None, 60.0, campaign_state()))
    ledger.close()
    assert devices == [DEVICE]


def test_predicting_the_held_out_images(task, run, monkeypatch):
    devices = seen_by(monkeypatch, jobs, "load_detector", lambda run, device: device)
    with pytest.raises(DeviceSeen):
        jobs.predict_held_out(run, task.val, campaign_state(), device=task.device)
    assert devices == [DEVICE]


def test_predicting_the_test_images(task, run, monkeypatch):
    devices = seen_by(monkeypatch, submissions, "load_detector", lambda run, device: device)
    key = MemberView("run", "1")
    members = MemberPredictions(val={key: noisy(task.val, 0)}, runs={"run": run})
    with pytest.raises(DeviceSeen):
        submissions.predict_test_images(Ensemble({str(key): 1.0}), members.val, task, None, members)
    assert devices == [DEVICE]


def test_crop_rescoring(task, monkeypatch, tmp_path):
    devices = seen_by(monkeypatch, rescoring, "imagenet_encoder", lambda *, device: device)
    (tmp_path / "out").mkdir()
    ledger = create(tmp_path / "out", {}, deadline=6000, start=0.0)
    ledger.clock = lambda: 1.0
    val = noisy(task.val, 0)
    test = noisy(read(task.test.source).subset(task.test.image_ids), 1)
    submissions.write_submission_folder(val, test, Ensemble({"a@1": 1.0}), 0.1, {"fused": {}}, task=task, ledger=ledger)
    with pytest.raises(DeviceSeen):
        rescoring.rescore_submission(task, ledger, MemberPredictions(score=0.1))
    ledger.close()
    assert devices == [DEVICE]
