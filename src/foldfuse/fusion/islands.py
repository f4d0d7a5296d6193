"""Fuses the same boxes again and again, as an ensemble search does: what no candidate changes is worked out once.

An island is a set of boxes of one image and one class that no other box of the class comes near: the rectangles around two
islands do not touch. A box joins a cluster only where the two overlap, and a cluster lies within the rectangle around its
boxes, so no fusion reaches beyond an island, whatever the members' weights, scores and thresholds are. A search therefore
sorts the boxes by island once, and each trial fuses small islands instead of whole classes. The results are those of
`kernels.greedy` and `soft_nms_kernels.soft_nms`, bit by bit (tested).

Shapes: N rows (boxes) of M members, I images, S islands.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from foldfuse.detections import Array
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
from foldfuse.fusion.kernels import NMS, NMW, SOFT_NMS, WBF, box_before, rows_of, sort_rows, write_fused
from foldfuse.fusion.soft_nms_kernels import GAUSSIAN, ROW, SCORE, make_columns, soft_nms_class

MARGIN = 1e-6  # of a coordinate: the rectangle around an island is so much larger, since means are rounded
FEW_ROWS, FEW_CLUSTERS = 48, 8  # so many are sorted, and searched, by the simplest loop


@dataclass(frozen=True, eq=False)
class Islands:
    """The boxes of all members, sorted by image, class and island; within an island by falling score, then by box.

    Attributes:
        boxes: (N, 4) float32.
        members: (N,) int32, the member of each box.
        ranks: (N,) int32, the number of boxes of the same member before each box.
        rows: (N,) the row of each box in the members' concatenated rows.
        begin: (S + 1,) the first row of each island.
        labels: (S,) the class of each island.
        images: (I + 1,) the first island of each image.
        num_members: M.
    """

    boxes: Array
    members: Array
    ranks: Array
    rows: Array
    begin: Array
    labels: Array
    images: Array
    num_members: int

    @cached_property
    def rectangles(self) -> Array:
        """(S, 4) float32, the rectangle around the boxes of each island."""
        if not len(self.labels):
            return np.zeros((0, 4), np.float32)
        starts = self.begin[:-1]
        corners = np.minimum.reduceat(self.boxes[:, :2], starts), np.maximum.reduceat(self.boxes[:, 2:], starts)
        return np.concatenate(corners, 1)

    def by_member(self, scores: Array) -> tuple[Array, Array]:
        """The scores of the members' concatenated rows as the fusion takes them: `scores` and `first` of `fuse_islands`."""
        order = np.argsort(self.members, kind="stable")
        lengths = np.bincount(self.members, minlength=self.num_members)
        return scores[self.rows[order]], np.cumsum(lengths) - lengths

    @property
    def image_rows(self) -> Array:
        """(I + 1,) the first row of each image."""
        return self.begin[self.images]

    @cached_property
    def row_image(self) -> Array:
        """(N,) the image of each row."""
        return np.repeat(np.arange(len(self.images) - 1), np.diff(self.image_rows))


def make_islands(boxes: Array, scores: Array, labels: Array, begin: Array, end: Array, num_classes: int) -> Islands:
    """The islands of the members' concatenated rows.

    Args:
        boxes, scores, labels: (N, 4) float32, (N,) float64, (N,) of all members, checked.
        begin, end: (M, I) the rows of each member on each image.
        num_classes: number of classes.
    """
    columns = _sorted_by_island(boxes, scores, labels, begin, end, num_classes)
    members, ranks, rows, island_begin, island_labels, images = columns
    return Islands(boxes[rows], members, ranks, rows, island_begin, island_labels, images, num_members=len(begin))


@compiled
def _sorted_by_island(boxes, scores, labels, begin, end, num_classes):
    """Members, ranks, rows, begin, labels and images of `Islands`."""
    num_images, total, size = begin.shape[1], 0, 0
    for image in range(num_images):
        here = rows_of(begin, end, image)
        total, size = total + here, max(size, here)
    members, ranks, rows = np.empty(total, np.int32), np.empty(total, np.int32), np.empty(total, np.int64)
    seen = np.zeros(len(begin), np.int64)
    island_begin, island_labels = np.zeros(total + 1, np.int64), np.empty(total, np.int64)
    images = np.zeros(num_images + 1, np.int64)
    of_image, member_of = np.empty(size, np.int64), np.empty(size, np.int32)
    image_scores, image_labels, image_boxes = np.empty(size), np.empty(size, np.int64), np.empty((size, 4), np.float32)
    order, spare, starts = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(num_classes + 1, np.int64)
    hulls, island_of = np.empty((size, 4)), np.empty(size, np.int64)
    links = np.empty(size, np.int64), np.empty(size, np.int64)
    filled, islands = 0, 0
    for image in range(num_images):
        count = 0
        for member in range(len(begin)):
            for row in range(begin[member, image], end[member, image]):
                of_image[count], member_of[count] = row, member
                image_scores[count], image_labels[count] = scores[row], labels[row]
                for c in range(4):
                    image_boxes[count, c] = boxes[row, c]
                count += 1
        sort_rows(image_scores, image_boxes, image_labels, count, num_classes, order, spare, starts)
        for label in range(num_classes):
            first, last = starts[label], starts[label + 1]
            found = _assign_islands(image_boxes, order, first, last, hulls, links, island_of)
            for island in range(found):
                for i in range(first, last):
                    if island_of[i - first] == island:
                        member = member_of[order[i]]
                        members[filled], ranks[filled], rows[filled] = member, seen[member], of_image[order[i]]
                        seen[member] += 1
                        filled += 1
                island_labels[islands] = label
                islands += 1
                island_begin[islands] = filled
        images[image + 1] = islands
    return members, ranks, rows, island_begin[: islands + 1].copy(), island_labels[:islands].copy(), images


@compiled
def _assign_islands(boxes, order, first, last, hulls, links, island_of):
    """Fill island_of[: last - first] with the island of the rows order[first:last]; return the number of islands.

    Args:
        hulls: (size, 4) working memory: the rectangle around each island.
        links: (2, size) working memory: the island that has swallowed each island, and the islands that are left.
    """
    parent, left = links
    num_left = 0
    for i in range(last - first):
        row = order[first + i]
        x1, y1, x2, y2 = boxes[row, 0], boxes[row, 1], boxes[row, 2], boxes[row, 3]
        x_margin = MARGIN * (1 + max(abs(x1), abs(x2)))
        y_margin = MARGIN * (1 + max(abs(y1), abs(y2)))
        x1, y1, x2, y2 = x1 - x_margin, y1 - y_margin, x2 + x_margin, y2 + y_margin
        parent[i] = i
        at = 0
        while at < num_left:
            k = left[at]
            if hulls[k, 0] <= x2 and hulls[k, 2] >= x1 and hulls[k, 1] <= y2 and hulls[k, 3] >= y1:
                x1, y1 = min(x1, hulls[k, 0]), min(y1, hulls[k, 1])
                x2, y2 = max(x2, hulls[k, 2]), max(y2, hulls[k, 3])
                parent[k] = i
                num_left -= 1
                left[at] = left[num_left]
                at = 0  # the larger rectangle may touch others
            else:
                at += 1
        hulls[i, 0], hulls[i, 1], hulls[i, 2], hulls[i, 3] = x1, y1, x2, y2
        left[num_left] = i
        num_left += 1
    number = 0
    for i in range(last - first - 1, -1, -1):  # an island comes before the one that has swallowed it
        if parent[i] == i:
            island_of[i], number = number, number + 1
        else:
            island_of[i] = island_of[parent[i]]
    return number


@compiled
def fuse_islands(
    method, boxes, members, ranks, begin, labels, island_images, scores, first, images, weights, total, score_threshold, iou,
    soft, out, counts,
):  # fmt: skip
    """Fuse the images images[0]..images[1] - 1, as `kernels.greedy` or `soft_nms_kernels.soft_nms`.

    Args:
        method: WBF, NMS, NMW or SOFT_NMS.
        boxes, members, ranks, begin, labels, island_images: as in `Islands`.
        scores, first: (..), (M,) the score of a box of member m is scores[first[m] + its rank].
        images: the first image, and the one after the last.
        weights: (M,) in [0, 1]; 0 for a member that takes no part.
        total: the sum of `weights`.
        soft: sigma and min_score of Soft-NMS.
        out, counts: as for `kernels.greedy`.
    """
    size, n = 0, 1
    for image in range(images[0], images[1]):
        size = max(size, begin[island_images[image + 1]] - begin[island_images[image]])
    for island in range(island_images[images[0]], island_images[images[1]]):
        n = max(n, begin[island + 1] - begin[island])
    # the rows of an island in order, columns x1, y1, x2, y2, area, and a score and a row for Soft-NMS
    (columns, factors), votes_of, member_of = make_columns(n), np.empty(n), np.empty(n, np.int32)
    order, spare = np.empty(n, np.int32), np.empty(n, np.int32)
    raw_boxes, raw_scores, raw_rows = np.empty((n, 4), np.float32), np.empty(n), np.empty(n, np.int32)
    raw_order = np.empty(n, np.int32)
    no_label, starts = np.zeros(n, np.int64), np.empty(2, np.int64)
    cluster_boxes, heads, chain = make_clusters(n)
    sums, votes, has_voted = np.empty((n, 4)), np.empty(n), np.empty((n, len(weights) // 64 + 1), np.uint64)
    founder, kept, kept_scores = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n)
    fused_boxes, fused_scores = np.empty((size, 4), np.float32), np.empty(size)
    fused_labels, one_label = np.empty(size, np.int64), np.zeros(size, np.int64)
    write_order, write_spare = np.empty(size, np.int32), np.empty(size, np.int32)
    words = has_voted.shape[1]

    for image in range(images[0], images[1]):
        offset, results = begin[island_images[image]], 0
        for island in range(island_images[image], island_images[image + 1]):
            count = 0
            for row in range(begin[island], begin[island + 1]):
                weight = weights[members[row]]
                if weight == 0:
                    continue
                score = scores[first[members[row]] + ranks[row]]
                if score < score_threshold or score * weight <= 0:
                    continue
                if boxes[row, 2] <= boxes[row, 0] or boxes[row, 3] <= boxes[row, 1]:
                    continue
                slot, vote = count, score * weight
                # An insertion sort while the rows are few; they are nearly in this order.
                while count < FEW_ROWS and slot > 0 and votes_of[slot - 1] <= vote:
                    before = order[slot - 1]
                    if votes_of[slot - 1] == vote and not box_before(boxes, row, before):
                        break
                    votes_of[slot], order[slot] = votes_of[slot - 1], before
                    slot -= 1
                votes_of[slot], order[slot] = vote, row
                count += 1
            if count == 0:
                continue
            if count > FEW_ROWS:
                for i in range(count):
                    raw_scores[i], raw_rows[i] = votes_of[i], order[i]
                    for c in range(4):
                        raw_boxes[i, c] = boxes[order[i], c]
                sort_rows(raw_scores, raw_boxes, no_label, count, 1, raw_order, spare, starts)
                for i in range(count):
                    votes_of[i], order[i] = raw_scores[raw_order[i]], raw_rows[raw_order[i]]
            for i in range(count):
                row = order[i]
                for c in range(4):
                    columns[c, i] = boxes[row, c]
                member_of[i] = members[row]

            if method == SOFT_NMS:
                for i in range(count):
                    columns[AREA, i] = (columns[X2, i] - columns[X1, i]) * (columns[Y2, i] - columns[Y1, i])
                    columns[SCORE, i], columns[ROW, i] = votes_of[i], order[i]
                found = soft_nms_class(columns, count, GAUSSIAN, soft[0], iou, soft[1], factors, (kept, kept_scores))
                for i in range(found):
                    for c in range(4):
                        fused_boxes[results, c] = boxes[kept[i], c]
                    fused_scores[results], fused_labels[results] = kept_scores[i], labels[island]
                    results += 1
                continue

            use_grid = count > GRID_MIN_BOXES
            num_clusters, match, match_iou = 0, -1, 0.0
            for i in range(count):
                box = columns[X1, i], columns[Y1, i], columns[X2, i], columns[Y2, i]
                same = i > 0 and votes_of[i] == votes_of[i - 1]
                for c in range(4):
                    same = same and columns[c, i] == columns[c, i - 1]
                if not same:
                    if num_clusters > FEW_CLUSTERS:
                        match, match_iou = nearest(cluster_boxes, heads, chain, num_clusters, box, iou, use_grid)
                    else:
                        area = (box[2] - box[0]) * (box[3] - box[1])
                        match, match_iou = -1, iou
                        for k in range(num_clusters):
                            width = min(cluster_boxes[X2, k], box[2]) - max(cluster_boxes[X1, k], box[0])
                            height = min(cluster_boxes[Y2, k], box[3]) - max(cluster_boxes[Y1, k], box[1])
                            if width > 0 and height > 0:
                                candidate = width * height / (cluster_boxes[AREA, k] + area - width * height)
                                if candidate > match_iou:
                                    match, match_iou = k, candidate
                if match < 0:
                    match, match_iou = num_clusters, 1.0
                    place(cluster_boxes, heads, chain, match, box, use_grid, True)
                    votes[match], founder[match] = 0, i
                    for c in range(4):
                        sums[match, c] = 0
                    for word in range(words):
                        has_voted[match, word] = 0
                    num_clusters += 1
                word, bit = member_of[i] // 64, np.uint64(1) << np.uint64(member_of[i] % 64)
                if method == NMS or has_voted[match, word] & bit:
                    continue
                has_voted[match, word] |= bit
                vote = votes_of[i] * match_iou if method == NMW else votes_of[i]
                votes[match] += vote
                for c in range(4):
                    sums[match, c] += vote * box[c]
                if method == WBF and i != founder[match]:
                    share = 1 / votes[match]
                    box = (
                        sums[match, 0] * share,
                        sums[match, 1] * share,
                        sums[match, 2] * share,
                        sums[match, 3] * share,
                    )
                    place(cluster_boxes, heads, chain, match, box, use_grid, False)

            for k in range(num_clusters):
                fused_boxes[results, 0], fused_boxes[results, 1] = cluster_boxes[X1, k], cluster_boxes[Y1, k]
                fused_boxes[results, 2], fused_boxes[results, 3] = cluster_boxes[X2, k], cluster_boxes[Y2, k]
                if method == NMW:
                    for c in range(4):
                        fused_boxes[results, c] = sums[k, c] / votes[k]
                fused_scores[results] = min(votes[k] / total, 1.0) if method == WBF else votes_of[founder[k]]
                fused_labels[results] = labels[island]
                results += 1
            clear(heads, chain, num_clusters, use_grid)
        write_fused(fused_boxes, fused_scores, fused_labels, results, one_label, write_order, write_spare, out, offset)
        counts[image] = results
