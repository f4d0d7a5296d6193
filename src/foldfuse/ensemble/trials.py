"""Fuses and matches candidate ensembles fast enough for a search that tries hundreds of them.

The result equals that of `fuse` and `match_predictions` bit by bit (tested). Members are checked and their boxes sorted into
islands once; fused boxes are matched in the buffers that the fusion filled; threads share the images from the first box to the
last match.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from foldfuse.detections import Array, Predictions
from foldfuse.evaluation import kernels as matching_kernels
from foldfuse.evaluation.matching import GroundTruth, Matches, match_predictions
from foldfuse.evaluation.metrics import Metric
from foldfuse.fusion import kernels, methods
from foldfuse.fusion.islands import Islands, make_islands
from foldfuse.fusion.methods import Method


@dataclass(eq=False)
class ScorePool:
    """The scores of each member, as they are and calibrated, one array after another; a trial copies none of them.

    Attributes:
        own: {calibration: the scores of each member, in the order of its boxes in the islands}; None is no calibration.
        values: all arrays so far.
        first: {(calibration, member, exponent): where its array begins in `values`}.
    """

    own: dict[int | None, Sequence[Array]]
    values: Array = field(default_factory=lambda: np.empty(0))
    first: dict[tuple[int | None, int, float], int] = field(default_factory=dict)

    def add(self, members: Sequence[int], exponents: Sequence[float], calibration: int | None = None) -> Array:
        """(M,) where the scores of these members begin in `values`, calibrated and raised to their exponents; else 0."""
        parts = [self.values]
        first = np.zeros(len(self.own[None]), np.int64)
        for member, exponent in zip(members, exponents, strict=True):
            key = calibration, member, exponent
            if key not in self.first:
                self.first[key] = sum(map(len, parts))
                parts.append(calibrated(self.own[calibration][member], exponent))
            first[member] = self.first[key]
        if len(parts) > 1:
            self.values = np.concatenate(parts)
        return first


@dataclass(frozen=True, eq=False)
class Bench:
    """The boxes of all members, ready to be fused for any candidate.

    Attributes:
        members: the members, with their images in the order of `truth`.
        truth: annotations of the images, I of them by rising id.
        metric: decides how fused boxes are matched.
        islands: the boxes of all members, sorted once for all candidates.
        scores: the scores of the members, as far as candidates have needed them.
    """

    members: tuple[Predictions, ...]
    truth: GroundTruth
    metric: Metric
    islands: Islands
    scores: ScorePool


def make_bench(members: Sequence[Predictions], truth: GroundTruth, metric: Metric) -> Bench:
    """The Bench of the members, which `fuse` must have checked already; this function does not check them again."""
    ordered = tuple(m.select_images(truth.image_ids) for m in members)
    spans = np.cumsum([0, *(len(m.boxes) for m in ordered)])
    islands = make_islands(
        boxes=np.concatenate([m.boxes for m in ordered]).astype(np.float32),
        scores=np.concatenate([m.scores for m in ordered]).astype(np.float64),
        labels=np.concatenate([m.labels for m in ordered]).astype(np.int64),
        begin=np.stack([base + m.offsets[:-1] for base, m in zip(spans[:-1], ordered, strict=True)]),
        end=np.stack([base + m.offsets[1:] for base, m in zip(spans[:-1], ordered, strict=True)]),
        num_classes=truth.num_classes,
    )
    own = [m.scores.astype(np.float64)[islands.rows[islands.members == i] - spans[i]] for i, m in enumerate(ordered)]
    return Bench(ordered, truth, metric, islands, ScorePool({None: own}))


def calibrated(scores: Array, exponent: float) -> Array:
    """Scores raised to `exponent`, which keeps their order and leaves 0 and 1 in place."""
    return scores if exponent == 1 else np.power(scores, exponent)


def match_single(bench: Bench, member: int) -> Matches:
    """The matches of one member without fusion."""
    metric = bench.metric
    return match_predictions(bench.members[member], bench.truth, ious=metric.ious, max_detections=metric.max_detections)


@dataclass(frozen=True)
class Fusion:
    """How a candidate fuses its members.

    Attributes:
        chosen: indices of the members to fuse.
        method, iou, score_threshold, weights: as for `fuse`.
        score_exponents: the score exponent of each chosen member, see `calibrated`.
        calibration: the calibration of the scores, as `ScorePool.own` knows it.
    """

    chosen: Sequence[int]
    method: Method
    iou: float
    score_threshold: float
    weights: Sequence[float]
    score_exponents: Sequence[float]
    calibration: int | None = None

    def shares(self, num_members: int) -> Array:
        """(M,) the weights of all members, relative to the greatest."""
        shares = np.zeros(num_members)
        shares[list(self.chosen)] = np.array(self.weights, np.float64) / max(self.weights)
        return shares


def fuse_and_match(bench: Bench, fusion: Fusion, *, threads: int | None = None) -> Matches:
    """The matches of members when fused, with empty rows; `threads` share the images, None for one per core."""
    islands, truth, ious = bench.islands, bench.truth, np.array(bench.metric.ious)
    rows_of = np.diff(islands.image_rows)
    starts = islands.image_rows[:-1]
    status = np.full((int(rows_of.sum()), len(ious)), matching_kernels.EMPTY, np.int8)
    matched = np.full((len(ious), len(truth.boxes)), -1)
    buffers = methods.make_buffers(rows_of)
    fuse_images = _fuser(bench, fusion, buffers)

    def work(images: tuple[int, int]) -> None:
        fuse_images(images)
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
    return Matches(truth, islands.row_image, buffers.labels, buffers.scores, status)


def fuse_members(bench: Bench, fusion: Fusion, *, threads: int | None = None) -> Predictions:
    """The members fused, with the images in the order of the truth; as `fuse` without its checks."""
    rows_of = np.diff(bench.islands.image_rows)
    buffers = methods.make_buffers(rows_of)
    methods.share_images(_fuser(bench, fusion, buffers), rows_of, threads)
    boxes, scores, labels = kernels.compact(buffers.boxes, buffers.scores, buffers.labels, rows_of, buffers.counts)
    offsets = np.concatenate([[0], np.cumsum(buffers.counts)]).astype(np.int64)
    return Predictions(
        bench.truth.image_ids, offsets, boxes.astype(np.float32), scores, labels, bench.members[0].classes
    )


def _fuser(bench: Bench, fusion: Fusion, buffers: methods.Buffers) -> Callable[[tuple[int, int]], None]:
    """The function that fuses a range of images into the buffers."""
    first = bench.scores.add(fusion.chosen, fusion.score_exponents, fusion.calibration)
    scores, shares = bench.scores.values, fusion.shares(bench.islands.num_members)
    fuse_images = methods.island_fuser(fusion.method, iou=fusion.iou, score_threshold=fusion.score_threshold)
    return lambda images: fuse_images(bench.islands, scores, first, images, shares, buffers)
