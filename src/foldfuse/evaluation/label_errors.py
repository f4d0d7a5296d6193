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
MAX_PLANTED = 2000  # of each kind: enough for a regression on a few features
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
    num_classes = len(dataset.classes)
    context = _Context(evidence, num_classes, np.random.default_rng(seed))
    suggestions = [*_of_annotations(context), *_missed(context)]
    return sorted(suggestions, key=lambda s: -s.score)


class _Context:
    """The images with what is the same for all kinds: the support of each annotation, and statistics of the classes."""

    def __init__(self, evidence: Sequence[ImageEvidence], num_classes: int, rng: np.random.Generator) -> None:
        self.evidence, self.num_classes, self.rng = evidence, num_classes, rng
        self.places = [(i, j) for i, e in enumerate(evidence) for j in range(len(e.annotations))]
        self.supports = [
            support(evidence[i], evidence[i].iou[j], int(evidence[i].annotations.labels[j]), j, num_classes)
            for i, j in self.places
        ]
        # How often annotations of a class look like another: such confusions are the network's, not the annotator's.
        self.confusion = np.ones((num_classes, num_classes))
        for each, label in self.labeled():
            if each.by_class.max() > 0:
                self.confusion[label, each.by_class.argmax()] += 1
        self.confusion /= self.confusion.sum(1, keepdims=True)
        self.seen = np.ones(num_classes)  # median support of the annotations of a class
        for k in {label for _, label in self.labeled()}:
            self.seen[k] = np.median([each.anywhere for each, label in self.labeled() if label == k])

    def labeled(self) -> list[tuple[Support, int]]:
        """The support and the label of each annotation."""
        labels = [int(self.evidence[i].annotations.labels[j]) for i, j in self.places]
        return list(zip(self.supports, labels, strict=True))

    def box(self, i: int, j: int) -> Array:
        """(4,) the box of annotation j of image i."""
        box: Array = self.evidence[i].annotations.boxes[j]
        return box

    def planted(self) -> list[int]:
        """The annotations to plant an error in, at random."""
        order: list[int] = self.rng.permutation(len(self.places)).tolist()
        return order[:MAX_PLANTED]


def _logit(value: float | Array) -> Array:
    clipped = np.clip(value, _FLOOR, 1 - _FLOOR)
    return np.asarray(np.log(clipped / (1 - clipped)))


def _features(context: _Context, evidence: ImageEvidence, each: Support, label: int, box: Array) -> list[float]:
    """(f,) how the detections look at an annotation with this box and class."""
    others = each.by_class.copy()
    own, others[label] = others[label], 0
    best = int(others.argmax())
    score = float(evidence.found.scores[each.own]) if each.own >= 0 else 0.0
    side = float(np.log(np.sqrt(max(float(area(box)), 1.0))))
    iou = each.own_iou
    return [
        *(float(_logit(own)), float(_logit(others[best])), max(others[best] - own, 0.0)),
        float(np.log(context.confusion[label, best])),
        *(iou, iou**2, float(_logit(score)), (1 - iou) * score),
        *(each.fit, each.fit**2, each.fit_anywhere),
        *(float(_logit(each.anywhere)), float(_logit(context.seen[label])), side),
    ]


def _of_annotations(context: _Context) -> list[Suggestion]:
    """The most probable error of each annotation."""
    if not context.places:
        return []
    duplicates, scores = _duplicates(context), _annotation_scores(context)
    suggestions = []
    for n, (i, j) in enumerate(context.places):
        evidence, each = context.evidence[i], context.supports[n]
        label, row = int(evidence.annotations.labels[j]), int(evidence.rows[j])
        base = Suggestion("spurious", evidence.image_id, float(scores["spurious"][n]), row, found=each.anywhere)
        options = [base]
        others = each.by_class.copy()
        others[label] = 0
        if others.max() > 0:
            new, score = int(others.argmax()), float(scores["class"][n])
            options.append(replace(base, kind="class", score=score, label=new, found=float(others[new])))
        if each.own >= 0:
            box, score = evidence.found.boxes[each.own].astype(np.float64), float(scores["place"][n])
            found = float(evidence.found.scores[each.own])
            options.append(replace(base, kind="place", score=score, box=box, found=found))
        if n in duplicates:
            other, score = duplicates[n]
            options.append(replace(base, kind="duplicate", score=score, other=int(evidence.rows[other])))
        suggestions.append(max(options, key=lambda s: s.score))
    return suggestions


def _annotation_scores(context: _Context) -> dict[Kind, Array]:
    """{kind: (number of annotations,) its probability} of the kinds that the detections tell of one annotation."""
    observed = [
        _features(context, context.evidence[i], each, int(context.evidence[i].annotations.labels[j]), context.box(i, j))
        for (i, j), each in zip(context.places, context.supports, strict=True)
    ]
    planted = {"class": _wrong_classes(context), "place": _moved_boxes(context), "spurious": _free_boxes(context)}
    odds = {kind: _odds(observed, rows, prior=PRIOR) for kind, rows in planted.items()}
    has_other = np.array([(each.by_class > 0).sum() > (each.by_class[label] > 0) for each, label in context.labeled()])
    odds["class"] = odds["class"] * has_other
    odds["place"] = odds["place"] * np.array([each.own >= 0 for each in context.supports])
    total = 1 + sum(odds.values())
    return {"class": odds["class"] / total, "place": odds["place"] / total, "spurious": odds["spurious"] / total}


def _wrong_classes(context: _Context) -> list[list[float]]:
    """Features of annotations whose class is exchanged for another."""
    if context.num_classes < 2:
        return []
    rows = []
    for n in context.planted():
        i, j = context.places[n]
        evidence = context.evidence[i]
        label = other_label(int(evidence.annotations.labels[j]), context.num_classes, context.rng)
        each = support(evidence, evidence.iou[j], label, j, context.num_classes)
        rows.append(_features(context, evidence, each, label, context.box(i, j)))
    return rows


def _moved_boxes(context: _Context) -> list[list[float]]:
    """Features of annotations whose box is moved."""
    rows = []
    for n in context.planted():
        i, j = context.places[n]
        evidence, label = context.evidence[i], int(context.evidence[i].annotations.labels[j])
        moved = moved_box(context.box(i, j), evidence.size, context.rng)
        if moved is not None:
            each = support(evidence, _iou_with(evidence, moved), label, j, context.num_classes)
            rows.append(_features(context, evidence, each, label, moved))
    return rows


def _free_boxes(context: _Context) -> list[list[float]]:
    """Features of annotations where no object is: boxes of the annotations, in other images."""
    rows = []
    for n in context.planted():
        i, j = context.places[n]
        box, label = context.box(i, j), int(context.evidence[i].annotations.labels[j])
        evidence = context.evidence[int(context.rng.integers(len(context.evidence)))]
        placed = free_box(box[2:] - box[:2], evidence.size, evidence.annotations.boxes, context.rng)
        if placed is not None:
            each = support(evidence, _iou_with(evidence, placed), label, -1, context.num_classes)
            rows.append(_features(context, evidence, each, label, placed))
    return rows


def _iou_with(evidence: ImageEvidence, box: Array) -> Array:
    """(n,) the IoU of a box with each detection."""
    iou: Array = pairwise_iou(box[None], evidence.found.boxes.astype(np.float64))[0]
    return iou


def _duplicates(context: _Context) -> dict[int, tuple[int, float]]:
    """{number of an annotation that repeats another of its image: (the other's position, score)}."""
    found: dict[int, tuple[int, float]] = {}
    numbers = {place: n for n, place in enumerate(context.places)}
    for i, evidence in enumerate(context.evidence):
        boxes, labels = evidence.annotations.boxes, evidence.annotations.labels
        iou = np.triu(pairwise_iou(boxes, boxes), 1)
        for j, k in np.argwhere(iou >= SAME_PLACE_IOU).tolist():
            pair = [context.supports[numbers[i, one]] for one in (j, k)]
            # Two objects have two detections; of a second annotation of one object none is left.
            second = min(each.anywhere for each in pair)
            logit = 14 * (float(iou[j, k]) - 0.7) - 4 * second + (0.0 if labels[j] == labels[k] else -1.0)
            score = float(1 / (1 + np.exp(-logit)))
            # The one that the detections speak for less goes.
            own = [float(each.by_class[labels[one]]) for one, each in zip((j, k), pair, strict=True)]
            gone, kept = (j, k) if own[0] < own[1] else (k, j)
            if score > found.get(numbers[i, gone], (0, 0.0))[1]:
                found[numbers[i, gone]] = (kept, score)
    return found


def _missed_features(evidence: ImageEvidence, d: int, annotations: Annotations, precision: Array) -> list[float]:
    """Of detection d, seen beside these annotations."""
    box = evidence.found.boxes[d : d + 1].astype(np.float64)
    overlap = float(pairwise_iou(box, annotations.boxes).max(initial=0))
    inside = float(covered_share(box, annotations.boxes).max(initial=0))
    around = float(covered_share(annotations.boxes, box).max(initial=0)) if len(annotations) else 0.0
    side = float(np.log(np.sqrt(max(float(area(box[0])), 1.0))))
    score = float(_logit(evidence.found.scores[d]))
    near = pairwise_iou(box, evidence.found.boxes.astype(np.float64))[0] >= SAME_PLACE_IOU
    together = 1 - float(np.prod(1 - evidence.found.scores[near]))  # of all classes: an object of an unclear class
    return [score, float(_logit(together)), overlap, inside, around, side, float(precision[evidence.found.labels[d]])]


def _missed(context: _Context) -> list[Suggestion]:
    """Objects that are detected and not annotated."""
    free, precision = [], np.zeros((2, context.num_classes))
    for e in context.evidence:
        near = e.iou.max(0, initial=0)
        own = np.flatnonzero((e.owner < 0) & (near < SAME_PLACE_IOU))
        free.append(own)
        for is_owned, rows in ((0, own), (1, np.flatnonzero(e.owner >= 0))):
            np.add.at(precision[is_owned], e.found.labels[rows], e.found.scores[rows])
    log_precision = np.log((precision[1] + 1) / (precision[0] + 1))
    observed, places = [], []
    for e, rows in zip(context.evidence, free, strict=True):
        for d in rows.tolist():
            observed.append(_missed_features(e, d, e.annotations, log_precision))
            places.append((e, d))
    planted = []
    for n in context.planted():
        i, j = context.places[n]
        e = context.evidence[i]
        owned = np.flatnonzero(e.owner == j)
        if len(owned) and e.iou[j, owned[0]] >= SAME_PLACE_IOU:
            rest = e.annotations[np.arange(len(e.annotations)) != j]
            planted.append(_missed_features(e, int(owned[0]), rest, log_precision))
    if not observed or not planted:
        return []
    # A prior share of the objects is missed: so many detections are of one, in the mean.
    expected = PRIOR * len(planted) * max(1.0, len(context.places) / MAX_PLANTED)
    odds = _odds(observed, planted, prior=min(0.5, expected / len(observed)))
    scores = odds / (1 + odds)
    suggestions = [
        Suggestion(
            "missed",
            e.image_id,
            float(score),
            box=e.found.boxes[d].astype(np.float64),
            label=int(e.found.labels[d]),
            found=float(e.found.scores[d]),
        )
        for (e, d), score in zip(places, scores, strict=True)
    ]
    return _one_for_each_place(suggestions)


def _one_for_each_place(suggestions: Sequence[Suggestion]) -> list[Suggestion]:
    """The suggestions without those that overlap a more probable one of their image."""
    kept: dict[int, list[Suggestion]] = {}
    for one in sorted(suggestions, key=lambda s: -s.score):
        own = kept.setdefault(one.image_id, [])
        boxes = np.array([other.box for other in own]).reshape(-1, 4)
        if one.box is not None and pairwise_iou(one.box[None], boxes).max(initial=0) < SAME_PLACE_IOU:
            own.append(one)
    return [one for own in kept.values() for one in own]


def _odds(observed: Sequence[Sequence[float]], planted: Sequence[Sequence[float]], *, prior: float) -> Array:
    """(n,) the odds that each observed sample has an error like the planted ones.

    Args:
        observed: features of the annotations as they are, nearly all of which are right.
        planted: features of annotations with a planted error; without any the odds are 0.
        prior: the share of errors.
    """
    if not len(planted):
        return np.zeros(len(observed))
    x, y = np.array(observed, np.float64), np.array(planted, np.float64)
    both = np.concatenate([x, y])
    mean, spread = both.mean(0), both.std(0) + 1e-6
    x, y = (x - mean) / spread, (y - mean) / spread
    weights = _logistic_regression(x, y)
    odds: Array = np.exp(np.clip(np.c_[x, np.ones(len(x))] @ weights, -30, 30)) * prior / (1 - prior)
    return odds


def _logistic_regression(negatives: Array, positives: Array) -> Array:
    """(f + 1,) weights and bias, with both sides of equal weight and a ridge penalty; Newton's method."""
    x = np.concatenate([negatives, positives])
    x = np.c_[x, np.ones(len(x))]
    target = np.r_[np.zeros(len(negatives)), np.ones(len(positives))]
    share = np.where(target > 0, 0.5 / len(positives), 0.5 / len(negatives)) * len(x)
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
