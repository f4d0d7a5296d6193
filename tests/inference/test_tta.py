"""Views and their inverses, with painted images as the reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldfuse.detections import Detections
from foldfuse.errors import InputError
from foldfuse.inference.tta import View, distinct_views, parse_views
from foldfuse.inference.views import predict_images

quiet = settings(deadline=None, derandomize=True, max_examples=60)
every_flip = pytest.mark.parametrize("view", [View(1, h, v) for h in (False, True) for v in (False, True)], ids=str)
tiles = st.sampled_from([(1, 1), (2, 2), (8, 1), (1, 3)])
views = st.builds(View, st.integers(25, 400).map(lambda n: n / 100), st.booleans(), st.booleans(), tiles)


def found(boxes):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(boxes, np.linspace(0.9, 0.1, len(boxes), dtype=np.float32), np.arange(len(boxes)))


@every_flip
def test_invert_returns_a_box_to_its_place(view):
    box = (3, 5, 20, 9)
    canvas = np.zeros((1, 16, 32, 3), np.uint8)
    canvas[0, box[1] : box[3], box[0] : box[2]] = 1
    y, x = np.nonzero(view.apply(canvas)[0, ..., 0])
    seen = [[x.min(), y.min(), x.max() + 1, y.max() + 1]]
    assert (seen == [list(box)]) == (not view.hflip and not view.vflip)
    np.testing.assert_array_equal(view.invert(found(seen), (16, 32)).boxes, [box])


@quiet
@given(views)
def test_a_view_is_parsed_from_its_text(view):
    assert View.parse(str(view)) == view


@quiet
@given(views, st.lists(st.tuples(*[st.floats(0, 64, width=32)] * 4), max_size=4))
def test_inverting_twice_changes_nothing(view, boxes):
    once = view.invert(found(boxes), (64, 96))
    twice = view.invert(once, (64, 96))
    np.testing.assert_allclose(twice.boxes, found(boxes).boxes, atol=1e-4)
    np.testing.assert_array_equal(once.scores, found(boxes).scores)
    np.testing.assert_array_equal(once.labels, found(boxes).labels)


@pytest.mark.parametrize(("scale", "want"), [(1, 320), (1.3, 416), (1.1, 352), (0.5, 160), (2, 640)])
def test_a_scale_gives_the_network_more_or_fewer_pixels(scale, want):
    assert View(scale).image_size(320, 32) == want


def test_the_smallest_view_is_one_stride():
    assert View(0.25).image_size(32, 32) == 32


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hflip",
        "0.1",
        "5",
        "1+vflip+hflip",
        "1+flip",
        "-1",
        "nan",
        "1 +hflip",
        "1e0",
        "tiles2x2",
        "1+tiles1x1",
        "1+tiles9x2",
        "1+hflip+tiles2x2",
    ],
)
def test_a_text_that_is_no_view_is_named(text):
    with pytest.raises(InputError, match=r"such as 1\.25\+hflip"):
        View.parse(text)


def test_there_must_be_views_and_they_must_differ():
    assert parse_views(["1", "1+hflip"]) == (View(), View(hflip=True))
    with pytest.raises(InputError, match="no view"):
        parse_views([])
    with pytest.raises(InputError, match="twice"):
        parse_views(["1", "1.0"])


def test_views_that_come_to_one_size_are_one():
    one, near, larger, flipped, tiled = views = parse_views(["1", "1.04", "1.5", "1.04+hflip", "1+tiles2x2"])
    distinct = distinct_views(views, image_size=64, stride=32)
    assert distinct == {one: one, near: one, larger: larger, flipped: flipped, tiled: tiled}


def test_no_images_give_no_predictions():
    # As in a process of torchrun that has no image.
    found = predict_images(pytest.fail, [], ("a",), image_size=64, stride=32, views=[View()], progress=pytest.fail)
    assert {view: len(predictions) for view, predictions in found.items()} == {View(): 0}
