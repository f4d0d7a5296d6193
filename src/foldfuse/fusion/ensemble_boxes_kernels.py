"""The clustering loop of `foldfuse.ensemble_boxes`.

Shapes: n boxes of one image, grouped by class; class g owns rows starts[g]:starts[g + 1]. r clusters.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import numpy as np

from foldfuse.fusion.clusters import (
    GRID_MIN_BOXES,
    X1,
    X2,
    Y1,
    Y2,
    clear,
    compiled,
    make_clusters,
    nearest,
    place,
)
from foldfuse.fusion.soft_nms_kernels import make_columns, soft_nms_class


@compiled
def group(labels):
    """order, starts: the rows label by label, each label's rows in their own order, and where each label begins."""
    names, group_of = np.empty(len(labels), np.int64), np.empty(len(labels), np.int64)
    sizes, groups = np.zeros(len(labels) + 1, np.int64), 0
    for i in range(len(labels)):
        g = 0
        while g < groups and names[g] != labels[i]:
            g += 1
        if g == groups:
            names[g] = labels[i]
            groups += 1
        group_of[i] = g
        sizes[g + 1] += 1
    starts = np.cumsum(sizes[: groups + 1])
    order, filled = np.empty(len(labels), np.int64), starts.copy()
    for i in range(len(labels)):
        order[filled[group_of[i]]] = i
        filled[group_of[i]] += 1
    return order, starts


@compiled
def cluster(boxes, scores, starts, iou, moves):
    """Greedy clusters: a box joins the cluster that it overlaps most, if the IoU is above `iou`, or founds a new one.

    Args:
        boxes, scores: (n, 4), (n,) by falling score within each class.
        starts: (g + 1,) first row of each class.
        iou: threshold; an IoU equal to it does not match.
        moves: whether a cluster moves to the score-weighted mean of its boxes when a box joins, as WBF's do.

    Returns:
        cluster_of (n,), the cluster of each box; overlaps (n,), its IoU with the cluster at that time, 1 for a founder;
        founders (r,), the first row of each cluster; means (r, 4), where each cluster is at the end.
    """
    n, size = len(boxes), 0
    for g in range(len(starts) - 1):
        size = max(size, starts[g + 1] - starts[g])
    cluster_boxes, heads, chain = make_clusters(size)
    # The reference sums in float32; the same precision here leads to the same matches.
    sums, score_sums, mean = np.empty((size, 4), np.float32), np.empty(size), np.empty(4, np.float32)
    cluster_of, overlaps, founders, means = np.empty(n, np.int64), np.ones(n), np.empty(n, np.int64), np.empty((n, 4))
    total = 0
    for g in range(len(starts) - 1):
        num, use_grid = 0, starts[g + 1] - starts[g] > GRID_MIN_BOXES
        for row in range(starts[g], starts[g + 1]):
            box = boxes[row, 0], boxes[row, 1], boxes[row, 2], boxes[row, 3]
            k, overlap = nearest(cluster_boxes, heads, chain, num, box, iou, use_grid)
            if k < 0:
                k = num
                place(cluster_boxes, heads, chain, k, box, use_grid, True)
                sums[k], score_sums[k], founders[total + k] = 0, 0, row
                num += 1
            else:
                overlaps[row] = overlap
            cluster_of[row] = total + k
            if not moves:
                continue
            score_sums[k] += scores[row]
            for c in range(4):
                sums[k, c] = np.float64(sums[k, c]) + scores[row] * box[c]
            if row != founders[total + k] and score_sums[k] != 0:
                for c in range(4):
                    mean[c] = sums[k, c] / score_sums[k]
                box = np.float64(mean[0]), np.float64(mean[1]), np.float64(mean[2]), np.float64(mean[3])
                place(cluster_boxes, heads, chain, k, box, use_grid, False)
        for k in range(num):
            means[total + k, 0], means[total + k, 1] = cluster_boxes[X1, k], cluster_boxes[Y1, k]
            means[total + k, 2], means[total + k, 3] = cluster_boxes[X2, k], cluster_boxes[Y2, k]
        clear(heads, chain, num, use_grid)
        total += num
    return cluster_of, overlaps, founders[:total], means[:total]


@compiled
def soft_nms(boxes, scores, starts, decay, iou, sigma, min_score):
    """Soft-NMS of each class: the kept rows, best first, and the scores that the decay leaves them."""
    n = len(boxes)
    columns, factors = make_columns(n)
    kept, kept_scores, results = np.empty(n, np.int64), np.empty(n), 0
    for g in range(len(starts) - 1):
        num = starts[g + 1] - starts[g]
        for i in range(num):
            row = starts[g] + i
            for c in range(4):
                columns[c, i] = boxes[row, c]
            columns[4, i] = (boxes[row, 2] - boxes[row, 0]) * (boxes[row, 3] - boxes[row, 1])
            columns[5, i], columns[6, i] = scores[row], row
        out = kept[results:], kept_scores[results:]
        results += soft_nms_class(columns, num, decay, sigma, iou, min_score, factors, out)
    return kept[:results], kept_scores[:results]
