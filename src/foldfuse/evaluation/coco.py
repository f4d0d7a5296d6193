"""Scores predictions by COCO's average precision and recall.

hotcoco, a Rust implementation of COCO's evaluation, computes the numbers. Checked against pycocotools.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from foldfuse.boxes import xyxy_to_xywh_of_file
from foldfuse.data.dataset import Dataset
from foldfuse.detections import Annotations, Array, Predictions
from foldfuse.display import MAX_ROWS, table_html, value_html
from foldfuse.evaluation.matching import check_compatible

SCORE_NAMES = {  # of the fields of a Score
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar1": "AR1",
    "ar10": "AR10",
    "ar100": "AR100",
}


@dataclass(frozen=True)
class ClassScore:
    """Average precision of one class; None where no box of the class is annotated."""

    name: str
    boxes: int
    ap: float | None
    ap50: float | None


@dataclass(frozen=True, repr=False)
class Score:
    """COCO's numbers, each in 0..1, or None where no annotated box is of the size or class.

    Attributes:
        ap: mean over IoU 0.50:0.95 and classes; ap50 and ap75 at one IoU.
        ap_small, ap_medium, ap_large: AP of objects of under 32^2, under 96^2, and more pixels.
        ar1, ar10, ar100: average recall with at most this many boxes an image.
        per_class: the scores of each class, in the order of the classes.
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
        """The score as JSON holds it."""
        return asdict(self)

    def __repr__(self) -> str:
        """Such as "Score(AP 0.4120, AP50 0.7031, AP75 0.4410; 60 classes)"."""
        numbers = (("AP", self.ap), ("AP50", self.ap50), ("AP75", self.ap75))
        shown = ", ".join(f"{name} {'–' if value is None else f'{value:.4f}'}" for name, value in numbers)
        return f"Score({shown}; {len(self.per_class)} class{'' if len(self.per_class) == 1 else 'es'})"

    def _repr_html_(self) -> str:
        """What a notebook shows: COCO's numbers, and the scores of the classes."""
        totals = table_html(list(SCORE_NAMES.values()), [[getattr(self, field) for field in SCORE_NAMES]])
        rows = [(one.name, one.boxes, one.ap, one.ap50) for one in self.per_class[:MAX_ROWS]]
        classes = table_html(["class", "boxes", "AP", "AP50"], rows, more=len(self.per_class) - len(rows))
        return value_html(repr(self), totals, classes if rows else "")


def score_predictions(predictions: Predictions, dataset: Dataset) -> Score:
    """COCO's scores; an image of `dataset` that the predictions lack counts as an image without detections.

    Raises:
        InputError: the predictions do not fit the dataset (see `check_compatible`).
    """
    evaluation = evaluate(predictions, dataset)
    precision = np.asarray(evaluation.eval["precision"])  # (IoU, recall, class, area, max detections)
    recall = np.asarray(evaluation.eval["recall"])  # (IoU, class, area, max detections)
    annotations = _columns(dataset)[1]
    counts = np.bincount(annotations.labels[~annotations.crowd], minlength=len(dataset.classes))
    return Score(
        ap=defined_mean(precision[..., 0, 2]),
        ap50=defined_mean(precision[0, ..., 0, 2]),
        ap75=defined_mean(precision[5, ..., 0, 2]),
        ap_small=defined_mean(precision[..., 1, 2]),
        ap_medium=defined_mean(precision[..., 2, 2]),
        ap_large=defined_mean(precision[..., 3, 2]),
        ar1=defined_mean(recall[..., 0, 0]),
        ar10=defined_mean(recall[..., 0, 1]),
        ar100=defined_mean(recall[..., 0, 2]),
        per_class=tuple(
            ClassScore(
                name, int(counts[k]), defined_mean(precision[:, :, k, 0, 2]), defined_mean(precision[0, :, k, 0, 2])
            )
            for k, name in enumerate(dataset.classes)
        ),
    )


def defined_mean(values: Array) -> float | None:
    """The mean of the defined values, None if no value is defined; COCO marks an undefined value with -1."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def evaluate(predictions: Predictions, dataset: Dataset) -> Any:
    """hotcoco's COCOeval of the predictions, accumulated; category ids are label + 1.

    Raises:
        InputError: the predictions do not fit the dataset.
    """
    from hotcoco import COCO, COCOeval

    check_compatible(predictions, dataset)
    image_ids, annotations = _columns(dataset)
    truth = COCO.from_arrays(
        [{"id": s.id, "width": s.width, "height": s.height} for s in dataset.samples],
        [{"id": k, "name": name} for k, name in enumerate(dataset.classes, 1)],
        image_ids,
        annotations.labels + 1,
        xyxy_to_xywh_of_file(annotations.boxes),
        area=annotations.area.astype(np.float64),
        iscrowd=annotations.crowd.astype(np.int64),
    )
    rows = np.column_stack(
        [
            predictions.image_ids[predictions.image_index],
            xyxy_to_xywh_of_file(predictions.boxes),
            predictions.scores.astype(np.float64),
            predictions.labels + 1,
        ]
    ).astype(np.float64)  # (n, 7)
    evaluation = COCOeval(truth, truth.load_res(rows), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _columns(dataset: Dataset) -> tuple[Array, Annotations]:
    """(G,) image ids, and the annotations of all images as one."""
    annotated = [(s.id, s.annotations) for s in dataset.samples if s.annotations is not None]
    image_ids = np.repeat([i for i, _ in annotated], [len(a) for _, a in annotated])
    columns = ("boxes", "labels", "crowd", "area")
    return image_ids, Annotations(*(np.concatenate([getattr(a, name) for _, a in annotated]) for name in columns))
