"""Behaviour of the reference that the drop-in fixes, and its signatures. tests/parity compares the results."""

from __future__ import annotations

import inspect

import ensemble_boxes as theirs
import numpy as np
import pytest

from foldfuse.errors import InputError
from foldfuse.fusion import ensemble_boxes as ours

NAMES = ("weighted_boxes_fusion", "non_maximum_weighted", "nms_method", "nms", "soft_nms")
every_function = pytest.mark.parametrize("fuse", [getattr(ours, name) for name in NAMES])
every_wbf = pytest.mark.parametrize("conf_type", ["avg", "max", "box_and_model_avg", "absent_model_aware_avg"])

BOX, FAR = [0.1, 0.1, 0.5, 0.5], [0.7, 0.7, 0.9, 0.9]


@pytest.mark.parametrize("name", NAMES)
def test_the_arguments_are_those_of_the_reference(name):
    def plain(function):
        parameters = inspect.signature(function).parameters.values()
        return [(p.name, p.default) for p in parameters if p.kind is not p.KEYWORD_ONLY]

    assert plain(getattr(ours, name)) == plain(getattr(theirs, name))


@every_function
@pytest.mark.parametrize("lists", [([], [], []), ([[]], [[]], [[]]), ([[], []],) * 3, ([np.zeros((0, 4))], [[]], [[]])])
def test_nothing_in_nothing_out(fuse, lists):
    assert [column.shape for column in fuse(*lists)] == [(0, 4), (0,), (0,)]


@every_function
def test_plain_lists_and_an_empty_member(fuse):
    boxes, scores, labels = fuse([[BOX], [], [FAR]], [[0.5], [], [0.4]], [[1], [], [2]])
    np.testing.assert_allclose(boxes, [BOX, FAR], rtol=1e-6)
    assert labels.tolist() == [1, 2]
    assert len(scores) == 2


@every_wbf
def test_a_member_without_weight_does_not_swallow_boxes(conf_type):
    boxes, scores, _ = ours.weighted_boxes_fusion(
        [[FAR], [BOX, BOX]], [[0.5], [0.9, 0.8]], [[0], [0, 0]], weights=[1, 0], conf_type=conf_type
    )
    np.testing.assert_allclose(boxes, [FAR, BOX])
    assert np.isfinite(scores).all()
    assert scores[1] == 0


def test_a_box_without_score_does_not_move_a_cluster():
    boxes, scores, _ = ours.weighted_boxes_fusion([[BOX, BOX, FAR]], [[0.0, 0.0, 0.5]], [[0, 0, 0]])
    np.testing.assert_allclose(boxes, [FAR, BOX])
    assert scores.tolist() == [0.5, 0]
    boxes, _, _ = ours.non_maximum_weighted([[BOX, BOX, FAR]], [[0.0, 0.0, 0.5]], [[0, 0, 0]])
    np.testing.assert_allclose(boxes, [FAR, BOX], rtol=1e-6)


@pytest.mark.parametrize("method", [1, 2])
def test_soft_nms_returns_the_scores_that_are_left(method):
    boxes, scores = [[[0, 0, 0.6, 0.5], [0.2, 0, 0.6, 0.5]]], [[0.9, 0.9]]
    overlap = 2 / 3
    left = 0.9 * (1 - overlap) if method == 1 else 0.9 * np.exp(-(overlap**2) / 0.5)
    _, found, _ = ours.soft_nms(boxes, scores, [[0, 0]], method=method)
    np.testing.assert_allclose(found, [0.9, left])
    _, found, _ = ours.soft_nms(boxes, scores, [[0, 0]], method=method, original_scores=True)
    assert found.tolist() == [0.9, 0.9]


@every_function
def test_the_callers_arrays_stay_as_they_are(fuse):
    boxes, scores = [np.array([BOX, FAR])], [np.array([0.5, 0.4])]
    fuse(boxes, scores, [np.array([0, 0])], weights=[0.5])
    assert boxes[0].tolist() == [BOX, FAR]
    assert scores[0].tolist() == [0.5, 0.4]


@every_function
@pytest.mark.parametrize(
    ("lists", "options", "message"),
    [
        (([[BOX]], [[0.5, 0.4]], [[0]]), {}, "member 0 has 1 boxes, 2 scores and 1 labels"),
        (([[BOX]], [[0.5]], []), {}, "labels of 0"),
        (([[BOX]], [[0.5]], [[0]]), {"weights": [1, 2]}, "2 weights for 1 members"),
        (([[BOX]], [[0.5]], [[0]]), {"weights": [0]}, "weights are"),
        (([[BOX], [BOX, FAR]], [[0.5], [0.5, np.nan]], [[0], [0, 0]]), {}, "member 1, row 1: .* expected finite"),
        (([[BOX], [[0, 0, np.nan, 1]]], [[0.5], [0.5]], [[0], [0]]), {}, "member 1, row 0: .* expected finite"),
        (([[[10, 20, 300, 400]]], [[0.5]], [[0]]), {}, "row 0: .* looks like pixels"),
        (([[BOX]], [[0.5]], [[0.5]]), {}, "label 0.5; expected a whole number"),
        (([[BOX[:3]]], [[0.5]], [[0]]), {}, r"shape \(1, 3\)"),
    ],
)
def test_bad_input_is_named(fuse, lists, options, message):
    with pytest.raises(InputError, match=message):
        fuse(*lists, **options)


def test_unknown_options_are_named():
    with pytest.raises(InputError, match="Did you mean 'avg'"):
        ours.weighted_boxes_fusion([[BOX]], [[0.5]], [[0]], conf_type="avgg")
    with pytest.raises(InputError, match="method is 4"):
        ours.nms_method([[BOX]], [[0.5]], [[0]], method=4)


@every_function
def test_swapped_and_outlying_corners_are_fixed_with_a_warning(fuse):
    with pytest.warns(UserWarning, match="swapped"):
        boxes, _, _ = fuse([[[0.5, 0.5, 0.1, 0.1]]], [[0.5]], [[0]])
    np.testing.assert_allclose(boxes, [BOX], rtol=1e-6)
    with pytest.warns(UserWarning, match="cut"):
        boxes, _, _ = fuse([[[-0.1, 0.5, 0.5, 1.2]]], [[0.5]], [[0]])
    np.testing.assert_allclose(boxes, [[0, 0.5, 0.5, 1]], rtol=1e-6)
    with pytest.warns(UserWarning, match="1 boxes without area"):
        boxes, _, _ = fuse([[[0.1, 0.5, 0.1, 1], BOX]], [[0.5, 0.5]], [[0, 0]])
    assert len(boxes) == 1
