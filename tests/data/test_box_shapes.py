"""Boxes come from polygons and masks; boxes in other formats are recognised, and real data are not mistaken for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from foldfuse.data.box_formats import recognise_boxes, recognise_category_ids, to_xywh
from foldfuse.data.box_shapes import box_of_segmentation
from foldfuse.detections import Array


def test_a_box_around_polygons() -> None:
    assert box_of_segmentation([[1, 2, 5, 2, 5, 9]]) == (1, 2, 4, 7)
    assert box_of_segmentation([1, 2, 5, 2, 5, 9]) == (1, 2, 4, 7)
    assert box_of_segmentation([[1, 2], [5, 2], [5, 9]]) == (1, 2, 4, 7)
    assert box_of_segmentation([["1", "2", "5", "2", "5", "9"], [10, 20, 11, 20, 11, 21]]) == (1, 2, 10, 19)
    for nothing in (
        None,
        [],
        [[]],
        {},
        "",
        [[1, 2]],
        [[1, 2, 1, 2, 1, 2]],
        [[1, 2, None, 4]],
        [[1, 2, 3, 4, 5]],
        7,
        "x",
    ):
        assert box_of_segmentation(nothing) is None, nothing


@pytest.mark.parametrize("seed", range(60))
def test_a_box_around_a_mask_is_as_pycocotools_has_it(seed: int) -> None:
    masks = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 60, 2)
    mask = (rng.random((height, width)) < rng.choice([0.01, 0.1, 0.5, 0.95])).astype(np.uint8)
    if seed % 3 == 0:
        mask[:] = 0
        (top, bottom), (left, right) = np.sort(rng.integers(0, height + 1, 2)), np.sort(rng.integers(0, width + 1, 2))
        mask[top:bottom, left:right] = 1
    encoded = masks.encode(np.asfortranarray(mask))
    size = [int(height), int(width)]
    expected = tuple(masks.toBbox(encoded)) if mask.any() else None
    assert box_of_segmentation({"size": size, "counts": encoded["counts"].decode()}) == expected
    ends = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel(), [0]])))
    runs = np.diff(np.concatenate([[0], ends, [height * width]])).tolist()
    assert box_of_segmentation({"size": size, "counts": runs}) == expected


def test_a_broken_mask_has_no_box() -> None:
    for counts in ("~~~", "", None, [1, -2, 3], [1, 10**9], [1, "x"], 7, "0" * 7 + "`"):
        assert box_of_segmentation({"size": [4, 4], "counts": counts}) is None, counts
    for size in (None, [4], [0, 4], ["a", 4], [4, 4, 4]):
        assert box_of_segmentation({"size": size, "counts": [1, 2]}) is None, size


def as_format(boxes: Array, sizes: Array, box_format: str) -> Array:
    """xywh boxes in another format."""
    if box_format.startswith("shares_"):
        boxes, box_format = boxes / np.concatenate([sizes, sizes], 1), box_format.removeprefix("shares_")
    x, y, w, h = boxes.T
    columns = {"xywh": (x, y, w, h), "xyxy": (x, y, x + w, y + h), "cxcywh": (x + w / 2, y + h / 2, w, h)}
    return np.stack(columns[box_format], 1)


@pytest.mark.parametrize("name", ["bccd", "aquatrash", "playing_cards", "coco_val2017_128"])
def test_real_data_are_xywh_and_recognised_in_other_formats(shared_data: Path, name: str) -> None:
    document = json.loads((shared_data / name / "train.json").read_text())
    size_of = {row["id"]: (row["width"], row["height"]) for row in document["images"]}
    boxes = np.array([row["bbox"] for row in document["annotations"]], np.float64)
    sizes = np.array([size_of[row["image_id"]] for row in document["annotations"]], np.float64)
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 20, 100, len(boxes)):
        for _ in range(20):
            some = rng.choice(len(boxes), min(count, len(boxes)), replace=False)
            assert recognise_boxes(boxes[some], sizes[some]) is None
    for box_format in ("xyxy", "shares_xyxy", "shares_xywh", "shares_cxcywh"):
        found = recognise_boxes(as_format(boxes, sizes, box_format), sizes)
        assert found is not None
        assert box_format in found.formats


@pytest.mark.parametrize("box_format", ["xywh", "xyxy", "cxcywh", "shares_xywh", "shares_xyxy", "shares_cxcywh"])
def test_every_format_is_converted(box_format: str) -> None:
    box = np.array([[12.0, 8.0, 24.0, 16.0]])
    other = as_format(box, np.array([[96.0, 64.0]]), box_format)[0].tolist()
    np.testing.assert_allclose(to_xywh(other, box_format, width=96, height=64), box[0])  # type: ignore[arg-type]


def test_ways_of_counting_classes() -> None:
    assert recognise_category_ids([1, 2, 3], [1, 3]) == ()
    assert recognise_category_ids([1, 2, 3], [0, 2]) == ("from_zero",)
    assert recognise_category_ids([0, 1, 2], [1, 3]) == ("from_one",)
    assert recognise_category_ids([10, 20, 30], [1, 2]) == ("from_zero", "from_one")
    assert recognise_category_ids([10, 20, 30], [0, 1, 2]) == ("from_zero",)
    assert recognise_category_ids([1, 2, 3], [0, 3]) == ()
    assert recognise_category_ids([1, 2, 3], [2, 9]) == ()
    assert recognise_category_ids([1, 2, 3, 7, 9, 11], [1, 2, 5]) == ()
    assert recognise_category_ids([0], [1]) == ("from_one",)
