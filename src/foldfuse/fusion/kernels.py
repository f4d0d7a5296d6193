"""The compiled inner loops of fusion. numba compiles them at the first call and caches them on disk.

Every greedy method is one loop: it takes the boxes of a class in falling order of score, and each box joins the cluster that
it overlaps most, or founds a new one. WBF, NMW and NMS differ only in the effect of joining.

Shapes: N rows of M members, I images, K classes. A row is one box of one member.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import math

import numpy as np

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
    place,
)
from foldfuse.system.compiled import compiled as compile_loops

WBF, NMS, NMW, SOFT_NMS = 0, 1, 2, 3
METHODS = {"wbf": WBF, "nms": NMS, "nmw": NMW, "soft_nms": SOFT_NMS}
LINEAR, GAUSSIAN = 1, 2
SCORE, ROW = 5, 6  # further columns of Soft-NMS, after the columns of a cluster

NOWHERE = 1e300  # x1 of a box that Soft-NMS has taken; its x2 is -NOWHERE
TOP = (1 << 30) - 1  # the bits of a float32 in [0, 1] are below this


@compile_loops()
def first_bad_row(boxes, scores, labels, num_classes):
    """The first row that is not a box with a score in [0, 1] and a label in 0..K-1; -1 if all are."""
    for i in range(len(boxes)):
        finite = np.isfinite(boxes[i, 0]) and np.isfinite(boxes[i, 1])
        finite = finite and np.isfinite(boxes[i, 2]) and np.isfinite(boxes[i, 3])
        ordered = boxes[i, 0] <= boxes[i, 2] and boxes[i, 1] <= boxes[i, 3]
        if not (finite and ordered and 0 <= scores[i] <= 1 and 0 <= labels[i] < num_classes):
            return i
    return -1


@compiled
def comes_before(scores, boxes, a, b):
    """Whether row `a` precedes row `b`: by falling score, then by x1, y1, x2, y2."""
    if scores[a] != scores[b]:
        return scores[a] > scores[b]
    for c in range(4):
        if boxes[a, c] != boxes[b, c]:
            return boxes[a, c] < boxes[b, c]
    return False


@compiled
def sort_rows(scores, boxes, labels, count, num_classes, order, spare, starts):
    """Fill order[:count] with rows by label, then falling score, then box; label k begins at starts[k].

    This is a radix sort on the bits of the scores as float32, which must be in [0, 1]: three stable passes of 10 bits, then one
    by label. An insertion sort then orders the rows whose scores are equal as float32 by their float64 scores and boxes.
    """
    bits = scores[:count].astype(np.float32).view(np.int32)
    seen = np.zeros((3, 1024), np.int64)
    for i in range(count):
        key = TOP - bits[i]
        seen[0, key & 1023] += 1
        seen[1, (key >> 10) & 1023] += 1
        seen[2, key >> 20] += 1
        order[i] = i
    for digit in range(3):
        total = 0
        for value in range(1024):
            total, seen[digit, value] = total + seen[digit, value], total
        for i in range(count):
            row = order[i]
            value = ((TOP - bits[row]) >> (10 * digit)) & 1023
            spare[seen[digit, value]] = row
            seen[digit, value] += 1
        order, spare = spare, order
    # After three swaps `spare` is the caller's `order`, and the pass by label fills it.
    starts[:] = 0
    for i in range(count):
        starts[labels[i] + 1] += 1
    for k in range(num_classes):
        starts[k + 1] += starts[k]
    for i in range(count):
        row = order[i]
        spare[starts[labels[row]]] = row
        starts[labels[row]] += 1
    for k in range(num_classes, 0, -1):
        starts[k] = starts[k - 1]
    starts[0] = 0
    for k in range(num_classes):
        for i in range(starts[k] + 1, starts[k + 1]):
            row, j = spare[i], i
            while j > starts[k] and bits[spare[j - 1]] == bits[row] and comes_before(scores, boxes, row, spare[j - 1]):
                spare[j] = spare[j - 1]
                j -= 1
            spare[j] = row


@compiled
def rows_of(begin, end, image):
    """The number of rows of an image, of all members."""
    rows = 0
    for member in range(len(begin)):
        rows += end[member, image] - begin[member, image]
    return rows


@compiled
def place_of(begin, end, images):
    """The number of rows of the images before images[0], and the most rows of an image in images[0]..images[1] - 1."""
    offset, size = 0, 0
    for image in range(images[0]):
        offset += rows_of(begin, end, image)
    for image in range(images[0], images[1]):
        size = max(size, rows_of(begin, end, image))
    return offset, size


@compiled
def _gather(boxes, scores, labels, begin, end, image, weights, score_threshold, image_rows, member_of):
    """Copy the rows of one image that have a vote to `image_rows`, with weighted scores; return their number."""
    image_boxes, image_scores, image_labels = image_rows
    count = 0
    for member in range(len(weights)):
        for row in range(begin[member, image], end[member, image]):
            score = scores[row] * weights[member]
            flat = boxes[row, 2] <= boxes[row, 0] or boxes[row, 3] <= boxes[row, 1]
            if scores[row] < score_threshold or score <= 0 or flat:
                continue
            for c in range(4):
                image_boxes[count, c] = boxes[row, c]
            image_scores[count] = score
            image_labels[count] = labels[row]
            member_of[count] = member
            count += 1
    return count


@compiled
def greedy(
    method, boxes, scores, labels, begin, end, images, weights, total, score_threshold, iou, num_classes, out, counts
):
    """Fuse the images images[0]..images[1] - 1 by WBF, NMS or NMW.

    Args:
        method: WBF, NMS or NMW.
        boxes, scores, labels: (N, 4), (N,), (N,) rows of all members.
        begin, end: (M, I) the rows of each member on each image.
        images: the first image, and the one after the last.
        weights: (M,) in [0, 1].
        total: the sum of `weights`.
        out: boxes, scores, labels to fill, shaped as the inputs; the results of an image begin where its rows would, if the
            rows were sorted by image.
        counts: (I,) to fill with the number of results of each image.
    """
    members = len(weights)
    offset, size = place_of(begin, end, images)
    image_rows = np.empty((size, 4), np.float32), np.empty(size), np.empty(size, np.int64)
    member_of = np.empty(size, np.int64)
    order, spare, starts = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(num_classes + 1, np.int64)
    cluster_boxes, heads, chain = make_clusters(size)
    sums, votes, has_voted = np.empty((size, 4)), np.empty(size), np.empty((size, members // 64 + 1), np.uint64)
    founder = np.empty(size, np.int64)
    fused_boxes, fused_scores = np.empty((size, 4), np.float32), np.empty(size)
    fused_labels = np.empty(size, np.int64)
    one_label = np.zeros(size, np.int64)

    for image in range(images[0], images[1]):
        count = _gather(boxes, scores, labels, begin, end, image, weights, score_threshold, image_rows, member_of)
        image_boxes, image_scores, image_labels = image_rows
        sort_rows(image_scores, image_boxes, image_labels, count, num_classes, order, spare, starts)
        results = 0
        for label in range(num_classes):
            use_grid = starts[label + 1] - starts[label] > GRID_MIN_BOXES
            num_clusters, last, match, match_iou = 0, -1, -1, 0.0
            for i in range(starts[label], starts[label + 1]):
                row = order[i]
                box = (
                    np.float64(image_boxes[row, 0]),
                    np.float64(image_boxes[row, 1]),
                    np.float64(image_boxes[row, 2]),
                    np.float64(image_boxes[row, 3]),
                )
                # Equal boxes of equal score stay together: otherwise the order of members would decide which joins first.
                same = last >= 0 and image_scores[row] == image_scores[last]
                for c in range(4):
                    same = same and image_boxes[row, c] == image_boxes[last, c]
                last = row
                if not same:
                    match, match_iou = nearest(cluster_boxes, heads, chain, num_clusters, box, iou, use_grid)
                if match < 0:
                    match, match_iou = num_clusters, 1.0
                    place(cluster_boxes, heads, chain, match, box, use_grid, True)
                    sums[match], votes[match], has_voted[match], founder[match] = 0, 0, 0, row
                    num_clusters += 1
                word, bit = member_of[row] // 64, np.uint64(1) << np.uint64(member_of[row] % 64)
                if method == NMS or has_voted[match, word] & bit:
                    continue
                has_voted[match, word] |= bit
                vote = image_scores[row] * match_iou if method == NMW else image_scores[row]
                votes[match] += vote
                for c in range(4):
                    sums[match, c] += vote * box[c]
                if method == WBF and row != founder[match]:
                    total_votes, mean = votes[match], sums[match]
                    box = mean[0] / total_votes, mean[1] / total_votes, mean[2] / total_votes, mean[3] / total_votes
                    place(cluster_boxes, heads, chain, match, box, use_grid, False)

            for k in range(num_clusters):
                fused_boxes[results, 0], fused_boxes[results, 1] = cluster_boxes[X1, k], cluster_boxes[Y1, k]
                fused_boxes[results, 2], fused_boxes[results, 3] = cluster_boxes[X2, k], cluster_boxes[Y2, k]
                if method == NMW:
                    for c in range(4):
                        fused_boxes[results, c] = sums[k, c] / votes[k]
                fused_scores[results] = min(votes[k] / total, 1.0) if method == WBF else image_scores[founder[k]]
                fused_labels[results] = label
                results += 1
            clear(heads, chain, num_clusters, use_grid)

        write_fused(fused_boxes, fused_scores, fused_labels, results, one_label, order, spare, out, offset)
        counts[image] = results
        offset += rows_of(begin, end, image)


@compiled
def write_fused(boxes, scores, labels, count, one_label, order, spare, out, offset):
    """Copy the results of one image to `out` in falling order of score, then by box, then by label."""
    sort_rows(scores, boxes, one_label, count, 1, order, spare, np.empty(2, np.int64))
    out_boxes, out_scores, out_labels = out
    for i in range(count):
        row, to = order[i], offset + i
        for c in range(4):
            out_boxes[to, c] = boxes[row, c]
        out_scores[to], out_labels[to] = scores[row], labels[row]


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
    columns, overlaps = np.empty((7, size)), np.empty(size)
    kept, kept_scores = np.empty(size, np.int64), np.empty(size)
    fused_boxes, fused_scores = np.empty((size, 4), np.float32), np.empty(size)
    fused_labels = np.empty(size, np.int64)
    one_label = np.zeros(size, np.int64)

    for image in range(images[0], images[1]):
        count = _gather(boxes, scores, labels, begin, end, image, weights, score_threshold, image_rows, member_of)
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
            for i in range(soft_nms_class(columns, n, decay, sigma, iou, min_score, overlaps, (kept, kept_scores))):
                fused_boxes[results], fused_scores[results] = image_boxes[kept[i]], kept_scores[i]
                fused_labels[results] = label
                results += 1

        write_fused(fused_boxes, fused_scores, fused_labels, results, one_label, order, spare, out, offset)
        counts[image] = results
        offset += rows_of(begin, end, image)


@compiled
def soft_nms_class(columns, n, decay, sigma, iou, min_score, overlaps, out):
    """Soft-NMS of the n boxes of one class: fill `out` with the kept rows, best first, and their scores; return their number.

    Args:
        columns: (7, size) x1, y1, x2, y2, area, score and row of each box; of equal scores the first wins. Overwritten.
        decay, sigma, iou, min_score: as for `soft_nms`.
        overlaps: (size,) working memory.
        out: rows and scores to fill.
    """
    rows, scores = out
    x1, y1, x2, y2, area, left = columns[X1], columns[Y1], columns[X2], columns[Y2], columns[AREA], columns[SCORE]
    iou_threshold = 0.0 if decay == GAUSSIAN else iou
    results, taken = 0, 0  # `taken` of the n boxes are done and lie nowhere
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
        for i in range(n):
            width = max(min(x2[i], box[2]) - max(x1[i], box[0]), 0.0)
            height = max(min(y2[i], box[3]) - max(y1[i], box[1]), 0.0)
            overlaps[i] = width * height / (area[i] + box_area - width * height)
        for i in range(n):
            if overlaps[i] > iou_threshold and left[i] > min_score:  # a lower score cannot matter any more
                left[i] *= math.exp(-overlaps[i] * overlaps[i] / sigma) if decay == GAUSSIAN else 1 - overlaps[i]
    return results


@compiled
def _greatest(values, count):
    """The greatest of values[:count], from four independent chains, since each step of a chain waits for the step before."""
    a = b = c = d = -np.inf
    for i in range(0, count - 3, 4):
        a, b = max(a, values[i]), max(b, values[i + 1])
        c, d = max(c, values[i + 2]), max(d, values[i + 3])
    for i in range(count - count % 4, count):
        a = max(a, values[i])
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
    return kept


@compile_loops()
def compact(boxes, scores, labels, rows_of, counts):
    """Boxes, scores and labels of all images without the gaps between them; overwrites the inputs."""
    source, target = 0, 0
    for image in range(len(counts)):
        for i in range(counts[image]):
            for c in range(4):
                boxes[target + i, c] = boxes[source + i, c]
            scores[target + i] = scores[source + i]
            labels[target + i] = labels[source + i]
        source += rows_of[image]
        target += counts[image]
    return boxes[:target].copy(), scores[:target].copy(), labels[:target].copy()
