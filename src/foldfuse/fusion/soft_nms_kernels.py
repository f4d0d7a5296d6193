"""The compiled inner loops of Soft-NMS. numba compiles them at the first call and caches them on disk.

The best box of a class is kept, the scores of the others decay by their IoU with it, and so on. Vector instructions decay
several boxes at once.

Shapes: N rows of M members, I images, K classes. A row is one box of one member.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import numpy as np

from foldfuse.fusion.clusters import AREA, X1, X2, Y1, Y2, compiled
from foldfuse.fusion.kernels import gather, place_of, rows_of, sort_rows, write_fused

LINEAR, GAUSSIAN = 1, 2
SCORE, ROW = 5, 6  # further columns of Soft-NMS, after the columns of a cluster
LANES = 4  # numbers of a vector; a loop over whole vectors has no rest, which would take longer than the vectors
EXP_RANGE = 0.25  # the Taylor polynomial of exp of degree 11 is exact to 1e-16 from -EXP_RANGE to 0
NOWHERE = 1e300  # x1 of a box that Soft-NMS has taken; its x2 is -NOWHERE


@compiled
def soft_nms(
    decay, sigma, min_score, boxes, scores, labels, begin, end, images, weights, score_threshold, iou, num_classes, out,
    counts,
):  # fmt: skip
    """Fuse the images images[0]..images[1] - 1 by Soft-NMS.

    Args:
        decay: LINEAR or GAUSSIAN.
        sigma: sigma of the Gaussian decay exp(-IoU^2 / sigma).
        min_score: a box whose score falls to this or below is left out.
        boxes, scores, labels, begin, end, images, weights, score_threshold, iou, num_classes, out, counts: as for `greedy`.
    """
    offset, size = place_of(begin, end, images)
    image_rows = np.empty((size, 4), np.float32), np.empty(size), np.empty(size, np.int64)
    member_of = np.empty(size, np.int64)
    order, spare, starts = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(num_classes + 1, np.int64)
    columns, factors = make_columns(size)
    kept, kept_scores = np.empty(size, np.int64), np.empty(size)
    fused_boxes, fused_scores = np.empty((size, 4), np.float32), np.empty(size)
    fused_labels = np.empty(size, np.int64)
    one_label = np.zeros(size, np.int64)

    for image in range(images[0], images[1]):
        count = gather(boxes, scores, labels, begin, end, image, weights, score_threshold, image_rows, member_of)
        image_boxes, image_scores, image_labels = image_rows
        sort_rows(image_scores, image_boxes, image_labels, count, num_classes, order, spare, starts)
        results = 0
        for label in range(num_classes):
            n = starts[label + 1] - starts[label]
            for i in range(n):
                row = order[starts[label] + i]
                for c in range(4):
                    columns[c, i] = image_boxes[row, c]
                columns[AREA, i] = (columns[X2, i] - columns[X1, i]) * (columns[Y2, i] - columns[Y1, i])
                columns[SCORE, i], columns[ROW, i] = image_scores[row], row
            for i in range(soft_nms_class(columns, n, decay, sigma, iou, min_score, factors, (kept, kept_scores))):
                fused_boxes[results], fused_scores[results] = image_boxes[kept[i]], kept_scores[i]
                fused_labels[results] = label
                results += 1

        write_fused(fused_boxes, fused_scores, fused_labels, results, one_label, order, spare, out, offset)
        counts[image] = results
        offset += rows_of(begin, end, image)


@compiled
def make_columns(size):
    """Memory for the `columns` and `factors` of at most `size` boxes in `soft_nms_class`."""
    size = whole_vectors(size)
    return np.empty((7, size)), np.empty(size)


@compiled
def whole_vectors(count):
    """The next multiple of LANES."""
    return (count + LANES - 1) // LANES * LANES


@compiled
def soft_nms_class(columns, n, decay, sigma, iou, min_score, factors, out):
    """Soft-NMS of the n boxes of one class: fill `out` with the kept rows, best first, and their scores; return their number.

    Args:
        columns: (7, size) x1, y1, x2, y2, area, score and row of each box; of equal scores the first wins. Overwritten. Its size
            is a multiple of LANES.
        decay, sigma, iou, min_score: as for `soft_nms`.
        factors: (size,) working memory.
        out: rows and scores to fill.
    """
    rows, scores = out
    x1, y1, x2, y2, area, left = columns[X1], columns[Y1], columns[X2], columns[Y2], columns[AREA], columns[SCORE]
    squarings = 0
    while 2.0**squarings * sigma * EXP_RANGE < 1:
        squarings += 1
    results, taken = 0, 0  # `taken` of the n boxes are done and lie nowhere
    _fill_up(columns, n)
    while n > taken:
        most = _greatest(left, n)
        if most <= min_score:
            break
        best = 0
        while left[best] != most:
            best += 1
        box, box_area = (x1[best], y1[best], x2[best], y2[best]), area[best]
        rows[results], scores[results] = int(columns[ROW, best]), most
        results += 1
        left[best], x1[best], x2[best] = -np.inf, NOWHERE, -NOWHERE
        taken += 1
        if 4 * taken > n:
            n, taken = _close_up(columns, n, min_score), 0
        whole = whole_vectors(n)
        for i in range(whole):
            width = max(min(x2[i], box[2]) - max(x1[i], box[0]), 0.0)
            height = max(min(y2[i], box[3]) - max(y1[i], box[1]), 0.0)
            factors[i] = width * height / (area[i] + box_area - width * height)
        if decay == GAUSSIAN:
            _gaussian(factors, whole, sigma, squarings)
        else:
            for i in range(whole):
                factors[i] = 1 - factors[i] if factors[i] > iou else 1.0
        for i in range(whole):
            left[i] *= factors[i]
    return results


@compiled
def _gaussian(values, count, sigma, squarings):
    """Replace values[:count], in [0, 1], by exp(-value^2 / sigma), to 1e-14 of it.

    It is a polynomial for exp(x / 2^squarings), squared so often: vector instructions do both, where `math.exp` is a call.
    """
    scale = -1 / (2.0**squarings * sigma)
    for i in range(count):
        x = values[i] * values[i] * scale
        low = 1 + x * (1 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120)))))
        high = 1 / 720 + x * (1 / 5040 + x * (1 / 40320 + x * (1 / 362880 + x * (1 / 3628800 + x * (1 / 39916800)))))
        values[i] = low + (x * x * x) * (x * x * x) * high
    for _ in range(squarings):
        for i in range(count):
            values[i] *= values[i]


@compiled
def _greatest(values, count):
    """The greatest of values[:count], from four independent chains, since each step of a chain waits for the step before.

    The values from `count` to the next multiple of LANES must not be greater.
    """
    a = b = c = d = -np.inf
    for i in range(0, count, 4):
        a, b = max(a, values[i]), max(b, values[i + 1])
        c, d = max(c, values[i + 2]), max(d, values[i + 3])
    return max(max(a, b), max(c, d))


@compiled
def _close_up(columns, count, min_score):
    """Move the boxes with a score above `min_score` to the front, in order; return their number."""
    kept = 0
    for i in range(count):
        if columns[SCORE, i] > min_score:
            for c in range(7):
                columns[c, kept] = columns[c, i]
            kept += 1
    _fill_up(columns, kept)
    return kept


@compiled
def _fill_up(columns, count):
    """Put boxes that lie nowhere between the first `count` and the next multiple of LANES."""
    for i in range(count, whole_vectors(count)):
        columns[X1, i], columns[Y1, i], columns[X2, i], columns[Y2, i] = NOWHERE, 0, -NOWHERE, 0
        columns[AREA, i], columns[SCORE, i] = 1, -np.inf
