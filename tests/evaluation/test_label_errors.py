"""Planted label errors rank above right annotations, and images that a network has learnt from are no evidence."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from foldfuse.detections import Annotations, Predictions
from foldfuse.errors import InputError
from foldfuse.evaluation.label_errors import find_label_errors
from foldfuse.evaluation.out_of_fold import join_out_of_fold
from score_samples import CLASSES, dataset, noisy, predictions, random_dataset


@pytest.fixture(scope="module")
def fair():
    """Annotations without crowd regions, and the predictions of a fair detector."""
    truth = random_dataset(1, images=60, crowds=0)
    return truth, noisy(truth, 1, keep=1, extra=2, jitter=0.04, wrong=0)


def changed(truth, number, *, boxes=None, labels=None, keep=None, added=()):
    """The dataset with other annotations of one image."""
    sample = truth.samples[number]
    old = sample.annotations
    keep = np.ones(len(old), bool) if keep is None else keep
    new = np.array([row[:4] for row in added], np.float64).reshape(-1, 4)
    boxes = np.concatenate([(old.boxes if boxes is None else boxes)[keep], new])
    labels = np.r_[(old.labels if labels is None else labels)[keep], np.array([row[4] for row in added], np.int64)]
    annotations = Annotations(boxes, labels, np.zeros(len(boxes), bool), (boxes[:, 2:] - boxes[:, :2]).prod(1))
    samples = list(truth.samples)
    samples[number] = replace(sample, annotations=annotations)
    return replace(truth, samples=tuple(samples))


def well_found(truth, found):
    """The first (image number, row) that a confident detection of its class finds alone."""
    for number, sample in enumerate(truth.samples):
        boxes = sample.annotations.boxes
        here = found[sample.id]
        for row, box in enumerate(boxes):
            near = np.abs(here.boxes - box).max(1) < 0.15 * (box[2:] - box[:2]).min()
            is_own = near & (here.labels == sample.annotations.labels[row]) & (here.scores > 0.75)
            free = all(
                max(box[0], o[0]) >= min(box[2], o[2]) or max(box[1], o[1]) >= min(box[3], o[3])
                for i, o in enumerate(boxes)
                if i != row
            )
            if is_own.any() and free:
                return number, row
    raise AssertionError("no object is well found")


@pytest.mark.parametrize("kind", ["missed", "class", "place", "spurious", "duplicate"])
def test_a_planted_error_is_the_most_probable_one_of_its_kind(fair, kind):
    truth, found = fair
    number, row = well_found(truth, found)
    own = truth.samples[number].annotations
    box, label, rows = own.boxes[row], int(own.labels[row]), np.arange(len(own))
    other = (label + 1) % len(CLASSES)
    side = box[2] - box[0]
    if kind == "missed":
        data = changed(truth, number, keep=rows != row)
    elif kind == "class":
        data = changed(truth, number, labels=np.where(rows == row, other, own.labels))
    elif kind == "place":
        data = changed(
            truth,
            number,
            boxes=np.where((rows == row)[:, None], own.boxes + np.array([0.4, 0, 0.4, 0]) * side, own.boxes),
        )
    elif kind == "spurious":
        data = changed(truth, number, added=[[590, 590, 635, 635, label]])
    else:
        data = changed(truth, number, added=[[*(box + 0.03 * side), label]])
    suggestions = [s for s in find_label_errors(data, found) if s.kind == kind]
    best = suggestions[0]
    assert all(a.score >= b.score for a, b in pairwise(suggestions))
    assert best.image_id == truth.samples[number].id
    assert 0.2 < best.score <= 1
    if kind == "missed":
        assert best.annotation is None
        assert best.label == label
        assert np.abs(best.box - box).max() < 0.2 * side
    elif kind == "class":
        assert (best.annotation, best.label, best.box) == (row, best.label, None)
    elif kind == "place":
        assert best.annotation == row
        assert np.abs(best.box - box).max() < 0.2 * side
    elif kind == "spurious":
        assert (best.annotation, best.box, best.label) == (len(own), None, None)
    else:
        assert {best.annotation, best.other} == {row, len(own)}


def test_scores_are_probabilities_and_right_annotations_have_low_ones(fair):
    truth, found = fair
    suggestions = find_label_errors(truth, found)
    of_annotations = [s for s in suggestions if s.annotation is not None]
    assert len(of_annotations) == truth.num_boxes
    assert all(0 <= s.score <= 1 for s in suggestions)
    assert np.median([s.score for s in of_annotations]) < 0.03
    again = find_label_errors(truth, found)
    assert [s.score for s in again] == [s.score for s in suggestions], "the same seed plants the same errors"


def test_a_box_that_is_listed_twice_is_one_object(fair):
    truth, found = fair
    number, row = well_found(truth, found)
    box, label = truth.samples[number].annotations.boxes[row], truth.samples[number].annotations.labels[row]
    data = changed(truth, number, added=[[*box, label]])
    kinds = [s.kind for s in find_label_errors(data, found) if s.image_id == truth.samples[number].id and s.score > 0.3]
    assert "duplicate" not in kinds, "check --fix joins the two, and a correction would remove both"


def test_crowd_regions_and_empty_images_are_no_errors():
    truth = dataset([[0, 0, 600, 600, 0, 1]], [], [[10, 10, 100, 100, 1]])
    found = predictions([[50, 50, 120, 120, 0.9, 0]], [], [[10, 10, 100, 100, 0.9, 1]])
    suggestions = find_label_errors(truth, found)
    assert [(s.image_id, s.annotation) for s in suggestions] == [(2, 0)]
    assert find_label_errors(truth, predictions(ids=())) == []


def test_only_predictions_of_images_that_were_not_learnt_are_evidence():
    truth = dataset([[0, 0, 50, 50, 0]], [[0, 0, 50, 50, 1]], [[0, 0, 50, 50, 2]], [[0, 0, 50, 50, 2]])
    rows = [[0, 0, 50, 50, 0.8, 0]]
    a = replace(predictions(rows, rows, ids=(0, 1)), learnt_ids=frozenset({1, 2}))
    b = replace(predictions(rows, rows, [[0, 0, 50, 50, 0.4, 0]], ids=(1, 2, 0)), learnt_ids=frozenset({2}))
    joined = join_out_of_fold({"a": a, "b": b}, truth)
    assert joined.predictions.image_ids.tolist() == [0, 1]
    assert joined.predictions[0].scores == pytest.approx([0.6]), "fused from two files"
    assert str(joined) == (
        "2 images of 4 have out-of-fold predictions. Left out: 1 that the networks have learnt from, 1 that no file predicts."
    )
    all_learnt = replace(a, learnt_ids=frozenset(range(4)))
    with pytest.raises(InputError, match=r"no image of made-up.json has an out-of-fold prediction: .* 4 images"):
        join_out_of_fold({"a": all_learnt}, truth)
    assert str(join_out_of_fold({"c": predictions(rows, rows, rows, rows)}, truth)) == ""
    assert isinstance(joined.predictions, Predictions)
