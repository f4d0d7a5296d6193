"""The compiled inner loops of matching, precision-recall curves and average precision.

Matching and average precision follow pycocotools' `COCOeval` for boxes, all areas (checked against it in tests). Only true
positives are sorted, which makes the loops fast: precision matters only where recall rises, that is at a true positive. Each
false positive is counted in the slot of the first true positive ranked below it; false positives below the last true positive
do not matter. The slots are the same for every resample of the images, so folds and bootstraps reuse them.

Shapes: I images, K classes, T IoU thresholds, G annotated boxes, n predicted boxes ("rows"), P true positives,
F false positives, S samples of images.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import numpy as np

from foldfuse.system.compiled import compiled

FALSE, TRUE, IGNORED, EMPTY = 0, 1, 2, 3  # of a row; an empty one has no box
EPS = np.spacing(1.0)
WIDTH = 64  # samples that are measured at once


@compiled(error_model="numpy")
def match(boxes, labels, starts, counts, images, max_detections, truth, num_classes, ious, status, matched):
    """Fill `status` and `matched` for the images images[0]..images[1] - 1.

    Args:
        boxes, labels: (n, 4) float64 xywh, (n,); the rows of one image by falling score.
        starts, counts: (I,) first row and number of rows of each image.
        max_detections: number of boxes that count per class and image; further rows are IGNORED.
        truth: boxes (G, 4) float64 xywh, labels (G,), crowd (G,), offsets (I + 1,); crowd regions last in their image.
        num_classes: K.
        ious: (T,) rising.
        status: (n, T) int8 to fill with FALSE, TRUE or IGNORED.
        matched: (T, G) int64, -1 at first; gets the number of the row that matches each annotated box.
    """
    truth_boxes, truth_labels, truth_crowd, offsets = truth
    size = 0
    for image in range(images[0], images[1]):
        size = max(size, offsets[image + 1] - offsets[image])
    overlaps, candidates = np.empty(size), np.empty(size, np.int64)
    seen = np.zeros(num_classes, np.int64)
    first, following = np.full(num_classes, -1), np.empty(size, np.int64)  # a linked list of each class's boxes
    for image in range(images[0], images[1]):
        seen[:] = 0
        for g in range(offsets[image + 1] - 1, offsets[image] - 1, -1):
            following[g - offsets[image]] = first[truth_labels[g]]
            first[truth_labels[g]] = g
        for row in range(starts[image], starts[image] + counts[image]):
            label = labels[row]
            seen[label] += 1
            for t in range(len(ious)):
                status[row, t] = IGNORED if seen[label] > max_detections else FALSE
            if seen[label] > max_detections:
                continue
            num, greatest, g = 0, 0.0, first[label]
            box = boxes[row, 0], boxes[row, 1], boxes[row, 2], boxes[row, 3]
            while g >= 0:
                overlaps[num] = _overlap(box, truth_boxes, g, truth_crowd[g])
                candidates[num] = g
                greatest = max(greatest, overlaps[num])
                num += 1
                g = following[g - offsets[image]]
            for t in range(len(ious)):
                if greatest < ious[t]:
                    break
                best, best_overlap = -1, ious[t]
                for i in range(num):
                    g = candidates[i]
                    if truth_crowd[g] and best >= 0 and not truth_crowd[best]:
                        break
                    if overlaps[i] >= best_overlap and (truth_crowd[g] or matched[t, g] < 0):
                        best, best_overlap = g, overlaps[i]
                if best >= 0:
                    matched[t, best] = row
                    status[row, t] = IGNORED if truth_crowd[best] else TRUE
        for g in range(offsets[image], offsets[image + 1]):
            first[truth_labels[g]] = -1


@compiled(error_model="numpy")
def to_xywh(boxes, starts, counts, images):
    """Turn the xyxy boxes of the images images[0]..images[1] - 1 into xywh, in place; see `match`."""
    for image in range(images[0], images[1]):
        for row in range(starts[image], starts[image] + counts[image]):
            boxes[row, 2] -= boxes[row, 0]
            boxes[row, 3] -= boxes[row, 1]


@compiled(error_model="numpy")
def _overlap(box, truth_boxes, g, crowd):
    """IoU of an xywh box with the g-th annotated xywh box; with a crowd region, the fraction of the box inside the region."""
    x, y, w, h = box
    width = min(w + x, truth_boxes[g, 2] + truth_boxes[g, 0]) - max(x, truth_boxes[g, 0])
    height = min(h + y, truth_boxes[g, 3] + truth_boxes[g, 1]) - max(y, truth_boxes[g, 1])
    if width <= 0 or height <= 0:
        return 0.0
    union = w * h if crowd else w * h + truth_boxes[g, 2] * truth_boxes[g, 3] - width * height
    return width * height / union


@compiled(error_model="numpy")
def rank(status, labels, scores, image, num_classes):
    """The true positives by rank, and the slot of each false positive that matters.

    Args:
        status, labels, scores, image: (n,) of one IoU threshold; of equal scores the row that comes first ranks first. Empty
            rows may hold anything.

    Returns:
        begin (K + 1,), where the true positives of each class begin; true_image (P,); false_slot (F,), the position of
        the first true positive ranked below; false_image (F,).
    """
    begin = np.zeros(num_classes + 1, np.int64)
    for i in range(len(status)):
        if status[i] == TRUE:
            begin[labels[i] + 1] += 1
    begin = np.cumsum(begin)
    keys, filled = np.empty(begin[-1], np.int64), begin.copy()
    for i in range(len(status)):
        if status[i] == TRUE:
            keys[filled[labels[i]]] = i
            filled[labels[i]] += 1
    for k in range(num_classes):
        rows = keys[begin[k] : begin[k + 1]].copy()
        keys[begin[k] : begin[k + 1]] = rows[np.argsort(-scores[rows], kind="mergesort")]  # stable
    true_image, true_scores = np.empty(len(keys), np.int64), np.empty(len(keys), scores.dtype)
    for i in range(len(keys)):
        true_image[i], true_scores[i] = image[keys[i]], scores[keys[i]]

    above = _count_above(begin, true_scores, num_classes)
    false_slot, false_image, num_false = np.empty(len(status), np.int64), np.empty(len(status), np.int64), 0
    for i in range(len(status)):
        if status[i] != FALSE:
            continue
        first, end = begin[labels[i]], begin[labels[i] + 1]
        if first == end or scores[i] < true_scores[end - 1]:
            continue  # most false positives rank below every true positive
        band = _band(scores[i], end - first)
        low, high = first + above[first + band], first + above[first + band - 1] if band else end
        while low < high:
            middle = (low + high) // 2
            if true_scores[middle] > scores[i] or (true_scores[middle] == scores[i] and keys[middle] < i):
                low = middle + 1
            else:
                high = middle
        if low < end:
            false_slot[num_false], false_image[num_false] = low, image[i]
            num_false += 1
    return begin, true_image, false_slot[:num_false].copy(), false_image[:num_false].copy()


@compiled(error_model="numpy")
def _band(score, number):
    """The band of a score, of `number` equal bands from 0 to 1; a score beyond these is in the first or the last."""
    return number - 1 if score >= 1 else max(int(score * number), 0)


@compiled(error_model="numpy")
def _count_above(begin, true_scores, num_classes):
    """(P,) the number of true positives of the same class above each band; a class has as many bands as true positives."""
    above = np.zeros(len(true_scores), np.int64)
    for k in range(num_classes):
        first, number = begin[k], begin[k + 1] - begin[k]
        for p in range(first, first + number):
            above[first + _band(true_scores[p], number)] += 1
        higher = 0
        for band in range(number - 1, -1, -1):
            above[first + band], higher = higher, higher + above[first + band]
    return above


@compiled(error_model="numpy")
def precision_recall(begin, true_image, false_slot, false_image, truth_image, truth_label, counts, curves):
    """Fill `curves` with COCO's interpolated precision at 101 recalls.

    Args:
        begin, true_image, false_slot, false_image: as `rank` returns them.
        truth_image, truth_label: image index and label of the annotated boxes that are no crowd regions.
        counts: (I,) how often each image is in the sample.
        curves: (K, 101) to fill; -1 where nothing is annotated.
    """
    num_classes = len(begin) - 1
    precision, recall = np.empty(len(true_image)), np.empty(len(true_image))
    annotated, false = np.zeros(num_classes, np.int64), np.zeros(len(true_image), np.int64)
    for g in range(len(truth_image)):
        annotated[truth_label[g]] += counts[truth_image[g]]
    for f in range(len(false_slot)):
        false[false_slot[f]] += counts[false_image[f]]
    for k in range(num_classes):
        if annotated[k] == 0:
            curves[k] = -1.0
            continue
        points, tp, fp = 0, 0, 0
        for p in range(begin[k], begin[k + 1]):
            fp += false[p]
            if counts[true_image[p]] > 0:
                tp += counts[true_image[p]]
                precision[points] = tp / (fp + tp + EPS)
                recall[points] = tp / annotated[k]
                points += 1
        for p in range(points - 1, 0, -1):
            precision[p - 1] = max(precision[p - 1], precision[p])
        p = 0
        for hundredth in range(101):
            while p < points and recall[p] < hundredth * 0.01:
                p += 1
            curves[k, hundredth] = precision[p] if p < points else 0.0


@compiled(error_model="numpy")
def average_precision(begin, true_image, false_slot, false_image, truth_image, truth_label, image_counts):
    """(S, K) the means of the curves of `precision_recall`, -1 where nothing is annotated.

    Vector instructions take up to WIDTH samples at once. A true positive on an image that a sample lacks changes nothing: it has
    the recall of the one before and no more precision.

    Args:
        begin, true_image, false_slot, false_image, truth_image, truth_label: as for `precision_recall`.
        image_counts: (S, I) how often each image is in each sample.
    """
    num_classes, num_true = len(begin) - 1, len(true_image)
    result = np.empty((len(image_counts), num_classes))
    longest = 0
    for k in range(num_classes):
        longest = max(longest, begin[k + 1] - begin[k])
    for first in range(0, len(image_counts), WIDTH):
        width = min(WIDTH, len(image_counts) - first)
        counts = image_counts[first : first + width].T.astype(np.int32)
        annotated, false = np.zeros((num_classes, width), np.int32), np.zeros((num_true, width), np.int32)
        for g in range(len(truth_image)):
            _add(annotated[truth_label[g]], counts[truth_image[g]])
        for f in range(len(false_slot)):
            _add(false[false_slot[f]], counts[false_image[f]])
        precision, recall = np.empty((longest, width)), np.empty((longest, width))
        for k in range(num_classes):
            number = begin[k + 1] - begin[k]
            tp, fp = np.zeros(width, np.int32), np.zeros(width, np.int32)
            for p in range(number):
                _add(tp, counts[true_image[begin[k] + p]])
                _add(fp, false[begin[k] + p])
                for s in range(width):
                    precision[p, s] = tp[s] / (fp[s] + tp[s] + EPS)
                    recall[p, s] = tp[s] / annotated[k, s]
            for p in range(number - 1, 0, -1):
                for s in range(width):
                    precision[p - 1, s] = max(precision[p - 1, s], precision[p, s])
            for s in range(width):
                total, hundredth = 0.0, 0
                for p in range(number):
                    while hundredth <= 100 and recall[p, s] >= hundredth * 0.01:
                        total += precision[p, s]
                        hundredth += 1
                result[first + s, k] = total / 101 if annotated[k, s] else -1.0
    return result


@compiled(error_model="numpy")
def _add(to, values):
    """Adds `values` to `to`, of equal length."""
    for s in range(len(to)):
        to[s] += values[s]
