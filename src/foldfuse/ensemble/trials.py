"""Fuses and matches candidate ensembles fast enough for a search that tries hundreds of them.

The result equals that of `fuse` and `match_predictions` bit by bit (tested). Members are checked, ordered and concatenated once;
fused boxes are matched in the buffers that the fusion filled; threads share the images from the first box to the last match.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foldfuse.detections import Array, Predictions
from foldfuse.evaluation import kernels as matching_kernels
from foldfuse.evaluation.matching import GroundTruth, Matches, match_predictions
from foldfuse.evaluation.metrics import Metric
from foldfuse.fusion import methods
from foldfuse.fusion.methods import Method


@dataclass(frozen=True, eq=False)
class Bench:
    """The concatenated boxes of all members, ready to be fused for any candidate.

    Attributes:
        members: the members, with their images in the order of `truth`.
        truth: annotations of the images, I of them by rising id.
        metric: decides how fused boxes are matched.
        boxes, labels: (N, 4), (N,) of all members.
        scores: (N,) float64.
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
    """The Bench of the members, which `fuse` must have checked already; this function does not check them again."""
    ordered = tuple(m.select_images(truth.image_ids) for m in members)
    spans = np.cumsum([0, *(len(m.boxes) for m in ordered)])
    return Bench(
        members=ordered,
        truth=truth,
        metric=metric,
        boxes=np.concatenate([m.boxes for m in ordered]).astype(np.float32),
        labels=np.concatenate([m.labels for m in ordered]).astype(np.int64),
        scores=np.concatenate([m.scores for m in ordered]).astype(np.float64),
        begin=np.stack([base + m.offsets[:-1] for base, m in zip(spans[:-1], ordered, strict=True)]),
        end=np.stack([base + m.offsets[1:] for base, m in zip(spans[:-1], ordered, strict=True)]),
        spans=spans,
    )


def calibrated(scores: Array, exponent: float) -> Array:
    """Scores raised to `exponent`, which keeps their order and leaves 0 and 1 in place."""
    return scores if exponent == 1 else np.power(scores, exponent)


def match_single(bench: Bench, member: int) -> Matches:
    """The matches of one member without fusion."""
    metric = bench.metric
    return match_predictions(bench.members[member], bench.truth, ious=metric.ious, max_detections=metric.max_detections)


def fuse_and_match(
    bench: Bench,
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
        bench: all members.
        chosen: indices of the members to fuse.
        method, iou, score_threshold, weights: as for `fuse`.
        score_exponents: the score exponent of each chosen member, see `calibrated`.
        threads: number of threads that share the images; None for one per core.
    """
    begin, end = bench.begin[list(chosen)], bench.end[list(chosen)]
    scores = bench.scores
    if any(exponent != 1 for exponent in score_exponents):
        scores = scores.copy()
        for member, exponent in zip(chosen, score_exponents, strict=True):
            rows = slice(bench.spans[member], bench.spans[member + 1])
            scores[rows] = calibrated(bench.scores[rows], exponent)
    shares = np.array(weights, np.float64) / max(weights)
    truth, ious = bench.truth, np.array(bench.metric.ious)
    rows_of = (end - begin).sum(0)
    starts = np.cumsum(rows_of) - rows_of
    status = np.empty((int(rows_of.sum()), len(ious)), np.int8)
    matched = np.full((len(ious), len(truth.boxes)), -1)
    fuse_images = methods.image_fuser(method, iou=iou, score_threshold=score_threshold)
    buffers = methods.make_buffers(rows_of)

    def work(images: tuple[int, int]) -> None:
        rows = bench.boxes, scores, bench.labels, begin, end
        fuse_images(rows, images, shares, truth.num_classes, buffers)
        matching_kernels.to_xywh(buffers.boxes, starts, buffers.counts, images)
        matching_kernels.match(
            buffers.boxes,
            buffers.labels,
            starts,
            buffers.counts,
            images,
            bench.metric.max_detections,
            truth.columns,
            truth.num_classes,
            ious,
            status,
            matched,
        )

    methods.share_images(work, rows_of, threads)
    counts = buffers.counts
    image = np.repeat(np.arange(len(counts)), counts)
    kept = np.arange(len(image)) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
    return Matches(truth, image, buffers.labels[kept], buffers.scores[kept], status[kept])
