"""External members: a run or another toolkit's predictions join where they are out-of-fold, else one sentence refuses them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from foldfuse.campaign.external_members import add_all
from foldfuse.campaign.submissions import load_predictions, submit_best
from foldfuse.campaign.task import Task
from foldfuse.data.readers.coco import read
from foldfuse.detections import Detections, Predictions
from foldfuse.ensemble.ensemble import read_ensemble
from foldfuse.ensemble.member_views import MemberView
from foldfuse.errors import InputError
from foldfuse.formats.predictions import read_predictions, write_predictions
from foldfuse.formats.submission import validate_submission
from foldfuse.models import make_detector
from foldfuse.recipes import load_recipe
from foldfuse.storage.ledger import create
from foldfuse.storage.run import Run, RunMetadata
from foldfuse.storage.segments import Role
from learning_samples import write_dataset


@pytest.fixture
def task(tmp_path):
    labeled = read(write_dataset(tmp_path / "d", 16))
    test = read(write_dataset(tmp_path / "t", 6, seed=9), annotated=False)
    recipe = load_recipe("efficientdet_lite0", ("image_size=64",))
    train, val = labeled.subset(range(5, 16)), labeled.subset(range(5))
    return Task(train, val, test, frozenset({2}), {"lite0": recipe}, (), 0, 3)


@pytest.fixture
def ledger(tmp_path):
    (tmp_path / "out").mkdir()
    ledger = create(tmp_path / "out", {}, deadline=60, start=0.0)
    yield ledger
    ledger.close()


def as_predictions(dataset):
    """The annotations as predictions of score 0.9; no box where there are none."""
    found = {}
    for s in dataset.samples:
        a = s.annotations
        found[s.id] = Detections.empty() if a is None else Detections(a.boxes, a.boxes[:, 0] * 0 + 0.9, a.labels)
    return Predictions.of(found, dataset.classes)


def test_external_predictions_alone_make_a_submission(task, ledger, tmp_path):
    write_predictions(as_predictions(task.val), tmp_path / "theirs.json", task.val)
    write_predictions(as_predictions(task.test), tmp_path / "test.parquet", task.test)
    add_all((), (f"{tmp_path / 'theirs.json'}:{tmp_path / 'test.parquet'}",), task, ledger)
    members = load_predictions(task, ledger)
    theirs = [MemberView("theirs", "1")]
    assert (list(members.val), list(members.test), members.new_members) == (theirs, theirs, ["theirs"])
    submit_best(task, ledger, members, last=True)
    assert members.score == pytest.approx(1)
    assert list(validate_submission(ledger.folder / "submission.csv", task.test).image_ids) == list(task.test.image_ids)
    assert load_predictions(task, ledger).new_members == []
    assert load_predictions(task, ledger).score == members.score

    add_all((), ("gone:gone",), task, ledger)  # once in a campaign: a resume does not read the files again
    assert [segment.name for segment in ledger.segments()] == ["theirs"]


def test_external_predictions_without_the_held_out_images_are_refused(task, ledger, tmp_path):
    write_predictions(as_predictions(task.train), tmp_path / "wrong.json", task.train)
    write_predictions(as_predictions(task.test), tmp_path / "test.parquet", task.test)
    with pytest.raises(InputError, match="finds something in 0 of the 5 held-out images"):
        add_all((), (f"{tmp_path / 'wrong.json'}:{tmp_path / 'test.parquet'}",), task, ledger)
    with pytest.raises(InputError, match="--external-predictions is VAL:TEST"):
        add_all((), ("one.json",), task, ledger)
    assert not ledger.segments()


def test_external_predictions_of_several_folds_are_one_member_of_all(task, ledger, tmp_path):
    held_out = {0: frozenset(range(5)), 2: frozenset(range(5, 9))}
    whole = task.labeled
    task = replace(task, train=whole.subset(range(9, 16)), val=whole.subset(range(9)), held_out=held_out)
    write_predictions(as_predictions(whole), tmp_path / "theirs.json", whole)
    write_predictions(as_predictions(task.test), tmp_path / "test.parquet", task.test)
    add_all((), (f"{tmp_path / 'theirs.json'}:{tmp_path / 'test.parquet'}",), task, ledger)
    members = load_predictions(task, ledger)
    assert {*members.val[MemberView("theirs", "1")]} == {*range(9)}
    submit_best(task, ledger, members, last=False)
    assert ledger.latest_submission()[2]["folds"] == [0], "the first members of the campaign's own are of fold 0"
    assert {*read_predictions(ledger.folder / "fused_oof.parquet", task.val)} == {*range(5)}
    submit_best(task, ledger, members, last=True)
    assert ledger.latest_submission()[2]["folds"] == [0, 2]
    assert {*read_predictions(ledger.folder / "fused_oof.parquet", task.val)} == {*range(9)}
    assert dict(read_ensemble(ledger.folder / "ensemble.json").weights) == {"theirs@1": 1.0}


def write_run(folder, task, val_ids):
    metadata = RunMetadata(classes=task.train.classes, val_ids=tuple(val_ids), seed=4, seconds=9.0, steps=3)
    recipe = task.recipes["lite0"]
    model = make_detector(recipe.detector, len(task.train.classes), pretrained=False)
    Run.create(folder, recipe, metadata).save_weights(model.state_dict())


def test_a_run_joins_where_it_did_not_train_on_held_out_images(task, ledger, tmp_path):
    write_run(tmp_path / "mine", task, [*task.val.image_ids, 9])
    add_all((tmp_path / "mine",), (), task, ledger)
    (segment,) = ledger.segments()
    assert (segment.name, segment.role, segment.state) == ("mine", Role.EXTERNAL_RUN, "trained")
    assert json.loads((ledger.folder / "members" / "mine" / "run.json").read_text())["seed"] == 4


@pytest.mark.parametrize(
    ("name", "val_ids", "message"),
    [
        ("mine", [0, 1, 2], "has learnt from 2 of the campaign's 5 held-out images, such as image id 3"),
        ("base-256", list(range(5)), "an external member cannot be called 'base-256'"),
    ],
)
def test_a_run_that_cannot_join_is_refused_and_nothing_is_added(task, ledger, tmp_path, name, val_ids, message):
    write_run(tmp_path / name, task, val_ids)
    with pytest.raises(InputError, match=message):
        add_all((tmp_path / name,), (), task, ledger)
    assert not ledger.segments()
    assert not (ledger.folder / "members").exists()
