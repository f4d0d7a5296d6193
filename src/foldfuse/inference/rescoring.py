"""Crop rescoring: a classifier scores the crop of each detection, and its probability is blended into the detection's score.

A detector trained on few images learns to find objects before it learns to tell their classes apart. An ImageNet-pretrained
network that sees each box alone tells them apart better. A box of score s gets the score s^(1 - alpha) p^alpha, where p is the
probability that the crop shows the box's class. One more class, the background, is trained on detections that match no object.

`fit_rescorer` chooses alpha on out-of-fold predictions. The classifier that scores an image has seen neither its objects nor its
detections, and the gain is measured by nested cross-validation, with an alpha chosen on other images. Scores do not change where
a gain is not likely.

Shapes: n boxes, of which m have crops; K classes, column K of probabilities is the background; D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foldfuse.data.crops import detection_crops, object_crops
from foldfuse.data.dataset import Dataset
from foldfuse.data.folds import Folds, make_folds
from foldfuse.detections import Array, Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.evaluation.bootstrap import Difference, bootstrap_difference
from foldfuse.evaluation.matching import check_compatible, require_unlearnt
from foldfuse.evaluation.metrics import measure
from foldfuse.inference.crop_encoder import CropEncoder
from foldfuse.inference.crop_features import imagenet_encoder
from foldfuse.inference.rescorer import ENCODING_SHARE, Blend, Rescorer, median_log_p, rescored
from foldfuse.inference.rescoring_data import (
    TrainingCrops,
    encode_training_crops,
    label_detections,
    sample_objects,
)
from foldfuse.system.progress import Progress, no_progress, span
from foldfuse.system.records import to_plain

PARTS = 5  # of the cross-validation where `folds` gives none
RIDGES = (0.1, 0.3, 1.0)  # 0.03 was never the likeliest
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
LEAST_PROB_BETTER = 0.65  # share of the bootstrap resamples that must show a gain: likely, not certain


@dataclass(frozen=True)
class RescoringFacts:
    """The result of crop rescoring in numbers, as rescore.json and a campaign's ledger hold them.

    Attributes:
        metric: the metric that decided.
        accepted: whether a gain is likely; otherwise scores are unchanged.
        alpha, background: the blend in use.
        before, after: the metric of the given and of the rescored predictions, on the images that chose the blend.
        gain: the gain by nested cross-validation, over bootstrap resamples of the images.
        accuracy: share of the boxes on an object whose class the classifier, trained without their image, gets right.
        ridge: the ridge of the probe.
    """

    metric: str
    accepted: bool
    alpha: float
    background: bool
    before: float
    after: float
    gain: Difference
    accuracy: float
    ridge: float


@dataclass(frozen=True, eq=False)
class RescoringResult:
    """A trained rescorer, and the predictions that it was chosen on.

    Attributes:
        rescorer: trained on everything; leaves scores unchanged where a gain is not likely.
        predictions: the given ones rescored, each image by a classifier trained without it.
        facts: the gain of the rescorer in numbers.
        best: the blend with the best score on these images, accepted or not.
    """

    rescorer: Rescorer
    predictions: Predictions
    facts: RescoringFacts
    best: Blend

    @property
    def accepted(self) -> bool:
        """Whether a gain is likely."""
        return self.facts.accepted

    @property
    def after(self) -> float:
        """The metric of the rescored predictions."""
        return self.facts.after

    @property
    def gain(self) -> Difference:
        """The gain by nested cross-validation."""
        return self.facts.gain

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON holds them."""
        return to_plain(self.facts)


def fit_rescorer(
    predictions: Predictions,
    dataset: Dataset,
    *,
    folds: Folds | None = None,
    encoder: CropEncoder | None = None,
    metric: str = "ap50",
    max_detections: int = 30,
    max_objects: int = 1500,
    seed: int = 0,
    progress: Progress = no_progress,
) -> RescoringResult:
    """A rescorer trained on out-of-fold predictions and annotated images, and these predictions rescored.

    Args:
        predictions: out-of-fold, of all images of `dataset` or some.
        dataset: annotated; objects on images without predictions are trained on as well.
        folds: the cross-validation leaves out one fold at a time where the predictions cover several folds.
        encoder: the encoder of the crops; by default EfficientNet-Lite1 with ImageNet weights.
        metric: the name of a metric, see `evaluation.metrics`.
        max_detections: number of boxes per image that get crops, by highest score.
        max_objects: crops of annotated objects to train on; of more, a random choice balanced over the classes. If there are
            fewer than half as many, their mirror images are trained on as well.
        seed: the random seed of that choice, of the cross-validation and of the bootstrap.
        progress: gets the finished share of the work.

    Raises:
        InputError: the predictions do not fit the dataset or cover too few images, or an image cannot be decoded.
    """
    check_compatible(predictions, dataset)
    require_unlearnt(predictions, "the predictions to rescore", "a rescorer chosen on them would trust scores too much")
    val = dataset.subset(predictions)
    predictions = predictions.select_images(val.image_ids)
    if len(val) < PARTS or not len(predictions.boxes):
        raise InputError(
            f"there are {len(predictions.boxes)} boxes on {len(val)} images to rescore; expected boxes, and {PARTS} images "
            "or more, so that each image can be rescored by a classifier trained without it."
        )
    encoder = encoder or imagenet_encoder()
    num_classes = len(dataset.classes)
    part_of = _parts(val, folds, seed)
    crops, rows = detection_crops(predictions, val.samples, max_per_image=max_detections)
    objects = sample_objects(object_crops(dataset), max_objects, num_classes, np.random.default_rng(seed))
    encoding, training = span(progress, 0.0, ENCODING_SHARE), span(progress, ENCODING_SHARE, 1.0)
    mirror = 2 * len(objects) <= max_objects
    train = encode_training_crops(objects, label_detections(crops, num_classes), encoder, part_of, mirror, encoding)
    ridge, log_p = _cross_validate(train, num_classes, training)

    candidates = {
        blend: rescored(predictions, rows, log_p, blend)
        for blend in (Blend(alpha, background) for background in (True, False) for alpha in ALPHAS)
        if blend.alpha or blend.background
    }
    best = _best_blend(candidates, val, metric)
    gain = bootstrap_difference(
        _nested_predictions(candidates, val, metric, part_of), predictions, val, metric, seed=seed
    )
    accepted = best.alpha > 0 and gain.prob_better >= LEAST_PROB_BETTER
    blend = best if accepted else Blend()
    labels = train.labels[train.detections]
    on_object = np.flatnonzero((labels >= 0) & (labels < num_classes))
    correct = log_p[on_object, :num_classes].argmax(1) == labels[on_object]
    return RescoringResult(
        rescorer=Rescorer(
            train.fit(num_classes, [ridge])[ridge],
            encoder,
            blend,
            max_detections,
            median_log_p(predictions, rows, log_p, best),
        ),
        predictions=candidates[blend],
        facts=RescoringFacts(
            metric=metric,
            accepted=accepted,
            alpha=blend.alpha,
            background=blend.background,
            before=measure(predictions, val, metric=metric),
            after=measure(candidates[blend], val, metric=metric),
            gain=gain,
            accuracy=float(correct.mean()) if len(on_object) else 0.0,
            ridge=ridge,
        ),
        best=best,
    )


def _cross_validate(train: TrainingCrops, num_classes: int, progress: Progress) -> tuple[float, Array]:
    """The ridge with the highest likelihood, and (m, K + 1) log p of each detection by a probe trained without its part."""
    x, parts, labels = (column[train.detections] for column in (train.features, train.parts, train.labels))
    labeled = np.flatnonzero(labels >= 0)
    log_p = {ridge: np.empty((len(x), num_classes + 1)) for ridge in RIDGES}
    own_parts = np.unique(parts).tolist()
    for done, part in enumerate(own_parts, start=1):
        own = parts == part
        for ridge, probe in train.fit(num_classes, RIDGES, without=part).items():
            log_p[ridge][own] = probe.log_probabilities(x[own])
        progress(done / len(own_parts))
    best = max(RIDGES, key=lambda ridge: float(log_p[ridge][labeled, labels[labeled]].mean()))
    return best, log_p[best]


def _best_blend(candidates: Mapping[Blend, Predictions], val: Dataset, metric: str) -> Blend:
    """The blend with the best score on `val`; of equal scores the one with the smaller alpha.

    Scores are means with those of the next smaller and larger alpha, so that chance on a few images decides less.
    """
    scores = {blend: measure(p.select_images(val.image_ids), val, metric=metric) for blend, p in candidates.items()}

    def smoothed(blend: Blend) -> float:
        i = ALPHAS.index(blend.alpha)
        near = (ALPHAS[max(0, i - 1)], blend.alpha, ALPHAS[min(i + 1, len(ALPHAS) - 1)])
        return sum(scores[Blend(alpha, blend.background if alpha else True)] for alpha in near) / len(near)

    return max(scores, key=lambda blend: (smoothed(blend), -blend.alpha))


def _nested_predictions(
    candidates: Mapping[Blend, Predictions], val: Dataset, metric: str, part_of: Mapping[int, int]
) -> Predictions:
    """Each part of the images rescored with the blend that is best on the other parts."""
    rescored_images: dict[int, Detections] = {}
    for part in set(part_of.values()):
        others = val.subset(i for i in val.image_ids if part_of[i] != part)
        annotated = any(len(s.annotations) for s in others.samples if s.annotations is not None)
        chosen = candidates[_best_blend(candidates, others, metric) if annotated else Blend()]
        rescored_images |= {i: chosen[i] for i in val.image_ids if part_of[i] == part}
    return Predictions.of({i: rescored_images[i] for i in val.image_ids}, val.classes)


def _parts(val: Dataset, folds: Folds | None, seed: int) -> dict[int, int]:
    """{image id: part of the cross-validation}: the given folds if the images are of several, else new ones."""
    if folds is not None:
        given = {i: folds.fold_of[i] for i in val.image_ids if i in folds.fold_of}
        if len(given) == len(val) and len(set(given.values())) > 1:
            return given
    with_objects = sum(bool((~s.annotations.crowd).any()) for s in val.samples if s.annotations is not None)
    return dict(make_folds(val, num_folds=max(2, min(PARTS, with_objects)), seed=seed).fold_of)
