"""Stacking: a small logistic model gives each fused box the chance that it is right.

The model sees what the members' votes looked like: how many agree, how sure they are, how far their boxes spread; how large the
box is for its class; and what lies around it. It starts from the fused score and a ridge keeps it near it, since it is fitted
on some sixty images (stacked generalization, Wolpert 1992; logistic regression on the outputs of members). The target of a box
is that of `calibration`.

Shapes: n fused boxes of I images, F features, K classes.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from foldfuse.detections import Array, Predictions
from foldfuse.ensemble.calibration import targets_of
from foldfuse.ensemble.logistic import LEAST, fit_logistic, logit, sigmoid
from foldfuse.errors import InputError, unknown_name
from foldfuse.evaluation.matching import GroundTruth, Matches
from foldfuse.fusion.islands import Islands, make_islands
from foldfuse.fusion.methods import concatenated, normalized
from foldfuse.system.compiled import compiled

RIDGE = 20.0
MAX_ROWS = 12_000  # a fit on more fused boxes takes those of the highest scores
MAX_RIVALS = 300  # so many boxes of an image, of the highest scores, are compared with each box below them
MAX_SIZES = 4.0  # standard deviations from the mean size of the class
MAX_NUMBER = 1e6  # of a file
CLASS_SIZES = 3.0  # objects of all classes that a class's mean and spread of sizes begin with
FEATURES = (
    "score",  # logit of the fused score
    "agreement",  # share of the members' weight with a box there
    "best_score",  # logit of the highest score of a member's box there, minus "score"
    "score_spread",  # standard deviation of these scores
    "box_spread",  # 1 - mean IoU of these boxes with the fused box
    "same_class_overlap",  # highest IoU with a fused box of the class and a higher score
    "other_class_overlap",  # highest IoU x score of a fused box of another class and a higher score
    "crowding",  # log(1 + sum of the scores of fused boxes of the class and a higher score in the image)
    "rank",  # log(1 + their number)
    "size",  # standard deviations of log side length from the mean of the class
    "size_squared",
)


@dataclass(frozen=True)
class Stack:
    """The model of a fused box's chance to be right.

    Attributes:
        coefficients: {feature: coefficient}, see FEATURES; they are added to the logit of the fused score.
        intercept: added to the sum.
        class_sizes: mean and standard deviation of the log side length (half the log area, pixels) of each class.
        voters: {member: whose vote it has a part of}, where several members, such as those of several folds, stand for one
            that the model has learnt from; a member without an entry has its own vote.
    """

    coefficients: Mapping[str, float]
    intercept: float
    class_sizes: tuple[tuple[float, float], ...]
    voters: Mapping[str, str] = field(default_factory=dict)

    def scores(self, features: Array, labels: Array) -> Array:
        """(n,) the scores of fused boxes with the (n, F - 1) features of `vote_features`, and these labels."""
        columns = with_size(features, labels, self.class_sizes)
        values = np.array([self.coefficients.get(name, 0.0) for name in FEATURES])
        return sigmoid(columns[:, 0] + columns @ values + self.intercept)


def check_stack(stack: Stack, path: Path) -> None:
    """Raise InputError where the model in a file cannot be used."""
    for name in stack.coefficients:
        if name not in FEATURES:
            raise InputError(f"{path}: its stack is not of this version: {unknown_name('feature', name, FEATURES)}")
    for mean, spread in stack.class_sizes:
        if not (abs(mean) <= MAX_NUMBER and 1 / MAX_NUMBER <= spread <= MAX_NUMBER):
            raise InputError(
                f"{path}: its stack has the class size {mean} with the spread {spread}, expected a spread above 0 and numbers "
                f"up to {MAX_NUMBER:g}."
            )
    for name, value in {**stack.coefficients, "intercept": stack.intercept}.items():
        if not abs(value) <= MAX_NUMBER:
            raise InputError(f"{path}: its stack has the {name} {value}, expected a number of at most {MAX_NUMBER:g}.")


def apply_stack(
    stack: Stack,
    fused: Predictions,
    members: Mapping[str, Predictions],
    weights: Sequence[float],
    *,
    iou: float,
    score_threshold: float,
) -> Predictions:
    """The fused predictions of members with the scores of the model.

    Args:
        stack: the model.
        fused: what `fuse` made of the members.
        members: {name: predictions} of the members, calibrated.
        weights, iou, score_threshold: as for `fuse`.

    Raises:
        InputError: the model is for another number of classes.
    """
    if len(stack.class_sizes) != len(fused.classes):
        raise InputError(
            f"the ensemble's stack knows the sizes of {len(stack.class_sizes)} classes, and the predictions have "
            f"{len(fused.classes)}. Use it for predictions of the classes that it was chosen for."
        )
    boxes, scores, labels, begin, end = concatenated([*members.values()])
    islands = make_islands(boxes, scores, labels, begin, end, len(fused.classes))
    votes = Votes(islands, *islands.by_member(scores), normalized(weights, len(members)), iou, score_threshold)
    names = [stack.voters.get(name, name) for name in members]
    voters = np.array([names.index(name) for name in names])
    features = vote_features(fused, votes, voters)
    return rescored(fused, stack.scores(features, fused.labels))


def rescored(fused: Predictions, scores: Array) -> Predictions:
    """Fused predictions with other scores, each image's boxes by falling score."""
    order = np.lexsort((-scores, fused.image_index))
    return replace(fused, boxes=fused.boxes[order], scores=scores[order], labels=fused.labels[order])


def class_sizes(truth: GroundTruth, images: Array) -> tuple[tuple[float, float], ...]:
    """Mean and standard deviation of the log side length of each class's objects, on the images where (I,) `images` is True."""
    image, labels = truth.objects
    boxes = truth.boxes[~truth.crowd]
    sizes = np.log(np.maximum(boxes[:, 2] * boxes[:, 3], 1.0)) / 2
    sizes, labels = sizes[images[image]], labels[images[image]]
    mean, spread = (float(sizes.mean()), float(sizes.std()) + 0.1) if len(sizes) else (4.0, 1.0)
    found = []
    for k in range(truth.num_classes):
        own = sizes[labels == k]
        total = len(own) + CLASS_SIZES
        own_mean = (own.sum() + CLASS_SIZES * mean) / total
        own_spread = math.sqrt((((own - own_mean) ** 2).sum() + CLASS_SIZES * spread**2) / total)
        found.append((float(own_mean), own_spread))
    return tuple(found)


def with_size(features: Array, labels: Array, sizes: tuple[tuple[float, float], ...]) -> Array:
    """(n, F) the features with the size relative to the class in place of the plain one, and its square."""
    mean, spread = np.array(sizes, np.float64).reshape(-1, 2)[labels].T
    relative = np.clip((features[:, -1] - mean) / spread, -MAX_SIZES, MAX_SIZES)
    return np.column_stack([features[:, :-1], relative, relative**2])


def fit_stack(features: Array, matches: Matches, images: Array) -> Stack:
    """The model fitted on the fused boxes of the images where (I,) `images` is True.

    Args:
        features: (n, F - 1) of `vote_features`, of the rows of `matches`.
        matches: the fused boxes, matched.
        images: (I,) bool.
    """
    sizes = class_sizes(matches.truth, images)
    rows = np.flatnonzero(images[matches.image])
    if len(rows) > MAX_ROWS:
        rows = rows[np.argpartition(-matches.scores[rows], MAX_ROWS)[:MAX_ROWS]]
        rows.sort()
    if not len(rows):
        return Stack({}, 0.0, sizes)
    targets, weights = targets_of(matches)
    columns = with_size(features[rows], matches.labels[rows], sizes)
    mean, spread = columns.mean(0), columns.std(0) + 1e-9
    scaled = np.column_stack([(columns - mean) / spread, np.ones(len(rows))])
    ridge = np.append(np.full(len(FEATURES), RIDGE), 0.01)
    *found, intercept = fit_logistic(scaled, targets[rows], weights[rows], columns[:, 0], ridge)
    coefficients = np.array(found) / spread
    return Stack(dict(zip(FEATURES, coefficients.tolist(), strict=True)), float(intercept - coefficients @ mean), sizes)


@dataclass(frozen=True, eq=False)
class Votes:
    """The members' boxes as a fusion sees them.

    Attributes:
        islands: the boxes.
        scores, first, weights: as for `fuse_islands`.
        iou: a member's box votes for a fused box of its class where their IoU is above this.
        score_threshold: boxes of a lower score have no vote.
    """

    islands: Islands
    scores: Array
    first: Array
    weights: Array
    iou: float
    score_threshold: float


def vote_features(fused: Predictions, votes: Votes, voters: Array | None = None) -> Array:
    """(n, F - 1) the features of fused boxes but for their size in their class: the last column is the log side length.

    Args:
        fused: the fused predictions, their images in the order of the islands', each image's boxes by falling score.
        votes: what was fused.
        voters: (M,) the member whose vote each member has a part of; by default each has its own.
    """
    features = np.zeros((len(fused.boxes), len(FEATURES) - 1))
    islands, weights = votes.islands, votes.weights
    _fill(
        features,
        fused.boxes.astype(np.float64),
        fused.scores,
        fused.labels,
        fused.offsets,
        islands.boxes,
        islands.members,
        islands.ranks,
        islands.begin,
        islands.labels,
        islands.images,
        islands.rectangles,
        votes.scores,
        votes.first,
        weights,
        np.arange(len(weights)) if voters is None else voters,
        votes.iou,
        min(votes.score_threshold, float(np.float32(votes.score_threshold))),
    )
    features[:, 0] = logit(fused.scores)
    features[:, 2] = logit(features[:, 2]) - features[:, 0]
    return features


@compiled(error_model="numpy")
def _fill(
    features, fused_boxes, fused_scores, fused_labels, offsets, boxes, members, ranks, begin, labels, images, rectangles,
    scores, first, weights, voters, iou, score_threshold,
):  # fmt: skip
    """Fill all columns of `features` but the logits, see FEATURES and `vote_features`."""
    total = weights.sum()
    best, best_iou = np.empty(len(weights)), np.empty(len(weights))
    parts, part_scores, part_ious = np.empty(len(weights)), np.empty(len(weights)), np.empty(len(weights))
    for image in range(len(offsets) - 1):
        for i in range(offsets[image], offsets[image + 1]):
            x1, y1, x2, y2 = fused_boxes[i, 0], fused_boxes[i, 1], fused_boxes[i, 2], fused_boxes[i, 3]
            area = (x2 - x1) * (y2 - y1)
            best[:] = 0.0
            for island in range(images[image], images[image + 1]):
                apart = labels[island] != fused_labels[i]
                apart = apart or rectangles[island, 0] >= x2 or rectangles[island, 2] <= x1
                if apart or rectangles[island, 1] >= y2 or rectangles[island, 3] <= y1:
                    continue
                for row in range(begin[island], begin[island + 1]):
                    member = members[row]
                    if weights[member] == 0:
                        continue
                    score = scores[first[member] + ranks[row]]
                    if score <= best[member] or score < score_threshold:
                        continue
                    width = min(boxes[row, 2], x2) - max(boxes[row, 0], x1)
                    height = min(boxes[row, 3], y2) - max(boxes[row, 1], y1)
                    if width <= 0 or height <= 0:
                        continue
                    own = (boxes[row, 2] - boxes[row, 0]) * (boxes[row, 3] - boxes[row, 1])
                    overlap = width * height / (area + own - width * height)
                    if overlap > iou:
                        best[member], best_iou[member] = score, overlap
            agreement, votes, highest, mean, square, spread = 0.0, 0, LEAST, 0.0, 0.0, 0.0
            parts[:], part_scores[:], part_ious[:] = 0, 0, 0
            for member in range(len(weights)):
                if best[member] > 0:
                    agreement += weights[member]
                    parts[voters[member]] += 1
                    part_scores[voters[member]] += best[member]
                    part_ious[voters[member]] += best_iou[member]
            for voter in range(len(weights)):
                if parts[voter] > 0:
                    score = part_scores[voter] / parts[voter]  # the mean of the parts with a box there
                    votes += 1
                    highest = max(highest, score)
                    mean += score
                    square += score * score
                    spread += 1 - part_ious[voter] / parts[voter]
            features[i, 1], features[i, 2] = agreement / total, highest
            if votes > 0:
                features[i, 3] = math.sqrt(max(square / votes - (mean / votes) ** 2, 0.0))
                features[i, 4] = spread / votes
            same, other, above, crowd = 0.0, 0.0, 0, 0.0
            for j in range(offsets[image], min(i, offsets[image] + MAX_RIVALS)):
                if fused_labels[j] == fused_labels[i]:
                    above += 1
                    crowd += fused_scores[j]
                width = min(fused_boxes[j, 2], x2) - max(fused_boxes[j, 0], x1)
                height = min(fused_boxes[j, 3], y2) - max(fused_boxes[j, 1], y1)
                if width <= 0 or height <= 0:
                    continue
                rival = (fused_boxes[j, 2] - fused_boxes[j, 0]) * (fused_boxes[j, 3] - fused_boxes[j, 1])
                overlap = width * height / (area + rival - width * height)
                if fused_labels[j] == fused_labels[i]:
                    same = max(same, overlap)
                else:
                    other = max(other, overlap * fused_scores[j])
            features[i, 5], features[i, 6] = same, other
            features[i, 7], features[i, 8] = math.log(1 + crowd), math.log(1.0 + above)
            features[i, 9] = math.log(max(area, 1.0)) / 2
