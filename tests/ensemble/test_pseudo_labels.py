"""Pseudo-labels: confident by the held-out images; a run trains on them, and after a resume on the same ones."""

from dataclasses import replace

import numpy as np
import pytest

from foldfuse.campaign.execution.jobs import concat
from foldfuse.campaign.runner import load_pseudo_labels
from foldfuse.campaign.task import Task
from foldfuse.data.images import ImageCache
from foldfuse.data.readers.coco import read
from foldfuse.detections import Detections, Predictions
from foldfuse.ensemble.pseudo_labels import confident_predictions, pseudo_labeled
from foldfuse.formats.predictions import write_predictions
from foldfuse.recipes import load_recipe
from foldfuse.storage import ledger as ledgers
from foldfuse.storage.run import Run
from learning_samples import write_dataset


@pytest.fixture
def task(tmp_path):
    """(task, all images with annotations): six images to train on, five held out, five test images."""
    whole = read(write_dataset(tmp_path / "d", 16))
    train, val, test = (whole.subset(whole.image_ids[part]) for part in (slice(6), slice(6, 11), slice(11, 16)))
    recipes = {"lite0_fpn": load_recipe("lite0_fpn")}
    return Task(train, val, test.without_annotations(), frozenset(), recipes, (), 0, 3, pseudo_labels=True), whole


def as_predictions(dataset, score):
    """The annotations as predictions of one score, and in each image a false positive with half of it."""
    found = {}
    for sample in dataset.samples:
        boxes = np.concatenate([sample.annotations.boxes, [[0, 0, 2, 2]]]).astype(np.float32)
        scores = np.full(len(boxes), score, np.float32)
        scores[-1] /= 2
        found[sample.id] = Detections(boxes, scores, np.append(sample.annotations.labels, 0))
    return Predictions.of(found, dataset.classes)


def test_confident_boxes_score_above_the_best_threshold_of_the_held_out_images(task):
    task, whole = task
    truth = whole.subset(task.test.image_ids)
    found = confident_predictions(as_predictions(task.val, 0.8), task.val, as_predictions(truth, 0.8))
    assert [len(found[s.id]) for s in truth.samples] == [len(s.annotations) for s in truth.samples]
    assert not len(confident_predictions(as_predictions(task.val, 0.8), task.val, as_predictions(truth, 0.7)).boxes)


def test_no_box_is_confident_where_no_prediction_is_correct(task):
    task, whole = task
    wrong = Predictions.of(
        {i: Detections(np.float32([[0, 0, 1, 1]]), np.float32([0.9]), np.int64([0])) for i in task.val.image_ids},
        task.val.classes,
    )
    truth = whole.subset(task.test.image_ids)
    assert not len(confident_predictions(wrong, task.val, as_predictions(truth, 0.9)).boxes)


def test_images_without_a_confident_box_are_left_out(task):
    task, whole = task
    first = task.test.samples[0]
    found = as_predictions(whole.subset(task.test.image_ids), 0.8)
    made = pseudo_labeled(task.test, found.filter(found.image_index == 0))
    (sample,) = made.samples
    assert (sample.id, sample.path) == (first.id, first.path)
    assert not sample.annotations.crowd.any()
    np.testing.assert_allclose(sample.annotations.area[-1], 4.0)


def test_images_are_concatenated_in_order(task):
    task, _ = task
    more = replace(task.val, samples=task.val.samples[:2])
    dataset, images = concat(task.train, ImageCache.load(task.train.samples, longest=32), more)
    assert [s.id for s in dataset.samples] == [*task.train.image_ids, *more.image_ids]
    alone = ImageCache.load(more.samples, longest=32)
    np.testing.assert_array_equal(images[len(task.train)], alone[0])
    gap = (
        ImageCache.load(task.train.samples, longest=32, memory_mb=0.0, disk_mb=0.0) + alone
    )  # nothing of the first is kept
    np.testing.assert_array_equal(gap[len(task.train) + 1], alone[1])
    np.testing.assert_array_equal(gap[0], images[0])


def test_a_run_trains_on_the_submission_from_when_it_began(task, tmp_path, caplog):
    task, whole = task
    out = tmp_path / "out"
    out.mkdir()
    ledger = ledgers.create(out, {}, deadline=60, start=0)
    run = Run(out / "members" / "cooldown2-96")
    run.folder.mkdir(parents=True)
    assert load_pseudo_labels(run, task, ledger) is None
    assert "trains without pseudo-labels" in caplog.text

    truth = whole.subset(task.test.image_ids)
    for number, score in ((1, 0.8), (2, 0.1)):
        folder = out / "submissions" / str(number)
        folder.mkdir(parents=True)
        write_predictions(as_predictions(task.val, 0.8), folder / "fused_oof.parquet", task.val)
        write_predictions(as_predictions(truth, score), folder / "fused_test.parquet", task.test)
    ledger.add_submission(0.5, {})
    more = load_pseudo_labels(run, task, ledger)
    assert more.num_boxes == truth.num_boxes
    ledger.add_submission(0.6, {})  # without a confident box; the run keeps the labels that it began with
    assert load_pseudo_labels(run, task, ledger).num_boxes == truth.num_boxes
    assert load_pseudo_labels(Run(out / "members" / "cooldown2-96"), task, ledger).fingerprint == more.fingerprint
    ledger.close()
