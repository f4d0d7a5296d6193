"""Guests: a run or another toolkit's predictions join where they are out-of-fold, else they are refused in a sentence."""

import json

import pytest

from foldfuse.campaign.external_members import welcome
from foldfuse.campaign.runner import recalled
from foldfuse.campaign.submissions import submit_best
from foldfuse.campaign.task import Task
from foldfuse.data.readers.coco import read
from foldfuse.detections import Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.formats.predictions import write_predictions
from foldfuse.formats.submission import validate_submission
from foldfuse.recipes import load_recipe
from foldfuse.storage.ledger import create
from foldfuse.storage.run import Run, RunMetadata
from learning_samples import write_dataset


@pytest.fixture
def task(tmp_path):
    labelled = read(write_dataset(tmp_path / "d", 16))
    target = read(write_dataset(tmp_path / "t", 6, seed=9), annotated=False)
    held = labelled.subset(range(5))
    recipe = load_recipe("efficientdet_lite0", ("image_size=64",))
    return Task(labelled.subset(range(5, 16)), held, target, frozenset({2}), {"lite0": recipe}, (), 0, 3)


@pytest.fixture
def ledger(tmp_path):
    (tmp_path / "out").mkdir()
    made = create(tmp_path / "out", {}, deadline=60, start=0.0)
    yield made
    made.close()


def truth_of(dataset):
    """The annotations as predictions; the middle of each picture where there are none."""
    found = {}
    for s in dataset.samples:
        drawn = s.annotations
        one = (
            Detections.empty() if drawn is None else Detections(drawn.boxes, drawn.boxes[:, 0] * 0 + 0.9, drawn.labels)
        )
        found[s.id] = one
    return Predictions.of(found, dataset.classes)


def test_foreign_predictions_alone_make_a_submission(task, ledger, tmp_path):
    write_predictions(truth_of(task.held), tmp_path / "theirs.json", task.held)
    write_predictions(truth_of(task.target), tmp_path / "test.parquet", task.target)
    welcome((), (f"{tmp_path / 'theirs.json'}:{tmp_path / 'test.parquet'}",), task, ledger)
    found = recalled(task, ledger)
    assert (list(found.held), list(found.target), found.unchosen) == (["theirs@1"], ["theirs@1"], ["theirs"])
    submit_best(task, ledger, found, last=True)
    assert found.score == pytest.approx(1)
    assert list(validate_submission(ledger.folder / "submission.csv", task.target).image_ids) == list(
        task.target.image_ids
    )
    assert recalled(task, ledger).unchosen == []
    assert recalled(task, ledger).score == found.score

    welcome((), ("gone:gone",), task, ledger)  # once in a campaign: it is not looked for again
    assert [row.name for row in ledger.segments()] == ["theirs"]


def test_foreign_predictions_that_leave_the_held_back_pictures_out_are_refused(task, ledger, tmp_path):
    write_predictions(truth_of(task.train), tmp_path / "wrong.json", task.train)
    write_predictions(truth_of(task.target), tmp_path / "test.parquet", task.target)
    with pytest.raises(InputError, match="finds something in 0 of the 5 held-back pictures"):
        welcome((), (f"{tmp_path / 'wrong.json'}:{tmp_path / 'test.parquet'}",), task, ledger)
    with pytest.raises(InputError, match="--foreign is HELD:TEST"):
        welcome((), ("one.json",), task, ledger)
    assert not ledger.segments()


def a_run(folder, task, held):
    metadata = RunMetadata(classes=task.train.classes, val_ids=tuple(held), seed=4, seconds=9.0, steps=3)
    run = Run.create(folder, task.recipes["lite0"], metadata)
    run.save_weights({})
    return run


def test_a_run_joins_where_it_did_not_learn_from_what_is_held_back(task, ledger, tmp_path):
    a_run(tmp_path / "mine", task, [*task.held.image_ids, 9])
    welcome((str(tmp_path / "mine"),), (), task, ledger)
    (row,) = ledger.segments()
    assert (row.name, row.kind, row.state) == ("mine", "run", "trained")
    assert json.loads((ledger.folder / "members" / "mine" / "run.json").read_text())["seed"] == 4


@pytest.mark.parametrize(
    ("name", "held", "message"),
    [
        ("mine", [0, 1, 2], "learnt from 2 of the 5 pictures that the campaign holds back, such as image id 3"),
        ("trunk-256", list(range(5)), "a guest cannot be called 'trunk-256'"),
        ("a@b", list(range(5)), "a guest cannot be called 'a@b'"),
    ],
)
def test_a_run_that_cannot_join_is_refused_and_nothing_is_taken(task, ledger, tmp_path, name, held, message):
    a_run(tmp_path / name, task, held)
    with pytest.raises(InputError, match=message):
        welcome((str(tmp_path / name),), (), task, ledger)
    assert not ledger.segments()
    assert not (ledger.folder / "members").exists()
