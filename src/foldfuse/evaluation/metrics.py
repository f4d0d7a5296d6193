"""Metrics that an ensemble search can afford: predictions are matched once, then measured on any resampling of the images.

`score_predictions` gives the official numbers; these agree with them to 1e-6 (tested). Names: those of METRICS; "ap" and two
digits, such as ap30, for AP at one IoU threshold; "f" and a number, such as f0.5, for F-beta; and file.py:name for a function of
the user's own (`custom_metric`). To add a metric, write a function from Matches to a ResampledMetric and give it a line in
METRICS.

Shapes: I images, K classes, S samples of the images; 100 score thresholds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Array, Predictions
from foldfuse.errors import InputError, unknown_name
from foldfuse.evaluation import kernels
from foldfuse.evaluation.custom_metric import CustomMetric, custom_metric, is_custom, load_custom_metric
from foldfuse.evaluation.matching import (
    NO_LIMIT,
    GroundTruth,
    Matches,
    check_compatible,
    ground_truth,
    match_predictions,
)

COCO_IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
WHEAT_IOUS = COCO_IOUS[:6]
_HUNDREDTHS = np.arange(100) / 100
THRESHOLDS = np.minimum(_HUNDREDTHS, _HUNDREDTHS.astype(np.float32))  # a network's scores are float32

# (S, I) how often each image is in each of S samples -> (S,) values in 0..1
ResampledMetric = Callable[[Array], Array]


def mean_ap(matches: Matches) -> ResampledMetric:
    """COCO's average precision, mean over the IoU thresholds and the classes that are annotated in the sample."""
    truth = matches.truth
    rankings = [rank(matches, t) for t in range(matches.status.shape[1])]

    def measure(image_counts: Array) -> Array:
        by_iou = [kernels.average_precision(*ranking, *truth.objects, image_counts) for ranking in rankings]
        per_class = np.mean(by_iou, 0)  # (S, K)
        annotated = per_class >= 0
        return np.where(annotated, per_class, 0).sum(1) / np.maximum(annotated.sum(1), 1)

    return measure


def rank(matches: Matches, t: int) -> tuple[Array, Array, Array, Array]:
    """The ranking at the t-th IoU threshold, as `kernels.rank` returns it."""
    status = np.ascontiguousarray(matches.status[:, t])
    return kernels.rank(status, matches.labels, matches.scores, matches.image, matches.truth.num_classes)


def best_f(beta: float) -> Callable[[Matches], ResampledMetric]:
    """F-beta of all boxes of all classes together, at the score threshold that is best for the sample."""
    weight = beta**2

    def prepare(matches: Matches) -> ResampledMetric:
        true, false = _counts_by_threshold(matches, 0)
        annotated = np.bincount(matches.truth.objects[0], minlength=len(true))

        def measure(image_counts: Array) -> Array:
            tp, fp, total = image_counts @ true, image_counts @ false, (image_counts @ annotated)[:, None]
            # (1 + b^2) TP / (b^2 (TP + FN) + TP + FP); without an object and a box there is no TP either
            return ((1 + weight) * tp / np.maximum(weight * total + tp + fp, min(weight, 1))).max(1)

        return measure

    return prepare


def best_wheat(matches: Matches) -> ResampledMetric:
    """Mean over images and IoU thresholds of TP / (TP + FP + FN), at the score threshold that is best for the sample.

    An image without annotations counts 1 where it has no detection, and 0 otherwise.
    """
    annotated = np.bincount(matches.truth.objects[0], minlength=len(matches.truth.image_ids))[:, None]
    per_iou = []
    for t in range(matches.status.shape[1]):
        true, false = _counts_by_threshold(matches, t)
        union = false + annotated  # TP + FP + FN
        per_iou.append(np.where(union > 0, true / np.maximum(union, 1), 1.0))
    per_image = np.mean(per_iou, 0)  # (I, 100)
    return lambda image_counts: ((image_counts @ per_image) / np.maximum(image_counts.sum(1), 1)[:, None]).max(1)


def _counts_by_threshold(matches: Matches, t: int) -> tuple[Array, Array]:
    """(I, 100) true and false positives of each image at the t-th IoU, at score thresholds 0.00, 0.01 .. 0.99."""
    shape = len(matches.truth.image_ids), len(THRESHOLDS)

    def count(status: int) -> Array:
        rows = np.flatnonzero(matches.status[:, t] == status)
        bins = np.searchsorted(THRESHOLDS, matches.scores[rows], side="right") - 1
        cells = matches.image[rows] * len(THRESHOLDS) + bins
        return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)[:, ::-1].cumsum(1)[:, ::-1]

    return count(kernels.TRUE), count(kernels.FALSE)


@dataclass(frozen=True)
class Metric:
    """A metric: how predictions are matched for it, and the function that measures the matches.

    Attributes:
        prepare: makes a ResampledMetric of matches.
        ious: thresholds to match at.
        max_detections: boxes of a class that count in an image.
    """

    prepare: Callable[[Matches], ResampledMetric]
    ious: tuple[float, ...]
    max_detections: int

    def of(self, predictions: Predictions, truth: GroundTruth) -> ResampledMetric:
        """The metric of predictions, ready for any sample of the images."""
        return self.prepare(match_predictions(predictions, truth, ious=self.ious, max_detections=self.max_detections))


METRICS: dict[str, Metric] = {
    "ap": Metric(mean_ap, COCO_IOUS, max_detections=100),
    "ap50": Metric(mean_ap, (0.5,), max_detections=100),
    "f1": Metric(best_f(1), (0.5,), max_detections=NO_LIMIT),
    "f2": Metric(best_f(2), (0.5,), max_detections=NO_LIMIT),
    "wheat": Metric(best_wheat, WHEAT_IOUS, max_detections=NO_LIMIT),
}


MAX_BETA = 10.0
FORMS = ("ap75 (AP at one IoU, 0.05 to 0.95)", "f0.5 (F-beta)", "file.py:name (a function of your own)")


def get_metric(name: str) -> Metric | CustomMetric:
    """The metric of this name; the file of a custom metric is run.

    Raises:
        InputError: there is no such metric, or a custom metric cannot be loaded.
    """
    if name in METRICS:
        return METRICS[name]
    if is_custom(name):
        return custom_metric(name)
    if (found := re.fullmatch(r"ap([0-9]{2})", name)) and 5 <= int(found[1]) <= 95:
        return Metric(mean_ap, (iou_of(int(found[1])),), max_detections=100)
    beta = beta_of(name)
    if beta is not None:
        return Metric(best_f(beta), (0.5,), max_detections=NO_LIMIT)
    error = unknown_name("metric", name, METRICS)
    raise InputError(f"{error} Or {', '.join(FORMS)}.")


def open_metric(name: str) -> None:
    """Checks the metric that a command names; a custom metric whose text has changed since an earlier call is run again.

    Raises:
        InputError: there is no such metric, or a custom metric cannot be loaded.
    """
    if is_custom(name):
        load_custom_metric(name)
    get_metric(name)


def iou_of(hundredths: int) -> float:
    """An IoU threshold from its hundredths; one of COCO's is the very number that COCO's evaluation has."""
    return next((iou for iou in COCO_IOUS if round(100 * iou) == hundredths), hundredths / 100)


def beta_of(name: str) -> float | None:
    """The beta of a metric called "f" and a number; None for another metric."""
    found = re.fullmatch(r"f([0-9]{1,2}(?:\.[0-9]{1,3})?)", name)
    return float(found[1]) if found and 0 < float(found[1]) <= MAX_BETA else None


def measure(predictions: Predictions, dataset: Dataset, *, metric: str = "ap50") -> float:
    """The value of a metric, in 0..1; of a custom metric, what its function returns.

    Raises:
        InputError: the metric is unknown or fails, or the predictions do not fit the dataset (see `check_compatible`).
    """
    chosen = get_metric(metric)
    check_compatible(predictions, dataset)
    once = np.ones((1, len(dataset)), np.int64)
    return float(chosen.of(predictions, ground_truth(dataset))(once)[0])
