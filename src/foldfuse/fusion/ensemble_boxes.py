"""A drop-in for the package ensemble-boxes 1.0.9: the same names, arguments and results, one image per call.

    from foldfuse.ensemble_boxes import weighted_boxes_fusion

Boxes and scores agree with the reference's to 1e-6; docs/fusion.md lists which behaviour is copied and which is fixed. Boxes
are xyxy as fractions of the image, 0..1. New code is better served by `foldfuse.wbf`.

Shapes: n boxes of M members, r results.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from foldfuse.detections import Array
from foldfuse.errors import InputError, unknown_name
from foldfuse.fusion import ensemble_boxes_kernels as kernels
from foldfuse.fusion.soft_nms_kernels import GAUSSIAN, LINEAR

HARD = 3
CONF_TYPES = ("avg", "max", "box_and_model_avg", "absent_model_aware_avg")


def weighted_boxes_fusion(
    boxes_list: Sequence[Any],
    scores_list: Sequence[Any],
    labels_list: Sequence[Any],
    weights: Sequence[float] | Array | None = None,
    iou_thr: float = 0.55,
    skip_box_thr: float = 0.0,
    conf_type: str = "avg",
    allows_overflow: bool = False,
) -> tuple[Array, Array, Array]:
    """Boxes (r, 4), scores (r,) and labels (r,), float64 and by falling score, of weighted boxes fusion.

    Args:
        boxes_list: the boxes of each member, (n, 4) xyxy in 0..1.
        scores_list, labels_list: the scores and the labels of each member, (n,).
        weights: the weights of each member; all 1 by default.
        iou_thr: a box joins a cluster where its IoU with the cluster's present mean is above this.
        skip_box_thr: a box with a score below this, before weights, is left out.
        conf_type: "avg", "max", "box_and_model_avg" or "absent_model_aware_avg".
        allows_overflow: with "avg", let the score of a cluster of more boxes than members exceed the mean.

    Raises:
        InputError: lengths differ, a value is not finite, boxes are in pixels, an option is unknown.
    """
    if conf_type not in CONF_TYPES:
        raise unknown_name("conf_type", conf_type, CONF_TYPES)
    values = _weights(weights, len(boxes_list))
    boxes, scores, labels, member_of, starts = _rank(boxes_list, scores_list, labels_list, values, skip_box_thr)
    if not len(boxes):
        return np.zeros((0, 4)), np.zeros(0), np.zeros(0)
    cluster_of, _, founders, fused = kernels.cluster(boxes, scores, starts, float(iou_thr), True)
    count, total = np.bincount(cluster_of), values.sum()
    mean = np.bincount(cluster_of, scores) / count
    if conf_type == "max":
        fused_scores = scores[founders] / values.max()
    elif conf_type == "avg":
        fused_scores = mean * (count if allows_overflow else np.minimum(count, len(values))) / total
    else:
        weight = np.bincount(cluster_of, values[member_of])  # of the boxes
        present = np.zeros((len(count), len(values)), bool)
        present[cluster_of, member_of] = True
        if conf_type == "box_and_model_avg":
            weighted_mean = np.divide(mean * count, weight, out=np.zeros(len(count)), where=weight > 0)
            fused_scores = weighted_mean * (present @ values) / total
        else:
            fused_scores = mean * count / (weight + ~present @ values)
    order = fused_scores.argsort()[::-1]
    return fused[order], fused_scores[order], labels[founders[order]].astype(np.float64)


def non_maximum_weighted(
    boxes_list: Sequence[Any],
    scores_list: Sequence[Any],
    labels_list: Sequence[Any],
    weights: Sequence[float] | Array | None = None,
    iou_thr: float = 0.55,
    skip_box_thr: float = 0.0,
) -> tuple[Array, Array, Array]:
    """Boxes (r, 4), scores (r,) and labels (r,), float32 and by falling score, of non-maximum weighted.

    Args, Raises: as for `weighted_boxes_fusion`.
    """
    values = _weights(weights, len(boxes_list))
    if len(values):
        values = values / values.max()
    boxes, scores, labels, _, starts = _rank(boxes_list, scores_list, labels_list, values, skip_box_thr)
    if not len(boxes):
        return np.zeros((0, 4)), np.zeros(0), np.zeros(0)
    cluster_of, overlaps, founders, fused = kernels.cluster(boxes, scores, starts, float(iou_thr), False)
    votes = scores * overlaps
    total = np.bincount(cluster_of, votes)
    voted = total != 0
    for c in range(4):
        np.divide(np.bincount(cluster_of, votes * boxes[:, c]), total, out=fused[:, c], where=voted)
    fused_scores = scores[founders]
    order = fused_scores.argsort()[::-1]
    columns = fused[order], fused_scores[order], labels[founders[order]]
    return columns[0].astype(np.float32), columns[1].astype(np.float32), columns[2].astype(np.float32)


def nms_method(
    boxes: Sequence[Any],
    scores: Sequence[Any],
    labels: Sequence[Any],
    method: int = 3,
    iou_thr: float = 0.5,
    sigma: float = 0.5,
    thresh: float = 0.001,
    weights: Sequence[float] | Array | None = None,
    *,
    original_scores: bool = False,
) -> tuple[Array, Array, Array]:
    """Boxes (r, 4), scores (r,) and labels (r,), in the dtypes given, label by label and best first.

    Args:
        boxes: the boxes of each member, (n, 4) xyxy in 0..1.
        scores, labels: the scores and the labels of each member, (n,).
        method: 1 is Soft-NMS with a linear decay, 2 with a Gaussian one, 3 plain NMS.
        iou_thr: boxes with an IoU above this match (methods 1 and 3).
        sigma: width of the Gaussian (method 2).
        thresh: a box whose score decays to this or below is left out (methods 1 and 2).
        weights: the weight of each member. A score is multiplied by weight / sum of weights; None leaves scores unchanged.
        original_scores: return the scores from before the decay, as the reference does.

    Raises:
        InputError: lengths differ, a value is not finite, boxes are in pixels, an option is unknown.
    """
    if method not in (LINEAR, GAUSSIAN, HARD):
        raise InputError(f"method is {method!r}; expected 1 (linear Soft-NMS), 2 (Gaussian Soft-NMS) or 3 (NMS).")
    members = _members(boxes, scores, labels)
    if weights is not None:
        values = _weights(weights, len(members))
        members = [(b, s * w / values.sum(), k) for (b, s, k), w in zip(members, values, strict=True)]
    if not sum(len(b) for b, _, _ in members):
        return np.zeros((0, 4)), np.zeros(0), np.zeros(0)
    all_boxes, all_scores, all_labels = (np.concatenate(columns) for columns in zip(*members, strict=True))
    all_boxes, has_area = _in_unit_square(all_boxes)
    order, starts = _sort(np.flatnonzero(has_area), all_labels, all_scores)
    all_boxes, all_scores, all_labels = all_boxes[order], all_scores[order], all_labels[order]
    float_boxes, float_scores = all_boxes.astype(np.float64), all_scores.astype(np.float64)
    if method == HARD:
        kept = kernels.cluster(float_boxes, float_scores, starts, float(iou_thr), False)[2]
        kept = kept[all_labels[kept].argsort(kind="stable")]
        return all_boxes[kept], all_scores[kept], all_labels[kept]
    kept, decayed = kernels.soft_nms(
        float_boxes, float_scores, starts, method, float(iou_thr), float(sigma), float(thresh)
    )
    by_label = all_labels[kept].argsort(kind="stable")
    kept, decayed = kept[by_label], decayed[by_label].astype(all_scores.dtype)
    return all_boxes[kept], all_scores[kept] if original_scores else decayed, all_labels[kept]


def nms(
    boxes: Sequence[Any],
    scores: Sequence[Any],
    labels: Sequence[Any],
    iou_thr: float = 0.5,
    weights: Sequence[float] | Array | None = None,
) -> tuple[Array, Array, Array]:
    """`nms_method` with plain NMS."""
    return nms_method(boxes, scores, labels, method=HARD, iou_thr=iou_thr, weights=weights)


def soft_nms(
    boxes: Sequence[Any],
    scores: Sequence[Any],
    labels: Sequence[Any],
    method: int = 2,
    iou_thr: float = 0.5,
    sigma: float = 0.5,
    thresh: float = 0.001,
    weights: Sequence[float] | Array | None = None,
    *,
    original_scores: bool = False,
) -> tuple[Array, Array, Array]:
    """`nms_method` with Soft-NMS."""
    return nms_method(boxes, scores, labels, method, iou_thr, sigma, thresh, weights, original_scores=original_scores)


def _weights(weights: Sequence[float] | Array | None, num_members: int) -> Array:
    """The weights of M members as (M,) float64, checked; all 1 for None."""
    if weights is None:
        return np.ones(num_members)
    values = np.asarray(weights, np.float64)
    if values.shape != (num_members,):
        raise InputError(f"there are {values.size} weights for {num_members} members. Give one weight per member.")
    if num_members and not (np.isfinite(values).all() and values.min() >= 0 and values.max() > 0):
        raise InputError(f"weights are {values.tolist()}: expected numbers of 0 or more, at least one of them above 0.")
    return values


def _members(boxes: Sequence[Any], scores: Sequence[Any], labels: Sequence[Any]) -> list[tuple[Array, Array, Array]]:
    """The boxes (n, 4), scores (n,) and labels (n,) of each member, checked."""
    if not len(boxes) == len(scores) == len(labels):
        raise InputError(
            f"there are boxes of {len(boxes)} members, scores of {len(scores)} and labels of {len(labels)}. "
            "Give one array of each per member, an empty one for a member without detections."
        )
    members = []
    for number, columns in enumerate(zip(boxes, scores, labels, strict=True)):
        b, s, k = map(np.asarray, columns)
        if not len(b) == len(s) == len(k):
            raise InputError(
                f"member {number} has {len(b)} boxes, {len(s)} scores and {len(k)} labels; expected as many of each."
            )
        if not len(b):
            members.append((b.reshape(0, 4), s, k))
            continue
        if b.ndim != 2 or b.shape[1] != 4:
            raise InputError(f"member {number}: boxes have the shape {b.shape}, expected (n, 4), xyxy in 0..1.")
        if not (np.isfinite(b).all() and np.isfinite(s).all()):
            row = int(np.flatnonzero(~(np.isfinite(b).all(1) & np.isfinite(s)))[0])
            raise InputError(
                f"member {number}, row {row}: box {b[row].tolist()}, score {s[row]}; expected finite numbers."
            )
        if b.max() > 2 or b.min() < -1:
            row = int(np.flatnonzero((b > 2).any(1) | (b < -1).any(1))[0])
            raise InputError(
                f"member {number}, row {row}: box {b[row].tolist()} looks like pixels, expected fractions of the image in "
                "0..1. Divide x by the image's width and y by its height, or use foldfuse.wbf, which takes pixels."
            )
        if k.dtype.kind == "f" and (k != np.trunc(k)).any():
            row = int(np.flatnonzero(k != np.trunc(k))[0])
            raise InputError(f"member {number}, row {row}: label {k[row]}; expected a whole number.")
        members.append((b, s, k))
    return members


def _rank(
    boxes: Sequence[Any], scores: Sequence[Any], labels: Sequence[Any], weights: Array, score_threshold: float
) -> tuple[Array, Array, Array, Array, Array]:
    """Rows of WBF and NMW: boxes (n, 4), weighted scores (n,), labels (n,), members (n,) and starts (g + 1,).

    Rows are grouped by label, label g from starts[g] on, by falling score within a label.
    """
    members = _members(boxes, scores, labels)
    if not members:
        return np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(1, np.int64)
    above = np.concatenate([~(s < score_threshold) for _, s, _ in members])
    all_boxes, has_area = _in_unit_square(np.concatenate([b for b, _, _ in members], dtype=np.float64))
    all_scores = np.concatenate([s.astype(np.float64) * w for (_, s, _), w in zip(members, weights, strict=True)])
    all_labels = np.concatenate([k for _, _, k in members]).astype(np.int64)
    member_of = np.repeat(np.arange(len(members)), [len(b) for b, _, _ in members])
    order, starts = _sort(np.flatnonzero(above & has_area), all_labels, all_scores)
    return all_boxes[order], all_scores[order], all_labels[order], member_of[order], starts


def _sort(rows: Array, labels: Array, scores: Array) -> tuple[Array, Array]:
    """`rows` by label, then by falling score; and where each label begins, (g + 1,)."""
    order = rows[scores[rows].argsort()[::-1]]
    grouped, starts = kernels.group(labels[order].astype(np.int64))
    return order[grouped], starts


def _in_unit_square(boxes: Array) -> tuple[Array, Array]:
    """The boxes with corners in order and clipped to 0..1, and the (n,) mask of boxes that have an area."""
    if (boxes[:, 2:] < boxes[:, :2]).any():
        warnings.warn("some boxes have x2 < x1 or y2 < y1; their corners were swapped.", stacklevel=4)
        boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], 1)
    if len(boxes) and (boxes.min() < 0 or boxes.max() > 1):
        warnings.warn("some boxes reach beyond 0..1; they were cut to it.", stacklevel=4)
        boxes = boxes.clip(0, 1)
    has_area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) > 0
    if not has_area.all():
        warnings.warn(f"{int((~has_area).sum())} boxes without area were left out.", stacklevel=4)
    return boxes, has_area
