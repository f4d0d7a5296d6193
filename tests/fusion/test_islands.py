"""Fusion by islands gives the bits of plain fusion, and islands are as small as they may be."""

from __future__ import annotations

import numpy as np
import pytest

from foldfuse.fusion import methods
from foldfuse.fusion.clusters import GRID_MIN_BOXES
from foldfuse.fusion.islands import make_islands
from fusion_samples import predictions, random_members

METHODS = ("wbf", "nms", "soft_nms", "nmw")


def concatenated(members):
    begin, end = methods._rows(members)
    columns = (np.concatenate([getattr(m, name) for m in members]) for name in ("boxes", "scores", "labels"))
    boxes, scores, labels = columns
    return boxes.astype(np.float32), scores.astype(np.float64), labels, begin, end


def fused_by_islands(members, method, iou, score_threshold, weights):
    boxes, scores, labels, begin, end = concatenated(members)
    islands = make_islands(boxes, scores, labels, begin, end, 3)
    buffers = methods.make_buffers((end - begin).sum(0))
    parts = [scores[islands.rows[islands.members == i]] for i in range(len(members))]
    first = np.cumsum([0, *map(len, parts[:-1])])
    fuse_images = methods.island_fuser(method, iou=iou, score_threshold=score_threshold)
    fuse_images(islands, np.concatenate(parts), first, (0, begin.shape[1]), weights, buffers)
    return buffers


def fused_plainly(members, method, iou, score_threshold, weights):
    boxes, scores, labels, begin, end = concatenated(members)
    buffers = methods.make_buffers((end - begin).sum(0))
    fuse_images = methods.image_fuser(method, iou=iou, score_threshold=score_threshold)
    fuse_images((boxes, scores, labels, begin, end), (0, begin.shape[1]), weights, 3, buffers)
    return buffers


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "crowd",
    [
        {"boxes": 8, "size": 400.0},  # islands of a place each
        {"boxes": 40, "size": 150.0, "digits": 1},  # ties of scores and boxes
        {"boxes": 60, "size": 30.0},  # more rows than the simple sort takes, more clusters than the simple search
        {"boxes": GRID_MIN_BOXES // 2, "size": 20.0, "classes": 1, "images": 1},  # one island, searched by the grid
    ],
)
def test_islands_give_the_bits_of_plain_fusion(method, crowd):
    for seed, iou, threshold, weights in (
        (1, 0.55, 0.0, [1.0, 1, 1]),
        (2, 0.3, 0.2, [0.5, 0, 1]),
        (3, 0.0, 0.0, [1, 0.3, 0.7]),
    ):
        members = random_members(seed, **crowd)
        arguments = members, method, iou, threshold, np.array(weights, np.float64)
        got, want = fused_by_islands(*arguments), fused_plainly(*arguments)
        np.testing.assert_array_equal(got.counts, want.counts)
        first = 0
        for image, count in enumerate(want.counts):
            for name in ("boxes", "scores", "labels"):
                rows = slice(first, first + count)
                np.testing.assert_array_equal(getattr(got, name)[rows], getattr(want, name)[rows], err_msg=name)
            first += sum(np.diff(member.offsets)[image] for member in members)
        assert got.counts.sum() > 0


def test_an_island_holds_the_boxes_that_touch_and_no_others():
    found = [[0, 0, 10, 10, 0.9, 0], [9, 9, 20, 20, 0.8, 0], [50, 0, 60, 10, 0.7, 0], [0, 0, 10, 10, 0.6, 1]]
    bridge = [
        [18, 0, 52, 2, 0.5, 0],
        [200, 200, 210, 210, 0.4, 0],
    ]  # joins the first three boxes, though it touches two
    boxes, scores, labels, begin, end = concatenated([predictions(found), predictions(bridge)])
    islands = make_islands(boxes, scores, labels, begin, end, 3)
    sets = [sorted(islands.rows[a:b].tolist()) for a, b in zip(islands.begin[:-1], islands.begin[1:], strict=True)]
    assert sorted(sets) == [[0, 1, 2, 4], [3], [5]]
    assert sorted(islands.labels.tolist()) == [0, 0, 1]
    assert islands.images.tolist() == [0, 3]
    for a, b in zip(islands.begin[:-1], islands.begin[1:], strict=True):
        assert (np.diff(scores[islands.rows[a:b]]) <= 0).all()
    for member, count in ((0, 4), (1, 2)):
        assert islands.ranks[islands.members == member].tolist() == list(range(count))
