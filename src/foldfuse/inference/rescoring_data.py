"""Training data of crop rescoring: features and labels of the crops of annotated objects and of detections.

Shapes: n crops; K classes, class K is the background; D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from foldfuse.boxes import pairwise_iou
from foldfuse.data.crops import Crops
from foldfuse.detections import Annotations, Array
from foldfuse.inference.crop_encoder import CropEncoder, LinearProbe, features, mirrored
from foldfuse.inference.crop_features import fit_probes
from foldfuse.system.progress import Progress, span

OBJECT_IOU = 0.5  # a box with at least this IoU has the object's class
BACKGROUND_IOU = 0.3  # a box below this IoU is background
OBJECT_WEIGHT = 0.5  # weight of an annotated object in the training loss; a detection has weight 1


def label_detections(crops: Crops, num_classes: int) -> Crops:
    """Crops of detections, each labelled with the class of the object it overlaps, K for background, -1 in between."""
    labels = np.full(len(crops), num_classes)
    for i in np.unique(crops.image_index):
        sample = crops.samples[i]
        annotations = (sample.annotations or Annotations.empty()).clipped(sample.width, sample.height)
        if len(annotations):
            rows = np.flatnonzero(crops.image_index == i)
            iou = pairwise_iou(crops.boxes[rows].astype(np.float64), annotations.boxes)
            best, overlap = iou.argmax(1), iou.max(1)
            other = np.where(overlap < BACKGROUND_IOU, num_classes, -1)
            on_object = (overlap >= OBJECT_IOU) & ~annotations.crowd[best]
            labels[rows] = np.where(on_object, annotations.labels[best], other)
    return replace(crops, labels=labels)


@dataclass(frozen=True, eq=False)
class TrainingCrops:
    """Training data of a probe: crops of annotated objects, then of detections.

    Attributes:
        features: (n, D).
        labels: (n,) class; K for background, -1 for a crop that is not trained on.
        weights: (n,) weight in the loss.
        parts: (n,) part of the cross-validation; -1 for an image without predictions.
        num_objects: number of rows that are annotated objects.
    """

    features: Array
    labels: Array
    weights: Array
    parts: Array
    num_objects: int

    @property
    def detections(self) -> slice:
        """The rows of the detections."""
        return slice(self.num_objects, None)

    def fit(self, num_classes: int, ridges: Sequence[float], *, without: int | None = None) -> dict[float, LinearProbe]:
        """{ridge: a probe trained on all parts, or on all parts except `without`}."""
        rows = self.labels >= 0
        if without is not None:
            rows &= self.parts != without
        x, y, weights = self.features[rows], self.labels[rows], self.weights[rows]
        return fit_probes(x, y, weights, num_classes=num_classes + 1, ridges=ridges)


def encode_training_crops(
    objects: Crops,
    detections: Crops,
    encoder: CropEncoder,
    part_of: Mapping[int, int],
    mirror: bool,
    progress: Progress,
) -> TrainingCrops:
    """The features of the crops of objects, of their mirror images if `mirror`, and of labelled detections."""
    encoders = [encoder, mirrored(encoder)] if mirror else [encoder]
    crops = [*[objects] * len(encoders), detections]
    ends = np.cumsum([0, *map(len, crops)])
    spans = [span(progress, low / ends[-1], high / ends[-1]) for low, high in pairwise(ends.tolist())]
    parts_of = [np.array([part_of.get(s.id, -1) for s in c.samples])[c.image_index] for c in crops]
    encoded = [features(c, e, progress=p) for c, e, p in zip(crops, [*encoders, encoder], spans, strict=True)]
    return TrainingCrops(
        features=np.concatenate(encoded),
        labels=np.concatenate([c.labels for c in crops]),
        weights=np.repeat([OBJECT_WEIGHT, 1.0], [ends[-2], len(detections)]),
        parts=np.concatenate(parts_of),
        num_objects=int(ends[-2]),
    )


def sample_objects(crops: Crops, most: int, num_classes: int, rng: np.random.Generator) -> Crops:
    """A random choice of at most `most` crops, with the same number from each class where the class has enough."""
    if len(crops) <= most:
        return crops
    order = rng.permutation(len(crops))
    rank = np.empty(len(crops), np.int64)  # rank of each crop within its class, in random order
    for label in range(num_classes):
        own = order[crops.labels[order] == label]
        rank[own] = np.arange(len(own))
    mask = np.zeros(len(crops), bool)
    mask[np.lexsort((order, rank))[:most]] = True
    return crops.filter(mask)
