"""The best score thresholds by class: by hand, by brute force, and what they promise about other images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from foldfuse.errors import InputError
from foldfuse.evaluation import thresholds as module
from foldfuse.evaluation.matching import match_image
from foldfuse.evaluation.thresholds import (
    MIN_OBJECTS,
    choose_thresholds,
    read_thresholds,
    rounded_down,
    write_thresholds,
)
from score_samples import CLASSES, dataset, noisy, predictions, random_dataset

A, B = [10, 10, 60, 60], [200, 200, 300, 300]


def f_of(found, truth, limits, beta, label=None):
    """F-beta of the boxes that reach their class's limit, one image after another."""
    tp = boxes = objects = 0
    for s in truth.samples:
        one, annotations = found[s.id], s.annotations
        one = one[one.scores >= limits[one.labels]]
        if label is not None:
            one, annotations = one[one.labels == label], annotations[annotations.labels == label]
        match = match_image(one, annotations)
        tp, boxes = tp + int(match.is_tp.sum()), boxes + int(match.not_ignored.sum())
        objects += int((~annotations.crowd).sum())
    return (1 + beta**2) * tp / (beta**2 * objects + boxes)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_no_other_threshold_is_better(beta, monkeypatch):
    monkeypatch.setattr(module, "PRIOR_OBJECTS", 0.0)
    monkeypatch.setattr(module, "MIN_OBJECTS", 1)
    truth = random_dataset(3, images=25)
    found = noisy(truth, 4)
    got = choose_thresholds(found, truth, beta=beta)
    grid = np.unique(np.append(rounded_down(found.scores), 0))
    for k, one in enumerate(got.by_class):
        each = [f_of(found, truth, np.full(3, t), beta, k) for t in grid]
        assert one.f == pytest.approx(max(each))
        assert one.f == pytest.approx(f_of(found, truth, np.full(3, one.score), beta, k))
    assert got.best.f == pytest.approx(max(f_of(found, truth, np.full(3, t), beta) for t in grid))
    assert got.one.all_boxes == got.best.f
    limits = got.scores(CLASSES, "best-by-class")
    assert got.each.all_boxes == pytest.approx(f_of(found, truth, limits, beta))
    assert got.each.class_mean == pytest.approx(np.mean([one.f for one in got.by_class]))


def test_a_class_with_few_objects_takes_the_threshold_of_all():
    many = [[*A, 0], [*B, 0]]
    images = [many] * MIN_OBJECTS + [[[*A, 1]]]
    rows = [[[*A, 0.8, 0], [*B, 0.7, 0], [400, 400, 500, 500, 0.3, 0]]] * MIN_OBJECTS + [[[*A, 0.2, 1]]]
    got = choose_thresholds(predictions(*rows), dataset(*images))
    assert (got.best.score, got.by_class[0].score, got.by_class[1].score) == (0.7, 0.7, 0.7)
    assert got.followers == ("dog",)
    assert got.by_class[1].f == 0
    assert (got.by_class[2].objects, got.by_class[2].f, got.by_class[2].score) == (0, None, 0.7)


def test_the_prior_pulls_a_class_with_some_objects_towards_all():
    """Two chance boxes of a class with twelve objects do not move its threshold far from that of all classes."""
    images = [[[*A, 0]] for _ in range(100)] + [[[*A, 1]] for _ in range(12)]
    good = [[[*A, 0.6, 0], [*B, 0.5, 0]] for _ in range(100)]
    rare = [[[*A, 0.6, 1], [*B, 0.5, 1]] for _ in range(10)] + [[[*A, 0.05, 1]], [[*A, 0.05, 1]]]
    rare[0].append([400, 400, 450, 450, 0.61, 1])
    got = choose_thresholds(predictions(*good, *rare), dataset(*images))
    assert got.by_class[1].score == got.best.score == 0.6


def test_the_cross_validated_score_is_that_of_other_images():
    """Over many draws, the in-sample F is above that on new images, and the cross-validated F is near it."""
    inside, crossed, fresh = [], [], []
    for seed in range(12):
        truth, new = random_dataset(seed, images=30), random_dataset(100 + seed, images=60)
        got = choose_thresholds(noisy(truth, seed), truth)
        inside.append(got.each.all_boxes)
        crossed.append(got.each_cv.all_boxes)
        other = noisy(new, 200 + seed)
        fresh.append(f_of(other, new, got.scores(CLASSES, "best-by-class"), 1.0))
    assert np.mean(inside) > np.mean(fresh)
    assert abs(np.mean(crossed) - np.mean(fresh)) < abs(np.mean(inside) - np.mean(fresh)) + 0.005


def test_more_images_make_narrower_intervals():
    def width(images):
        truth = random_dataset(1, images=images)
        best = choose_thresholds(noisy(truth, 1), truth).best
        assert best.low <= best.score <= best.high
        return best.high - best.low

    assert width(400) < width(20)


def test_rounding_down_keeps_the_box():
    scores = np.append(np.random.default_rng(0).random(2000) ** 4, [0, 1, 0.3, np.float32(0.7), 0.29, 1e-30])
    rounded = rounded_down(scores)
    assert (rounded <= scores).all()
    assert (rounded >= scores * 0.99 - 1e-11).all()
    assert rounded_down(np.array([0.41234, 0.3, 1.0, 0.0])).tolist() == [0.412, 0.3, 1.0, 0.0]


def test_thresholds_are_kept_and_applied_by_the_names_of_classes(tmp_path):
    truth = random_dataset(3, images=25)
    found = noisy(truth, 4)
    got = choose_thresholds(found, truth)
    write_thresholds(tmp_path / "t.json", got)
    back = read_thresholds(tmp_path / "t.json")
    assert back == got
    turned = replace(found, classes=CLASSES[::-1], labels=2 - found.labels)
    kept, other = back.apply(found, "best-by-class"), back.apply(turned, "best-by-class")
    assert 0 < len(kept.boxes) < len(found.boxes)
    assert np.array_equal(kept.boxes, other.boxes)
    assert (back.apply(found, "best").scores >= got.best.score).all()
    with pytest.raises(
        InputError, match="the class 'fox' has no score threshold: the thresholds were chosen for cat, dog, eel"
    ):
        back.apply(replace(found, classes=("cat", "dog", "fox")), "best-by-class")
    (tmp_path / "t.json").write_text(
        (tmp_path / "t.json").read_text().replace(f'"score": {got.best.score}', '"score": 7', 1)
    )
    with pytest.raises(InputError, match="is 7, and must be in"):
        read_thresholds(tmp_path / "t.json")


def test_without_a_found_object_the_threshold_is_zero():
    got = choose_thresholds(predictions([[*B, 0.9, 0]]), dataset([[*A, 0]]))
    assert (got.best.score, got.best.f, got.one_cv) == (0.0, 0.0, None)
    assert choose_thresholds(predictions([], []), dataset([[*A, 0]], [])).each_cv.all_boxes == 0
