"""The scan and the grid search find the same cluster as a comparison with all clusters."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from foldfuse.boxes import pairwise_iou
from foldfuse.fusion import clusters as fuse_clusters


def random_boxes(rng, n, scale, digits):
    sides = np.exp(rng.uniform(np.log(0.002), np.log(0.4), (n, 2)))
    corners = rng.uniform(-0.1, 1, (n, 2))
    boxes = np.concatenate([corners, corners + sides], 1)
    if digits is not None:
        boxes = boxes.round(digits)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 10.0**-digits)
    return boxes * scale


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1.0, 1000.0, 1e6, 1e-4]),
    digits=st.sampled_from([None, 1, 2]),
    iou=st.sampled_from([0.0, 0.05, 0.12, 0.3, 0.5, 0.55, 0.75, 0.95]),
)
def test_both_searches_find_the_first_cluster_with_the_highest_iou(seed, scale, digits, iou):
    rng = np.random.default_rng(seed)
    n = 700
    boxes, moved = random_boxes(rng, n, scale, digits), random_boxes(rng, n, scale, digits)
    cluster_boxes, heads, chain = fuse_clusters.make_clusters(n)
    for k in range(n):
        fuse_clusters.place(cluster_boxes, heads, chain, k, tuple(boxes[k]), True, True)
    moves = rng.random(n) < 0.5
    for k in np.flatnonzero(moves):
        fuse_clusters.place(cluster_boxes, heads, chain, k, tuple(moved[k]), True, False)
    boxes[moves] = moved[moves]
    near = boxes[rng.integers(0, n, 200)] + rng.normal(0, 0.002 * scale, (200, 4))
    near = near[(near[:, 2:] > near[:, :2]).all(1)]
    matches = 0
    for box in np.concatenate([near, random_boxes(rng, 100, scale, digits)]):
        ious = pairwise_iou(boxes, box[None])[:, 0]
        best = int(ious.argmax())
        want = (best, ious[best]) if ious[best] > iou else (-1, iou)
        assert fuse_clusters.nearest(cluster_boxes, heads, chain, n, tuple(box), iou, False) == want
        assert fuse_clusters.nearest(cluster_boxes, heads, chain, n, tuple(box), iou, True) == want
        matches += best >= 0 and ious[best] > iou
    assert matches > 0


def test_cleared_clusters_are_not_found():
    cluster_boxes, heads, chain = fuse_clusters.make_clusters(700)
    box = (0.0, 0.0, 2.0, 2.0)
    fuse_clusters.place(cluster_boxes, heads, chain, 0, box, True, True)
    assert fuse_clusters.nearest(cluster_boxes, heads, chain, 1, box, 0.5, True) == (0, 1.0)
    fuse_clusters.clear(heads, chain, 1, True)
    assert fuse_clusters.nearest(cluster_boxes, heads, chain, 0, box, 0.5, True) == (-1, 0.5)
