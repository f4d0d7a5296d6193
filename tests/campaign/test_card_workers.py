"""Two cards of one machine train two segments side by side. Here the cards are two processes on the CPU."""

from __future__ import annotations

import io
import signal
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from campaign_samples import campaign_state
from foldfuse.campaign import campaign as campaigns
from foldfuse.campaign import constants as c
from foldfuse.campaign.execution.card_process import Failed, Ready
from foldfuse.campaign.execution.card_workers import CardWorker, CardWorkers, share_of_cores
from foldfuse.campaign.execution.workers import LocalWorker, SegmentJob, WorkerLost
from foldfuse.campaign.task import Task
from foldfuse.commands.campaign import campaign
from foldfuse.data.folds import read_folds
from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError
from foldfuse.formats.submission import validate_submission
from foldfuse.recipes import load_recipe
from foldfuse.storage import ledger as ledgers
from foldfuse.storage.run import Run
from foldfuse.training.session import run_metadata
from learning_samples import write_dataset

RECIPE = load_recipe("lite0_fpn", ["image_size=64", "batch_size=2", "init_weights=none", "frozen_stages=0"])


@pytest.fixture
def workers(tmp_path):
    """Two processes for a campaign on two cards, not yet started."""
    whole = read(write_dataset(tmp_path / "d", 16))
    train, val, test = (whole.subset(whole.image_ids[part]) for part in (slice(6), slice(6, 12), slice(12, 16)))
    held_out = {0: frozenset(val.image_ids[:3]), 1: frozenset(val.image_ids[3:])}
    recipes = {"lite0_fpn": RECIPE}
    task = Task(train, val, test.without_annotations(), frozenset(), recipes, (), 0, 3, held_out=held_out)
    (tmp_path / "out").mkdir()
    with closing(ledgers.create(tmp_path / "out", {}, deadline=600.0, start=time.monotonic())) as ledger:
        workers = CardWorkers(task, ledger, ("cpu", "cpu"))
        with closing(workers):
            yield workers


def make_job(workers, name, seconds, **changes):
    task = workers._task
    metadata = run_metadata(task.train, data="d", seed=0, val_ids=task.val.image_ids)
    run = Run.create(workers._ledger.folder / "members" / name, RECIPE, metadata)
    values = {"checkpoint": None, "parent": None, "checkpoint_seconds": 0.2, "state": campaign_state()}
    return SegmentJob(run=run, seconds=seconds, **values | changes)


def results_of(workers, number):
    """The results of so many jobs."""
    results, patience = [], time.monotonic() + 120
    while len(results) < number:
        assert time.monotonic() < patience
        results += workers.finished(1.0)
    return results


@pytest.mark.slow
def test_two_segments_are_trained_at_the_same_time_and_a_killed_process_costs_only_its_own(workers):
    assert workers.capacity == 2
    assert workers.prepare(80)
    assert not workers.prepare(80)
    assert (workers.capacity, workers.busy) == (2, frozenset())
    for fold, name in ((1, "a"), (0, "b")):
        workers.start(make_job(workers, name, 3.0, fold=fold))
    both = workers.busy
    killed = next(worker for worker in workers._workers if worker.job.name == "b")
    while not killed.job.run.has_checkpoint:
        time.sleep(0.05)
    killed.process.kill()
    results = {result.name: result for result in results_of(workers, 2)}
    assert both == {"a", "b"}
    assert isinstance(results["b"].error, WorkerLost)
    assert 0 < results["b"].seconds < 3
    assert results["a"].error is None
    assert results["a"].seconds >= 3
    assert {*results["a"].predictions.views[c.PLAIN_VIEW]} == workers._task.held_out[1]
    assert Run(workers._ledger.folder / "members" / "a").is_trained
    while workers.capacity < 2:
        assert workers.finished(1.0) == [], "another process has taken the place of the killed one"
    again = replace(make_job_of("b", workers), seconds=4.0)
    workers.start(again)
    (result,) = results_of(workers, 1)
    assert (result.error, result.seconds >= 4) == (None, True)
    steps = [row["step"] for row in again.run.log if "loss" in row]
    assert steps == list(range(len(steps))), "it resumed from the checkpoint of the killed process"


def make_job_of(name, workers):
    """The job of a run folder that is there already."""
    run = Run(workers._ledger.folder / "members" / name)
    return SegmentJob(run, 0.0, run.load_checkpoint()[0], None, 0.2, campaign_state())


def test_a_card_whose_processes_are_lost_again_and_again_is_left_alone(workers, monkeypatch):
    started = []

    def start(slot):
        started.append(slot)
        gone = SimpleNamespace(kill=lambda: None, terminate=lambda: None, wait=lambda *_: 9, stdin=io.BytesIO())
        workers._workers.append(CardWorker(f"cuda:{slot}", slot, gone))
        workers._answers.put((workers._workers[-1], Failed("lost", "no kernel image") if slot else Ready()))

    monkeypatch.setattr(workers, "_start_process", start)
    workers.prepare(80)
    assert started == [0, 1, 1, 1]
    assert workers.capacity == 1
    notes = ledgers.snapshot(workers._ledger.folder)["notes"]
    assert notes == ["cuda:1 is not used any more: 3 processes on it were lost (no kernel image)."]
    workers._answers.put((workers._workers[0], Failed("input", "a.jpg: cannot be decoded.")))
    with pytest.raises(InputError, match=r"^a\.jpg: cannot be decoded\.$"):
        workers.finished(1.0)


@pytest.mark.slow
def test_a_process_that_is_ended_says_nothing_and_has_its_share_of_the_loaders_threads(workers, monkeypatch, capfd):
    monkeypatch.setenv("FOLDFUSE_LOADER_THREADS", "6")
    workers.prepare(80)
    (one, _), processes = workers._workers, [worker.process for worker in workers._workers]
    for process in processes if sys.platform == "linux" else ():
        variables = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        assert b"FOLDFUSE_LOADER_THREADS=3" in variables
    one.process.send_signal(signal.SIGINT)  # as Ctrl-C in a terminal, which the campaign handles
    workers.close()
    assert [process.returncode for process in processes] == [0, 0], "they have ended before they had to be killed"
    assert capfd.readouterr().err == ""


def test_the_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {5, 1, 2, 3, 4}, raising=False)
    assert [share_of_cores(i, 2) for i in range(2)] == [(1, 2), (3, 4)]
    assert share_of_cores(0, 6) == (), "fewer cores than processes: the system shares them"


@pytest.mark.parametrize(
    ("device", "kind"), [("auto", CardWorkers), ("cuda", CardWorkers), ("cuda:1", LocalWorker), ("cpu", LocalWorker)]
)
def test_a_campaign_on_cuda_uses_all_cards_and_one_on_a_card_that_one(workers, monkeypatch, device, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = campaigns._workers(replace(workers._task, device=device), workers._ledger, cluster=False)
    assert type(chosen) is kind
    assert chosen.capacity == (2 if kind is CardWorkers else 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    if device != "cuda:1":
        alone = campaigns._workers(replace(workers._task, device=device), workers._ledger, cluster=False)
        assert type(alone) is LocalWorker


@pytest.mark.slow
def test_a_campaign_on_two_cards_ends_with_a_valid_submission(tmp_path, monkeypatch):
    monkeypatch.setattr(campaigns, "devices_of", lambda name: ("cpu", "cpu"))
    data, out = write_dataset(tmp_path / "d", 16), tmp_path / "out"
    campaign(data, out=out, deadline=90.0, folds=3, set=("image_size=64", "batch_size=2"), recipe=("lite0_fpn",))
    facts = ledgers.snapshot(out)
    assert facts["state"] == "finished"
    spans = {span["name"]: span for span in facts["timeline"] if span["kind"] == "train"}
    first, second = (span for name, span in spans.items() if name.startswith("train cooldown"))
    assert first["start"] < second["end"]
    assert second["start"] < first["end"]
    assert validate_submission(out / "submission.csv", read(data).subset(read_folds(out / "folds.json").val_ids(1)))
