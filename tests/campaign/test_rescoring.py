"""The second opinion takes a submission's place only where its gain is believed and the time allows."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from foldfuse.campaign.rescoring import second_opinion
from foldfuse.campaign.submissions import Found, put
from foldfuse.campaign.task import Task
from foldfuse.data.readers.coco import read
from foldfuse.detections import Detections, Predictions
from foldfuse.ensemble.ensemble import Ensemble
from foldfuse.evaluation.bootstrap import Difference
from foldfuse.formats.predictions import read_predictions
from foldfuse.formats.submission import validate_submission
from foldfuse.inference import rescoring as rescore
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
    """(task, ledger, found) of a campaign with a first submission."""
    labelled = read(write_dataset(tmp_path / "d", 14))
    target = read(write_dataset(tmp_path / "t", 4, seed=9), annotated=False)
    recipe = load_recipe("efficientdet_lite0", ("image_size=64",))
    task = Task(
        labelled.subset(range(6, 14)), labelled.subset(range(6)), target, frozenset({2}), {"lite0": recipe}, (), 0, 3
    )
    (tmp_path / "out").mkdir()
    ledger = create(tmp_path / "out", {}, deadline=600, start=time.monotonic())
    seen = target.subset(set(target.image_ids) - {2})
    put(scored(task.held, 0.4), scored(seen, 0.4), Ensemble({"a@1": 1.0}), 0.5, {"fused": {"ap": 0.1}}, task, ledger)
    yield task, ledger, Found(score=0.5)
    ledger.close()


def opinion(monkeypatch, *, kept, after, asked):
    """Let the classifier be of this opinion."""

    def fit(held, dataset, **_):
        asked.append(dataset)
        changed = Predictions.of({i: held[i] for i in held.image_ids}, held.classes)
        return SimpleNamespace(
            accepted=kept,
            after=after,
            predictions=changed,
            rescorer=None,
            gain=Difference(0.1, 0.05, 0.15, 1.0),
            to_dict=lambda: {"kept": kept},
        )

    def apply(_, predictions, samples):
        return scored(SimpleNamespace(samples=samples, classes=predictions.classes), 0.9)

    monkeypatch.setattr(rescore, "fit_rescorer", fit)
    monkeypatch.setattr(rescore, "apply_rescorer", apply)


def test_a_gain_that_is_believed_is_submitted(campaign, monkeypatch):
    task, ledger, found = campaign
    asked = []
    opinion(monkeypatch, kept=True, after=0.7, asked=asked)
    second_opinion(task, ledger, found)
    assert set(asked[0].image_ids) == set(range(14))
    number, score, facts = ledger.latest_submission()
    assert (number, score, found.score) == (2, 0.7, 0.7)
    assert facts["second_opinion"] == {"kept": True}
    assert facts["fused"]["interval"] is None, "what was known of the fusion's gain says nothing of this one"
    submitted = read_predictions(ledger.folder / "submission.json", task.target)
    assert [len(submitted[i].scores) for i in task.target.image_ids] == [1, 1, 0, 1]
    assert submitted[0].scores[0] == pytest.approx(0.9)
    assert len(validate_submission(ledger.folder / "submission.csv", task.target)) == 4

    second_opinion(task, ledger, found)  # resumed: it has been asked already
    assert len(asked) == 1


@pytest.mark.parametrize(("kept", "after"), [(False, 0.9), (True, 0.5)])
def test_without_a_gain_all_stays(campaign, monkeypatch, kept, after):
    task, ledger, found = campaign
    before = (ledger.folder / "submission.csv").read_bytes()
    opinion(monkeypatch, kept=kept, after=after, asked=[])
    second_opinion(task, ledger, found)
    assert ledger.latest_submission()[:2] == (1, 0.5)
    assert found.score == 0.5
    assert (ledger.folder / "submission.csv").read_bytes() == before


def test_without_time_for_the_pictures_to_submit_all_stays(campaign, monkeypatch):
    task, ledger, found = campaign
    opinion(monkeypatch, kept=True, after=0.9, asked=[])
    monkeypatch.setattr(type(ledger), "remaining", 1.0)
    second_opinion(task, ledger, found)
    assert ledger.latest_submission()[0] == 1


def test_where_learning_is_slow_it_is_given_up_before_the_deadline(campaign, monkeypatch, capsys):
    task, ledger, found = campaign
    now, done = [500.0], []
    ledger.start, ledger.clock = 0.0, lambda: now[0]

    def fit(*_, progress, **__):  # a hundred seconds, all that is left
        for tenths in range(1, 11):
            now[0] += 10
            progress(tenths / 10)
            done.append(tenths)

    monkeypatch.setattr(rescore, "fit_rescorer", fit)
    second_opinion(task, ledger, found)
    assert done == [1], "the second step tells the pace"
    assert "no time is left to ask for it" in capsys.readouterr().err
    assert ledger.latest_submission()[0] == 1


def test_the_real_classifier_is_asked(campaign):
    task, ledger, found = campaign
    second_opinion(task, ledger, found)
    assert ledger.latest_submission()[0] in (1, 2)
    assert found.score == ledger.latest_submission()[1]
