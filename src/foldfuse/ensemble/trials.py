"""Trials: candidate ensembles fused and matched as fast as can be, for a search that tries hundreds of them.

The result is that of `fuse` and `metrics.match`, bit by bit (a test holds that); what differs is what is not done again
for each candidate: members are checked, ordered and laid end to end once, fused boxes are matched where they lie in the
fusion's own buffers, and images are shared among threads from the first box to the last match.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from foldfuse.detections import Array, Predictions
from foldfuse.evaluation import kernels as ap_kernels
from foldfuse.evaluation.metrics import GroundTruth, Matches, Metric, match
from foldfuse.fusion import kernels as fuse_kernels
from foldfuse.fusion.methods import Method

GREEDY = {"wbf": fuse_kernels.WBF, "nms": fuse_kernels.NMS, "nmw": fuse_kernels.NMW}


@dataclass(frozen=True, eq=False)
class Bench:
    """Members laid end to end, ready to be fused in any candidate.

    Attributes:
        members: with the images in the order of `truth`.
        truth: annotations of the images, I of them by rising id.
        metric: what the matches are for.
        boxes, labels: (N, 4), (N,) of all members.
        scores: (N,) float32.
        begin, end: (M, I) the rows of each member on each image.
        spans: (M + 1,) the rows of each member.
    """

    members: tuple[Predictions, ...]
    truth: GroundTruth
    metric: Metric
    boxes: Array
    labels: Array
    scores: Array
    begin: Array
    end: Array
    spans: Array


def make_bench(members: Sequence[Predictions], truth: GroundTruth, metric: Metric) -> Bench:
    """Lay the members end to end. They must have passed the checks of `fuse`, which are not repeated here."""
    ordered = tuple(m.select_images(truth.image_ids) for m in members)
    spans = np.cumsum([0, *(len(m.boxes) for m in ordered)])
    return Bench(
        members=ordered,
        truth=truth,
        metric=metric,
        boxes=np.concatenate([m.boxes for m in ordered]).astype(np.float32),
        labels=np.concatenate([m.labels for m in ordered]).astype(np.int64),
        scores=np.concatenate([m.scores for m in ordered]).astype(np.float32),
        begin=np.stack([base + m.offsets[:-1] for base, m in zip(spans[:-1], ordered, strict=True)]),
        end=np.stack([base + m.offsets[1:] for base, m in zip(spans[:-1], ordered, strict=True)]),
        spans=spans,
    )


def calibrated(scores: Array, power: float) -> Array:
    """Scores raised to `power`, which keeps their order and 0 and 1 where they are."""
    return scores if power == 1 else np.power(scores, np.float32(power))


def match_single(trial: Bench, member: int) -> Matches:
    """The matches of one member as it is."""
    return match(trial.members[member], trial.truth, ious=trial.metric.ious, max_detections=trial.metric.max_detections)


def fuse_and_match(
    trial: Bench,
    chosen: Sequence[int],
    *,
    method: Method,
    iou: float,
    score_threshold: float,
    weights: Sequence[float],
    score_exponents: Sequence[float],
    threads: int | None = None,
) -> Matches:
    """The matches of the chosen members when fused.

    Args:
        trial: all members.
        chosen: positions of the members to fuse.
        method, iou, score_threshold, weights: as for `fuse`.
        score_exponents: of each chosen member, see `calibrated`.
        threads: images are shared among so many; None for one a core.
    """
    begin, end = trial.begin[list(chosen)], trial.end[list(chosen)]
    scores = trial.scores
    if any(power != 1 for power in score_exponents):
        scores = scores.copy()
        for member, power in zip(chosen, score_exponents, strict=True):
            rows = slice(trial.spans[member], trial.spans[member + 1])
            scores[rows] = calibrated(trial.scores[rows], power)
    shares = np.array(weights, np.float64) / max(weights)
    total = math.fsum(shares)
    rows_of = (end - begin).sum(0)
    starts = np.cumsum(rows_of) - rows_of
    size = int(rows_of.sum())
    out = np.empty((size, 4), np.float32), np.empty(size, np.float32), np.empty(size, np.int64)
    found = np.zeros(len(starts), np.int64)
    status = np.empty((size, len(trial.metric.ious)), np.int8)
    truth, ious = trial.truth, np.array(trial.metric.ious)

    def work(images: tuple[int, int]) -> None:
        rows = trial.boxes, scores, trial.labels, begin, end, images, shares
        if method == "soft_nms":
            gaussian = fuse_kernels.GAUSSIAN, 0.5, 0.001  # the defaults of `fuse.soft_nms`
            fuse_kernels.soften(*gaussian, *rows, np.float32(score_threshold), iou, truth.num_classes, out, found)
        else:
            fuse_kernels.greedy(
                GREEDY[method], *rows, total, np.float32(score_threshold), iou, truth.num_classes, out, found
            )
        columns = truth.columns, truth.num_classes
        ap_kernels.match(out[0], out[2], starts, found, images, trial.metric.max_detections, *columns, ious, status)

    threads = min(threads or os.cpu_count() or 1, max(1, len(starts) // 4))
    edges = np.searchsorted(np.cumsum(rows_of), np.linspace(0, size, 4 * threads + 1 if threads > 1 else 2)[1:-1])
    bounds = [0, *edges.tolist(), len(starts)]
    parts = [part for part in pairwise(bounds) if part[0] < part[1]]
    if threads == 1:
        for part in parts:
            work(part)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, parts))
    image = np.repeat(np.arange(len(found)), found)
    kept = np.arange(len(image)) + np.repeat(starts - (np.cumsum(found) - found), found)
    return Matches(truth, image, out[2][kept], out[1][kept], status[kept])
