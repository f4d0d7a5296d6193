"""Pseudo-labels: what is sure by the held-back pictures, as annotations; a segment learns from them, and from the same again."""

from dataclasses import replace

import numpy as np
import pytest

from foldfuse.campaign.execution.jobs import joined
from foldfuse.campaign.runner import taught_by
from foldfuse.campaign.task import Task
from foldfuse.data.images import ImageCache
from foldfuse.data.readers.coco import read
from foldfuse.detections import Detections, Predictions
from foldfuse.ensemble.pseudo_labels import labelled, sure
from foldfuse.formats.predictions import write_predictions
from foldfuse.recipes import load_recipe
from foldfuse.storage import ledger as ledgers
from foldfuse.storage.run import Run
from learning_samples import write_dataset


@pytest.fixture
def task(tmp_path):
    """Six pictures to learn from, five held back, five to submit."""
    whole = read(write_dataset(tmp_path / "d", 16))
    train, held, target = (whole.subset(whole.image_ids[part]) for part in (slice(6), slice(6, 11), slice(11, 16)))
    recipes = {"lite0_fpn": load_recipe("lite0_fpn")}
    return Task(train, held, target.without_annotations(), frozenset(), recipes, (), 0, 3, pseudo=True), whole


def as_found(dataset, score):
    """What people drew, found with a score; and in each picture a false alarm of half of it."""
    found = {}
    for sample in dataset.samples:
        boxes = np.concatenate([sample.annotations.boxes, [[0, 0, 2, 2]]]).astype(np.float32)
        scores = np.full(len(boxes), score, np.float32)
        scores[-1] /= 2
        found[sample.id] = Detections(boxes, scores, np.append(sample.annotations.labels, 0))
    return Predictions.of(found, dataset.classes)


def test_what_is_sure_scores_as_is_best_on_the_held_back_pictures(task):
    task, whole = task
    truth = whole.subset(task.target.image_ids)
    found = sure(as_found(task.held, 0.8), task.held, as_found(truth, 0.8))
    assert [len(found[s.id]) for s in truth.samples] == [len(s.annotations) for s in truth.samples]
    assert not len(sure(as_found(task.held, 0.8), task.held, as_found(truth, 0.7)).boxes)


def test_nothing_is_sure_where_nothing_is_right(task):
    task, whole = task
    wrong = Predictions.of(
        {i: Detections(np.float32([[0, 0, 1, 1]]), np.float32([0.9]), np.int64([0])) for i in task.held.image_ids},
        task.held.classes,
    )
    truth = whole.subset(task.target.image_ids)
    assert not len(sure(wrong, task.held, as_found(truth, 0.9)).boxes)


def test_pictures_without_a_sure_box_are_left_out(task):
    task, whole = task
    first = task.target.samples[0]
    found = as_found(whole.subset(task.target.image_ids), 0.8)
    made = labelled(task.target, found.filter(found.image_index == 0))
    (sample,) = made.samples
    assert (sample.id, sample.path) == (first.id, first.path)
    assert not sample.annotations.crowd.any()
    np.testing.assert_allclose(sample.annotations.area[-1], 4.0)


def test_pictures_are_joined_in_order(task):
    task, _ = task
    more = replace(task.held, samples=task.held.samples[:2])
    dataset, images = joined(task.train, ImageCache.load(task.train.samples, longest=32), more)
    assert [s.id for s in dataset.samples] == [*task.train.image_ids, *more.image_ids]
    alone = ImageCache.load(more.samples, longest=32)
    np.testing.assert_array_equal(images[len(task.train)], alone[0])
    gap = (
        ImageCache.load(task.train.samples, longest=32, memory_mb=0.0, disk_mb=0.0) + alone
    )  # nothing of the first is kept
    np.testing.assert_array_equal(gap[len(task.train) + 1], alone[1])
    np.testing.assert_array_equal(gap[0], images[0])


def test_a_run_learns_from_the_submission_that_held_when_it_began(task, tmp_path, capsys):
    task, whole = task
    out = tmp_path / "out"
    out.mkdir()
    ledger = ledgers.create(out, {}, deadline=60, start=0)
    run = Run(out / "members" / "branch2-96")
    run.folder.mkdir(parents=True)
    assert taught_by(run, task, ledger) is None
    assert "learns without pseudo-labels" in capsys.readouterr().err

    truth = whole.subset(task.target.image_ids)
    for number, score in ((1, 0.8), (2, 0.1)):
        folder = out / "submissions" / str(number)
        folder.mkdir(parents=True)
        write_predictions(as_found(task.held, 0.8), folder / "fused_oof.parquet", task.held)
        write_predictions(as_found(truth, score), folder / "fused_test.parquet", task.target)
    ledger.add_submission(0.5, {})
    more = taught_by(run, task, ledger)
    assert more.num_boxes == truth.num_boxes
    ledger.add_submission(0.6, {})  # of which nothing is sure; the run goes on with what it began with
    assert taught_by(run, task, ledger).num_boxes == truth.num_boxes
    assert taught_by(Run(out / "members" / "branch2-96"), task, ledger).fingerprint == more.fingerprint
    ledger.close()
