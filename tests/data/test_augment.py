"""Boxes follow their pixels under every augmentation: painted images are the reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from foldfuse.boxes import area
from foldfuse.data.augment import (
    MIN_SIDE,
    MIN_VISIBLE,
    Augmentation,
    LabeledImage,
    augment,
    copy_paste,
    draw_affine,
    jitter_color,
    random_affine,
    random_tile,
    shrink,
    transform_annotations,
)
from foldfuse.data.images import PAD_VALUE
from foldfuse.data.kernels import change_colors, place
from foldfuse.detections import Annotations

quiet = settings(deadline=None, derandomize=True, max_examples=60)
STILL = Augmentation(hflip=0, vflip=0, scale_jitter=0, translate=0, color_jitter=0)
seeds = st.integers(0, 10**6)
ranges = st.builds(
    Augmentation,
    hflip=st.sampled_from([0.0, 0.5, 1.0]),
    vflip=st.sampled_from([0.0, 0.5, 1.0]),
    scale_jitter=st.floats(0, 1),
    translate=st.floats(0, 0.3),
    color_jitter=st.just(0.0),
)


def annotations_of(boxes, labels=None):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    labels = np.arange(len(boxes)) if labels is None else np.array(labels, np.int64)
    return Annotations(boxes, labels, np.zeros(len(boxes), bool), area(boxes))


def painted(width, height, box, color=(255, 255, 255)):
    """A black image with one box filled in, and that box annotated."""
    image = np.zeros((height, width, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = color
    return LabeledImage(image, annotations_of([box]))


def bounds(mask):
    """xyxy of the true pixels, or None."""
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else None


@quiet
@given(seeds, ranges, st.sampled_from([(96, 96), (64, 128), (128, 64)]))
def test_a_box_follows_its_pixels(seed, how, canvas):
    made = augment([painted(120, 80, (20, 10, 60, 40))], canvas, how, np.random.default_rng(seed))
    assert made.image.shape == (*canvas, 3)
    seen = bounds(made.image.min(-1) > 200)
    if len(made.annotations):
        np.testing.assert_allclose(made.annotations.boxes[0], seen, atol=1.6)
    elif seen is not None:  # left out: only a sliver is in view
        largest_scale = min(canvas[0] / 80, canvas[1] / 120) * (1 + how.scale_jitter)
        assert (seen[2] - seen[0]) * (seen[3] - seen[1]) <= (MIN_VISIBLE + 0.05) * 1200 * largest_scale**2


@quiet
@given(seeds, ranges, st.sampled_from([(96, 96), (64, 128)]))
def test_in_a_mosaic_each_box_follows_its_own_pixels(seed, how, canvas):
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    pool = []
    for label, color in enumerate(colors):
        one = painted(120, 80, (20, 10, 100, 70), color)
        pool.append(LabeledImage(one.image, annotations_of([[20, 10, 100, 70]], [label])))
    made = augment(pool, canvas, how, np.random.default_rng(seed))
    assert made.image.shape == (*canvas, 3)
    boxes = made.annotations.boxes
    assert (boxes >= 0).all()
    assert (boxes <= [canvas[1], canvas[0]] * 2).all()
    for box, label in zip(boxes, made.annotations.labels, strict=True):
        distance = np.abs(made.image.astype(int) - colors[label]).max(-1)
        np.testing.assert_allclose(box, bounds(distance < 60), atol=1.6)


def test_a_mosaic_shows_four_images_about_a_point():
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    pool = [painted(50, 50, (0, 0, 50, 50), color) for color in colors]
    made = augment(pool, (100, 100), STILL, np.random.default_rng(3))
    corners = made.image[[20, 20, 80, 80], [20, 80, 20, 80]]
    np.testing.assert_array_equal(corners, colors)
    boxes = made.annotations.boxes
    assert area(boxes).sum() == pytest.approx(100 * 100, rel=0.4)
    x, y = boxes[0, 2], boxes[0, 3]
    assert 30 <= x <= 70
    assert 30 <= y <= 70


def test_without_changes_the_image_is_only_letterboxed():
    one = painted(64, 32, (10, 5, 30, 20))
    made = augment([one], (32, 64), STILL, np.random.default_rng(0))
    np.testing.assert_array_equal(made.image, one.image)
    np.testing.assert_allclose(made.annotations.boxes, one.annotations.boxes)
    np.testing.assert_allclose(made.annotations.area, one.annotations.area)


@pytest.mark.parametrize(
    ("how", "axis"), [(Augmentation(1, 0, 0, 0, 0), 1), (Augmentation(0, 1, 0, 0, 0), 0)], ids=["hflip", "vflip"]
)
def test_a_flip_mirrors_image_and_boxes_exactly(how, axis):
    one = painted(64, 32, (10, 5, 30, 20))
    made = augment([one], (32, 64), how, np.random.default_rng(0))
    np.testing.assert_array_equal(made.image, np.flip(one.image, axis))
    want = [34, 5, 54, 20] if axis == 1 else [10, 12, 30, 27]
    np.testing.assert_allclose(made.annotations.boxes, [want])


def test_area_goes_with_the_square_of_the_scale():
    # `area` is of the mask, so it may not be taken anew from the box.
    one = painted(32, 32, (0, 0, 32, 32))
    one = LabeledImage(
        one.image, Annotations(one.annotations.boxes, np.zeros(1, int), np.zeros(1, bool), np.array([100.0]))
    )
    made = random_affine(one, (64, 64), STILL, np.random.default_rng(0))
    np.testing.assert_allclose(made.annotations.area, [400.0])


def test_objects_too_little_in_view_are_dropped():
    window = (0, 0, 100, 100)
    before = annotations_of(
        [[-60, 0, 40, 10], [-80, 0, 20, 10], [0, 0, 50, MIN_SIDE - 0.5], [0, 0, 50, MIN_SIDE], [200, 0, 210, 9]]
    )
    after = transform_annotations(before, (1.0, 1.0), (0.0, 0.0), window)
    assert after.labels.tolist() == [0, 3]
    np.testing.assert_allclose(after.boxes, [[0, 0, 40, 10], [0, 0, 50, MIN_SIDE]])


def test_an_image_without_objects_has_none_after_augmentation():
    one = LabeledImage(np.zeros((20, 30, 3), np.uint8), Annotations.empty())
    assert len(augment([one], (32, 32), Augmentation(), np.random.default_rng(0)).annotations) == 0
    assert len(augment([one] * 4, (32, 32), Augmentation(), np.random.default_rng(0)).annotations) == 0


@quiet
@given(seeds, st.booleans())
def test_the_generator_decides_everything(seed, mosaic):
    image = np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8)
    pool = [LabeledImage(image, annotations_of([[5, 5, 30, 30]]))] * (4 if mosaic else 1)
    one, same, other = (
        augment(pool, (64, 64), Augmentation(), np.random.default_rng(s)) for s in (seed, seed, seed + 1)
    )
    assert np.array_equal(one.image, same.image)
    assert np.array_equal(one.annotations.boxes, same.annotations.boxes)
    assert not np.array_equal(one.image, other.image)


def test_the_given_image_is_not_changed():
    one = painted(60, 40, (5, 5, 20, 20))
    before = one.image.copy()
    augment([one] * 4, (64, 64), Augmentation(), np.random.default_rng(0))
    assert np.array_equal(one.image, before)


def test_the_rest_of_the_canvas_is_padding():
    one = LabeledImage(np.full((20, 20, 3), 255, np.uint8), Annotations.empty())
    made = augment([one], (20, 60), STILL, np.random.default_rng(0))
    values, counts = np.unique(made.image, return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True))[PAD_VALUE] == pytest.approx(
        2 * 20 * 20 * 3, rel=0.06
    )


def test_color_jitter_stays_in_its_range():
    image = np.full((8, 8, 3), (100, 120, 80), np.uint8)
    assert np.array_equal(jitter_color(image, 0.0, np.random.default_rng(0)), image)
    changed = [jitter_color(image, 0.3, np.random.default_rng(seed)) for seed in range(20)]
    means = np.array([c.mean() for c in changed])
    assert means.std() > 5
    assert ((means > 100 * 0.65) & (means < 100 * 1.35)).all()


def test_scale_jitter_is_as_likely_to_halve_as_to_double():
    one = painted(64, 64, (0, 0, 64, 64))
    how = Augmentation(0, 0, 1.0, 0, 0)
    rng = np.random.default_rng(0)
    factors = np.array([draw_affine(one, (64, 64), how, rng)[0][0] for _ in range(300)])
    assert 0.5 <= factors.min() < 0.55
    assert 1.8 < factors.max() <= 2.0
    assert np.median(factors) == pytest.approx(1.0, abs=0.1)


# Objects of another image


@quiet
@given(seeds)
def test_pasted_objects_are_whole_and_cover_no_annotated_object(seed):
    one = painted(60, 40, (5, 5, 20, 20))
    other = painted(50, 50, (10, 20, 22, 40), color=(9, 200, 30))
    made = copy_paste(one, other, np.random.default_rng(seed))
    np.testing.assert_array_equal(one.image, painted(60, 40, (5, 5, 20, 20)).image)  # the original stays
    assert (made.image[5:20, 5:20] == 255).all()
    new = made.annotations.boxes[1:]
    assert len(new) <= 1
    assert (made.image == (9, 200, 30)).all(-1).sum() == 12 * 20 * len(new)
    for box in new.astype(int):
        assert (made.image[box[1] : box[3], box[0] : box[2]] == (9, 200, 30)).all()


def test_pasting_finds_a_place_in_most_cases_and_none_in_a_smaller_image():
    one, other = painted(200, 200, (0, 0, 10, 10)), painted(50, 50, (10, 20, 22, 40))
    counts = [len(copy_paste(one, other, np.random.default_rng(seed)).annotations) for seed in range(20)]
    assert sum(counts) > 30
    tiny = painted(8, 8, (0, 0, 4, 4))
    assert len(copy_paste(tiny, other, np.random.default_rng(0)).annotations) == 1


# The compiled loops beside Pillow


@quiet
@given(
    st.floats(0.2, 3), st.booleans(), st.booleans(), st.floats(-60, 60), st.floats(-60, 60), st.sampled_from([1, 2, 37])
)
def test_pixels_are_those_of_pillow_to_one_level(scale, mirror_x, mirror_y, tx, ty, side):
    image = np.random.default_rng(side).integers(0, 256, (side, 50, 3), np.uint8)
    sx, sy = (-scale if mirror_x else scale), (-scale if mirror_y else scale)
    want = Image.fromarray(image).transform(
        (64, 48),
        Image.Transform.AFFINE,
        (1 / sx, 0, -tx / sx, 0, 1 / sy, -ty / sy),
        Image.Resampling.BILINEAR,
        fillcolor=(PAD_VALUE,) * 3,
    )
    canvas = np.zeros((60, 80, 3), np.uint8)
    place(image, canvas, (10, 5, 74, 53), (sx, sy), (tx, ty), PAD_VALUE)
    apart = np.abs(canvas[5:53, 10:74].astype(int) - np.asarray(want))
    assert (apart > 1).mean() < 0.002  # a coordinate may round to the other side of an edge
    canvas[5:53, 10:74] = 0
    assert not canvas.any()


@quiet
@given(seeds, st.tuples(*[st.floats(0.4, 1.6)] * 3))
def test_colors_are_those_of_pillow(seed, factors):
    image = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), np.uint8)
    want = Image.fromarray(image)
    for enhancer, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True
    ):
        want = enhancer(want).enhance(factor)
    change_colors(image, *factors)
    np.testing.assert_array_equal(image, want)


def test_images_that_may_not_be_written_to_are_augmented_alike():
    one = painted(60, 40, (5, 5, 20, 20))
    locked = LabeledImage(one.image.copy(), one.annotations)
    locked.image.flags.writeable = False
    first, second = (augment([x] * 4, (64, 64), Augmentation(), np.random.default_rng(0)) for x in (one, locked))
    np.testing.assert_array_equal(first.image, second.image)


@quiet
@given(seeds, st.floats(0.1, 1), st.integers(0, 90), st.integers(0, 50), st.integers(3, 60))
def test_a_tile_shows_an_object_with_its_box_or_covers_it(seed, side, x, y, size):
    box = (x, y, min(120, x + size), min(80, y + size))
    one = painted(120, 80, box)
    tile = random_tile(one, side, np.random.default_rng(seed))
    if tile is None:
        return  # most of it would be gray
    assert tile.image.shape == (round(80 * side), round(120 * side), 3)
    seen = bounds(tile.image.min(-1) > 200)
    if len(tile.annotations):
        np.testing.assert_array_equal(tile.annotations.boxes[0], seen)
        assert area(tile.annotations.boxes)[0] >= MIN_VISIBLE * area(one.annotations.boxes)[0]
    elif seen is not None:  # cut to less than MIN_SIDE, but not to a small share
        assert min(seen[2] - seen[0], seen[3] - seen[1]) < MIN_SIDE


def test_tiles_lie_anywhere_and_about_objects():
    one = painted(1000, 1000, (700, 100, 720, 130))
    tiles = [random_tile(one, 0.1, np.random.default_rng(seed)) for seed in range(60)]
    shares = [len(tile.annotations) for tile in tiles]
    assert 20 < sum(shares) < 45, "half of the tiles show the object, which a random tile hardly ever does"
    starts = {tuple(tile.annotations.boxes[0].round()) for tile in tiles if len(tile.annotations)}
    assert len(starts) > 10


def test_gray_covers_no_object_in_view():
    image = np.full((100, 100, 3), 200, np.uint8)
    one = LabeledImage(image, annotations_of([[0, 0, 52, 100], [40, 40, 60, 60]]))
    for seed in range(200):
        tile = random_tile(one, 0.5, np.random.default_rng(seed))
        if tile is None or 0 in tile.annotations.labels or not len(tile.annotations):
            continue
        x1, y1, x2, y2 = tile.annotations.boxes[0].astype(int)
        gray = (tile.image == PAD_VALUE).all(-1)
        assert not gray[y1:y2, x1:x2].any()
        if gray.any():
            return
    pytest.fail("no tile cuts the large object and shows the small one")


def test_a_tile_of_an_object_that_is_cut_off_is_not_taken():
    assert random_tile(painted(100, 100, (0, 0, 100, 100)), 0.3, np.random.default_rng(0)) is None


def test_a_large_image_is_shrunk_with_its_boxes():
    one = painted(301, 203, (60, 40, 180, 120))
    made = shrink(one, 2)
    assert made.image.shape == (102, 151, 3)
    np.testing.assert_array_equal(made.annotations.boxes, [bounds(made.image.min(-1) > 127)])
    assert made.annotations.area[0] == 60 * 40
