"""The objects that members suspect, how much they disagree on them, and the images that are picked for it."""

from __future__ import annotations

import numpy as np
import pytest

from foldfuse.detections import Detections
from foldfuse.ensemble.disagreement import class_difficulties, find_candidates
from foldfuse.ensemble.picking import pick

A, A_MOVED, FAR = [10, 10, 50, 50], [12, 12, 52, 52], [200, 200, 260, 260]


def detections(*rows):
    """Detections of (box, score, label)."""
    return Detections(
        np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in rows], np.float64),
        np.array([label for _, _, label in rows], np.int64),
    )


def bits(members, classes=2):
    return find_candidates(members).disagreements(np.ones(classes))


@pytest.mark.parametrize(
    ("scores", "expected"),
    [((1.0, 0.0), 1.0), ((0.5, 0.5), 1.0), ((1.0, 1.0), 0.0), ((0.25, 0.25), 0.8113), ((0.5, 0.0), 0.8113)],
)
def test_the_entropy_of_the_mean_is_in_bits(scores, expected):
    members = [detections((A, s, 0)) if s else detections() for s in scores]
    np.testing.assert_allclose(bits(members), [expected], atol=1e-4)


def test_boxes_of_one_class_that_overlap_are_one_candidate():
    one, other = detections((A, 0.9, 0), (FAR, 0.4, 1)), detections((A_MOVED, 0.6, 0), (A_MOVED, 0.5, 1))
    found = find_candidates([one, other])
    assert found.labels.tolist() == [0, 1, 1]
    np.testing.assert_allclose(found.probabilities, [[0.9, 0.6], [0.0, 0.5], [0.4, 0.0]])
    np.testing.assert_allclose(found.boxes[0], A)
    swapped = find_candidates([other, one])
    np.testing.assert_allclose(swapped.probabilities, found.probabilities[:, ::-1])


def test_at_one_place_the_most_disputed_class_counts():
    members = [detections((A, 0.9, 0), (FAR, 0.3, 0)), detections((A_MOVED, 0.9, 0), (A_MOVED, 0.6, 1))]
    found = find_candidates(members)
    assert found.labels.tolist() == [0, 1, 0]
    np.testing.assert_allclose(bits(members), [0, 0.8813, 0.6098], atol=1e-4)


def test_clutter_and_empty_images_have_no_candidate():
    clutter = detections(*(([x, 0, x + 9, 9], 0.15, 0) for x in range(0, 400, 10)))
    for members in ([clutter, detections()], [detections(), detections()]):
        found = find_candidates(members)
        assert found.probabilities.shape == (0, 2)
        assert found.disagreements(np.ones(1)).sum() == 0


def test_difficult_classes_count_more():
    difficulties = class_difficulties(("easy", "hard", "unseen"), {"easy": 0.9, "hard": 0.2, "unseen": None})
    np.testing.assert_allclose(difficulties, [1.1, 1.8, 2.0])
    np.testing.assert_allclose(class_difficulties(("easy", "hard"), {}), [1, 1])
    found = find_candidates([detections((A, 0.5, 0), (FAR, 0.5, 1))] * 2)
    np.testing.assert_allclose(np.sort(found.disagreements(difficulties)), [1.1, 1.8])


def test_images_that_look_alike_are_not_picked_together():
    features = np.array([[1, 0, 0], [1, 0, 0.01], [0, 1, 0], [0, 0, 1]], float)
    assert pick(np.array([5.0, 4.9, 1.0, 2.0]), features, 3).tolist() == [0, 3, 2]
    assert pick(np.array([5.0, 4.9, 1.0, 2.0]), features, 9).tolist() == [0, 3, 2, 1]


def test_without_scores_the_picked_images_are_far_apart():
    around = np.array([[np.cos(a), np.sin(a)] for a in (0, 0.1, 0.2, np.pi, 3.3)])
    first, second = pick(np.zeros(5), around, 2).tolist()
    assert (first, second in (3, 4)) == (0, True)
    assert pick(np.zeros(3), np.ones((3, 2)), 3).tolist() == [0, 1, 2], "equal images keep their order"
