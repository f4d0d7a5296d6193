"""Fixtures of the tests of campaigns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from campaign_samples import FakeWorkers, noisy
from foldfuse.campaign import constants, new_members, runner, soups, submissions
from foldfuse.campaign.affordable import ensemble_views
from foldfuse.campaign.execution.jobs import HeldOutPredictions
from foldfuse.campaign.planning.state import CampaignState
from foldfuse.campaign.submissions import MemberPredictions
from foldfuse.campaign.task import Task
from foldfuse.data.dataset import Dataset
from foldfuse.data.folds import make_folds
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.ensemble.ensemble import Ensemble
from foldfuse.ensemble.member_views import MemberView
from foldfuse.recipes import Recipe, load_recipe
from foldfuse.storage import ledger as ledgers
from foldfuse.storage.ledger import Ledger
from foldfuse.storage.recipe_file import write_recipe
from foldfuse.storage.run import Run, RunMetadata
from foldfuse.system.records import from_plain
from learning_samples import write_dataset

DEADLINE = 100.0


def predict_soup(run: Run, val: Dataset, state: CampaignState, *, device: str) -> HeldOutPredictions:
    """The predictions of a soup, which the fake workers do not make."""
    run.write_metadata(RunMetadata(steps=7, seconds=0.0))
    record = state.record(run.folder.name)
    assert record is not None
    write_recipe(from_plain(record.recipe, Recipe, where="", what=""), run.folder / "recipe.json")
    return HeldOutPredictions({constants.PLAIN_VIEW: noisy(val, 99)}, image_seconds=0.001)


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorkers]:
    """Two fake workers of a new campaign with a deadline of 100 s; its page is not written."""
    whole = read(write_dataset(tmp_path / "d", 16))
    parts = (slice(6), slice(6, 12), slice(12, 16))
    train, val, truth = (whole.subset(whole.image_ids[part]) for part in parts)
    recipes = {"lite0_fpn": load_recipe("lite0_fpn", ["image_size=192"])}
    task = Task(train, val, truth.without_annotations(), frozenset(), recipes, (), 0, 3)
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(runner, "refresh_report", lambda ledger: None)
    monkeypatch.setattr(soups, "_write", lambda ledger, name, recipe, names: None)
    monkeypatch.setattr(new_members, "predict_held_out", predict_soup)

    def predict_test_images(
        ensemble: Ensemble,
        predicted: Mapping[MemberView, Predictions],
        task: Task,
        ledger: Ledger,
        members: MemberPredictions,
    ) -> None:
        members.test |= {key: noisy(truth, len(str(key))) for key in ensemble_views(ensemble, predicted)}

    monkeypatch.setattr(submissions, "predict_test_images", predict_test_images)
    monkeypatch.setattr(runner, "spend_on_views", lambda *_, **__: None)
    monkeypatch.setattr(runner, "measure_crops", lambda *_: None)  # its time would be real
    with closing(ledgers.create(tmp_path / "out", {}, deadline=DEADLINE, start=0.0)) as ledger:
        workers = FakeWorkers(task, ledger)
        ledger.clock = lambda: workers.now
        yield workers


@pytest.fixture
def compare_base_runs(workers: FakeWorkers, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gives the campaign time to compare four base runs, and returns their names."""
    workers.ledger.deadline = 4 * DEADLINE
    recipes = {"lite0_fpn": workers.task.recipes["lite0_fpn"], "yolov5n": load_recipe("yolov5n", ["image_size=192"])}
    workers.task = replace(workers.task, recipes=recipes)
    monkeypatch.setattr(constants, "MIN_COMPARED_STEPS", 1)
    monkeypatch.setattr(constants, "MIN_SEGMENT_SECONDS", 0.1)
    workers.ledger.set(step_seconds=dict.fromkeys(recipes, 0.1))
    return [f"base-{name}-{size}" for size in (160, 192) for name in recipes]


@pytest.fixture
def two_folds(workers: FakeWorkers) -> FakeWorkers:
    """The workers of a campaign that trains folds 0 and 1 of three."""
    whole = workers.task.labeled
    folds = make_folds(whole, num_folds=3, seed=0)
    held_out = {fold: frozenset(folds.val_ids(fold)) for fold in (0, 1)}
    val = whole.subset(held_out[0] | held_out[1])
    train = whole.subset({*whole.image_ids} - {*val.image_ids})
    workers.task = replace(workers.task, train=train, val=val, held_out=held_out)
    return workers
