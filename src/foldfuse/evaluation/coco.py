"""Scores: COCO's average precision and recall of predictions against annotations, and where the points are lost.

The numbers are those of hotcoco, a Rust implementation of COCO's evaluation; tests hold it against pycocotools. The
kinds of error are those of TIDE, arXiv:2008.08115, as hotcoco counts them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from foldfuse.boxes import xyxy_to_xywh
from foldfuse.data.dataset import Dataset, require_annotations
from foldfuse.detections import Annotations, Array, Predictions
from foldfuse.evaluation import metrics

ERRORS = {  # hotcoco's key: what it means
    "Cls": "right place, wrong class",
    "Loc": "right class, box is off (IoU 0.1 to 0.5)",
    "Both": "wrong class, and the box is off",
    "Dupe": "a second box on a found object",
    "Bkg": "nothing is there",
    "Miss": "object that no box is near",
}


@dataclass(frozen=True)
class ClassScore:
    """Average precision of one class; None where nothing of it is annotated."""

    name: str
    boxes: int
    ap: float | None
    ap50: float | None


@dataclass(frozen=True)
class Score:
    """COCO's numbers, each in 0..1, or None where nothing annotated is of the kind.

    Attributes:
        ap: mean over IoU 0.50:0.95 and classes; ap50 and ap75 at one IoU.
        ap_small, ap_medium, ap_large: ap of objects of under 32^2, under 96^2, and more pixels.
        ar1, ar10, ar100: average recall with so many boxes a picture at the most.
        per_class: in the order of the classes.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    per_class: tuple[ClassScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Where predictions lose points, all at IoU 0.5.

    Attributes:
        precision: (K, 101) at recalls 0.00, 0.01 .. 1.00; NaN for a class that is not annotated.
        threshold: the score at which cutting gives the best F1 of all boxes together; one of 0.00, 0.01 .. 0.99.
        confusion: (K + 1, K + 1) counts of boxes scored at least `threshold`: row the annotated class, column the
            predicted one; the last row is "nothing annotated there", the last column "nothing found there".
        tide_delta_ap: {TIDE's kind of error: AP50 that mending all errors of the kind would bring}.
        tide_counts: {kind: how many such boxes or objects}.
    """

    precision: Array
    threshold: float
    confusion: Array
    tide_delta_ap: dict[str, float]
    tide_counts: dict[str, int]


def score_predictions(predictions: Predictions, dataset: Dataset) -> Score:
    """COCO's scores of predictions; pictures of `dataset` that they lack count as looked at and empty.

    Raises:
        InputError: the dataset has no annotations, or the predictions speak of other pictures or classes.
    """
    evaluation = _evaluated(predictions, dataset)
    precision = np.asarray(evaluation.eval["precision"])  # (IoU, recall, class, area, most)
    recall = np.asarray(evaluation.eval["recall"])  # (IoU, class, area, most)
    drawn = _columns(dataset)[1]
    counts = np.bincount(drawn.labels[~drawn.crowd], minlength=len(dataset.classes))
    return Score(
        ap=_mean(precision[..., 0, 2]),
        ap50=_mean(precision[0, ..., 0, 2]),
        ap75=_mean(precision[5, ..., 0, 2]),
        ap_small=_mean(precision[..., 1, 2]),
        ap_medium=_mean(precision[..., 2, 2]),
        ap_large=_mean(precision[..., 3, 2]),
        ar1=_mean(recall[..., 0, 0]),
        ar10=_mean(recall[..., 0, 1]),
        ar100=_mean(recall[..., 0, 2]),
        per_class=tuple(
            ClassScore(name, int(counts[k]), _mean(precision[:, :, k, 0, 2]), _mean(precision[0, :, k, 0, 2]))
            for k, name in enumerate(dataset.classes)
        ),
    )


def diagnose(predictions: Predictions, dataset: Dataset) -> Diagnosis:
    """Precision-recall curves, confusion between classes and TIDE's six kinds of error.

    Raises:
        InputError: as for `score_predictions`.
    """
    evaluation = _evaluated(predictions, dataset)
    curves = np.asarray(evaluation.eval["precision"])[0, :, :, 0, 2].T  # (K, 101)
    truth = metrics.ground_truth(dataset)
    matches = metrics.match(predictions, truth, ious=(0.5,), max_detections=metrics.NO_LIMIT)
    f1 = metrics.f_beta(matches, 1.0)(np.ones((1, len(truth.image_ids)), np.int64))[0]
    threshold = float(metrics.THRESHOLDS[f1.argmax()])
    errors, counts = _tide(evaluation)
    return Diagnosis(
        precision=np.where(curves < 0, np.nan, curves),
        threshold=round(threshold, 2),
        confusion=np.asarray(evaluation.confusion_matrix(iou_thr=0.5, min_score=threshold)["matrix"]).astype(np.int64),
        tide_delta_ap=errors,
        tide_counts=counts,
    )


def tide_delta_ap(predictions: Predictions, dataset: Dataset) -> tuple[dict[str, float], dict[str, int]]:
    """Of each of the ERRORS, the AP50 that mending all of its kind would bring, and how many of them there are.

    Raises:
        InputError: as for `score_predictions`.
    """
    return _tide(_evaluated(predictions, dataset))


def _tide(evaluation: Any) -> tuple[dict[str, float], dict[str, int]]:
    tide = evaluation.tide_errors(pos_thr=0.5, bg_thr=0.1)
    return {k: float(tide["delta_ap"][k]) for k in ERRORS}, {k: int(tide["counts"][k]) for k in ERRORS}


def _mean(values: Array) -> float | None:
    """The mean of the values that are defined; COCO marks the others with -1."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def _columns(dataset: Dataset) -> tuple[Array, Annotations]:
    """(G,) image ids, and the annotations of all images as one."""
    drawn = [(s.id, s.annotations) for s in dataset.samples if s.annotations is not None]
    image_ids = np.repeat([i for i, _ in drawn], [len(a) for _, a in drawn])
    columns = ("boxes", "labels", "crowd", "area")
    return image_ids, Annotations(*(np.concatenate([getattr(a, name) for _, a in drawn]) for name in columns))


def _evaluated(predictions: Predictions, dataset: Dataset) -> Any:
    """hotcoco's evaluation, accumulated; category ids are label + 1."""
    from hotcoco import COCO, COCOeval

    require_annotations(dataset)
    metrics.check_compatible(predictions, dataset)
    image_ids, drawn = _columns(dataset)
    truth = COCO.from_arrays(
        [{"id": s.id, "width": s.width, "height": s.height} for s in dataset.samples],
        [{"id": k, "name": name} for k, name in enumerate(dataset.classes, 1)],
        image_ids,
        drawn.labels + 1,
        xyxy_to_xywh(drawn.boxes.astype(np.float64)),
        area=drawn.area.astype(np.float64),
        iscrowd=drawn.crowd.astype(np.int64),
    )
    rows = np.column_stack(
        [
            predictions.image_ids[predictions.image_index],
            xyxy_to_xywh(predictions.boxes.astype(np.float64)),
            predictions.scores.astype(np.float64),
            predictions.labels + 1,
        ]
    ).astype(np.float64)  # (n, 7)
    evaluation = COCOeval(truth, truth.load_res(rows), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation
