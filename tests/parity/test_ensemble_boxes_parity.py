"""`foldfuse.ensemble_boxes` finds the boxes of the package itself, to 1e-6, on thousands of random images.

The scores of an image differ: the package leaves the order of equal scores to the processor.
"""

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
            box = box.round(digits)
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


def assert_same(want, mine):
    """Each result has its like in the other, to 1e-6, in any order."""
    a, b = (np.column_stack([boxes, scores, labels]).astype(np.float64) for boxes, scores, labels in (want, mine))
    assert len(a) == len(b)
    if len(a):
        like = np.abs(a[:, None] - b[None]).max(2) < 1e-6
        assert like.any(0).all()
        assert like.any(1).all()


@pytest.mark.parametrize(("conf_type", "allows_overflow"), [*product(CONF_TYPES, [False]), ("avg", True)])
@pytest.mark.parametrize("digits", [None, 1, 2])
def test_weighted_boxes_fusion(conf_type, allows_overflow, digits):
    rng = np.random.default_rng([CONF_TYPES.index(conf_type), allows_overflow, digits or 0])
    compared = 0
    for _ in range(150):
        members = int(rng.integers(1, 12))
        # Corners with one or two digits give IoUs that equal a threshold; float32 and float64 would round them apart.
        dtype = rng.choice([np.float32, np.float64]) if digits is None else np.float64
        image = random_image(rng, members=members, dtype=dtype, digits=digits)
        weights = rng.choice([None, 1, 2, 3])
        if weights is not None:
            weights = rng.uniform(0.1, 3, members).astype([dtype, np.float64, np.int64][weights - 1]) + (weights == 3)
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
            assert_same(want, mine)
            compared += 1
    assert compared > 120


@pytest.mark.parametrize("digits", [None, 1, 2])
def test_non_maximum_weighted(digits):
    rng = np.random.default_rng(digits or 0)
    compared = 0
    for _ in range(300):
        members = int(rng.integers(1, 8))
        dtype = rng.choice([np.float32, np.float64]) if digits is None else np.float64
        image = random_image(rng, members=members, dtype=dtype, digits=digits)
        weights = None if rng.random() < 0.5 else rng.uniform(0.1, 3, members).tolist()
        options = {"iou_thr": rng.choice([0.0, 0.3, 0.55, 0.8]), "skip_box_thr": rng.choice([0.0, 0.1, 0.5])}
        want, mine = both("non_maximum_weighted", *image, weights=weights, **options)
        if want is not None:
            assert_same(want, mine)
            compared += 1
    assert compared > 240


@pytest.mark.parametrize("digits", [None, 1, 2])
@pytest.mark.parametrize("method", [1, 2, 3])
def test_nms_method(method, digits):
    rng = np.random.default_rng([method, digits or 0])
    compared = 0
    for _ in range(300):
        members = int(rng.integers(1, 8))
        dtype = rng.choice([np.float32, np.float64]) if digits is None else np.float64
        image = random_image(rng, members=members, dtype=dtype, digits=digits)
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
            assert_same(want, mine)
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
            assert_same(want, mine)


@pytest.mark.parametrize("name", ["nms", "soft_nms", "weighted_boxes_fusion", "non_maximum_weighted"])
def test_equal_scores_give_the_same_boxes_where_no_two_compete(name):
    x, y = (grid.reshape(-1) / 10 for grid in np.meshgrid(np.arange(10), np.arange(10)))
    boxes = [np.column_stack([x, y, x + 0.08, y + 0.08])]
    want, mine = both(name, boxes, [np.full(100, 0.5)], [np.arange(100) % 3])
    assert_same(want, mine)


def test_many_models():
    rng = np.random.default_rng(5)
    for members in (8, 17, 130, 300):
        boxes = [np.array([[0.1, 0.1, 0.5, 0.5]])] * members
        scores = [rng.uniform(0.1, 1, 1) for _ in boxes]
        labels = [rng.integers(0, 2, 1) for _ in boxes]
        for conf_type, dtype in product(CONF_TYPES, [np.float32, np.float64]):
            weights = rng.uniform(0.1, 1, members).astype(dtype)
            want, mine = both("weighted_boxes_fusion", boxes, scores, labels, weights=weights, conf_type=conf_type)
            assert_same(want, mine)


def test_zero_scores_agree_wherever_the_result_is_finite():
    rng = np.random.default_rng(6)
    compared = 0
    for _ in range(300):
        boxes, scores, labels = random_image(rng, members=3)
        scores = [np.where(rng.random(len(score)) < 0.1, 0, score) for score in scores]
        want, mine = both("weighted_boxes_fusion", boxes, scores, labels)
        assert all(np.isfinite(column).all() for column in mine)
        if want is not None:
            assert_same(want, mine)
            compared += 1
    assert 100 < compared < 300


@pytest.mark.parametrize("name", ["weighted_boxes_fusion", "non_maximum_weighted", "nms", "soft_nms"])
def test_one_crowded_class(name):
    rng = np.random.default_rng(7)
    corners = rng.uniform(0, 0.95, (2, 600, 2))
    boxes = list(np.concatenate([corners, corners + rng.uniform(0.01, 0.05, (2, 600, 2))], -1))
    scores, labels = list(rng.uniform(0.01, 1, (2, 600))), list(np.zeros((2, 600), int))
    want, mine = both(name, boxes, scores, labels)
    assert_same((want[0], want[0][:, 0], want[2]), (mine[0], mine[0][:, 0], mine[2]))
