"""Likely errors of annotations, found by out-of-fold predictions: missed objects, wrong classes, badly placed boxes, and more.

For each kind of error, a logistic regression learns how the predictions look at an annotation with such an error: errors of that
kind are planted in copies of the annotations themselves, and told from the annotations as they are. Its odds, times the
odds of a prior share of errors (PRIOR), are the score: the probability of the error if PRIOR of the boxes had one of that
kind. Each annotation gets at most one suggestion, of its most probable kind.

The idea to compare annotations with confident predictions is that of ObjectLab (Tkachenko et al., arXiv:2309.00832), which
has fixed formulas for overlooked objects, swapped classes and bad places; benchmarks/review.md compares the two.

Shapes: n samples of f features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from foldfuse.boxes import area, pairwise_iou
from foldfuse.data.dataset import Dataset
from foldfuse.detections import Annotations, Array, Predictions
from foldfuse.evaluation.evidence import (
    SAME_PLACE_IOU,
    ImageEvidence,
    Support,
    covered_share,
    image_evidence,
    support,
)
from foldfuse.evaluation.planted_errors import free_box, moved_box, other_label

Kind = Literal["missed", "class", "place", "spurious", "duplicate"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PRIOR = 0.03  # the share of boxes with an error of one kind, before anything is seen
LOWEST_SCORE = 0.01  # detections below say nothing
PLAUSIBLE = 0.3  # the score from which a free detection is taken for the object of an annotation
LOWEST_MISSED = 0.02  # and those below are no missed objects
LEAST_PLANTED, MAX_PLANTED = 1000, 2000  # of each kind: enough for a regression on a few features
_RIDGE = 1.0
_FLOOR = 1e-3  # of scores, before their logit


@dataclass(frozen=True, eq=False)
class Suggestion:
    """A likely error of an annotation, and its correction.

    Attributes:
        kind: "missed" (an object without annotation), "class" (of another class), "place" (the box is off), "spurious" (no object
            is there) or "duplicate" (the object is annotated twice).
        image_id: the image.
        score: probability-like, in [0, 1].
        annotation: the position among the annotations of the image; None for a missed object.
        box: (4,) xyxy the proposed box; None where the annotation is to be removed or keeps its box.
        label: the proposed class; None where the annotation is to be removed or keeps its class.
        found: the score of the detection that speaks for the correction; 0 where no detection is there.
        other: for a duplicate, the position of the annotation that stays.
    """

    kind: Kind
    image_id: int
    score: float
    annotation: int | None = None
    box: Array | None = None
    label: int | None = None
    found: float = 0.0
    other: int | None = None


def find_label_errors(dataset: Dataset, predictions: Predictions, *, seed: int = 0) -> list[Suggestion]:
    """Suggestions for the annotations of the predicted images, by falling score.

    Args:
        dataset: the annotated images.
        predictions: out-of-fold predictions of some of them; an image that their network has learnt from is no evidence, and
            the caller leaves it out.
        seed: of the planted errors.
    """
    evidence = [
        image_evidence(
            s.id,
            (s.width, s.height),
            s.annotations,
            predictions[s.id],
            score_threshold=LOWEST_SCORE,
        )
        for s in dataset.samples
        if s.id in predictions and s.annotations is not None
    ]
    context = _context(evidence, len(dataset.classes))
    rng = np.random.default_rng(seed)
    suggestions = [*_of_annotations(context, rng), *_missed(context, rng)]
    return sorted(suggestions, key=lambda s: -s.score)


@dataclass(frozen=True, eq=False)
class _Context:
    """The images with what is the same for all kinds.

    Attributes:
        evidence: of each image.
        supports: of the annotations of each image.
        confusion: (K, K) how often annotations of a class look like another: the network's confusions, not the annotator's.
        seen: (K,) the median support of the annotations of a class.
    """

    evidence: Sequence[ImageEvidence]
    supports: Sequence[Support]
    confusion: Array
    seen: Array


def _context(evidence: Sequence[ImageEvidence], num_classes: int) -> _Context:
    supports = [
        support(e, e.annotations.boxes, e.annotations.labels, np.arange(len(e.annotations)), num_classes=num_classes)
        for e in evidence
    ]
    confusion, seen = np.ones((num_classes, num_classes)), np.ones(num_classes)
    if evidence:
        labels = np.concatenate([e.annotations.labels for e in evidence])
        by_class = np.concatenate([each.by_class for each in supports])
        anywhere = np.concatenate([each.anywhere for each in supports])
        is_seen = by_class.any(1)
        np.add.at(confusion, (labels[is_seen], by_class[is_seen].argmax(1)), 1)
        for label in np.unique(labels):
            seen[label] = np.median(anywhere[labels == label])
    return _Context(evidence, supports, confusion / confusion.sum(1, keepdims=True), seen)


def _logit(value: Array) -> Array:
    clipped = np.clip(value, _FLOOR, 1 - _FLOOR)
    return np.asarray(np.log(clipped / (1 - clipped)))


def _log_side(boxes: Array) -> Array:
    """(b,) the logarithm of the square root of the area, in pixels."""
    return np.asarray(np.log(np.maximum(area(boxes), 1.0)) / 2)


def _features(context: _Context, each: Support, boxes: Array, labels: Array) -> Array:
    """(b, f) how the detections look at annotations with these boxes and classes."""
    every, others = np.arange(len(boxes)), each.by_class.copy()
    own = others[every, labels]
    others[every, labels] = 0
    best = others.argmax(1)
    other, iou = others[every, best], each.own_iou
    columns = [
        *(_logit(own), _logit(other), np.maximum(other - own, 0), np.log(context.confusion[labels, best])),
        *(iou, iou**2, _logit(each.own_score), (1 - iou) * each.own_score),
        *(each.fit, each.fit**2, each.fit_anywhere),
        *(_logit(each.anywhere), _logit(context.seen[labels]), _log_side(boxes)),
    ]
    return np.stack(columns, 1)


def _of_annotations(context: _Context, rng: np.random.Generator) -> list[Suggestion]:
    """The most probable error of each annotation."""
    if not sum(len(e.annotations) for e in context.evidence):
        return []
    scores = _annotation_scores(context, rng)
    suggestions, first = [], 0
    for evidence, each in zip(context.evidence, context.supports, strict=True):
        duplicates = _duplicates(evidence, each)
        others = each.by_class.copy()
        others[np.arange(len(others)), evidence.annotations.labels] = 0
        for j, row in enumerate(evidence.rows.tolist()):
            n = first + j
            spurious = Suggestion("spurious", evidence.image_id, float(scores["spurious"][n]), row)
            options = [replace(spurious, found=float(each.anywhere[j]))]
            if others[j].any():
                new, score = int(others[j].argmax()), float(scores["class"][n])
                options.append(replace(spurious, kind="class", score=score, label=new, found=float(others[j, new])))
            if each.own[j] >= 0:
                box, score = evidence.found.boxes[each.own[j]].astype(np.float64), float(scores["place"][n])
                options.append(replace(spurious, kind="place", score=score, box=box, found=float(each.own_score[j])))
            if j in duplicates:
                other, score = duplicates[j]
                options.append(replace(spurious, kind="duplicate", score=score, other=int(evidence.rows[other])))
            suggestions.append(max(options, key=lambda s: s.score))
        first += len(evidence.rows)
    return suggestions


def _annotation_scores(context: _Context, rng: np.random.Generator) -> dict[Kind, Array]:
    """{kind: (number of annotations,) its probability} of the kinds that the detections tell of one annotation."""
    observed = np.concatenate(
        [
            _features(context, each, e.annotations.boxes, e.annotations.labels)
            for e, each in zip(context.evidence, context.supports, strict=True)
        ]
    )
    planted: dict[Kind, list[Planted]] = {
        "class": _wrong_classes(context, rng),
        "place": _moved_boxes(context, rng),
        "spurious": _free_boxes(context, rng),
    }
    odds = {kind: _odds(observed, _planted_features(context, rows), prior=PRIOR) for kind, rows in planted.items()}
    labels = np.concatenate([e.annotations.labels for e in context.evidence])
    others = np.concatenate([each.by_class for each in context.supports])
    others[np.arange(len(others)), labels] = 0
    odds["class"] = odds["class"] * others.any(1)
    odds["place"] = odds["place"] * (np.concatenate([each.own for each in context.supports]) >= 0)
    # A box that a detection of its class touches, which no other annotation has, is not spurious: it is off.
    is_touched = np.concatenate([each.own_score for each in context.supports]) >= PLAUSIBLE
    odds["place"] = odds["place"] + np.where(is_touched, odds["spurious"], 0.0)
    odds["spurious"] = np.where(is_touched, 0.0, odds["spurious"])
    total = 1 + odds["class"] + odds["place"] + odds["spurious"]
    return {kind: each / total for kind, each in odds.items()}


Planted = tuple[int, Array, int, int]  # number of the image, (4,) box, label, annotation whose detection it may take


def _planted_features(context: _Context, planted: Sequence[Planted]) -> Array:
    """(b, f) the features of planted annotations, image by image."""
    groups: dict[int, list[Planted]] = {}
    for one in planted:
        groups.setdefault(one[0], []).append(one)
    features = []
    for i, rows in groups.items():
        boxes, labels = np.array([row[1] for row in rows]), np.array([row[2] for row in rows], np.int64)
        owned_by = np.array([row[3] for row in rows])
        each = support(context.evidence[i], boxes, labels, owned_by, num_classes=len(context.seen))
        features.append(_features(context, each, boxes, labels))
    return np.concatenate(features) if features else np.zeros((0, 0))


def _chosen(context: _Context, rng: np.random.Generator, *, least: int = LEAST_PLANTED) -> list[tuple[int, int]]:
    """The annotations to plant an error in, at random: (number of the image, position); of few, each several times."""
    places = [(i, j) for i, e in enumerate(context.evidence) for j in range(len(e.annotations))]
    repeats = -(-least // max(len(places), 1))
    return [places[n] for n in rng.permutation(len(places))[:MAX_PLANTED].tolist()] * max(repeats, 1)


def _wrong_classes(context: _Context, rng: np.random.Generator) -> list[Planted]:
    """Annotations whose class is exchanged for another."""
    num_classes, planted = len(context.seen), []
    for i, j in _chosen(context, rng) if num_classes > 1 else ():
        annotations = context.evidence[i].annotations
        planted.append((i, annotations.boxes[j], other_label(int(annotations.labels[j]), num_classes, rng), j))
    return planted


def _moved_boxes(context: _Context, rng: np.random.Generator) -> list[Planted]:
    """Annotations whose box is moved."""
    planted = []
    for i, j in _chosen(context, rng):
        annotations = context.evidence[i].annotations
        moved = moved_box(annotations.boxes[j], context.evidence[i].size, rng)
        if moved is not None:
            planted.append((i, moved, int(annotations.labels[j]), j))
    return planted


def _free_boxes(context: _Context, rng: np.random.Generator) -> list[Planted]:
    """Annotations where no object is: with boxes of the annotations, in other images."""
    planted = []
    for i, j in _chosen(context, rng):
        annotations, other = context.evidence[i].annotations, int(rng.integers(len(context.evidence)))
        sides, evidence = annotations.boxes[j, 2:] - annotations.boxes[j, :2], context.evidence[other]
        placed = free_box(sides, evidence.size, evidence.annotations.boxes, rng)
        if placed is not None:
            planted.append((other, placed, int(annotations.labels[j]), -1))
    return planted


def _duplicates(evidence: ImageEvidence, each: Support) -> dict[int, tuple[int, float]]:
    """{annotation that repeats another of its image: (the other, score)}."""
    found: dict[int, tuple[int, float]] = {}
    boxes, labels = evidence.annotations.boxes, evidence.annotations.labels
    iou = np.triu(pairwise_iou(boxes, boxes), 1)
    for j, k in np.argwhere(iou >= SAME_PLACE_IOU).tolist():
        # Two objects have two detections; of a second annotation of one object none is left.
        second = float(min(each.anywhere[j], each.anywhere[k]))
        logit = 14 * (float(iou[j, k]) - 0.7) - 4 * second - (0.0 if labels[j] == labels[k] else 1.0)
        score = 1 / (1 + float(np.exp(-logit)))
        # The one that the detections speak for less goes.
        gone, kept = (j, k) if each.by_class[j, labels[j]] < each.by_class[k, labels[k]] else (k, j)
        if score > found.get(gone, (0, 0.0))[1]:
            found[gone] = (kept, score)
    return found


def _missed_features(evidence: ImageEvidence, rows: Array, annotations: Annotations, precision: Array) -> Array:
    """(b, f) how detections look beside these annotations, `rows` being their (b,) positions."""
    found = evidence.found
    boxes = found.boxes[rows].astype(np.float64)
    near = pairwise_iou(boxes, found.boxes.astype(np.float64)) >= SAME_PLACE_IOU
    together = 1 - np.where(near, 1 - found.scores, 1.0).prod(1)  # of all classes: an object of an unclear class
    columns = [
        *(_logit(found.scores[rows]), _logit(together)),
        pairwise_iou(boxes, annotations.boxes).max(1, initial=0),
        covered_share(boxes, annotations.boxes).max(1, initial=0),
        covered_share(annotations.boxes, boxes).max(0, initial=0),
        *(_log_side(boxes), precision[found.labels[rows]]),
    ]
    return np.stack(columns, 1)


def _missed(context: _Context, rng: np.random.Generator) -> list[Suggestion]:
    """Objects that are detected and not annotated."""
    free, weight = [], np.ones((2, len(context.seen)))
    for e in context.evidence:
        is_free = (e.owner < 0) & (e.iou.max(0, initial=0) < SAME_PLACE_IOU) & (e.found.scores >= LOWEST_MISSED)
        free.append(np.flatnonzero(is_free))
        for is_owned, rows in ((0, free[-1]), (1, np.flatnonzero(e.owner >= 0))):
            np.add.at(weight[is_owned], e.found.labels[rows], e.found.scores[rows])
    precision = np.log(weight[1] / weight[0])
    planted = []
    for i, j in _chosen(context, rng, least=1):
        e = context.evidence[i]
        owned = np.flatnonzero(e.owner == j)
        if len(owned) and e.iou[j, owned[0]] >= SAME_PLACE_IOU and e.found.scores[owned[0]] >= LOWEST_MISSED:
            rest = e.annotations[np.arange(len(e.annotations)) != j]
            planted.append(_missed_features(e, owned, rest, precision))
    num_free = sum(map(len, free))
    if not num_free or not planted:
        return []
    observed = np.concatenate(
        [_missed_features(e, rows, e.annotations, precision) for e, rows in zip(context.evidence, free, strict=True)]
    )
    # A prior share of the objects is missed: so many of the free detections are of one.
    num_annotations = sum(len(e.annotations) for e in context.evidence)
    expected = PRIOR * len(planted) * max(1.0, num_annotations / MAX_PLANTED)
    odds = _odds(observed, np.concatenate(planted), prior=min(0.5, expected / num_free))
    scores, suggestions, first = odds / (1 + odds), [], 0
    for e, rows in zip(context.evidence, free, strict=True):
        own, boxes = scores[first : first + len(rows)], e.found.boxes[rows].astype(np.float64)
        first += len(rows)
        for k in _one_for_each_place(boxes, own):
            label, found = int(e.found.labels[rows[k]]), float(e.found.scores[rows[k]])
            suggestions.append(Suggestion("missed", e.image_id, float(own[k]), box=boxes[k], label=label, found=found))
    return suggestions


def _one_for_each_place(boxes: Array, scores: Array) -> list[int]:
    """The rows of one image's (b, 4) boxes that overlap none of a higher score."""
    rest = np.argsort(-scores, kind="stable")
    iou, kept = pairwise_iou(boxes, boxes), []
    while len(rest):
        kept.append(int(rest[0]))
        rest = rest[iou[rest[0], rest] < SAME_PLACE_IOU]
        rest = rest[rest != kept[-1]]
    return kept


def _odds(observed: Array, planted: Array, *, prior: float) -> Array:
    """(n,) the odds that each observed sample has an error like the planted ones.

    Args:
        observed: (n, f) features of the annotations as they are, nearly all of which are right.
        planted: (b, f) features of annotations with a planted error; without any the odds are 0.
        prior: the share of errors.
    """
    if not len(planted):
        return np.zeros(len(observed))
    both = np.concatenate([observed, planted])
    mean, spread = both.mean(0), both.std(0) + 1e-6
    x, y = (observed - mean) / spread, (planted - mean) / spread
    weights = _logistic_regression(x, y)
    odds: Array = np.exp(np.clip(np.c_[x, np.ones(len(x))] @ weights, -30, 30)) * prior / (1 - prior)
    return odds


def _logistic_regression(negatives: Array, positives: Array) -> Array:
    """(f + 1,) weights and bias, with both sides of equal weight and a ridge penalty; Newton's method."""
    x = np.concatenate([negatives, positives])
    x = np.c_[x, np.ones(len(x))]
    target = np.r_[np.zeros(len(negatives)), np.ones(len(positives))]
    total = min(len(x), 2 * len(negatives))  # that an annotation is planted in several times is no more evidence
    share = np.where(target > 0, 0.5 / len(positives), 0.5 / len(negatives)) * total
    weights, ridge = np.zeros(x.shape[1]), np.r_[np.full(x.shape[1] - 1, _RIDGE), 1e-6]
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (share * (p - target)) + ridge * weights
        hessian = (x * (share * p * (1 - p))[:, None]).T @ x + np.diag(ridge)
        step = np.linalg.solve(hessian, gradient)
        weights = weights - step
        if np.abs(step).max() < 1e-6:
            break
    return weights
