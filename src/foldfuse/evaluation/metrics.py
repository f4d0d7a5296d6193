"""Metrics that a search can afford: matched once, then measured on any choice or resampling of the images.

`score` gives the official numbers; these agree with it to 1e-6 (a test holds that) and are made for comparing thousands
of candidates. To add a metric, write a function from Matches to a ResampledMetric and give it a line in METRICS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from foldfuse.boxes import xyxy_to_xywh
from foldfuse.data.dataset import Dataset, require_annotations
from foldfuse.detections import Annotations, Array, Predictions
from foldfuse.errors import InputError, unknown_name
from foldfuse.evaluation import kernels

COCO_IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
WHEAT_IOUS = COCO_IOUS[:6]
THRESHOLDS = np.arange(100, dtype=np.float32) / np.float32(100)
NO_LIMIT = 1 << 40

# (S, I) how often each image is in each of S samples -> (S,) values in 0..1
ResampledMetric = Callable[[Array], Array]


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The annotations of a dataset in columns, images by rising id as COCO's evaluation ranks them.

    Attributes:
        image_ids: (I,) rising.
        boxes: (G, 4) float64 xywh; of one image, crowds come last.
        labels, crowd: (G,).
        offsets: (I + 1,) image i owns rows offsets[i]:offsets[i + 1].
        num_classes: K.
    """

    image_ids: Array
    boxes: Array
    labels: Array
    crowd: Array
    offsets: Array
    num_classes: int
    counted: tuple[Array, Array] = field(init=False, repr=False)  # image and label of the boxes that are no crowds

    @property
    def columns(self) -> tuple[Array, Array, Array, Array]:
        """As the matching kernel takes them."""
        return self.boxes, self.labels, self.crowd, self.offsets

    def __post_init__(self) -> None:
        image = np.repeat(np.arange(len(self.image_ids)), np.diff(self.offsets))
        object.__setattr__(self, "counted", (image[~self.crowd], self.labels[~self.crowd]))


def ground_truth(dataset: Dataset) -> GroundTruth:
    """The annotations of `dataset` in columns. Raises InputError where not one object is annotated."""
    samples = sorted(require_annotations(dataset).samples, key=lambda sample: sample.id)
    drawn = [a[np.argsort(a.crowd, kind="stable")] for a in (s.annotations or Annotations.empty() for s in samples)]
    return GroundTruth(
        image_ids=np.array([s.id for s in samples], np.int64),
        boxes=xyxy_to_xywh(np.concatenate([a.boxes for a in drawn]).astype(np.float64)),
        labels=np.concatenate([a.labels for a in drawn]).astype(np.int64),
        crowd=np.concatenate([a.crowd for a in drawn]).astype(bool),
        offsets=np.cumsum([0, *map(len, drawn)], dtype=np.int64),
        num_classes=len(dataset.classes),
    )


@dataclass(frozen=True, eq=False)
class Matches:
    """Predicted boxes and whether each is right; rows by image, then by falling score.

    Attributes:
        truth: what they were matched with.
        image: (n,) position in truth.image_ids.
        labels, scores: (n,).
        status: (n, T) int8, kernels.TRUE, FALSE or IGNORED at each IoU threshold.
    """

    truth: GroundTruth
    image: Array
    labels: Array
    scores: Array
    status: Array


def check_compatible(predictions: Predictions, dataset: Dataset) -> None:
    """Nothing, if the predictions may be scored on `dataset`.

    Raises:
        InputError: the classes differ, or an image is not in the dataset.
    """
    if predictions.classes != dataset.classes:
        raise InputError(
            f"the predictions are of the classes {', '.join(predictions.classes)}; {dataset.source} has "
            f"{', '.join(dataset.classes)}. Give the annotations of what was predicted."
        )
    unknown = set(predictions) - set(dataset.image_ids)
    if unknown:
        raise InputError(
            f"the predictions speak of image id {min(unknown)}, which is not in {dataset.source} ({len(unknown)} such "
            "images). Give the annotations of the pictures that were predicted."
        )


def match(
    predictions: Predictions, truth: GroundTruth, *, ious: tuple[float, ...], max_detections: int = 100
) -> Matches:
    """Predictions matched with annotations as COCO does it: by falling score, each to the free box it overlaps most.

    Args:
        predictions: of images in `truth`; images that they lack count as looked at and empty.
        truth: the annotations.
        ious: thresholds, rising; an IoU equal to one is enough.
        max_detections: boxes of a class that count in an image, those of the highest scores.
    """
    image = np.searchsorted(truth.image_ids, predictions.image_ids)[predictions.image_index]
    order = np.lexsort((-predictions.scores, image))
    boxes, labels, image = predictions.boxes[order], predictions.labels[order], image[order]
    counts = np.bincount(image, minlength=len(truth.image_ids))
    starts = np.cumsum(counts) - counts
    status = np.empty((len(boxes), len(ious)), np.int8)
    images = (0, len(truth.image_ids))
    columns = truth.columns, truth.num_classes
    kernels.match(boxes, labels, starts, counts, images, max_detections, *columns, np.array(ious), status)
    return Matches(truth, image, labels, predictions.scores[order], status)


def mean_ap(matches: Matches) -> ResampledMetric:
    """COCO's average precision, mean over the IoU thresholds and the classes that are annotated in the sample."""
    truth = matches.truth
    ranked = [
        kernels.slots(
            np.ascontiguousarray(matches.status[:, t]), matches.labels, matches.scores, matches.image, truth.num_classes
        )
        for t in range(matches.status.shape[1])
    ]

    def measure(image_counts: Array) -> Array:
        per_class = np.mean([kernels.average_precision(*r, *truth.counted, image_counts) for r in ranked], 0)  # (S, K)
        annotated = per_class >= 0
        return np.where(annotated, per_class, 0).sum(1) / np.maximum(annotated.sum(1), 1)

    return measure


def counts_at(matches: Matches, t: int) -> tuple[Array, Array]:
    """(I, 100) true and false positives of each image at the t-th IoU, scores cut at 0.00, 0.01 .. 0.99."""
    bins = np.searchsorted(THRESHOLDS, matches.scores, side="right") - 1
    cells = matches.image * len(THRESHOLDS) + bins
    shape = len(matches.truth.image_ids), len(THRESHOLDS)

    def at_least(status: int) -> Array:
        hist = np.bincount(cells[matches.status[:, t] == status], minlength=shape[0] * shape[1]).reshape(shape)
        return hist[:, ::-1].cumsum(1)[:, ::-1]

    return at_least(kernels.TRUE), at_least(kernels.FALSE)


def f_beta(matches: Matches, beta: float) -> Callable[[Array], Array]:
    """(S, I) -> (S, 100): F-beta of all boxes of all classes together, scores cut at 0.00, 0.01 .. 0.99."""
    true, false = counts_at(matches, 0)
    annotated = np.bincount(matches.truth.counted[0], minlength=len(true))
    weight = beta * beta

    def curve(image_counts: Array) -> Array:
        right, wrong, total = (
            image_counts @ true,
            image_counts @ false,
            (image_counts @ annotated)[:, None],
        )  # (S, 100), (S, 100), (S, 1)
        both = weight * total + right + wrong  # beta^2 (TP + FN) + TP + FP
        return (1 + weight) * right / np.maximum(both, 1)

    return curve


def best_f2(matches: Matches) -> ResampledMetric:
    """F2 at the score threshold that is best for the sample."""
    curve = f_beta(matches, 2.0)
    return lambda image_counts: curve(image_counts).max(1)


def best_wheat(matches: Matches) -> ResampledMetric:
    """Mean over images and IoUs of TP / (TP + FP + FN), at the score threshold that is best for the sample.

    An image with nothing annotated counts 1 where nothing is found and 0 else.
    """
    annotated = np.bincount(matches.truth.counted[0], minlength=len(matches.truth.image_ids))[:, None]
    per_iou = []
    for t in range(matches.status.shape[1]):
        true, false = counts_at(matches, t)
        union = false + annotated  # TP + FP + FN
        per_iou.append(np.where(union > 0, true / np.maximum(union, 1), 1.0))
    of_image = np.mean(per_iou, 0)  # (I, 100)
    return lambda image_counts: ((image_counts @ of_image) / np.maximum(image_counts.sum(1), 1)[:, None]).max(1)


@dataclass(frozen=True)
class Metric:
    """How to measure: which matches it wants, and the function."""

    prepare: Callable[[Matches], ResampledMetric]
    ious: tuple[float, ...]
    max_detections: int  # boxes of a class that count in an image


METRICS: dict[str, Metric] = {
    "ap": Metric(mean_ap, COCO_IOUS, max_detections=100),
    "ap50": Metric(mean_ap, (0.5,), max_detections=100),
    "f2": Metric(best_f2, (0.5,), max_detections=NO_LIMIT),
    "wheat": Metric(best_wheat, WHEAT_IOUS, max_detections=NO_LIMIT),
}


def get_metric(name: str) -> Metric:
    """The metric of this name. Raises InputError where there is none."""
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]


def measure(predictions: Predictions, dataset: Dataset, *, metric: str = "ap50") -> float:
    """The value of a metric, in 0..1.

    Raises:
        InputError: no such metric; nothing is annotated; the predictions are of other images or classes.
    """
    chosen, truth = get_metric(metric), ground_truth(dataset)
    check_compatible(predictions, dataset)
    every = np.ones((1, len(truth.image_ids)), np.int64)
    return float(
        chosen.prepare(match(predictions, truth, ious=chosen.ious, max_detections=chosen.max_detections))(every)[0]
    )


@dataclass(frozen=True)
class Difference:
    """How much better one is than another, over resampled images.

    Attributes:
        mean: of the differences.
        low, high: the middle 95 % of them.
        prob_better: share of the samples in which the first is better.
    """

    mean: float
    low: float
    high: float
    prob_better: float


def bootstrap_difference(
    a: Predictions, b: Predictions, dataset: Dataset, metric: str = "ap50", *, samples: int = 1000, seed: int = 0
) -> Difference:
    """How much better `a` is than `b` when the images are drawn anew, with replacement, the same ones for both.

    Raises:
        InputError: as for `measure`; fewer than one sample.
    """
    chosen, truth = get_metric(metric), ground_truth(dataset)
    for predictions in (a, b):
        check_compatible(predictions, dataset)
    first, second = (
        chosen.prepare(match(p, truth, ious=chosen.ious, max_detections=chosen.max_detections)) for p in (a, b)
    )
    return difference(first, second, num_images=len(truth.image_ids), samples=samples, seed=seed)


def difference(
    first: ResampledMetric, second: ResampledMetric, *, num_images: int, samples: int = 1000, seed: int = 0
) -> Difference:
    """The same from two Measures of the same images."""
    if samples < 1:
        raise InputError(f"samples is {samples}, and must be 1 or more; 1000 is usual.")
    rng = np.random.default_rng(seed)
    image_counts = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=samples)  # (S, I)
    gain = first(image_counts) - second(image_counts)
    low, high = np.quantile(gain, (0.025, 0.975))
    return Difference(float(gain.mean()), float(low), float(high), float((gain > 0).mean()))
