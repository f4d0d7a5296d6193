"""Tiles: they cover an image and show its own pixels, and each object comes out once, whichever tiles cut it."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from foldfuse.data.image_inputs import read_anything
from foldfuse.data.images import PAD_VALUE
from foldfuse.data.pixels import open_images
from foldfuse.data.tiles import OVERLAP, letterboxed_tile, tile_windows
from foldfuse.detections import Detections
from foldfuse.inference.tile_merging import MAX_DETECTIONS, merge_tiles
from foldfuse.inference.tta import View, parse_views
from foldfuse.inference.views import predict_images

quiet = settings(deadline=None, derandomize=True, max_examples=80)
grids = st.sampled_from([(2, 2), (3, 3), (3, 2), (1, 4), (2, 1)])
ROW = [(0, 0, 100, 100), (80, 0, 180, 100)]  # two tiles of an image of 180 x 100 pixels
FOUR = [(0, 0, 100, 100), (80, 0, 180, 100), (0, 80, 100, 180), (80, 80, 180, 180)]


@quiet
@given(st.integers(1, 3000), st.integers(1, 3000), grids)
def test_tiles_of_one_size_cover_the_image(width, height, grid):
    windows = np.array(tile_windows(width, height, columns=grid[0], rows=grid[1]))
    assert len(windows) == grid[0] * grid[1]
    assert len({tuple(w[2:] - w[:2]) for w in windows}) == 1
    assert (windows.min(0)[:2] == 0).all()
    assert (windows.max(0)[2:] == (width, height)).all()


@quiet
@given(st.integers(50, 3000), st.integers(50, 3000), grids, st.floats(0, 1), st.floats(0, 1))
def test_an_object_of_the_overlap_lies_wholly_in_one_tile(width, height, grid, x, y):
    windows = np.array(tile_windows(width, height, columns=grid[0], rows=grid[1]))
    side = np.floor((windows[0, 2:] - windows[0, :2]) * OVERLAP) - 1  # windows begin at whole pixels
    low = np.array([x, y]) * ((width, height) - side)
    inside = (windows[:, :2] <= low) & (low + side <= windows[:, 2:])
    assert inside.all(1).any()


def test_a_tile_shows_the_pixels_of_its_window():
    image = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)
    made = letterboxed_tile(image, (40, 20, 90, 60), size=(90, 60), canvas=(64, 64))
    half = letterboxed_tile(image, (80, 40, 180, 120), size=(180, 120), canvas=(64, 64))
    np.testing.assert_array_equal(made, half)  # the image was shrunk when it was decoded
    want = np.asarray(Image.fromarray(image[20:60, 40:90]).resize((64, 51), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(made[:51], want)
    assert (made[51:] == PAD_VALUE).all()
    exact = letterboxed_tile(image, (30, 10, 62, 42), size=(90, 60), canvas=(32, 32))
    np.testing.assert_array_equal(exact, image[10:42, 30:62])


def boxes_of(*rows):
    """Detections of (box, score) or (box, score, label)."""
    boxes = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    labels = np.array([row[2] if len(row) > 2 else 0 for row in rows], np.int64)
    return Detections(boxes, np.array([row[1] for row in rows], np.float32), labels)


def merged(*parts, windows=ROW, size=(180, 100), touch=2.0):
    found = merge_tiles(parts, windows, size=size, touch=touch)
    return [
        (tuple(box), round(score, 3))
        for box, score in zip(found.boxes.tolist(), found.scores.astype(float), strict=True)
    ]


def test_an_object_that_two_tiles_show_whole_comes_out_once_with_the_better_score():
    assert merged(boxes_of(((82, 10, 96, 30), 0.6)), boxes_of(((83, 11, 97, 30), 0.8))) == [((83, 11, 97, 30), 0.8)]


@pytest.mark.parametrize("scores", [(0.9, 0.7), (0.7, 0.9)])
def test_an_object_whole_in_one_tile_and_cut_by_the_other_comes_out_once_and_whole(scores):
    whole, cut = ((85, 10, 130, 30), scores[0]), ((86, 11, 99, 30), scores[1])
    assert merged(boxes_of(cut), boxes_of(whole)) == [((85, 10, 130, 30), pytest.approx(scores[0]))]


def test_a_cut_box_stays_where_the_whole_one_is_hardly_believed():
    assert len(merged(boxes_of(((85, 10, 100, 30), 0.9)), boxes_of(((84, 10, 130, 30), 0.1)))) == 2


def test_an_object_cut_in_both_tiles_is_joined():
    parts = boxes_of(((40, 10, 99, 50), 0.9)), boxes_of(((80, 12, 150, 50), 0.6))
    assert merged(*parts) == [((40, 10, 150, 50), 0.9)]


def test_an_object_cut_by_four_tiles_is_joined_once():
    parts = [
        boxes_of(((30, 40, 100, 100), 0.5)),
        boxes_of(((80, 40, 140, 100), 0.6)),
        boxes_of(((30, 80, 100, 150), 0.7)),
        boxes_of(((80, 80, 140, 150), 0.8)),
    ]
    assert merged(*parts, windows=FOUR, size=(180, 180)) == [((30, 40, 140, 150), 0.8)]


def test_what_is_not_one_object_stays_apart():
    labels = boxes_of(((40, 10, 99, 50), 0.9, 0)), boxes_of(((80, 12, 150, 50), 0.6, 1))
    assert len(merged(*labels)) == 2
    apart = boxes_of(((40, 10, 99, 50), 0.9)), boxes_of(((80, 60, 150, 90), 0.6))
    assert len(merged(*apart)) == 2
    of_one_tile = boxes_of(((10, 10, 40, 30), 0.9), ((11, 10, 41, 30), 0.8))
    assert len(merged(of_one_tile, boxes_of())) == 2, "boxes of one tile are the detector's own matter"
    neighbours = boxes_of(((20, 10, 99, 50), 0.9), ((60, 10, 99, 50), 0.8)), boxes_of(((80, 12, 150, 50), 0.6))
    assert sorted(box for box, _ in merged(*neighbours)) == [(20, 10, 150, 50), (60, 10, 99, 50)]


def test_borders_of_the_image_cut_nothing():
    at_the_edge = boxes_of(((60, 60, 94, 100), 0.9))
    assert merged(at_the_edge, boxes_of(((80, 60, 97, 100), 0.8))) == [((60, 60, 94, 100), 0.9)]
    assert merged(boxes_of(((0, 0, 70, 100), 0.9)), boxes_of(((90, 0, 180, 100), 0.8))) == [
        ((0, 0, 70, 100), 0.9),
        ((90, 0, 180, 100), 0.8),
    ]


def test_the_best_of_many_boxes_are_kept():
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 60, (400, 2)).round()
    one = boxes_of(*[((x, y, x + 9, y + 9), s) for (x, y), s in zip(boxes, rng.uniform(0.1, 1, 400), strict=True)])
    found = merge_tiles([one, boxes_of()], ROW, size=(180, 100), touch=2.0)
    assert len(found) == MAX_DETECTIONS
    np.testing.assert_array_equal(found.scores, np.sort(one.scores)[::-1][:MAX_DETECTIONS])


def red_box(images):
    """A detector that finds the red rectangle of each image."""
    found = []
    for image in images.astype(int):
        y, x = np.nonzero(image[..., 0] - image[..., 1:].max(-1) > 100)
        found.append(boxes_of(*([((x.min(), y.min(), x.max() + 1, y.max() + 1), 0.5)] if len(x) else [])))
    return found


def predicted(image, views, **options):
    inputs = read_anything(image, ignore_orientation=False, value_ranges={})
    dataset = open_images(inputs.dataset, ignore_orientation=False)
    return predict_images(red_box, dataset.samples, ("red",), image_size=128, stride=32, views=views, **options)


@functools.cache
def tiled_views():
    return parse_views(["1+tiles2x2", "1+tiles3x3", "1+tiles2x3+hflip", "0.5+tiles3x2+vflip", "1"])


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.integers(0, 470), st.integers(0, 270), st.integers(30, 400), st.integers(30, 300))
def test_an_object_anywhere_comes_out_once_at_its_place(x, y, width, height):
    box = (x, y, min(500, x + width), min(300, y + height))
    image = Image.new("RGB", (500, 300), (60, 60, 60))
    ImageDraw.Draw(image).rectangle((*box[:2], box[2] - 1, box[3] - 1), fill=(255, 0, 0))
    for view, predictions in predicted(image, tiled_views()).items():
        one = predictions[predictions.image_ids[0]]
        assert len(one) == 1, f"{view}: {one.boxes}"
        np.testing.assert_allclose(one.boxes[0], box, atol=8, err_msg=str(view))


def test_tiles_show_objects_that_the_whole_image_does_not():
    image = Image.new("RGB", (1000, 1000), (60, 60, 60))
    ImageDraw.Draw(image).rectangle((380, 380, 384, 384), fill=(255, 0, 0))
    found = predicted(image, parse_views(["1", "1+tiles4x4"]))
    counts = {str(view): len(predictions.boxes) for view, predictions in found.items()}
    assert counts == {"1": 0, "1+tiles4x4": 1}


def test_the_pixels_of_all_tiles_are_announced_and_seen_in_small_batches():
    seen, told = [], []

    def detect(images):
        seen.append(images.shape)
        return [Detections.empty()] * len(images)

    dataset = read_anything([np.zeros((200, 200, 3), np.uint8)] * 3, ignore_orientation=False, value_ranges={}).dataset
    views = parse_views(["1+tiles3x3", "1"])
    dataset = open_images(dataset, ignore_orientation=False)
    predict_images(
        detect, dataset.samples, ("a",), image_size=64, stride=32, views=views, batch_size=0, expect=told.append
    )
    assert {shape[1:3] for shape in seen} == {(64, 64)}
    assert max(shape[0] for shape in seen) == 1, "the smallest batch is one input"
    assert told == [sum(shape[0] * shape[1] * shape[2] for shape in seen)] == [3 * 10 * 64 * 64]


def test_the_cost_of_a_view_counts_its_tiles():
    assert [View.parse(text).cost for text in ("1", "1.25", "1+tiles2x2", "0.5+tiles3x2+hflip")] == [1, 1.5625, 4, 1.5]
    assert View.parse("1+tiles2x2").decoded_size(320, 32) == 576
    assert View.parse("1.25").decoded_size(320, 32) == 416
