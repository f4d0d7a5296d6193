"""Diagnoses predictions: precision-recall curves, the best score threshold, the confusion matrix and TIDE's types of error.

The confusion matrix and the errors are hotcoco's. Source of the errors: Bolya et al., "TIDE", arXiv:2008.08115.

Shapes: K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Array, Predictions
from foldfuse.evaluation import kernels
from foldfuse.evaluation.coco import defined_mean, evaluate
from foldfuse.evaluation.matching import MATCH_IOU, NO_LIMIT, Matches, ground_truth, match_predictions
from foldfuse.evaluation.metrics import COCO_IOUS, rank

ERRORS = {  # TIDE's type of error: its meaning
    "Cls": "right place, wrong class",
    "Loc": "right class, box is off (IoU 0.1 to 0.5)",
    "Both": "wrong class, and the box is off",
    "Dupe": "a second box on a found object",
    "Bkg": "nothing is there",
    "Miss": "object that no box is near",
}

ERROR_NAMES = {  # of the ERRORS, written out
    "Cls": "classification",
    "Loc": "localisation",
    "Both": "class and localisation",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}


@dataclass(frozen=True)
class ErrorCost:
    """A type of error: the AP50 gained if all its errors were fixed, and their number at the best score threshold."""

    name: str
    meaning: str
    ap50: float
    count: int


@dataclass(frozen=True, eq=False)
class Curve:
    """The precision-recall curve of one class at IoU 0.5.

    Attributes:
        name: the name of the class.
        boxes: number of annotated boxes.
        precision: (101,) at recalls 0.00, 0.01 .. 1.00; at each recall the best precision that is still to come.
    """

    name: str
    boxes: int
    precision: Array


@dataclass(frozen=True)
class BestThreshold:
    """The score threshold with the best F1, at IoU 0.5; boxes with a score equal to it count.

    Attributes:
        score: the threshold, 0 where no box is a true positive.
        precision, recall, f1: at the threshold.
    """

    score: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The diagnosis of predictions; every field except `ap_by_iou` is at IoU 0.5.

    Attributes:
        classes: names of the K classes.
        ap_by_iou: {IoU threshold 0.50, 0.55 .. 0.95: mean over the annotated classes of COCO's average precision}.
        curves: the precision-recall curve of each annotated class.
        best: the threshold of all boxes together.
        best_by_class: the threshold of each class; None where nothing is annotated.
        confusion: (K + 1, K + 1) counts of boxes with a score of at least best.score: rows are annotated classes, columns
            predicted ones; the last row and the last column are the background.
        error_costs: the cost of each type of error, in falling order; the numbers are of boxes that score at least best.score.
    """

    classes: tuple[str, ...]
    ap_by_iou: dict[float, float | None]
    curves: tuple[Curve, ...]
    best: BestThreshold
    best_by_class: tuple[BestThreshold | None, ...]
    confusion: Array
    error_costs: tuple[ErrorCost, ...]

    def top_confusions(self, num: int) -> list[tuple[int, int, int]]:
        """(row, column, count) of the largest counts of `confusion` off the diagonal, at most `num`, by falling count."""
        counts = self.confusion.copy()
        np.fill_diagonal(counts, 0)
        order = np.argsort(-counts, axis=None, kind="stable")[:num]
        rows, columns = np.unravel_index(order, counts.shape)
        return [(int(i), int(j), int(counts[i, j])) for i, j in zip(rows, columns, strict=True) if counts[i, j]]


def diagnose(predictions: Predictions, dataset: Dataset) -> Diagnosis:
    """The Diagnosis of predictions; an image that the predictions lack counts as an image without detections.

    Raises:
        InputError: the predictions do not fit the dataset (see `check_compatible`).
    """
    evaluation = evaluate(predictions, dataset)
    precision = np.asarray(evaluation.eval["precision"])  # (IoU, recall, class, area, max detections)
    truth = ground_truth(dataset)
    matches = match_predictions(predictions, truth, ious=(MATCH_IOU,), max_detections=NO_LIMIT)
    annotated = np.bincount(truth.objects[1], minlength=truth.num_classes)
    best = best_threshold(matches)
    gains, counts = _tide(evaluation)[0], count_errors(predictions.filter(predictions.scores >= best.score), dataset)
    costs = [ErrorCost(ERROR_NAMES[kind], ERRORS[kind], gains[kind], counts[kind]) for kind in ERRORS]
    return Diagnosis(
        classes=dataset.classes,
        ap_by_iou={round(iou, 2): defined_mean(precision[t, :, :, 0, 2]) for t, iou in enumerate(COCO_IOUS)},
        curves=tuple(precision_recall(match_predictions(predictions, truth, ious=(MATCH_IOU,)), dataset.classes)),
        best=best,
        best_by_class=tuple(best_threshold(matches, label=k) if n else None for k, n in enumerate(annotated)),
        confusion=np.asarray(evaluation.confusion_matrix(iou_thr=MATCH_IOU, min_score=best.score)["matrix"], np.int64),
        error_costs=tuple(sorted(costs, key=lambda cost: -cost.ap50)),
    )


def precision_recall(matches: Matches, classes: Sequence[str]) -> list[Curve]:
    """The Curve of each annotated class, in the order of `classes`, at the first IoU threshold of `matches`."""
    image, label = matches.truth.objects
    curves = np.empty((len(classes), 101))
    once = np.ones(len(matches.truth.image_ids), np.int64)
    kernels.precision_recall(*rank(matches, 0), image, label, once, curves)
    boxes = np.bincount(label, minlength=len(classes)).tolist()
    return [Curve(name, boxes[k], curves[k]) for k, name in enumerate(classes) if boxes[k]]


def best_threshold(matches: Matches, *, label: int | None = None) -> BestThreshold:
    """The BestThreshold of the boxes of all classes together, or of one class."""
    rows = matches.status[:, 0] != kernels.IGNORED
    objects = matches.truth.objects[1]
    if label is not None:
        rows &= matches.labels == label
        objects = objects[objects == label]
    scores, is_tp = matches.scores[rows], matches.status[rows, 0] == kernels.TRUE
    if not is_tp.any():
        return BestThreshold(0.0, 0.0, 0.0, 0.0)
    order = np.argsort(-scores, kind="stable")
    tp, kept = is_tp[order].cumsum(), np.arange(1, len(order) + 1)
    f1 = 2 * tp / (kept + len(objects))
    last_of_its_score = np.append(np.diff(scores[order]) != 0, True)  # boxes of equal score stay together
    i = int(np.where(last_of_its_score, f1, -1).argmax())
    return BestThreshold(float(scores[order][i]), float(tp[i] / kept[i]), float(tp[i] / len(objects)), float(f1[i]))


def count_errors(predictions: Predictions, dataset: Dataset) -> dict[str, int]:
    """{type of error: number of such boxes or objects}.

    Raises:
        InputError: as for `diagnose`.
    """
    return _tide(evaluate(predictions, dataset))[1]


def class_error_cost(predictions: Predictions, dataset: Dataset) -> float:
    """The AP50 gained if each box at an object's place had the object's class.

    Raises:
        InputError: as for `diagnose`.
    """
    return _tide(evaluate(predictions, dataset))[0]["Cls"]


def _tide(evaluation: Any) -> tuple[dict[str, float], dict[str, int]]:
    tide = evaluation.tide_errors(pos_thr=MATCH_IOU, bg_thr=0.1)
    return {k: float(tide["delta_ap"][k]) for k in ERRORS}, {k: int(tide["counts"][k]) for k in ERRORS}
