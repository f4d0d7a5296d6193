"""`foldfuse.ensemble_boxes` against the package itself, bit for bit, on thousands of random images."""

from __future__ import annotations

import warnings
from itertools import product

import ensemble_boxes as theirs
import numpy as np
import pytest

from foldfuse.fusion import ensemble_boxes as ours

CONF_TYPES = ("avg", "max", "box_and_model_avg", "absent_model_aware_avg")


def random_image(rng, *, members, dtype=np.float64, digits=None, outside=False):
    """Boxes, scores, labels of each member: objects with jitter, some doubled, some missed, some members empty."""
    objects = int(rng.integers(1, 25))
    centres, sides = rng.uniform(0.1, 0.9, (objects, 2)), rng.uniform(0.02, 0.3, (objects, 2))
    kinds = rng.integers(0, 4, objects)
    boxes, scores, labels = [], [], []
    for _ in range(members):
        seen = rng.choice(objects, int(rng.integers(0, 2 * objects)))
        near = centres[seen] + rng.normal(0, 0.02, (len(seen), 2))
        half = sides[seen] * rng.uniform(0.8, 1.2, (len(seen), 2)) / 2
        box, score = np.concatenate([near - half, near + half], 1), rng.uniform(0.001, 1, len(seen))
        if digits is not None:
            box, score = box.round(digits), score.round(digits)
        boxes.append((box if outside else box.clip(0, 1)).astype(dtype))
        scores.append(score.astype(dtype))
        labels.append(kinds[seen])
    return boxes, scores, labels


def both(name, *lists, **options):
    """The result of theirs, on copies, and of ours; None for theirs where it fails or is not finite."""
    copies = [[column.copy() for column in columns] for columns in lists]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine = getattr(ours, name)(*lists, **options)
        try:
            want = getattr(theirs, name)(*copies, **options)
        except ValueError:  # nothing left to concatenate
            return None, mine
    return (want if all(np.isfinite(column).all() for column in want) else None), mine


def assert_identical(want, mine):
    for a, b in zip(want, mine, strict=True):
        np.testing.assert_array_equal(b, a)


@pytest.mark.parametrize(("conf_type", "allows_overflow"), [*product(CONF_TYPES, [False]), ("avg", True)])
@pytest.mark.parametrize("digits", [None, 1, 2])
def test_weighted_boxes_fusion(conf_type, allows_overflow, digits):
    rng = np.random.default_rng([CONF_TYPES.index(conf_type), allows_overflow, digits or 0])
    compared = 0
    for _ in range(150):
        members = int(rng.integers(1, 12))
        image = random_image(rng, members=members, dtype=rng.choice([np.float32, np.float64]), digits=digits)
        weights = rng.choice([None, 1, 2, 3])
        if weights is not None:
            weights = rng.uniform(0.1, 3, members).astype([np.float64, np.float32, np.int64][weights - 1]) + (
                weights == 3
            )
        options = {"iou_thr": rng.choice([0.0, 0.3, 0.55, 0.8]), "skip_box_thr": rng.choice([0.0, 0.1, 0.5])}
        want, mine = both(
            "weighted_boxes_fusion",
            *image,
            weights=weights,
            conf_type=conf_type,
            allows_overflow=allows_overflow,
            **options,
        )
        if want is not None:
            assert_identical(want, mine)
            compared += 1
    assert compared > 120


@pytest.mark.parametrize("digits", [None, 1, 2])
def test_non_maximum_weighted(digits):
    rng = np.random.default_rng(digits or 0)
    compared = 0
    for _ in range(300):
        members = int(rng.integers(1, 8))
        image = random_image(rng, members=members, dtype=rng.choice([np.float32, np.float64]), digits=digits)
        weights = None if rng.random() < 0.5 else rng.uniform(0.1, 3, members).tolist()
        options = {"iou_thr": rng.choice([0.0, 0.3, 0.55, 0.8]), "skip_box_thr": rng.choice([0.0, 0.1, 0.5])}
        want, mine = both("non_maximum_weighted", *image, weights=weights, **options)
        if want is not None:
            assert_identical(want, mine)
            compared += 1
    assert compared > 240


@pytest.mark.parametrize("digits", [None, 1, 2])
@pytest.mark.parametrize("method", [1, 2, 3])
def test_nms_method(method, digits):
    rng = np.random.default_rng([method, digits or 0])
    compared = 0
    for _ in range(300):
        members = int(rng.integers(1, 8))
        image = random_image(rng, members=members, dtype=rng.choice([np.float32, np.float64]), digits=digits)
        options = {
            "weights": None if rng.random() < 0.5 else rng.uniform(0.1, 3, members).tolist(),
            "iou_thr": rng.choice([0.0, 0.3, 0.55, 0.8]),
            "sigma": rng.choice([0.1, 0.5]),
            "thresh": rng.choice([0.001, 0.05]),
        }
        lists = [list(columns) for columns in image]
        want, _ = both("nms_method", *lists, method=method, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mine = ours.nms_method(*lists, method=method, original_scores=True, **options)
        if want is not None:
            assert_identical(want, mine)
            assert [column.dtype for column in want] == [column.dtype for column in mine]
            compared += 1
    assert compared > 240


@pytest.mark.parametrize("name", ["nms", "weighted_boxes_fusion", "non_maximum_weighted"])
def test_boxes_that_reach_outside_or_are_turned_round(name):
    rng = np.random.default_rng(4)
    for _ in range(50):
        boxes, scores, labels = random_image(rng, members=3, outside=True)
        boxes = [box[:, [2, 1, 0, 3]] if rng.random() < 0.5 else box * 1.2 for box in boxes]
        want, mine = both(name, boxes, scores, labels)
        if want is not None:
            assert_identical(want, mine)


def test_many_models_are_summed_in_the_same_order():
    rng = np.random.default_rng(5)
    for members in (8, 17, 130, 300):
        boxes = [np.array([[0.1, 0.1, 0.5, 0.5]])] * members
        scores = [rng.uniform(0.1, 1, 1) for _ in boxes]
        labels = [rng.integers(0, 2, 1) for _ in boxes]
        for conf_type, dtype in product(CONF_TYPES, [np.float32, np.float64]):
            weights = rng.uniform(0.1, 1, members).astype(dtype)
            want, mine = both("weighted_boxes_fusion", boxes, scores, labels, weights=weights, conf_type=conf_type)
            assert_identical(want, mine)


def test_zero_scores_are_copied_wherever_the_result_is_finite():
    rng = np.random.default_rng(6)
    compared = 0
    for _ in range(300):
        boxes, scores, labels = random_image(rng, members=3, digits=1)
        scores = [np.where(rng.random(len(score)) < 0.1, 0, score) for score in scores]
        want, mine = both("weighted_boxes_fusion", boxes, scores, labels)
        assert all(np.isfinite(column).all() for column in mine)
        if want is not None:
            assert_identical(want, mine)
            compared += 1
    assert 100 < compared < 300


@pytest.mark.parametrize("name", ["weighted_boxes_fusion", "non_maximum_weighted", "nms", "soft_nms"])
def test_one_crowded_class(name):
    rng = np.random.default_rng(7)
    corners = rng.uniform(0, 0.95, (2, 600, 2))
    boxes = list(np.concatenate([corners, corners + rng.uniform(0.01, 0.05, (2, 600, 2))], -1))
    scores, labels = list(rng.uniform(0.01, 1, (2, 600))), list(np.zeros((2, 600), int))
    want, mine = both(name, boxes, scores, labels)
    np.testing.assert_array_equal(mine[0], want[0])
    np.testing.assert_array_equal(mine[2], want[2])
