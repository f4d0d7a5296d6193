"""A drop-in for the package ensemble-boxes 1.0.9: the same names, arguments and numbers, one image a call.

    from foldfuse.ensemble_boxes import weighted_boxes_fusion

The numbers are the reference's bit for bit wherever those are finite; docs/fusion.md lists what is copied and what is
mended. Boxes are xyxy as shares of the image, 0..1. New work is better served by `foldfuse.fuse`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from foldfuse.detections import Array
from foldfuse.errors import InputError, unknown_name
from foldfuse.fusion import ensemble_boxes_kernels as kernels

CONF_TYPES = {
    "avg": kernels.AVG,
    "max": kernels.MAX,
    "box_and_model_avg": kernels.BOX_AND_MODEL_AVG,
    "absent_model_aware_avg": kernels.ABSENT_MODEL_AWARE_AVG,
}


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
    """Boxes (r, 4), scores (r,) and labels (r,), float64 and in falling order of score, by weighted boxes fusion.

    Args:
        boxes_list: of each member, (n, 4) xyxy in 0..1.
        scores_list, labels_list: of each member, (n,).
        weights: of each member; all 1 by default.
        iou_thr: boxes join a cluster where their IoU with its present mean is above this.
        skip_box_thr: boxes with a score below this, before weights, are left out.
        conf_type: "avg", "max", "box_and_model_avg" or "absent_model_aware_avg".
        allows_overflow: with "avg", let a cluster of more boxes than members exceed the mean.

    Raises:
        InputError: lengths differ, a value is not finite, boxes are in pixels, an option is unknown.
    """
    if conf_type not in CONF_TYPES:
        raise unknown_name("conf_type", conf_type, CONF_TYPES)
    shares = _weights(weights, len(boxes_list))
    boxes, scores, member_of, names, starts = _rows(boxes_list, scores_list, labels_list, shares, skip_box_thr)
    if not len(boxes):
        return np.zeros((0, 4)), np.zeros(0), np.zeros(0)
    total = float(shares.sum())
    fused, fused_scores, groups = kernels.weighted_boxes(
        boxes, scores, member_of, starts, shares, total, float(iou_thr), CONF_TYPES[conf_type], bool(allows_overflow)
    )
    order = fused_scores.argsort()[::-1]
    return fused[order], fused_scores[order], names[groups[order]].astype(np.float64)


def non_maximum_weighted(
    boxes_list: Sequence[Any],
    scores_list: Sequence[Any],
    labels_list: Sequence[Any],
    weights: Sequence[float] | Array | None = None,
    iou_thr: float = 0.55,
    skip_box_thr: float = 0.0,
) -> tuple[Array, Array, Array]:
    """Boxes (r, 4), scores (r,) and labels (r,), float32 and in falling order of score, by non-maximum weighted.

    Args, Raises: as for `weighted_boxes_fusion`.
    """
    shares = _weights(weights, len(boxes_list))
    if len(shares):
        shares = shares / shares.max()
    boxes, scores, _, names, starts = _rows(boxes_list, scores_list, labels_list, shares, skip_box_thr)
    if not len(boxes):
        return np.zeros((0, 4)), np.zeros(0), np.zeros(0)
    fused, fused_scores, groups = kernels.non_maximum_weighted(boxes, scores, starts, float(iou_thr))
    order = fused_scores.argsort()[::-1]
    return fused[order], fused_scores[order], names[groups[order]].astype(np.float32)


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
        boxes: of each member, (n, 4) xyxy in 0..1.
        scores, labels: of each member, (n,).
        method: 1 is Soft-NMS with a linear decay, 2 with a Gaussian one, 3 plain NMS.
        iou_thr: boxes with an IoU above this meet (methods 1 and 3).
        sigma: width of the Gaussian (method 2).
        thresh: boxes whose score decays to this or below are left out (methods 1 and 2).
        weights: of each member; a score is multiplied by its member's share of their sum. By default as they are.
        original_scores: return the scores from before the decay, as the reference does.

    Raises:
        InputError: lengths differ, a value is not finite, boxes are in pixels, an option is unknown.
    """
    if method not in (kernels.LINEAR, kernels.GAUSSIAN, kernels.HARD):
        raise InputError(f"method is {method!r}; expected 1 (linear Soft-NMS), 2 (Gaussian Soft-NMS) or 3 (NMS).")
    members = _members(boxes, scores, labels)
    if weights is not None:
        shares = _weights(weights, len(members))
        members = [(b, s * w / shares.sum(), k) for (b, s, k), w in zip(members, shares, strict=True)]
    if not sum(len(b) for b, _, _ in members):
        return np.zeros((0, 4)), np.zeros(0), np.zeros(0)
    all_boxes, all_scores, all_labels = (np.concatenate(columns) for columns in zip(*members, strict=True))
    all_boxes, solid = _in_unit_square(all_boxes)
    all_boxes, all_scores, all_labels = all_boxes[solid], all_scores[solid], all_labels[solid]

    order = all_labels.argsort(kind="stable")
    all_boxes, all_scores, all_labels = all_boxes[order], all_scores[order], all_labels[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(all_labels)) + 1, [len(order)]]).astype(np.int64)
    if method == kernels.HARD:
        kept = kernels.hard(all_boxes, all_scores, starts, float(iou_thr))
        return all_boxes[kept], all_scores[kept], all_labels[kept]
    kept, decayed = kernels.soft(
        all_boxes.astype(np.float64), all_scores, starts, method, float(iou_thr), float(sigma), float(thresh)
    )
    return all_boxes[kept], all_scores[kept] if original_scores else decayed, all_labels[kept]


def nms(
    boxes: Sequence[Any],
    scores: Sequence[Any],
    labels: Sequence[Any],
    iou_thr: float = 0.5,
    weights: Sequence[float] | Array | None = None,
) -> tuple[Array, Array, Array]:
    """`nms_method` with plain NMS."""
    return nms_method(boxes, scores, labels, method=kernels.HARD, iou_thr=iou_thr, weights=weights)


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
    """(M,) float64, or float32 where they came so: then the reference multiplies in float32."""
    if weights is None:
        return np.ones(num_members)
    values = np.asarray(weights)
    if values.shape != (num_members,):
        raise InputError(f"there are {values.size} weights for {num_members} members. Give one weight a member.")
    if values.dtype != np.float32:
        values = values.astype(np.float64)
    if num_members and not (np.isfinite(values).all() and values.min() >= 0 and values.max() > 0):
        raise InputError(f"weights are {values.tolist()}: expected numbers of 0 or more, at least one of them above 0.")
    return values


def _members(boxes: Sequence[Any], scores: Sequence[Any], labels: Sequence[Any]) -> list[tuple[Array, Array, Array]]:
    """Of each member boxes (n, 4), scores (n,), labels (n,): finite, of equal length, labels whole."""
    if not len(boxes) == len(scores) == len(labels):
        raise InputError(
            f"there are boxes of {len(boxes)} members, scores of {len(scores)} and labels of {len(labels)}. "
            "Give one array of each per member, an empty one where it found nothing."
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
                f"member {number}, row {row}: box {b[row].tolist()} looks like pixels, expected shares of the image in "
                "0..1. Divide x by the image's width and y by its height, or use foldfuse.fuse, which takes pixels."
            )
        if k.dtype.kind == "f" and (k != np.trunc(k)).any():
            row = int(np.flatnonzero(k != np.trunc(k))[0])
            raise InputError(f"member {number}, row {row}: label {k[row]}; expected a whole number.")
        members.append((b, s, k))
    return members


def _rows(
    boxes: Sequence[Any], scores: Sequence[Any], labels: Sequence[Any], weights: Array, skip: float
) -> tuple[Array, Array, Array, Array, Array]:
    """What WBF and NMW start from: boxes (n, 4), weighted scores (n,), members (n,), names (g,), starts (g + 1,).

    Rows are grouped by label, the labels in the order of their first appearance, and fall in score within a label.
    """
    members = _members(boxes, scores, labels)
    if not members:
        return np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(1, np.int64)
    kept = np.concatenate([~(s < skip) for _, s, _ in members])
    all_boxes, solid = _in_unit_square(np.concatenate([b for b, _, _ in members], dtype=np.float64))
    all_scores = np.concatenate(
        [(s.astype(weights.dtype) * w).astype(np.float64) for (_, s, _), w in zip(members, weights)]
    )
    all_labels = np.concatenate([k for _, _, k in members]).astype(np.int64)
    member_of = np.repeat(np.arange(len(members)), [len(b) for b, _, _ in members])

    kept = np.flatnonzero(kept & solid)
    names, starts, order = kernels.group(all_labels[kept])
    order = kept[order]
    all_scores = all_scores[order]
    # numpy's own order of equal scores, which its sort leaves to the processor's instructions, is part of the result.
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        falling = all_scores[begin:end].argsort()[::-1]
        all_scores[begin:end] = all_scores[begin:end][falling]
        order[begin:end] = order[begin:end][falling]
    return all_boxes[order], all_scores, member_of[order], names, starts


def _in_unit_square(boxes: Array) -> tuple[Array, Array]:
    """The boxes with their corners in order and cut to 0..1, and the (n,) mask of those that then have an area."""
    if (boxes[:, 2:] < boxes[:, :2]).any():
        warnings.warn("some boxes have x2 < x1 or y2 < y1; their corners were swapped.", stacklevel=4)
        boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], 1)
    if len(boxes) and (boxes.min() < 0 or boxes.max() > 1):
        warnings.warn("some boxes reach beyond 0..1; they were cut to it.", stacklevel=4)
        boxes = boxes.clip(0, 1)
    solid = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) > 0
    if not solid.all():
        warnings.warn(f"{int((~solid).sum())} boxes without area were left out.", stacklevel=4)
    return boxes, solid
