"""The inner loops of scoring, compiled by numba on first use and kept on disk. `metrics` is the door to them.

Matching and average precision follow pycocotools' `COCOeval` for boxes, all areas (checked against it in tests). What
makes them fast: only true positives are sorted. Precision need be known just where recall rises, that is at a true
positive, so each false positive is put into the slot before the first true positive that stands behind it, and those
behind the last one are forgotten. The slots do not change when images are left out or drawn twice, which is what folds
and bootstraps do.

Shapes: I images, K classes, T IoU thresholds, G annotated boxes, n predicted boxes ("rows"), P true positives,
F false positives, S samples of images.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import numpy as np
from numba import njit

FALSE, TRUE, IGNORED = 0, 1, 2
EPS = np.spacing(1.0)
TOP = (1 << 30) - 1  # the bits of a float32 in [0, 1] are below this

compiled = njit(cache=True, nogil=True, error_model="numpy")


@compiled
def match(boxes, labels, starts, counts, images, max_detections, truth, num_classes, ious, status):
    """Fill `status` of the rows of images[0]..images[1] - 1: FALSE, TRUE or IGNORED at each IoU threshold.

    Args:
        boxes, labels: (n, 4) xyxy, (n,); the rows of one image by falling score.
        starts, counts: (I,) first row and number of rows of each image.
        max_detections: rows of a class beyond so many in an image are IGNORED.
        truth: boxes (G, 4) float64 xywh, labels (G,), crowd (G,), offsets (I + 1,); crowds last in their image.
        num_classes: K.
        ious: (T,) rising.
        status: (n, T) int8 to fill.
    """
    truth_boxes, truth_labels, truth_crowd, offsets = truth
    thresholds = len(ious)
    size = 0
    for image in range(images[0], images[1]):
        size = max(size, offsets[image + 1] - offsets[image])
    overlaps, of_class = np.empty(size), np.empty(size, np.int64)
    taken = np.zeros((thresholds, size), np.bool_)
    seen = np.zeros(num_classes, np.int64)
    for image in range(images[0], images[1]):
        taken[:] = False
        seen[:] = 0
        first = offsets[image]
        for row in range(starts[image], starts[image] + counts[image]):
            label = labels[row]
            seen[label] += 1
            status[row] = IGNORED if seen[label] > max_detections else FALSE
            if seen[label] > max_detections:
                continue
            near, greatest = 0, 0.0
            for g in range(offsets[image + 1] - first):
                if truth_labels[first + g] == label:
                    overlaps[near] = _overlap(boxes[row], truth_boxes[first + g], truth_crowd[first + g])
                    of_class[near] = g
                    greatest = max(greatest, overlaps[near])
                    near += 1
            for t in range(thresholds):
                if greatest < ious[t]:
                    break
                best, best_overlap = -1, ious[t]
                for i in range(near):
                    crowd = truth_crowd[first + of_class[i]]
                    if crowd and best >= 0 and not truth_crowd[first + best]:
                        break
                    if overlaps[i] >= best_overlap and (crowd or not taken[t, of_class[i]]):
                        best, best_overlap = of_class[i], overlaps[i]
                if best >= 0:
                    taken[t, best] = True
                    status[row, t] = IGNORED if truth_crowd[first + best] else TRUE


@compiled
def _overlap(box, other, crowd):
    """IoU of an xyxy box with an annotated xywh box; for a crowd, the share of the box that lies in it."""
    x, y = np.float64(box[0]), np.float64(box[1])
    w, h = np.float64(box[2]) - x, np.float64(box[3]) - y
    wide = min(w + x, other[2] + other[0]) - max(x, other[0])
    high = min(h + y, other[3] + other[1]) - max(y, other[1])
    if wide <= 0 or high <= 0:
        return 0.0
    union = w * h if crowd else w * h + other[2] * other[3] - wide * high
    return wide * high / union


@compiled
def slots(status, labels, scores, image, num_classes):
    """The true positives in order of rank, and the slot of each false positive that can matter.

    Args:
        status, labels, scores, image: (n,) of one IoU threshold; of equal scores the row that comes first ranks first.

    Returns:
        begin (K + 1,), where the true positives of each class begin; true_image (P,); false_slot (F,), the position of
        the first true positive behind it; false_image (F,).
    """
    bits = scores.view(np.int32)
    begin = np.zeros(num_classes + 1, np.int64)
    for i in range(len(status)):
        if status[i] == TRUE:
            begin[labels[i] + 1] += 1
    begin = np.cumsum(begin)
    keys, filled = np.empty(begin[-1], np.int64), begin.copy()
    for i in range(len(status)):
        if status[i] == TRUE:
            keys[filled[labels[i]]] = (np.int64(TOP - bits[i]) << 32) | i
            filled[labels[i]] += 1
    for k in range(num_classes):
        keys[begin[k] : begin[k + 1]] = np.sort(keys[begin[k] : begin[k + 1]])
    true_image = np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        true_image[i] = image[keys[i] & 0xFFFFFFFF]

    false_slot, false_image, kept = np.empty(len(status), np.int64), np.empty(len(status), np.int64), 0
    for i in range(len(status)):
        if status[i] != FALSE:
            continue
        key = (np.int64(TOP - bits[i]) << 32) | i
        low, high = begin[labels[i]], begin[labels[i] + 1]
        end = high
        while low < high:
            middle = (low + high) // 2
            if keys[middle] < key:
                low = middle + 1
            else:
                high = middle
        if low < end:
            false_slot[kept], false_image[kept] = low, image[i]
            kept += 1
    return begin, true_image, false_slot[:kept].copy(), false_image[:kept].copy()


@compiled
def average_precision(begin, true_image, false_slot, false_image, truth_image, truth_label, image_counts):
    """(S, K) COCO's 101-point average precision, -1 where nothing is annotated.

    Args:
        begin, true_image, false_slot, false_image: as `slots` returns them.
        truth_image, truth_label: (G,) of the annotated boxes that are no crowds.
        image_counts: (S, I) how often each image is in each sample.
    """
    num_classes = len(begin) - 1
    result = np.empty((len(image_counts), num_classes))
    precision, recall = np.empty(len(true_image)), np.empty(len(true_image))
    for s in range(len(image_counts)):
        drawn = image_counts[s]
        annotated = np.zeros(num_classes, np.int64)
        for g in range(len(truth_image)):
            annotated[truth_label[g]] += drawn[truth_image[g]]
        false = np.zeros(len(true_image), np.int64)
        for f in range(len(false_slot)):
            false[false_slot[f]] += drawn[false_image[f]]
        for k in range(num_classes):
            if annotated[k] == 0:
                result[s, k] = -1
                continue
            points, right, wrong = 0, 0, 0
            for p in range(begin[k], begin[k + 1]):
                wrong += false[p]
                if drawn[true_image[p]] > 0:
                    right += drawn[true_image[p]]
                    precision[points] = right / (wrong + right + EPS)
                    recall[points] = right / annotated[k]
                    points += 1
            for p in range(points - 1, 0, -1):
                precision[p - 1] = max(precision[p - 1], precision[p])
            total, p = 0.0, 0
            for hundredth in range(101):
                while p < points and recall[p] < hundredth * 0.01:
                    p += 1
                if p == points:
                    break
                total += precision[p]
            result[s, k] = total / 101
    return result
