"""The compiled inner loops of fusion, but for Soft-NMS. numba compiles them at the first call and caches them on disk.

Every greedy method is one loop: it takes the boxes of a class in falling order of score, and each box joins the cluster that
it overlaps most, or founds a new one. WBF, NMW and NMS differ only in the effect of joining.

Shapes: N rows of M members, I images, K classes. A row is one box of one member.
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
from foldfuse.system.compiled import compiled as compile_loops

WBF, NMS, NMW, SOFT_NMS = 0, 1, 2, 3
METHODS = {"wbf": WBF, "nms": NMS, "nmw": NMW, "soft_nms": SOFT_NMS}
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
    return scores[a] > scores[b] if scores[a] != scores[b] else box_before(boxes, a, b)


@compiled
def box_before(boxes, a, b):
    """Whether the box of row `a` precedes that of row `b`: by x1, y1, x2, y2."""
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
def gather(boxes, scores, labels, begin, end, image, weights, score_threshold, image_rows, member_of):
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
        count = gather(boxes, scores, labels, begin, end, image, weights, score_threshold, image_rows, member_of)
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
                    share, mean = 1 / votes[match], sums[match]
                    box = mean[0] * share, mean[1] * share, mean[2] * share, mean[3] * share
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
