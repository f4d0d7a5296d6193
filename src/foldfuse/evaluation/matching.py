"""Matches predicted boxes with annotated boxes by COCO's rule, for all images at once or for one image.

Detections choose in falling order of score. Each takes the free annotated box of its class with the highest IoU, if that reaches
the threshold; of equal IoUs the later box. A detection that only a crowd region covers is ignored: it is neither a true nor a
false positive. Checked against pycocotools.

Shapes: I images, G annotated boxes, n predicted boxes, T IoU thresholds, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from foldfuse.boxes import xyxy_to_xywh_of_file
from foldfuse.data.dataset import Dataset, Sample, require_annotations
from foldfuse.detections import Annotations, Array, Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.evaluation import kernels

MATCH_IOU = 0.5
NO_LIMIT = 1 << 40


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The annotations of a dataset in columns, images by rising id as COCO's evaluation ranks them.

    Attributes:
        image_ids: (I,) rising.
        boxes: (G, 4) float64 xywh; crowd regions come last in their image.
        labels, crowd: (G,).
        offsets: (I + 1,) image i owns rows offsets[i]:offsets[i + 1].
        num_classes: K.
        samples: (I,) the images, in the order of `image_ids`.
        classes: the K class names.
    """

    image_ids: Array
    boxes: Array
    labels: Array
    crowd: Array
    offsets: Array
    num_classes: int
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]

    @property
    def columns(self) -> tuple[Array, Array, Array, Array]:
        """The columns that the matching kernel takes."""
        return self.boxes, self.labels, self.crowd, self.offsets

    @cached_property
    def objects(self) -> tuple[Array, Array]:
        """Image index and label of each annotated box that is no crowd region."""
        image = np.repeat(np.arange(len(self.image_ids)), np.diff(self.offsets))
        return image[~self.crowd], self.labels[~self.crowd]


def ground_truth(dataset: Dataset) -> GroundTruth:
    """The annotations of `dataset` in columns. An image without annotations has no boxes."""
    samples = sorted(dataset.samples, key=lambda sample: sample.id)
    annotations = [s.annotations or Annotations.empty() for s in samples]
    ordered = [Annotations.empty(), *(a[np.argsort(a.crowd, kind="stable")] for a in annotations)]
    return GroundTruth(
        image_ids=np.array([s.id for s in samples], np.int64),
        boxes=xyxy_to_xywh_of_file(np.concatenate([a.boxes for a in ordered])),
        labels=np.concatenate([a.labels for a in ordered]).astype(np.int64),
        crowd=np.concatenate([a.crowd for a in ordered]).astype(bool),
        offsets=np.cumsum([0, *map(len, annotations)], dtype=np.int64),
        num_classes=len(dataset.classes),
        samples=tuple(samples),
        classes=dataset.classes,
    )


def check_compatible(predictions: Predictions, dataset: Dataset) -> None:
    """Raise InputError unless `predictions` can be scored against `dataset`.

    Raises:
        InputError: the dataset has no annotations, the classes differ, or a predicted image is not in the dataset.
    """
    require_annotations(dataset)
    if predictions.classes != dataset.classes:
        raise InputError(
            f"the predictions have the classes {', '.join(predictions.classes)}; {dataset.source} has "
            f"{', '.join(dataset.classes)}. Give the annotations of the predicted images."
        )
    unknown = set(predictions) - set(dataset.image_ids)
    if unknown:
        raise InputError(
            f"the predictions hold image id {min(unknown)}, which is not in {dataset.source} ({len(unknown)} such "
            "images). Give the annotations of the predicted images."
        )


def require_unlearnt(predictions: Predictions, name: str, why: str) -> None:
    """Raise InputError where predictions to choose something on are of images that their network has learnt from.

    Args:
        predictions: the predictions.
        name: their name in the sentence.
        why: what would go wrong.
    """
    learnt = predictions.learnt_ids & set(predictions)
    if learnt:
        raise InputError(
            f"{name}: {len(learnt)} of its {len(predictions)} images, such as image id {min(learnt)}, are images that its run "
            f"has learnt from; {why}. Predict again without --all, which leaves them out."
        )


@dataclass(frozen=True, eq=False)
class Matches:
    """Predicted boxes and their status; rows by image, then by falling score.

    Attributes:
        truth: the annotations that the boxes were matched with.
        image: (n,) index into truth.image_ids.
        labels, scores: (n,).
        status: (n, T) int8, kernels.TRUE, FALSE or IGNORED at each IoU threshold; kernels.EMPTY in a row without a box, whose
            label and score may be anything.
    """

    truth: GroundTruth
    image: Array
    labels: Array
    scores: Array
    status: Array

    def without_empty_rows(self) -> Matches:
        """The same boxes, with no other rows."""
        rows = self.status[:, 0] != kernels.EMPTY
        return Matches(self.truth, self.image[rows], self.labels[rows], self.scores[rows], self.status[rows])


def match_predictions(
    predictions: Predictions, truth: GroundTruth, *, ious: tuple[float, ...], max_detections: int = 100
) -> Matches:
    """The Matches of predictions with annotations.

    Args:
        predictions: predictions of images in `truth`; an image that the predictions lack counts as an image without detections.
        truth: the annotations.
        ious: thresholds, rising; an IoU equal to a threshold reaches it.
        max_detections: number of boxes that count per class and image, by highest score.
    """
    image = np.searchsorted(truth.image_ids, predictions.image_ids)[predictions.image_index]
    order = np.lexsort((-predictions.scores, image))
    boxes = xyxy_to_xywh_of_file(predictions.boxes[order])
    labels, image = predictions.labels[order], image[order]
    counts = np.bincount(image, minlength=len(truth.image_ids))
    starts = np.cumsum(counts) - counts
    status = np.empty((len(boxes), len(ious)), np.int8)
    matched = np.full((len(ious), len(truth.boxes)), -1)
    images = (0, len(truth.image_ids))
    columns = truth.columns, truth.num_classes
    kernels.match(boxes, labels, starts, counts, images, max_detections, *columns, np.array(ious), status, matched)
    return Matches(truth, image, labels, predictions.scores[order], status)


@dataclass(frozen=True, eq=False)
class ImageMatch:
    """The match of one image's n detections with its m annotations, at IoU 0.5.

    Attributes:
        is_tp: (n,) bool; the detection is a true positive.
        not_ignored: (n,) bool; False for a detection that only a crowd region covers.
        matched_detection: (m,) int64; the index of the detection that found the annotation, -1 where none did.
    """

    is_tp: Array
    not_ignored: Array
    matched_detection: Array


def match_image(detections: Detections, annotations: Annotations) -> ImageMatch:
    """The ImageMatch of one image; no limit to the number of detections."""
    order, truth_order = np.argsort(-detections.scores, kind="stable"), np.argsort(annotations.crowd, kind="stable")
    ranked, truth = detections[order], annotations[truth_order]
    num_classes = 1 + max([0, *detections.labels, *annotations.labels])
    status, matched = np.empty((len(ranked), 1), np.int8), np.full((1, len(truth)), -1)
    kernels.match(
        xyxy_to_xywh_of_file(ranked.boxes),
        ranked.labels.astype(np.int64),
        np.zeros(1, np.int64),
        np.array([len(ranked)]),
        (0, 1),
        NO_LIMIT,
        (xyxy_to_xywh_of_file(truth.boxes), truth.labels, truth.crowd, np.array([0, len(truth)])),
        num_classes,
        np.array([MATCH_IOU]),
        status,
        matched,
    )
    by_detection = np.empty(len(ranked), np.int8)
    by_detection[order] = status[:, 0]
    is_matched = (matched[0] >= 0) & ~truth.crowd
    matched_detection = np.full(len(truth), -1, np.int64)
    matched_detection[truth_order[is_matched]] = order[matched[0][is_matched]]
    return ImageMatch(by_detection == kernels.TRUE, by_detection != kernels.IGNORED, matched_detection)


def f1_score(detections: Detections, annotations: Annotations) -> float:
    """F1 of one image's detections; 1 where there is neither an annotation nor a detection."""
    result = match_image(detections, annotations)
    total = int(result.not_ignored.sum()) + int((~annotations.crowd).sum())
    return 2 * int(result.is_tp.sum()) / total if total else 1.0
