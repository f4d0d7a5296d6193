"""Laws of box arithmetic for any numbers, and painted pixels as the reference."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from foldfuse import boxes
from foldfuse.detections import Array

quick = settings(deadline=None, derandomize=True, max_examples=60)
coordinate = st.floats(-1e3, 1e3, width=32)
upright = st.tuples(coordinate, coordinate, coordinate, coordinate).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)
some_boxes = st.lists(upright, max_size=6).map(lambda rows: np.array(rows, np.float64).reshape(-1, 4))
A, B = [2, 3, 9, 11], [5, 1, 14, 8]  # whole pixels


def painted(box: list[int]) -> Array:
    """A 16 x 16 image with a whole-pixel xyxy box filled in."""
    mask = np.zeros((16, 16), bool)
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = True
    return mask


@quick
@given(some_boxes, some_boxes)
def test_iou_is_symmetric_and_bounded(a: Array, b: Array) -> None:
    iou = boxes.pairwise_iou(a, b)
    assert iou.shape == (len(a), len(b))
    assert ((iou >= 0) & (iou <= 1 + 1e-9)).all()
    np.testing.assert_allclose(iou, boxes.pairwise_iou(b, a).T)


def test_iou_matches_counting_pixels() -> None:
    want = (painted(A) & painted(B)).sum() / (painted(A) | painted(B)).sum()
    np.testing.assert_allclose(boxes.pairwise_iou(np.float64([A]), np.float64([B])), [[want]])


def test_iou_of_boxes_without_size_is_zero() -> None:
    point = np.array([[3.0, 3, 3, 3]])
    assert boxes.pairwise_iou(point, point).tolist() == [[0]]


@quick
@given(some_boxes, coordinate)
def test_flipping_twice_changes_nothing(a: Array, side: float) -> None:
    np.testing.assert_allclose(boxes.hflip(boxes.hflip(a, width=side), width=side), a, atol=1e-9)
    np.testing.assert_allclose(boxes.vflip(boxes.vflip(a, height=side), height=side), a, atol=1e-9)


def test_flipping_boxes_is_flipping_the_image() -> None:
    # Needed beside the law above, which a flip that forgets to swap x1 and x2 also keeps.
    np.testing.assert_array_equal(painted(boxes.hflip(np.array([A]), width=16)[0].tolist()), painted(A)[:, ::-1])
    np.testing.assert_array_equal(painted(boxes.vflip(np.array([A]), height=16)[0].tolist()), painted(A)[::-1])


@quick
@given(some_boxes)
def test_forms_convert_back(a: Array) -> None:
    np.testing.assert_allclose(boxes.xywh_to_xyxy(boxes.xyxy_to_xywh(a)), a, atol=1e-9)


def test_xywh_is_left_top_width_height() -> None:
    assert boxes.xyxy_to_xywh(np.array(A)).tolist() == [2, 3, 7, 8]


def test_area_matches_counting_pixels_and_inverted_boxes_have_none() -> None:
    assert boxes.area(np.array(A)) == painted(A).sum()
    assert boxes.area(np.array([9, 11, 2, 3])) == 0


def test_clipping_is_painting_on_a_smaller_image() -> None:
    clipped = boxes.clip(np.array([[-3, 2, 20, 30], [-9, -9, -4, -4]]), width=16, height=12)
    assert clipped.tolist() == [[0, 2, 16, 12], [0, 0, 0, 0]]
