"""Fuses the predictions of several members of the same images into one: WBF, NMS, Soft-NMS, non-maximum weighted.

Sources: WBF, arXiv:1910.13302; Soft-NMS, arXiv:1704.04503; non-maximum weighted, Zhou et al., "CAD", ICCV 2017
workshops. Differences from the usual implementation (docs/fusion.md gives the reasons): each member has one vote in a
cluster, its best box; a score never exceeds 1; a member that predicted an image without a detection lowers the score;
coordinates stay in pixels; the order of members, images and boxes never matters, even where scores tie.
`foldfuse.ensemble_boxes` keeps the usual behaviour.

In all methods, boxes of different labels never match, and boxes match where their IoU is above `iou`, not equal to it.
A box without area, or with a weighted score of 0, has no vote and is left out.

Shapes: N rows (boxes) of M members, I images, K classes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from foldfuse.detections import Array, Predictions
from foldfuse.errors import InputError, unknown_name
from foldfuse.fusion import kernels, soft_nms_kernels
from foldfuse.fusion.islands import Islands, fuse_islands

Method = Literal["wbf", "nms", "soft_nms", "nmw"]
SIGMA, MIN_SCORE = 0.5, 0.001  # of Soft-NMS, where the user gives no others


def wbf(
    members: Sequence[Predictions],
    *,
    iou: float = 0.55,
    score_threshold: float = 0.0,
    weights: Sequence[float] | None = None,
    threads: int | None = None,
) -> Predictions:
    """Weighted boxes fusion: each cluster becomes the score-weighted mean of each member's best box in the cluster.

    The score of a result is the weighted mean of the members' best scores in its cluster, 0 for a member with none.

    Args:
        members: predictions of the same images, with the same classes.
        iou: a box joins a cluster where its IoU with the cluster's present mean is above this.
        score_threshold: boxes with a lower score are left out.
        weights: the weight of each member, relative to the others; all equal by default.
        threads: number of threads that share the images; None for one per core.

    Returns:
        Predictions of the first member's images, in its order; within an image by falling score.

    Raises:
        InputError: members differ in images or classes, or hold a broken box; an option is out of its range.
    """
    return _fuse(members, image_fuser("wbf", iou=iou, score_threshold=score_threshold), weights, threads)


def nms(
    members: Sequence[Predictions],
    *,
    iou: float = 0.55,
    score_threshold: float = 0.0,
    weights: Sequence[float] | None = None,
    threads: int | None = None,
) -> Predictions:
    """Non-maximum suppression of the boxes of all members: a box is kept unless a kept box of higher score overlaps it.

    With weights, scores are multiplied by the member's weight divided by the greatest weight.
    Args, Returns, Raises: as for `wbf`.
    """
    return _fuse(members, image_fuser("nms", iou=iou, score_threshold=score_threshold), weights, threads)


def nmw(
    members: Sequence[Predictions],
    *,
    iou: float = 0.55,
    score_threshold: float = 0.0,
    weights: Sequence[float] | None = None,
    threads: int | None = None,
) -> Predictions:
    """Non-maximum weighted: NMS in which each kept box moves to the mean of its cluster, weighted by score x IoU.

    The score of the kept box does not change, with weights as in `nms`. Each member's best box in a cluster has one vote.
    Args, Returns, Raises: as for `wbf`.
    """
    return _fuse(members, image_fuser("nmw", iou=iou, score_threshold=score_threshold), weights, threads)


def soft_nms(
    members: Sequence[Predictions],
    *,
    iou: float = 0.55,
    score_threshold: float = 0.0,
    weights: Sequence[float] | None = None,
    decay: Literal["linear", "gaussian"] = "gaussian",
    sigma: float = SIGMA,
    min_score: float = MIN_SCORE,
    threads: int | None = None,
) -> Predictions:
    """Soft-NMS: no box is removed; the score of a box decays with its overlap with each box of higher score.

    Args:
        members, iou, score_threshold, weights, threads: as for `wbf`; only the linear decay uses `iou`.
        decay: "linear" multiplies the score by 1 - IoU where the IoU is above `iou`, "gaussian" by exp(-IoU^2 / sigma).
        sigma: width of the Gaussian.
        min_score: a box whose score falls to this or below is left out.

    Returns, Raises: as for `wbf`.
    """
    if decay not in ("linear", "gaussian"):
        raise unknown_name("Soft-NMS decay", decay, ("linear", "gaussian"))
    if not sigma > 0:
        raise InputError(f"sigma is {sigma}, and must be above 0; 0.5 is usual.")
    if not 0 <= min_score < 1:
        raise InputError(f"min_score is {min_score}, and must be in [0, 1); 0.001 is usual.")
    fuser = image_fuser(
        "soft_nms", iou=iou, score_threshold=score_threshold, decay=decay, sigma=sigma, min_score=min_score
    )
    return _fuse(members, fuser, weights, threads)


def fuse(
    members: Sequence[Predictions],
    *,
    method: Method = "wbf",
    iou: float = 0.55,
    score_threshold: float = 0.0,
    weights: Sequence[float] | None = None,
    threads: int | None = None,
) -> Predictions:
    """The members fused by the method called `method`, whose further options have their defaults.

    Args, Returns, Raises: as for `wbf`.
    """
    return _fuse(members, image_fuser(method, iou=iou, score_threshold=score_threshold), weights, threads)


@dataclass(frozen=True, eq=False)
class Buffers:
    """Buffers for the fused boxes of all images, with room for all input rows of an image, one image after another.

    Attributes:
        boxes, scores, labels: (N, 4), (N,), (N,).
        counts: (I,) number of results of each image.
    """

    boxes: Array
    scores: Array
    labels: Array
    counts: Array


def make_buffers(rows_of: Array) -> Buffers:
    """Empty buffers for I images with `rows_of` (I,) rows each."""
    n = int(rows_of.sum())
    return Buffers(np.empty((n, 4)), np.empty(n), np.empty(n, np.int64), np.zeros(len(rows_of), np.int64))


# (rows, images, weights, num_classes, buffers): fuse the images images[0]..images[1] - 1 into the buffers. Rows are boxes,
# scores, labels of all members, concatenated, and begin, end (M, I), the rows of each member on each image.
ImageFuser = Callable[[tuple[Array, ...], tuple[int, int], Array, int, Buffers], None]


def image_fuser(
    method: Method,
    *,
    iou: float,
    score_threshold: float,
    decay: Literal["linear", "gaussian"] = "gaussian",
    sigma: float = SIGMA,
    min_score: float = MIN_SCORE,
) -> ImageFuser:
    """The compiled fusion of a range of images, for `_fuse` and for the trials of an ensemble search.

    Raises:
        InputError: the method is unknown, or `iou` or `score_threshold` is out of its range.
    """
    if method not in kernels.METHODS:
        raise unknown_name("method of fusion", method, kernels.METHODS)
    if not 0 <= iou < 1:
        raise InputError(f"iou is {iou}, and must be in [0, 1); 0.55 is usual.")
    if not 0 <= score_threshold <= 1:
        raise InputError(f"score_threshold is {score_threshold}, and must be in [0, 1]: it is compared with scores.")

    def fuse_images(
        rows: tuple[Array, ...], images: tuple[int, int], weights: Array, num_classes: int, buffers: Buffers
    ) -> None:
        out = buffers.boxes, buffers.scores, buffers.labels
        # A network's score may be the threshold's nearest float32, which lies below or above the threshold.
        threshold = min(score_threshold, float(np.float32(score_threshold)))
        options = threshold, iou, num_classes, out, buffers.counts
        if method == "soft_nms":
            code = soft_nms_kernels.LINEAR if decay == "linear" else soft_nms_kernels.GAUSSIAN
            soft_nms_kernels.soft_nms(code, sigma, min_score, *rows, images, weights, *options)
        else:
            kernels.greedy(kernels.METHODS[method], *rows, images, weights, math.fsum(weights), *options)

    return fuse_images


# (islands, scores, first, images, weights, buffers): fuse the images images[0]..images[1] - 1 of the islands into the buffers;
# the scores of member m begin at scores[first[m]].
IslandFuser = Callable[[Islands, Array, Array, tuple[int, int], Array, Buffers], None]


def island_fuser(method: Method, *, iou: float, score_threshold: float) -> IslandFuser:
    """The compiled fusion of a range of images whose boxes are sorted into islands; its results are those of `image_fuser`."""
    threshold = min(score_threshold, float(np.float32(score_threshold)))

    def fuse_images(
        islands: Islands, scores: Array, first: Array, images: tuple[int, int], weights: Array, buffers: Buffers
    ) -> None:
        fuse_islands(
            kernels.METHODS[method],
            islands.boxes,
            islands.members,
            islands.ranks,
            islands.begin,
            islands.labels,
            islands.images,
            scores,
            first,
            images,
            weights,
            math.fsum(weights),
            threshold,
            iou,
            (SIGMA, MIN_SCORE),
            (buffers.boxes, buffers.scores, buffers.labels),
            buffers.counts,
        )

    return fuse_images


def share_images(work: Callable[[tuple[int, int]], None], rows_of: Array, threads: int | None) -> None:
    """Call `work` on ranges of the images, in several threads; `rows_of` (I,) is the size of each image."""
    threads = min(threads or os.cpu_count() or 1, max(1, len(rows_of) // 4))
    # Several ranges a thread, cut by rows, so that a crowded image does not keep the others waiting.
    cuts = np.linspace(0, rows_of.sum(), 4 * threads + 1 if threads > 1 else 2)
    edges = np.searchsorted(np.cumsum(rows_of), cuts[1:-1]).tolist()
    ranges = [(first, last) for first, last in pairwise([0, *edges, len(rows_of)]) if first < last]
    if threads == 1:
        for images in ranges:
            work(images)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, ranges))


def _fuse(
    members: Sequence[Predictions], fuse_images: ImageFuser, weights: Sequence[float] | None, threads: int | None
) -> Predictions:
    """The members fused: checks them, concatenates their rows, fuses each image and gathers the results."""
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}, and must be 1 or more; None takes one per core.")
    shares = normalized(weights, len(members))
    rows = concatenated(members)
    classes, (_, _, _, begin, end) = members[0].classes, rows
    rows_of = (end - begin).sum(0)
    buffers = make_buffers(rows_of)
    share_images(lambda images: fuse_images(rows, images, shares, len(classes), buffers), rows_of, threads)
    boxes, scores, labels = kernels.compact(buffers.boxes, buffers.scores, buffers.labels, rows_of, buffers.counts)
    offsets = np.concatenate([[0], np.cumsum(buffers.counts)]).astype(np.int64)
    learnt_ids = frozenset().union(*(m.learnt_ids for m in members))
    return Predictions(members[0].image_ids, offsets, boxes.astype(np.float32), scores, labels, classes, learnt_ids)


def concatenated(members: Sequence[Predictions]) -> tuple[Array, Array, Array, Array, Array]:
    """Boxes (N, 4) float32, scores and labels (N,) of all members, and begin and end (M, I) of each member on each image.

    Raises:
        InputError: members differ in images or classes, or hold a broken box.
    """
    begin, end = _rows(members)
    boxes = np.concatenate([m.boxes for m in members], dtype=np.float32)
    scores = np.concatenate([m.scores for m in members], dtype=np.float64)
    labels = np.concatenate([m.labels for m in members], dtype=np.int64)
    _check_rows(members, boxes, scores, labels)
    return boxes, scores, labels, begin, end


def normalized(weights: Sequence[float] | None, num_members: int) -> Array:
    """(M,) float64, each weight divided by the greatest."""
    if num_members == 0:
        raise InputError("there is nothing to fuse: expected the predictions of at least one member.")
    if weights is None:
        return np.ones(num_members)
    if len(weights) != num_members:
        raise InputError(f"there are {len(weights)} weights for {num_members} members. Give one weight per member.")
    values = np.array(weights, np.float64)
    if not (np.isfinite(values).all() and (values >= 0).all() and values.max() > 0):
        raise InputError(f"weights are {list(weights)}: expected numbers of 0 or more, at least one of them above 0.")
    return values / values.max()


def _rows(members: Sequence[Predictions]) -> tuple[Array, Array]:
    """begin, end (M, I): each member's range of rows on each image of the first member, in the concatenated rows.

    Raises:
        InputError: the members differ in classes or images.
    """
    first = members[0]
    begin = np.empty((len(members), len(first)), np.int64)
    end = np.empty_like(begin)
    base = 0
    for number, member in enumerate(members):
        if member.classes != first.classes:
            raise InputError(
                f"member {number} has the classes {list(member.classes)}, member 0 has {list(first.classes)}. "
                "Members must be trained on the same classes, in the same order."
            )
        if not np.array_equal(member.image_ids, first.image_ids):
            _check_images(number, member, first)
            order = np.argsort(member.image_ids)
            order = order[np.searchsorted(member.image_ids, first.image_ids, sorter=order)]
        else:
            order = np.arange(len(first))
        begin[number] = base + member.offsets[order]
        end[number] = base + member.offsets[order + 1]
        base += len(member.boxes)
    return begin, end


def _check_images(number: int, member: Predictions, first: Predictions) -> None:
    """Raise InputError unless both hold the same images."""
    lacking = set(first) - set(member)
    if lacking:
        raise InputError(
            f"member {number} lacks image {min(lacking)}, which member 0 has ({len(lacking)} such images). "
            "Predict the same images with every member; give an image without detections with no boxes."
        )
    beyond = set(member) - set(first)
    if beyond:
        raise InputError(
            f"member 0 lacks image {min(beyond)}, which member {number} has ({len(beyond)} such images). "
            "Predict the same images with every member; give an image without detections with no boxes."
        )


def _check_rows(members: Sequence[Predictions], boxes: Array, scores: Array, labels: Array) -> None:
    """Raise InputError at the first of the concatenated rows that cannot be fused."""
    num_classes = len(members[0].classes)
    bad = kernels.first_bad_row(boxes, scores, labels, num_classes)
    if bad < 0:
        return
    row = int(bad)
    number = 0
    while row >= len(members[number].boxes):
        row -= len(members[number].boxes)
        number += 1
    member = members[number]
    image_id = member.image_ids[member.image_index[row]]
    raise InputError(
        f"member {number}, row {row} (image {image_id}): box {member.boxes[row].tolist()}, score {member.scores[row]}, "
        f"label {member.labels[row]}. Expected finite x1 <= x2 and y1 <= y2 in pixels, a score in [0, 1] and a label "
        f"in 0..{num_classes - 1}."
    )
