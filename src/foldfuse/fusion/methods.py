"""Many members' predictions of the same images made into one: WBF, NMS, Soft-NMS, non-maximum weighted.

Sources: WBF, arXiv:1910.13302; Soft-NMS, arXiv:1704.04503; non-maximum weighted, Zhou et al., "CAD", ICCV 2017
workshops. Where we differ from the usual implementation (docs/fusion.md tells why): each member has one vote in a
cluster, its best box; a score never exceeds 1; a member that looked and found nothing lowers the score; coordinates
stay in pixels; the order of members, images or boxes never matters, even where scores tie. `foldfuse.ensemble_boxes`
keeps the usual ways.

In all of them boxes of different labels never meet, and boxes match where their IoU is above `iou`, not equal to it.
A box with a weighted score of 0 or without area has no vote and is left out.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np

from foldfuse.detections import Array, Predictions
from foldfuse.errors import InputError, unknown_name
from foldfuse.fusion import kernels

Method = Literal["wbf", "nms", "soft_nms", "nmw"]


def wbf(
    members: Sequence[Predictions],
    *,
    iou: float = 0.55,
    score_threshold: float = 0.0,
    weights: Sequence[float] | None = None,
    threads: int | None = None,
) -> Predictions:
    """Weighted boxes fusion: clusters become the score-weighted mean of each member's best box in them.

    The score of a result is the weighted mean of the members' best scores in its cluster, 0 for a member with none.

    Args:
        members: predictions of the same images, with the same classes.
        iou: boxes join a cluster where their IoU with its present mean is above this.
        score_threshold: boxes with a score below this are left out.
        weights: how much each member counts, relative to the others; all alike by default.
        threads: images are shared among so many; None for one a core.

    Returns:
        Predictions of the first member's images, in its order; within an image by falling score.

    Raises:
        InputError: members differ in images or classes, or hold a broken box; an option is out of its range.
    """
    return _greedy(kernels.WBF, members, iou, score_threshold, weights, threads)


def nms(
    members: Sequence[Predictions],
    *,
    iou: float = 0.55,
    score_threshold: float = 0.0,
    weights: Sequence[float] | None = None,
    threads: int | None = None,
) -> Predictions:
    """Non-maximum suppression: of the boxes of all members, those that overlap no kept box of a higher score.

    With weights, scores are multiplied by the member's weight as a share of the greatest.
    Args, Returns, Raises: as for `wbf`.
    """
    return _greedy(kernels.NMS, members, iou, score_threshold, weights, threads)


def nmw(
    members: Sequence[Predictions],
    *,
    iou: float = 0.55,
    score_threshold: float = 0.0,
    weights: Sequence[float] | None = None,
    threads: int | None = None,
) -> Predictions:
    """Non-maximum weighted: as NMS, with each kept box moved to the mean of its cluster, weighted by score x IoU.

    The score stays that of the kept box, with weights as in `nms`. A member's best box in a cluster has its one vote.
    Args, Returns, Raises: as for `wbf`.
    """
    return _greedy(kernels.NMW, members, iou, score_threshold, weights, threads)


def soft_nms(
    members: Sequence[Predictions],
    *,
    iou: float = 0.55,
    score_threshold: float = 0.0,
    weights: Sequence[float] | None = None,
    decay: Literal["linear", "gaussian"] = "gaussian",
    sigma: float = 0.5,
    min_score: float = 0.001,
    threads: int | None = None,
) -> Predictions:
    """Soft-NMS: boxes are not removed but lose score, the more the further they overlap a box of a higher score.

    Args:
        members, iou, score_threshold, weights, threads: as for `wbf`; `iou` is used by the linear decay alone.
        decay: the score is multiplied by 1 - IoU where that is above `iou`, or by exp(-IoU^2 / sigma).
        sigma: width of the Gaussian.
        min_score: boxes whose score falls to this or below are left out.

    Returns, Raises: as for `wbf`.
    """
    if decay not in ("linear", "gaussian"):
        raise unknown_name("Soft-NMS decay", decay, ("linear", "gaussian"))
    if not sigma > 0:
        raise InputError(f"sigma is {sigma}, and must be above 0; 0.5 is usual.")
    if not 0 <= min_score < 1:
        raise InputError(f"min_score is {min_score}, and must be in [0, 1); 0.001 is usual.")
    code = kernels.LINEAR if decay == "linear" else kernels.GAUSSIAN

    def work(
        rows: tuple[Array, ...], images: tuple[int, int], shares: Array, out: Any, found: Array, classes: int
    ) -> None:
        kernels.soften(
            code, sigma, min_score, *rows, images, shares, np.float32(score_threshold), iou, classes, out, found
        )

    return _over_images(work, members, iou, score_threshold, weights, threads)


def fuse(
    members: Sequence[Predictions],
    *,
    method: Method = "wbf",
    iou: float = 0.55,
    score_threshold: float = 0.0,
    weights: Sequence[float] | None = None,
    threads: int | None = None,
) -> Predictions:
    """The members as one, by the method called `method`; its further options have their defaults.

    Args, Returns, Raises: as for `wbf`.
    """
    methods: dict[str, Callable[..., Predictions]] = {"wbf": wbf, "nms": nms, "soft_nms": soft_nms, "nmw": nmw}
    if method not in methods:
        raise unknown_name("method of fusion", method, methods)
    return methods[method](members, iou=iou, score_threshold=score_threshold, weights=weights, threads=threads)


def _greedy(
    method: int,
    members: Sequence[Predictions],
    iou: float,
    score_threshold: float,
    weights: Sequence[float] | None,
    threads: int | None,
) -> Predictions:
    def work(
        rows: tuple[Array, ...], images: tuple[int, int], shares: Array, out: Any, found: Array, classes: int
    ) -> None:
        total = math.fsum(shares)
        kernels.greedy(method, *rows, images, shares, total, np.float32(score_threshold), iou, classes, out, found)

    return _over_images(work, members, iou, score_threshold, weights, threads)


def _over_images(
    work: Callable[..., None],
    members: Sequence[Predictions],
    iou: float,
    score_threshold: float,
    weights: Sequence[float] | None,
    threads: int | None,
) -> Predictions:
    """Check everything, lay the members' rows end to end, call `work` on shares of the images, gather what it found."""
    if not 0 <= iou < 1:
        raise InputError(f"iou is {iou}, and must be in [0, 1); 0.55 is usual.")
    if not 0 <= score_threshold <= 1:
        raise InputError(f"score_threshold is {score_threshold}, and must be in [0, 1]: it is compared with scores.")
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}, and must be 1 or more; None takes one a core.")
    shares = _shares(weights, len(members))
    begin, end = _rows(members)
    classes = members[0].classes
    rows = (
        np.concatenate([m.boxes for m in members], dtype=np.float32),
        np.concatenate([m.scores for m in members], dtype=np.float32),
        np.concatenate([m.labels for m in members], dtype=np.int64),
        begin,
        end,
    )
    _check_rows(members, *rows[:3])

    rows_of, num_images = (end - begin).sum(0), begin.shape[1]
    total = int(rows_of.sum())
    out = np.empty((total, 4), np.float32), np.empty(total, np.float32), np.empty(total, np.int64)
    found = np.zeros(num_images, np.int64)
    threads = min(threads or os.cpu_count() or 1, max(1, num_images // 4))
    # Several shares a thread, cut by rows, so that a crowded image does not keep the others waiting.
    cuts = np.linspace(0, total, 4 * threads + 1 if threads > 1 else 2)
    edges = np.searchsorted(np.cumsum(rows_of), cuts[1:-1]).tolist()
    parts = [part for part in zip([0, *edges], [*edges, num_images], strict=True) if part[0] < part[1]]
    if threads == 1:
        for part in parts:
            work(rows, part, shares, out, found, len(classes))
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda part: work(rows, part, shares, out, found, len(classes)), parts))
    boxes, scores, labels = kernels.compact(*out, rows_of, found)
    offsets = np.concatenate([[0], np.cumsum(found)]).astype(np.int64)
    return Predictions(members[0].image_ids, offsets, boxes, scores, labels, classes)


def _shares(weights: Sequence[float] | None, num_members: int) -> Array:
    """(M,) float64, each weight as a share of the greatest."""
    if num_members == 0:
        raise InputError("there is nothing to fuse: expected the predictions of at least one member.")
    if weights is None:
        return np.ones(num_members)
    if len(weights) != num_members:
        raise InputError(f"there are {len(weights)} weights for {num_members} members. Give one weight a member.")
    values = np.array(weights, np.float64)
    if not (np.isfinite(values).all() and (values >= 0).all() and values.max() > 0):
        raise InputError(f"weights are {list(weights)}: expected numbers of 0 or more, at least one of them above 0.")
    return values / values.max()


def _rows(members: Sequence[Predictions]) -> tuple[Array, Array]:
    """begin, end (M, I): the rows of each member on each image of the first, when members are laid end to end.

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
    """Raise InputError unless both looked at the same images."""
    lacking = set(first) - set(member)
    if lacking:
        raise InputError(
            f"member {number} has not looked at image {min(lacking)}, which member 0 has ({len(lacking)} such images). "
            "Predict the same images with every member; one without a find is given with no boxes."
        )
    beyond = set(member) - set(first)
    if beyond:
        raise InputError(
            f"member 0 has not looked at image {min(beyond)}, which member {number} has ({len(beyond)} such images). "
            "Predict the same images with every member; one without a find is given with no boxes."
        )


def _check_rows(members: Sequence[Predictions], boxes: Array, scores: Array, labels: Array) -> None:
    """Raise InputError at the first row, of the members laid end to end, that cannot be fused."""
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
