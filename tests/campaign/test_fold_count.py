"""The number of folds that are trained: by the time that is left for each, or as the user says."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from foldfuse.campaign import constants as c
from foldfuse.campaign import trained_folds
from foldfuse.campaign.planning.fold_count import UNLESS, as_asked, choose_number
from foldfuse.campaign.request import CampaignRequest
from foldfuse.campaign.task import Task
from foldfuse.data.content_hashes import image_hashes
from foldfuse.data.folds import make_folds
from foldfuse.data.readers.coco import read
from foldfuse.detections import Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.formats.predictions import write_predictions
from foldfuse.recipes import load_recipe
from foldfuse.storage import ledger as ledgers
from foldfuse.storage.run import Run, RunMetadata
from learning_samples import write_dataset

RECIPES = {"lite0_fpn": load_recipe("lite0_fpn", ["image_size=64", "init_weights=none", "frozen_stages=0"])}
HOUR = 3600.0


def seconds_with(steps: float) -> float:
    """Seconds of a step with which an hour has just so many steps."""
    return c.TRAINING_SHARE * HOUR / steps


@pytest.mark.parametrize(
    ("steps", "available", "number"),
    [
        (600, 5, 1),
        (990, 5, 1),
        (1000, 5, 2),
        (2550, 5, 2),
        (3000, 5, 3),
        (4900, 5, 3),
        (5000, 5, 5),
        (9000, 5, 5),
        (9000, 4, 3),
    ],
)
def test_each_fold_has_enough_steps(steps, available, number):
    count = choose_number(available, 5, deadline=HOUR, step_seconds=seconds_with(steps) * 0.999)
    assert count.number == number
    assert f"{number} of 5 folds" in count.reason


def test_the_reason_tells_the_steps():
    count = choose_number(5, 5, deadline=HOUR, step_seconds=seconds_with(750))
    assert count.reason == (
        "1 of 5 folds is trained, with time for some 750 steps: 2 would have some 380 steps each, and at least 500 are asked."
    )
    short = choose_number(5, 5, deadline=HOUR / 6, step_seconds=seconds_with(1500) / 6)
    assert short.reason.endswith(UNLESS)
    every = choose_number(5, 5, deadline=HOUR, step_seconds=seconds_with(7500))
    assert every.reason.endswith("held-out images of all of them, and its members learn every image between them.")


@pytest.fixture
def campaign(tmp_path):
    """(task with fold 0 held out, folds, ledger): 20 images in 5 folds, of which fold 1 stands in for the test images."""
    whole = read(write_dataset(tmp_path / "d", 20))
    folds = make_folds(whole, num_folds=5, seed=0)
    val, test = (whole.subset(folds.val_ids(fold)) for fold in (0, 1))
    train = whole.subset({*whole.image_ids} - {*val.image_ids} - {*test.image_ids})
    task = Task(train, val, test.without_annotations(), frozenset(), RECIPES, (), 0, 5, device="cpu")
    (tmp_path / "out").mkdir()
    with closing(ledgers.create(tmp_path / "out", {}, deadline=HOUR, start=time.monotonic())) as ledger:
        yield task, folds, ledger


def test_the_members_of_a_fold_learn_all_images_but_its_own_and_those_to_predict(campaign):
    task, folds, ledger = campaign
    several = trained_folds.with_trained_folds(task, folds, wanted=3, ledger=ledger)
    assert several.folds == (0, 2, 3), "fold 1 stands in for the test images"
    for fold in several.folds:
        held_out, learnt = {*several.val_in(fold).image_ids}, {*several.train_in(fold).image_ids}
        assert held_out == {*folds.val_ids(fold)}
        assert not learnt & held_out
        assert learnt | held_out == {*task.labeled.image_ids}
        assert len(several.train_hashes(fold)) == len(learnt)
    assert not {*several.labeled.image_ids} & {*task.test.image_ids}
    assert several.val_in(0, 2, 3) is several.val


def test_one_fold_leaves_the_task_as_it_is(campaign):
    task, folds, ledger = campaign
    assert trained_folds.with_trained_folds(task, folds, wanted=1, ledger=ledger) is task


def test_the_choice_is_kept_for_a_resume(campaign, monkeypatch):
    task, folds, ledger = campaign
    monkeypatch.setattr(trained_folds, "_step_seconds", lambda task, limit: seconds_with(1500) * 0.999)
    first = trained_folds.with_trained_folds(task, folds, wanted="auto", ledger=ledger)
    monkeypatch.setattr(trained_folds, "_step_seconds", lambda task, limit: seconds_with(4000))
    assert first.folds == trained_folds.with_trained_folds(task, folds, wanted="auto", ledger=ledger).folds == (0, 2)


def test_with_little_time_no_step_is_measured(campaign, monkeypatch):
    task, folds, ledger = campaign
    ledger.deadline = c.MIN_FOLDS_DEADLINE - 1
    monkeypatch.setattr(trained_folds, "_step_seconds", lambda task, limit: pytest.fail("it was measured"))
    assert trained_folds.with_trained_folds(task, folds, wanted="auto", ledger=ledger) is task
    assert ledger.get("train_folds_reason") == "1 of 5 folds is trained: there is too little time for more."


def test_more_folds_than_can_be_held_out_are_refused(campaign):
    task, folds, ledger = campaign
    with pytest.raises(InputError, match="--train-folds 5: 4 of the 5 folds can be held out"):
        trained_folds.with_trained_folds(task, folds, wanted=5, ledger=ledger)


def test_pseudo_labels_train_one_fold(tmp_path):
    assert CampaignRequest(tmp_path, pseudo_labels=True).wanted_folds == 1
    with pytest.raises(
        InputError, match="--train-folds 2 with --pseudo-labels: a member would learn from labels by members"
    ):
        CampaignRequest(tmp_path, train_folds=2, pseudo_labels=True).check()
    assert CampaignRequest(tmp_path, external_run=(tmp_path,)).wanted_folds == "auto"


def annotations_of(task, folds, *predicted, learnt=()):
    """The annotations of the images of these folds as predictions, by a network that has learnt those of others."""
    ids = [i for fold in predicted for i in folds.val_ids(fold)]
    found = {}
    for sample in task.labeled.subset(ids).samples:
        a = sample.annotations
        found[sample.id] = Detections(a.boxes.astype(np.float32), np.full(len(a), 0.9), a.labels)
    learnt_ids = frozenset(i for fold in learnt for i in folds.val_ids(fold))
    return replace(Predictions.of(found, task.labeled.classes), learnt_ids=learnt_ids)


@pytest.mark.parametrize(
    ("predicted", "learnt", "free"),
    [((0, 2, 3, 4), (), [0, 2, 3, 4]), ((0, 3), (), [0, 3]), ((0, 2, 3), (2, 4), [0, 3]), ((0,), (), [0])],
)
def test_only_folds_that_the_external_members_predict_out_of_fold_are_trained(
    campaign, tmp_path, monkeypatch, predicted, learnt, free
):
    task, folds, ledger = campaign
    monkeypatch.setattr(trained_folds, "_step_seconds", lambda task, limit: seconds_with(5000) * 0.999)
    theirs = annotations_of(task, folds, *predicted, learnt=learnt)
    write_predictions(theirs, tmp_path / "theirs.parquet", task.labeled)
    pair = (f"{tmp_path / 'theirs.parquet'}:test.parquet",)
    with pytest.raises(InputError, match=r"--train-folds 5: "):
        trained_folds.with_trained_folds(task, folds, wanted=5, ledger=ledger, external_predictions=pair)
    several = trained_folds.with_trained_folds(task, folds, wanted="auto", ledger=ledger, external_predictions=pair)
    number = max(n for n in c.FOLD_COUNTS if n <= len(free))
    assert list(several.folds) == free[:number]
    told = "the external members predict no other one out-of-fold" in ledger.get("train_folds_reason")
    assert told == (free == [0])


def test_predictions_that_are_much_better_on_another_fold_are_not_taken_as_out_of_fold(campaign, tmp_path):
    task, folds, ledger = campaign
    theirs = annotations_of(task, folds, 0, 2, 3, 4)
    first = np.isin(theirs.image_ids, folds.val_ids(0))[theirs.image_index]
    theirs = replace(theirs, boxes=theirs.boxes + np.where(first, 40, 0)[:, None].astype(np.float32))
    write_predictions(theirs, tmp_path / "theirs.parquet", task.labeled)
    pair = (f"{tmp_path / 'theirs.parquet'}:test.parquet",)
    with pytest.raises(InputError, match=r"--train-folds 2: the external members predict 1 fold out-of-fold"):
        trained_folds.with_trained_folds(task, folds, wanted=2, ledger=ledger, external_predictions=pair)


def test_a_run_that_has_learnt_a_fold_leaves_it_out(campaign, tmp_path):
    task, folds, ledger = campaign
    metadata = RunMetadata(classes=task.train.classes, seed=4, seconds=9.0, steps=3)
    run = Run.create(tmp_path / "mine", RECIPES["lite0_fpn"], metadata)
    run.write_learnt_images({*image_hashes(task.labeled.subset(folds.val_ids(3)).samples), "of another dataset"})
    several = trained_folds.with_trained_folds(task, folds, wanted=3, ledger=ledger, external_runs=(run.folder,))
    assert several.folds == (0, 2, 4)


def test_folds_that_were_asked_for_are_trained_and_little_time_is_told():
    assert as_asked(2, 5, seconds=240.0).reason == "2 of 5 folds are trained, as --train-folds says."
    short = as_asked(5, 5, seconds=120.0)
    assert short.number == 5
    assert "Each has some 24 s of training" in short.reason
    assert as_asked(1, 5, seconds=20.0).reason == "1 of 5 folds is trained, as --train-folds says."
