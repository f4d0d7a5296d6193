"""Applies a crop rescorer: the probability that a box's crop shows the box's class is blended into the box's score.

A box of score s gets the score s^(1 - alpha) p^alpha. `rescoring` trains the rescorer and chooses alpha. Works without torch.

Shapes: n boxes, of which m have crops; K classes, column K of probabilities is the background; D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from foldfuse.data.crops import detection_crops
from foldfuse.data.dataset import Sample
from foldfuse.detections import Array, Predictions
from foldfuse.inference.crop_encoder import CropEncoder, LinearProbe, features
from foldfuse.system.progress import Progress, no_progress

MIN_LOG_P = -12.0
ENCODING_SHARE = 0.75  # of the time in which a rescorer is fitted; the probes and the choice of a blend take the rest


@dataclass(frozen=True)
class Blend:
    """The settings that blend the classifier's probability into the score.

    Attributes:
        alpha: the exponent in s^(1 - alpha) p^alpha; 0 leaves scores unchanged.
        background: whether p is over all K + 1 classes, or over the K classes given that there is an object.
    """

    alpha: float = 0.0
    background: bool = True


@dataclass(frozen=True, eq=False)
class Rescorer:
    """A trained crop rescorer, for `apply_rescorer`.

    Attributes:
        probe: the linear classifier of crop features.
        encoder: makes the features.
        blend: the settings that blend the probability into the score.
        max_detections: number of boxes per image that get crops, by highest score.
        default_log_p: log p of a box without a crop.
    """

    probe: LinearProbe
    encoder: CropEncoder
    blend: Blend
    max_detections: int
    default_log_p: float


def apply_rescorer(
    rescorer: Rescorer, predictions: Predictions, samples: Sequence[Sample], *, progress: Progress = no_progress
) -> Predictions:
    """The predictions of the images `samples`, rescored; unchanged where the rescorer has no likely gain.

    Raises:
        InputError: an image was not predicted, or cannot be decoded.
    """
    predictions = predictions.select_images([s.id for s in samples])
    if not rescorer.blend.alpha or not len(predictions.boxes):
        return predictions
    crops, rows = detection_crops(predictions, samples, max_per_image=rescorer.max_detections)
    log_p = rescorer.probe.log_probabilities(features(crops, rescorer.encoder, progress=progress))
    return rescored(predictions, rows, log_p, rescorer.blend, default_log_p=rescorer.default_log_p)


def rescored(
    predictions: Predictions, rows: Array, log_p: Array, blend: Blend, *, default_log_p: float | None = None
) -> Predictions:
    """Predictions with the classifier's probability blended into their scores.

    Args:
        predictions: n boxes.
        rows: (m,) boxes with crops.
        log_p: (m, K + 1) of these boxes.
        blend: the settings that blend the probability into the score.
        default_log_p: log p of the boxes without crops; by default the median log p of the boxes with crops.
    """
    if not blend.alpha:
        return predictions
    default = median_log_p(predictions, rows, log_p, blend) if default_log_p is None else default_log_p
    class_log_p = np.full(len(predictions.boxes), default)
    class_log_p[rows] = class_log_probs(predictions, rows, log_p, blend)
    log_s = np.log(np.maximum(predictions.scores, np.finfo(np.float32).tiny).astype(np.float64))
    scores = np.exp((1 - blend.alpha) * log_s + blend.alpha * class_log_p)
    return replace(predictions, scores=scores)


def class_log_probs(predictions: Predictions, rows: Array, log_p: Array, blend: Blend) -> Array:
    """(m,) log p of the box's own class, for each box with a crop."""
    own = log_p[np.arange(len(rows)), predictions.labels[rows]]
    if not blend.background:
        own = own - np.log(np.maximum(1 - np.exp(log_p[:, -1]), np.exp(MIN_LOG_P)))
    return own.clip(MIN_LOG_P, 0)


def median_log_p(predictions: Predictions, rows: Array, log_p: Array, blend: Blend) -> float:
    """The median log p of the boxes with a crop."""
    return float(np.median(class_log_probs(predictions, rows, log_p, blend)))
