"""Detections, Annotations and Predictions keep shapes, order and empty images."""

from __future__ import annotations

import numpy as np
import pytest

from foldfuse.detections import Annotations, Detections, Predictions
from foldfuse.errors import InputError


def some(*scores: float) -> Detections:
    """Detections whose boxes and labels follow from their scores."""
    s = np.float32(scores)
    boxes = np.stack([s, s, s + 1, s + 2], 1) if len(s) else np.zeros((0, 4), np.float32)
    return Detections(boxes, s, np.int64([round(10 * v) for v in scores]))


FOUND = {5: some(0.1, 0.2), 3: some(), 9: some(0.3)}
PREDICTIONS = Predictions.of(FOUND, ["cat"] * 10)


def same(a: Detections, b: Detections) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("boxes", "scores", "labels"))


def test_predictions_are_a_mapping_of_image_ids() -> None:
    assert list(PREDICTIONS) == [5, 3, 9]
    assert len(PREDICTIONS) == 3
    assert len(PREDICTIONS.boxes) == 3
    assert all(same(PREDICTIONS[i], FOUND[i]) for i in FOUND)
    assert PREDICTIONS.image_index.tolist() == [0, 0, 2]
    assert 4 not in PREDICTIONS


def test_a_mask_picks_boxes_and_keeps_all_images() -> None:
    kept = PREDICTIONS.filter(PREDICTIONS.scores > 0.15)
    assert list(kept) == [5, 3, 9]
    assert same(kept[5], some(0.2))
    assert len(kept[3]) == 0
    assert same(kept[9], some(0.3))


def test_images_are_selected_in_the_given_order() -> None:
    picked = PREDICTIONS.select_images([9, 3, 5])
    assert list(picked) == [9, 3, 5]
    assert all(same(picked[i], FOUND[i]) for i in FOUND)
    assert len(PREDICTIONS.select_images([])) == 0
    with pytest.raises(InputError, match="lack 1 of 2 images, such as image id 4"):
        PREDICTIONS.select_images([5, 4])


def test_predictions_of_no_images() -> None:
    nothing = Predictions.of({}, ["cat"])
    assert len(nothing) == 0
    assert nothing.boxes.shape == (0, 4)
    assert len(nothing.filter(np.zeros(0, bool))) == 0


def test_detections_are_indexed_and_concatenated() -> None:
    whole = Detections.cat([some(0.1), some(), some(0.2, 0.3)])
    assert same(whole, some(0.1, 0.2, 0.3))
    assert same(whole[whole.scores > 0.15], some(0.2, 0.3))
    assert same(whole[1:], some(0.2, 0.3))
    assert same(Detections.cat([]), Detections.empty())
    assert Detections.empty().boxes.dtype == np.float32


def test_annotations_are_indexed() -> None:
    drawn = Annotations(np.eye(4)[:2] + 1, np.int64([1, 2]), np.array([True, False]), np.array([5.0, 6.0]))
    objects = drawn[~drawn.crowd]
    assert objects.labels.tolist() == [2]
    assert objects.area.tolist() == [6.0]
    assert len(Annotations.empty()) == 0


def test_wrong_shapes_fail_an_assertion() -> None:
    with pytest.raises(AssertionError, match=r"boxes: expected \(2, 4\), got \(2, 5\)"):
        Detections(np.zeros((2, 5)), np.zeros(2), np.zeros(2, np.int64))
    with pytest.raises(AssertionError, match=r"area: expected \(1,\), got \(2,\)"):
        Annotations(np.zeros((1, 4)), np.zeros(1, np.int64), np.zeros(1, bool), np.zeros(2))
    with pytest.raises(AssertionError, match="image_ids must not repeat"):
        Predictions(np.int64([1, 1]), np.int64([0, 0, 0]), np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), ())
    with pytest.raises(AssertionError, match="offsets must end at 0"):
        Predictions(np.int64([1]), np.int64([0, 1]), np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), ())


def test_predictions_know_classes_and_images() -> None:
    predictions = Predictions.of(
        {1: Detections(np.zeros((1, 4)), np.ones(1), np.zeros(1, int), image="a.jpg"), 2: some()}, ["cat"]
    )
    assert (predictions[1].classes, predictions[1].image, predictions[2].image) == (("cat",), "a.jpg", None)
    assert predictions.select_images([1])[1].image == "a.jpg"
    assert repr(predictions) == "Predictions(2 images, 1 box: 1 cat)"
    assert repr(some()) == "Detections(no boxes)"
    assert len(repr(Predictions.of({i: some(0.5) for i in range(20_000)}, ["cat"] * 10))) < 200
