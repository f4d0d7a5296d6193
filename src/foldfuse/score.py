"""Scores: COCO's average precision and recall of predictions against annotations.

The numbers are those of hotcoco, a Rust implementation of COCO's evaluation; tests hold it against pycocotools.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from foldfuse.boxes import xyxy_to_xywh
from foldfuse.data import Dataset, read, require_annotations
from foldfuse.detections import Array, Predictions
from foldfuse.errors import InputError
from foldfuse.formats import read_predictions


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


def score_predictions(predictions: Predictions, dataset: Dataset) -> Score:
    """COCO's scores of predictions; pictures of `dataset` that they lack count as looked at and empty.

    Raises:
        InputError: the dataset has no annotations, or the predictions speak of other pictures or classes.
    """
    from hotcoco import COCO, COCOeval

    require_annotations(dataset)
    if predictions.classes != dataset.classes:
        raise InputError(
            f"the predictions are of the classes {predictions.classes}, {dataset.source} has {dataset.classes}."
        )
    unknown = set(predictions) - set(dataset.image_ids)
    if unknown:
        raise InputError(f"the predictions speak of image id {min(unknown)}, which is not in {dataset.source}.")
    truth = COCO(_coco_document(dataset))
    boxes = xyxy_to_xywh(predictions.boxes.astype(np.float64))
    table = np.column_stack(
        [
            predictions.image_ids[predictions.image_index],
            boxes,
            predictions.scores.astype(np.float64),
            predictions.labels + 1,
        ]
    ).astype(np.float64)
    evaluation = COCOeval(truth, truth.load_res(table.reshape(-1, 7)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval is not None
    precision = np.asarray(evaluation.eval["precision"])  # (IoU, recall, class, area, most)
    recall = np.asarray(evaluation.eval["recall"])  # (IoU, class, area, most)
    counts = np.bincount(_labels(dataset), minlength=len(dataset.classes))
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


def _mean(values: Array) -> float | None:
    """The mean of the values that are defined; COCO marks the others with -1."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def _labels(dataset: Dataset) -> Array:
    drawn = [s.annotations for s in dataset.samples if s.annotations is not None]
    return np.concatenate([a.labels[~a.crowd] for a in drawn])


def _coco_document(dataset: Dataset) -> dict[str, Any]:
    """The dataset in COCO's form, with category ids 1..K."""
    annotations = [
        {"image_id": s.id, "category_id": label + 1, "bbox": box, "area": area, "iscrowd": int(crowd)}
        for s in dataset.samples
        if s.annotations is not None
        for box, label, crowd, area in zip(
            xyxy_to_xywh(s.annotations.boxes).tolist(),
            s.annotations.labels.tolist(),
            s.annotations.crowd.tolist(),
            s.annotations.area.tolist(),
            strict=True,
        )
    ]
    return {
        "images": [{"id": s.id, "width": s.width, "height": s.height} for s in dataset.samples],
        "annotations": [row | {"id": i} for i, row in enumerate(annotations, 1)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(dataset.classes, 1)],
    }


def score(predictions: Path, data: Path) -> None:
    """Show COCO's scores of predictions: AP, AP50, AP75, by size and class, and average recall.

    Args:
        predictions: Parquet, COCO results JSON, or the contest's CSV.
        data: COCO JSON with annotations of the pictures that were predicted.

    Raises:
        InputError: a file cannot be used.
    """
    dataset = require_annotations(read(data))
    found = score_predictions(read_predictions(predictions, dataset), dataset)
    console = Console()
    console.print(f"{predictions} on {len(dataset)} pictures of {data}")
    whole = Table("score", "value")
    for name, title in _TITLES.items():
        whole.add_row(title, _text(getattr(found, name)))
    console.print(whole)
    classes = Table("class", "boxes", "AP", "AP50")
    for row in found.per_class:
        classes.add_row(row.name, str(row.boxes), _text(row.ap), _text(row.ap50))
    console.print(classes)


_TITLES = {
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


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
