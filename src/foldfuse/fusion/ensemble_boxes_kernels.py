"""The inner loops of `foldfuse.ensemble_boxes`: the arithmetic of ensemble-boxes 1.0.9, rounding for rounding.

Written from what the package computes, and checked against it bit for bit in tests/parity; no line is taken from it.

Shapes: n boxes of one image, grouped by class; class g owns rows starts[g]:starts[g + 1]. M members.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import math

import numpy as np
from numba import njit

from foldfuse.fusion.clusters import (
    AREA,
    GRID_MIN_BOXES,
    X1,
    X2,
    Y1,
    Y2,
    clear,
    compiled,
    make_clusters,
    nearest,
    overlap,
    place,
)

AVG, MAX, BOX_AND_MODEL_AVG, ABSENT_MODEL_AWARE_AVG = 0, 1, 2, 3
LINEAR, GAUSSIAN, HARD = 1, 2, 3


@njit(cache=True, nogil=True)
def group(labels):
    """names, starts, order: the labels as they first appear, and the rows of each in turn, in their own order."""
    names, sizes = np.empty(len(labels), np.int64), np.zeros(len(labels) + 1, np.int64)
    group_of = np.empty(len(labels), np.int64)
    groups = 0
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
    return names[:groups], starts, order


@njit(cache=True, nogil=True)
def pairwise_sum(values):
    """The sum with numpy's order of additions, on which the last bit depends."""
    n = len(values)
    if n < 8:
        total = values.dtype.type(0)
        for value in values:
            total += value
        return total
    if n > 128:
        half = n // 2 - n // 2 % 8
        return pairwise_sum(values[:half]) + pairwise_sum(values[half:])
    lanes = values[:8].copy()
    whole = n - n % 8
    for i in range(8, whole):
        lanes[i % 8] += values[i]
    total = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]))
    for i in range(whole, n):
        total += values[i]
    return total


@compiled
def weighted_boxes(boxes, scores, member_of, starts, weights, total, iou, conf_type, allows_overflow):
    """Boxes (r, 4), scores (r,), groups (r,) of the clusters of each class, in the order of their founding.

    Args:
        boxes, scores, member_of: (n, 4), (n,), (n,) in the order in which they are to be taken within each class.
        weights: (M,) of the members, as `scores` have been multiplied with them.
        total: the sum of `weights`.
        iou: the least IoU, itself excluded.
        conf_type: one of the four codes above.
    """
    n, members = len(boxes), len(weights)
    size = 0
    for g in range(len(starts) - 1):
        size = max(size, starts[g + 1] - starts[g])
    cluster_boxes, heads, chain = make_clusters(size)
    sums, lengths, present = (
        np.empty((size, 4), np.float32),
        np.empty(size, np.int64),
        np.empty((size, members), np.bool_),
    )
    score_sums, weight_sums, mean = np.empty(size), np.empty(size), np.empty(4, np.float32)
    out_boxes, out_scores, out_groups = np.empty((n, 4)), np.empty(n), np.empty(n, np.int64)
    single, double = np.empty(members, weights.dtype), np.empty(members)
    results = 0

    for g in range(len(starts) - 1):
        made, use_grid = 0, starts[g + 1] - starts[g] > GRID_MIN_BOXES
        for row in range(starts[g], starts[g + 1]):
            box, score = (boxes[row, 0], boxes[row, 1], boxes[row, 2], boxes[row, 3]), scores[row]
            k, _ = nearest(cluster_boxes, heads, chain, made, box, iou, use_grid)
            joins = k >= 0
            if not joins:
                k = made
                made += 1
                place(cluster_boxes, heads, chain, k, box, use_grid, True)
                sums[k], lengths[k], score_sums[k], weight_sums[k], present[k] = 0, 0, 0, 0, False
                out_scores[results + k] = score
            lengths[k] += 1
            score_sums[k] += score
            weight_sums[k] += weights[member_of[row]]
            present[k, member_of[row]] = True
            for c in range(4):
                sums[k, c] = np.float64(sums[k, c]) + score * box[c]
            if joins and score_sums[k] != 0:
                for c in range(4):
                    mean[c] = sums[k, c] / score_sums[k]
                place(
                    cluster_boxes,
                    heads,
                    chain,
                    k,
                    (np.float64(mean[0]), np.float64(mean[1]), np.float64(mean[2]), np.float64(mean[3])),
                    use_grid,
                    False,
                )

        for k in range(made):
            length, weight, score = lengths[k], weight_sums[k], out_scores[results]
            if length > 1:
                weight = np.float64(np.float32(weight))
                score = np.float64(np.float32(score if conf_type == MAX else score_sums[k] / length))
            if conf_type == MAX:
                score /= weights.max()
            elif conf_type == BOX_AND_MODEL_AVG:
                voters = 0
                for member in range(members):
                    if present[k, member]:
                        double[voters] = weights[member]
                        voters += 1
                score = score * length / weight * pairwise_sum(double[:voters]) / total if weight > 0 else 0.0
            elif conf_type == ABSENT_MODEL_AWARE_AVG:
                absent = 0
                for member in range(members):
                    if not present[k, member]:
                        single[absent] = weights[member]
                        absent += 1
                score = score * length / (weight + pairwise_sum(single[:absent]))
            elif allows_overflow:
                score = score * length / total
            else:
                score = score * min(members, length) / total
            out_boxes[results, 0], out_boxes[results, 1] = cluster_boxes[X1, k], cluster_boxes[Y1, k]
            out_boxes[results, 2], out_boxes[results, 3] = cluster_boxes[X2, k], cluster_boxes[Y2, k]
            out_scores[results], out_groups[results] = score, g
            results += 1
        clear(heads, chain, made, use_grid)
    return out_boxes[:results], out_scores[:results], out_groups[:results]


@compiled
def non_maximum_weighted(boxes, scores, starts, iou):
    """Boxes (r, 4) and scores (r,), float32, and groups (r,) of the clusters of each class, in founding order."""
    n, size = len(boxes), 0
    for g in range(len(starts) - 1):
        size = max(size, starts[g + 1] - starts[g])
    cluster_boxes, heads, chain = make_clusters(size)
    sums, votes = np.empty((size, 4), np.float32), np.empty(size)
    out_boxes, out_scores, out_groups = np.empty((n, 4), np.float32), np.empty(n, np.float32), np.empty(n, np.int64)
    results = 0
    for g in range(len(starts) - 1):
        made, use_grid = 0, starts[g + 1] - starts[g] > GRID_MIN_BOXES
        for row in range(starts[g], starts[g + 1]):
            box = boxes[row, 0], boxes[row, 1], boxes[row, 2], boxes[row, 3]
            k, share = nearest(cluster_boxes, heads, chain, made, box, iou, use_grid)
            if k < 0:
                k = made
                made += 1
                place(cluster_boxes, heads, chain, k, box, use_grid, True)
                sums[k], votes[k], out_scores[results + k] = 0, 0, scores[row]
                share = overlap(cluster_boxes, k, box, cluster_boxes[AREA, k])  # with itself: 1, but for rounding
            vote = scores[row] * share
            votes[k] += vote
            for c in range(4):
                sums[k, c] = np.float64(sums[k, c]) + vote * box[c]
        for k in range(made):
            box = cluster_boxes[X1, k], cluster_boxes[Y1, k], cluster_boxes[X2, k], cluster_boxes[Y2, k]
            for c in range(4):
                out_boxes[results + k, c] = sums[k, c] / votes[k] if votes[k] != 0 else box[c]
            out_groups[results + k] = g
        clear(heads, chain, made, use_grid)
        results += made
    return out_boxes[:results], out_scores[:results], out_groups[:results]


@njit(cache=True, nogil=True, error_model="numpy")
def hard(boxes, scores, starts, iou):
    """The kept rows, class by class, of NMS; ties stand as numba's own sort leaves them, as in the reference.

    Areas are of the dtype of `boxes` and intersections float64, as numba's promotion has it there.
    """
    kept, results = np.empty(len(boxes), np.int64), 0
    for g in range(len(starts) - 1):
        first = results
        for row in scores[starts[g] : starts[g + 1]].argsort()[::-1]:
            row += starts[g]
            area = (boxes[row, 2] - boxes[row, 0]) * (boxes[row, 3] - boxes[row, 1])
            keeps = True
            for k in range(first, results):
                other = kept[k]
                wide = max(0.0, min(boxes[other, 2], boxes[row, 2]) - max(boxes[other, 0], boxes[row, 0]))
                high = max(0.0, min(boxes[other, 3], boxes[row, 3]) - max(boxes[other, 1], boxes[row, 1]))
                other_area = (boxes[other, 2] - boxes[other, 0]) * (boxes[other, 3] - boxes[other, 1])
                if wide * high / (other_area + area - wide * high) > iou:
                    keeps = False
                    break
            if keeps:
                kept[results] = row
                results += 1
    return kept[:results]


@compiled
def soft(boxes, scores, starts, method, iou, sigma, floor):
    """The kept rows, class by class and best first, of Soft-NMS, and the scores that they are left with."""
    n = len(boxes)
    rows = np.arange(n)
    x1, y1, x2, y2 = boxes[:, 0].copy(), boxes[:, 1].copy(), boxes[:, 2].copy(), boxes[:, 3].copy()
    area, left, shared = (x2 - x1) * (y2 - y1), scores.copy(), np.empty(n)
    kept, kept_scores, results = np.empty(n, np.int64), np.empty(n, scores.dtype), 0
    meets = 0.0 if method == GAUSSIAN else iou
    for g in range(len(starts) - 1):
        end = starts[g + 1]
        for i in range(starts[g], end):
            best = i
            for j in range(i + 1, end):
                if left[j] > left[best]:
                    best = j
            if left[best] <= floor:
                break
            if best != i:
                for column in (x1, y1, x2, y2, area):
                    column[i], column[best] = column[best], column[i]
                rows[i], rows[best] = rows[best], rows[i]
                left[i], left[best] = left[best], left[i]
            kept[results], kept_scores[results] = rows[i], left[i]
            results += 1
            box, box_area = (x1[i], y1[i], x2[i], y2[i]), area[i]
            for j in range(i + 1, end):
                wide = max(min(x2[j], box[2]) - max(x1[j], box[0]), 0.0)
                high = max(min(y2[j], box[3]) - max(y1[j], box[1]), 0.0)
                shared[j] = wide * high / (area[j] + box_area - wide * high)
            for j in range(i + 1, end):
                if shared[j] > meets:
                    weight = math.exp(-(shared[j] * shared[j]) / sigma) if method == GAUSSIAN else 1 - shared[j]
                    left[j] = weight * left[j]
    return kept[:results], kept_scores[:results]
