"""The score threshold with the best F-beta, of all classes together and of each class, from out-of-fold predictions.

F-beta = (1 + b^2) TP / (b^2 objects + boxes) at IoU 0.5, of the boxes whose score reaches the threshold. The threshold of a class
maximises its own F-beta, with PRIOR_OBJECTS further objects that are found as those of all classes are: few objects follow all
classes, many follow themselves. A class with fewer than MIN_OBJECTS objects takes the threshold of all classes.

A threshold fits the images that it was chosen on. So F is reported twice: on these images, and cross-validated, each part of the
images at the thresholds that the other parts choose.

Shapes: I images, K classes, n boxes of one class or of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Array, Predictions
from foldfuse.errors import InputError, shown
from foldfuse.evaluation import kernels
from foldfuse.evaluation.matching import (
    MATCH_IOU,
    NO_LIMIT,
    GroundTruth,
    check_compatible,
    ground_truth,
    match_predictions,
)
from foldfuse.system.records import read_record, write_record

THRESHOLDS = "thresholds.json"  # in the folder of a run, and of a campaign and its submissions
THRESHOLDS_FORMAT = 1
ALL_CLASSES = "all classes"
MIN_OBJECTS = 10
PRIOR_OBJECTS = 40.0
FOLDS = 5
SAMPLES = 200  # bootstrap resamples of the images, for the intervals
MAX_BOX_SAMPLES = 20_000_000  # boxes times resamples: of more boxes there are fewer resamples
MIN_SAMPLES = 40
MAX_CELLS = 4_000_000  # of boxes and resamples at a time, for memory
BEST, BEST_BY_CLASS = "best", "best-by-class"
Choice = Literal["best", "best-by-class"]


@dataclass(frozen=True)
class ClassThreshold:
    """The threshold of one class, or of all classes together.

    Attributes:
        name: the class.
        score: boxes whose score is not lower are kept.
        low, high: the 95 % interval of `score` over bootstrap resamples of the images.
        objects: annotated objects, without crowd regions.
        f, precision, recall: at `score`, on the images that chose it; None without objects.
        is_own: whether the class has objects enough for a threshold of its own.
    """

    name: str
    score: float
    low: float
    high: float
    objects: int
    f: float | None
    precision: float | None
    recall: float | None
    is_own: bool = True


@dataclass(frozen=True)
class FScores:
    """F-beta at some thresholds: of all boxes together, and the mean over the annotated classes."""

    all_boxes: float
    class_mean: float


@dataclass(frozen=True)
class Thresholds:
    """The best score thresholds, and what they bring.

    Attributes:
        beta: of F-beta.
        num_images: the images that chose them.
        best: the one threshold of all classes together.
        by_class: the threshold of each class, in the order of the classes.
        one, each: F at the one threshold, and at the threshold of each class, on the images that chose them: optimistic.
        one_cv, each_cv: the same, cross-validated; None for a single image.
        steps: the optimizer steps of the run that predicted; None for a campaign and for files of predictions.
    """

    beta: float
    num_images: int
    best: ClassThreshold
    by_class: tuple[ClassThreshold, ...]
    one: FScores
    each: FScores
    one_cv: FScores | None
    each_cv: FScores | None
    steps: int | None = None

    @property
    def followers(self) -> tuple[str, ...]:
        """The annotated classes that take the threshold of all classes, since they have few objects."""
        return tuple(one.name for one in self.by_class if one.objects and not one.is_own)

    @property
    def f_name(self) -> str:
        """The name of the F score, such as "F1"."""
        return f"F{self.beta:g}"

    def scores(self, classes: Sequence[str], choice: Choice) -> Array:
        """(K,) the threshold of each of some classes.

        Raises:
            InputError: a class has none.
        """
        if choice == BEST:
            return np.full(len(classes), self.best.score)
        known = {one.name: one.score for one in self.by_class}
        missing = [name for name in classes if name not in known]
        if missing:
            raise InputError(
                f"the class {shown(missing[0])} has no score threshold: the thresholds were chosen for {', '.join(known)}. Give "
                f"one number for all classes, or {BEST}."
            )
        return np.array([known[name] for name in classes])

    def apply(self, predictions: Predictions, choice: Choice) -> Predictions:
        """The boxes whose score reaches the threshold. Raises InputError as `scores` does."""
        return predictions.filter(predictions.scores >= self.scores(predictions.classes, choice)[predictions.labels])


def choose_thresholds(predictions: Predictions, dataset: Dataset, *, beta: float = 1.0, seed: int = 0) -> Thresholds:
    """The Thresholds of out-of-fold predictions; an image that they lack counts as one without detections.

    Args:
        predictions: out-of-fold.
        dataset: annotated.
        beta: above 1, a missed object costs more than a box too many.
        seed: of the resamples, and of the parts of the cross-validation.

    Raises:
        InputError: the predictions do not fit the dataset.
    """
    check_compatible(predictions, dataset)
    boxes = _boxes(predictions, ground_truth(dataset))
    num_images, once = len(dataset), np.ones(len(dataset), np.int64)
    rng = np.random.default_rng(seed)
    (chosen,) = boxes.choose(once[None], beta)
    samples = int(np.clip(MAX_BOX_SAMPLES / max(len(boxes.scores), 1), MIN_SAMPLES, SAMPLES))
    counts = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=samples)
    low, high = np.quantile(boxes.choose(counts, beta), (0.025, 0.975), axis=0)
    low, high = np.minimum(low, chosen), np.maximum(high, chosen)
    own = boxes.objects(once) >= MIN_OBJECTS
    one, each = np.full(boxes.num_classes, chosen[-1]), chosen[:-1]
    totals = boxes.totals(each, once)
    best = _threshold(ALL_CLASSES, (chosen[-1], low[-1], high[-1]), boxes.totals(one, once).sum(1), beta)
    one_cv = each_cv = None
    if num_images > 1:
        part_of = rng.permutation(num_images) % min(FOLDS, num_images)
        held_out = part_of == np.arange(part_of.max() + 1)[:, None]  # (parts, I)
        parts = list(zip(boxes.choose(~held_out, beta), held_out, strict=True))
        one_cv = _f_scores(sum(boxes.totals(np.full(boxes.num_classes, t[-1]), held) for t, held in parts), beta)
        each_cv = _f_scores(sum(boxes.totals(t[:-1], held) for t, held in parts), beta)
    return Thresholds(
        beta=float(beta),
        num_images=num_images,
        best=best,
        by_class=tuple(
            replace(_threshold(label, (each[k], low[k], high[k]), totals[:, k], beta), is_own=bool(own[k]))
            for k, label in enumerate(dataset.classes)
        ),
        one=_f_scores(boxes.totals(one, once), beta),
        each=_f_scores(totals, beta),
        one_cv=one_cv,
        each_cv=each_cv,
    )


def write_thresholds(path: Path, thresholds: Thresholds) -> None:
    """Writes thresholds.json."""
    write_record(path, thresholds, version=THRESHOLDS_FORMAT)


def read_thresholds(path: Path) -> Thresholds:
    """The Thresholds in a file that `write_thresholds` wrote.

    Raises:
        InputError: the file is missing or broken, or a threshold is not in 0..1.
    """
    found = read_record(path, Thresholds, version=THRESHOLDS_FORMAT, what="score thresholds")
    for one in (found.best, *found.by_class):
        if not 0 <= one.score <= 1:
            raise InputError(f"{path}: the threshold of {shown(one.name)} is {one.score:g}, and must be in 0..1.")
    return found


@dataclass(frozen=True, eq=False)
class _Group:
    """Some boxes by their score: U different scores.

    Attributes:
        rows: their rows, by falling score.
        starts: (U,) where each score begins in `rows`.
        scores: (U,) falling.
    """

    rows: Array
    starts: Array
    scores: Array

    def sums(self, weight: Array) -> Array:
        """(S, U) the weight of all boxes from each score on, of the (n, S) weights of all boxes."""
        if not len(self.rows):
            return np.zeros((weight.shape[1], 0))
        return np.add.reduceat(weight[self.rows], self.starts, axis=0).cumsum(0).T

    def best(self, tp: Array, boxes: Array, objects: Array, beta: float) -> Array:
        """(S,) the score with the best F-beta, 0 where there is no true positive; the highest of equally good ones."""
        if not len(self.scores):
            return np.zeros(len(tp))
        f = tp / np.maximum(boxes + beta**2 * objects, 1e-12)
        return np.where(tp[:, -1] > 0, self.scores[f.argmax(1)], 0.0)


def _group(scores: Array, rows: Array) -> _Group:
    own = scores[rows]
    starts = np.flatnonzero(np.append(True, own[1:] != own[:-1])) if len(rows) else np.zeros(0, np.int64)
    return _Group(rows, starts, own[starts])


@dataclass(frozen=True, eq=False)
class _Boxes:
    """The boxes that count, by falling score, and the objects.

    Attributes:
        scores: (n,) rounded down to three significant digits, so that a threshold survives the rounding of another engine.
        labels, image, is_tp: (n,).
        object_labels, object_image: of each object.
        num_classes: K.
    """

    scores: Array
    labels: Array
    image: Array
    is_tp: Array
    object_labels: Array
    object_image: Array
    num_classes: int

    @cached_property
    def groups(self) -> list[_Group]:
        """The rows of each class, then those of all classes."""
        rows = [np.flatnonzero(self.labels == k) for k in range(self.num_classes)]
        return [_group(self.scores, each) for each in (*rows, np.arange(len(self.labels)))]

    def objects(self, counts: Array) -> Array:
        """(K,) objects of each class, where image i counts counts[i] times."""
        return np.bincount(self.object_labels, counts[self.object_image], self.num_classes)

    def choose(self, counts: Array, beta: float) -> Array:
        """(S, K + 1) the best threshold of each class, then of all classes, in each of S samples of the images.

        Args:
            counts: (S, I) how often each image is in each sample.
            beta: of F-beta.

        A threshold is 0 where no box finds an object.
        """
        size = max(1, MAX_CELLS // max(len(self.scores), 1))
        return np.concatenate([self._choose(counts[i : i + size], beta) for i in range(0, len(counts), size)])

    def _choose(self, counts: Array, beta: float) -> Array:
        objects = np.stack([self.objects(each) for each in counts])  # (S, K)
        weight = np.ascontiguousarray(counts.T, np.float64)[self.image]  # (n, S)
        tp_weight = weight * self.is_tp[:, None]
        every, total = self.groups[-1], objects.sum(1, keepdims=True)
        tp, boxes = every.sums(tp_weight), every.sums(weight)  # (S, U), from the highest score down
        chosen = np.zeros((len(counts), self.num_classes + 1))
        chosen[:, -1] = every.best(tp, boxes, total, beta)
        # of all classes, by object: found objects and boxes from each score on
        prior_tp, prior_boxes = (np.pad(each, ((0, 0), (1, 0))) / np.maximum(total, 1) for each in (tp, boxes))
        for k, group in enumerate(self.groups[:-1]):
            above = np.searchsorted(-every.scores, -group.scores, side="right")  # scores of `every` that are not lower
            num = objects[:, [k]] + PRIOR_OBJECTS
            tp, boxes = group.sums(tp_weight), group.sums(weight)
            found = tp[:, -1] if tp.shape[1] else np.zeros(len(counts))
            tp, boxes = tp + PRIOR_OBJECTS * prior_tp[:, above], boxes + PRIOR_OBJECTS * prior_boxes[:, above]
            own = np.where(found > 0, group.best(tp, boxes, num, beta), 0.0)
            chosen[:, k] = np.where(objects[:, k] < MIN_OBJECTS, chosen[:, -1], own)
        return chosen

    def totals(self, thresholds: Array, counts: Array) -> Array:
        """(3, K) true positives, boxes and objects of each class at the thresholds of the classes."""
        weight = counts[self.image] * (self.scores >= thresholds[self.labels])
        tp, boxes = (np.bincount(self.labels, each, self.num_classes) for each in (weight * self.is_tp, weight))
        return np.stack([tp, boxes, self.objects(counts)])


def _boxes(predictions: Predictions, truth: GroundTruth) -> _Boxes:
    matches = match_predictions(predictions, truth, ious=(MATCH_IOU,), max_detections=NO_LIMIT)
    counted = matches.status[:, 0] != kernels.IGNORED
    scores = rounded_down(matches.scores[counted])
    order = np.argsort(-scores, kind="stable")
    columns = (matches.labels, matches.image, matches.status[:, 0] == kernels.TRUE)
    labels, image, is_tp = (column[counted][order] for column in columns)
    object_image, object_labels = truth.objects
    return _Boxes(scores[order], labels, image, is_tp, object_labels, object_image, truth.num_classes)


def rounded_down(scores: Array) -> Array:
    """Scores rounded down to three significant digits."""
    scores = scores.astype(np.float64)
    digits = 2 - np.floor(np.log10(np.maximum(scores, 1e-12)))
    scale = 10.0**digits
    whole = np.floor(scores * scale + 1e-9)
    rounded = whole / scale
    return np.where(rounded > scores, (whole - 1) / scale, rounded)


def _threshold(name: str, score_low_high: tuple[float, float, float], totals: Array, beta: float) -> ClassThreshold:
    score, low, high = map(float, score_low_high)
    tp, boxes, objects = map(float, totals)
    if not objects:
        return ClassThreshold(name, score, low, high, 0, None, None, None)
    f = (1 + beta**2) * tp / (beta**2 * objects + boxes)
    return ClassThreshold(name, score, low, high, int(objects), f, tp / boxes if boxes else 0.0, tp / objects)


def _f_scores(totals: Array | int, beta: float) -> FScores:
    tp, boxes, objects = np.asarray(totals)
    f = (1 + beta**2) * tp / np.maximum(beta**2 * objects + boxes, 1e-12)
    annotated = objects > 0
    every = (1 + beta**2) * tp.sum() / max(beta**2 * objects.sum() + boxes.sum(), 1e-12)
    return FScores(float(every), float(f[annotated].mean()) if annotated.any() else 0.0)
