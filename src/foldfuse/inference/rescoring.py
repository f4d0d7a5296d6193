"""A second opinion on detections: a classifier looks at the crop of each box, and its word is blended into the score.

A detector that learns from few pictures finds objects sooner than it can tell their classes apart. A network that knows ImageNet,
shown each box alone, tells them apart better; a box of score s then gets s^(1 - a) p^a, with p the probability that the crop
shows the box's class. One more class, the background, is learnt from detections that lie on no object.

How much it counts, a, is chosen on out-of-fold predictions. Each picture is rescored by a classifier that has seen neither its
objects nor its detections, and the gain is measured with an `a` chosen on other pictures. Where there is no gain, scores stay
as they are.

Shapes: n boxes, K classes, column K of probabilities is the background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any

import numpy as np

from foldfuse.boxes import pairwise_iou
from foldfuse.data.crops import Crops, detection_crops, object_crops
from foldfuse.data.dataset import Dataset, Sample, require_annotations
from foldfuse.data.folds import Folds, make_folds
from foldfuse.detections import Annotations, Array, Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.evaluation.bootstrap import Difference, bootstrap_difference
from foldfuse.evaluation.matching import check_compatible
from foldfuse.evaluation.metrics import measure
from foldfuse.inference.crop_features import CropEncoder, LinearProbe, features, fit_probe, imagenet, mirrored
from foldfuse.system.progress import Progress, no_progress

PARTS = 5  # that the predicted pictures are cut into where `folds` does not
ON_OBJECT, OFF_OBJECT = 0.5, 0.3  # IoU from which a box shows an object's class, and below which it shows background
RIDGES = (0.03, 0.1, 0.3, 1.0)
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
DRAWN = 0.5  # weight of an annotated object among what is learnt from; a detection weighs 1
SURE = 0.8  # share of resampled picture sets in which there must be a gain for it to be believed
LOOKED = 0.9  # share of the progress of `fit` that looking at crops is; learning takes longer with more classes
LOWEST = -12.0  # logarithm of the least probability that is believed


@dataclass(frozen=True)
class Blend:
    """How the classifier's word counts.

    Attributes:
        alpha: a in s^(1 - a) p^a; 0 leaves scores as they are.
        background: whether p is of all K + 1 classes, or of the K classes given that there is an object.
    """

    alpha: float = 0.0
    background: bool = True


@dataclass(frozen=True, eq=False)
class Rescorer:
    """What `fit` learnt, for `apply`.

    Attributes:
        head: the classifier's last layer.
        look: the rest of it.
        blend: how much its word counts.
        max_detections: boxes of a picture that are looked at, those of the highest scores.
        unseen: log p of a box that is not looked at.
    """

    head: LinearProbe
    look: CropEncoder
    blend: Blend
    max_detections: int
    unseen: float


@dataclass(frozen=True, eq=False)
class RescoringResult:
    """A rescorer and what speaks for it.

    Attributes:
        rescorer: learnt from everything; leaves scores as they are where `gain` is not to be believed.
        predictions: the given ones rescored, each picture by a classifier that has not seen it.
        before, after: the metric of the given and of the rescored predictions, the blend chosen on these very pictures.
        gain: over resampled pictures, with each picture's blend chosen on others.
        accuracy: share of the boxes on an object whose class the classifier, which has not seen it, tells right.
        best: the blend that scores best on these pictures, believed or not.
        ridge: the head's.
    """

    rescorer: Rescorer
    predictions: Predictions
    before: float
    after: float
    gain: Difference
    accuracy: float
    best: Blend
    ridge: float

    @property
    def accepted(self) -> bool:
        """Whether the gain is believed."""
        return self.rescorer.blend.alpha > 0

    def to_dict(self) -> dict[str, Any]:
        """What it was worth, as JSON holds it."""
        return {
            "accepted": self.accepted,
            "alpha": self.rescorer.blend.alpha,
            "background": self.rescorer.blend.background,
            "before": self.before,
            "after": self.after,
            "gain": {
                "mean": self.gain.mean,
                "low": self.gain.low,
                "high": self.gain.high,
                "above": self.gain.prob_better,
            },
            "accuracy": self.accuracy,
            "ridge": self.ridge,
        }


def fit_rescorer(
    predictions: Predictions,
    dataset: Dataset,
    *,
    folds: Folds | None = None,
    look: CropEncoder | None = None,
    metric: str = "ap50",
    max_detections: int = 30,
    examples: int = 1500,
    seed: int = 0,
    progress: Progress = no_progress,
) -> RescoringResult:
    """A rescorer learnt from out-of-fold predictions and annotated pictures, and these predictions rescored.

    Args:
        predictions: out-of-fold, of all pictures of `dataset` or some.
        dataset: annotated; objects on pictures that were not predicted are learnt from as well.
        folds: pictures of one fold are rescored together where the predictions cover several folds.
        look: what crops are looked at with; EfficientNet-Lite0 with ImageNet weights by default.
        metric: ap50, ap, f2 or wheat.
        max_detections: boxes of a picture that are looked at, those of the highest scores.
        examples: crops of annotated objects that are learnt from at most; if there are more objects, some are drawn, as
            many of each class; if there are fewer than half, their mirror images are learnt from as well.
        seed: of that draw, of the parts and of the resampling.
        progress: is told the share that is done.

    Raises:
        InputError: the predictions do not fit the dataset or are of too few pictures, or a picture cannot be decoded.
    """
    check_compatible(predictions, require_annotations(dataset))
    held = dataset.subset(predictions)
    predictions = predictions.select_images(held.image_ids)
    if len(held) < PARTS or not len(predictions.boxes):
        raise InputError(
            f"there are {len(predictions.boxes)} boxes on {len(held)} pictures to rescore; expected boxes, and {PARTS} pictures "
            "or more, so that a classifier can be asked about pictures that it has not seen."
        )
    look = look or imagenet()
    num_classes = len(dataset.classes)
    part_of = _parts(held, folds, seed)
    found, rows = detection_crops(predictions, held.samples, max_per_image=max_detections)
    drawn = _some(object_crops(dataset), examples, num_classes, np.random.default_rng(seed))
    looking, learning = _span(progress, 0.0, LOOKED), _span(progress, LOOKED, 1.0)
    lessons = _training_crops(drawn, labelled(found, num_classes), look, part_of, examples, looking)
    ridge, log_p = _opinions(lessons, num_classes, learning)

    candidates = {
        blend: blended(predictions, rows, log_p, blend)
        for blend in (Blend(a, background) for background in (True, False) for a in SHARES)
        if blend.alpha or blend.background
    }
    best = _best(candidates, held, metric)
    nested = _nested(candidates, held, metric, part_of)
    gain = bootstrap_difference(nested, predictions, held, metric, seed=seed)
    before = measure(predictions, held, metric=metric)
    chosen = best if gain.prob_better >= SURE else Blend()
    labels = lessons.labels[lessons.detected]
    on = np.flatnonzero((labels >= 0) & (labels < num_classes))
    return RescoringResult(
        rescorer=Rescorer(
            lessons.head(num_classes, ridge), look, chosen, max_detections, _unseen(predictions, rows, log_p, best)
        ),
        predictions=candidates[chosen],
        before=before,
        after=measure(candidates[chosen], held, metric=metric),
        gain=gain,
        accuracy=float((log_p[on, :num_classes].argmax(1) == labels[on]).mean()) if len(on) else 0.0,
        best=best,
        ridge=ridge,
    )


def apply_rescorer(
    rescorer: Rescorer, predictions: Predictions, samples: Sequence[Sample], *, progress: Progress = no_progress
) -> Predictions:
    """Predictions of the pictures `samples`, rescored; as they are where the rescorer found no gain.

    Raises:
        InputError: a picture was not predicted, or cannot be decoded.
    """
    predictions = predictions.select_images([s.id for s in samples])
    if not rescorer.blend.alpha or not len(predictions.boxes):
        return predictions
    found, rows = detection_crops(predictions, samples, max_per_image=rescorer.max_detections)
    log_p = rescorer.head.log_probabilities(features(found, rescorer.look, progress=progress))
    return blended(predictions, rows, log_p, rescorer.blend, unseen=rescorer.unseen)


def labelled(found: Crops, num_classes: int) -> Crops:
    """Detections with the class of the object that they lie on, `num_classes` for background, -1 in between."""
    labels = np.full(len(found), num_classes)
    for i in np.unique(found.image_index):
        drawn = found.samples[i].annotations or Annotations.empty()
        if len(drawn):
            rows = np.flatnonzero(found.image_index == i)
            iou = pairwise_iou(found.boxes[rows].astype(np.float64), drawn.boxes)
            best = iou.argmax(1)
            overlap = iou.max(1)
            near = np.where(overlap < OFF_OBJECT, num_classes, -1)
            labels[rows] = np.where((overlap >= ON_OBJECT) & ~drawn.crowd[best], drawn.labels[best], near)
    return replace(found, labels=labels)


def blended(
    predictions: Predictions, rows: Array, log_p: Array, blend: Blend, *, unseen: float | None = None
) -> Predictions:
    """Predictions whose scores take the classifier's word in.

    Args:
        predictions: n boxes.
        rows: (m,) those that were looked at.
        log_p: (m, K + 1) of them.
        blend: how much it counts.
        unseen: log p of the boxes that were not looked at; by default the median of those that were.
    """
    if not blend.alpha:
        return predictions
    word = np.full(len(predictions.boxes), _unseen(predictions, rows, log_p, blend) if unseen is None else unseen)
    word[rows] = class_log_probs(predictions, rows, log_p, blend)
    log_s = np.log(np.maximum(predictions.scores, np.finfo(np.float32).tiny).astype(np.float64))
    scores = np.exp((1 - blend.alpha) * log_s + blend.alpha * word)
    return replace(predictions, scores=scores.astype(np.float32))


def class_log_probs(predictions: Predictions, rows: Array, log_p: Array, blend: Blend) -> Array:
    """(m,) log p of each looked-at box's own class."""
    own = log_p[np.arange(len(rows)), predictions.labels[rows]]
    if not blend.background:
        own = own - np.log(np.maximum(1 - np.exp(log_p[:, -1]), np.exp(LOWEST)))
    return own.clip(LOWEST, 0)


def _unseen(predictions: Predictions, rows: Array, log_p: Array, blend: Blend) -> float:
    return float(np.median(class_log_probs(predictions, rows, log_p, blend)))


@dataclass(frozen=True, eq=False)
class TrainingCrops:
    """What a head learns from: crops of annotated objects, then of detections.

    Attributes:
        features: (n, D).
        labels: (n,) K for background, -1 for what nothing is learnt from.
        weights: (n,).
        parts: (n,) the part of the pictures that a crop is of; -1 for a picture that was not predicted.
        num_drawn: how many of the rows are annotated objects.
    """

    features: Array
    labels: Array
    weights: Array
    parts: Array
    num_drawn: int

    @property
    def detected(self) -> slice:
        """The rows of the detections."""
        return slice(self.num_drawn, None)

    def head(self, num_classes: int, ridge: float, *, without: int | None = None) -> LinearProbe:
        """A head that has learnt from all parts, or all but one."""
        own = self.labels >= 0
        if without is not None:
            own &= self.parts != without
        x, y, weights = self.features[own], self.labels[own], self.weights[own]
        return fit_probe(x, y, weights, num_classes=num_classes + 1, ridge=ridge)


def _training_crops(
    drawn: Crops, found: Crops, look: CropEncoder, part_of: Mapping[int, int], examples: int, progress: Progress
) -> TrainingCrops:
    looks = [look, mirrored(look)] if 2 * len(drawn) <= examples else [look]
    crops = [*[drawn] * len(looks), found]
    ends = np.cumsum([0, *map(len, crops)])
    spans = [_span(progress, low / ends[-1], high / ends[-1]) for low, high in pairwise(ends.tolist())]
    return TrainingCrops(
        features=np.concatenate(
            [features(c, each, progress=span) for c, each, span in zip(crops, [*looks, look], spans, strict=True)]
        ),
        labels=np.concatenate([c.labels for c in crops]),
        weights=np.repeat([DRAWN, 1.0], [ends[-2], len(found)]),
        parts=np.concatenate([np.array([part_of.get(s.id, -1) for s in c.samples])[c.image_index] for c in crops]),
        num_drawn=int(ends[-2]),
    )


def _opinions(lessons: TrainingCrops, num_classes: int, progress: Progress) -> tuple[float, Array]:
    """The likeliest ridge, and (m, K + 1) log p of each detection by a head that has not seen its part."""
    found, parts = lessons.features[lessons.detected], lessons.parts[lessons.detected]
    labels = lessons.labels[lessons.detected]
    known = np.flatnonzero(labels >= 0)
    opinions = {ridge: np.empty((len(found), num_classes + 1)) for ridge in RIDGES}
    tried = list(product(RIDGES, np.unique(parts).tolist()))
    for done, (ridge, part) in enumerate(tried, start=1):
        own = parts == part
        opinions[ridge][own] = lessons.head(num_classes, ridge, without=part).log_probabilities(found[own])
        progress(done / len(tried))
    best = max(RIDGES, key=lambda ridge: float(opinions[ridge][known, labels[known]].mean()))
    return best, opinions[best]


def _span(progress: Progress, low: float, high: float) -> Progress:
    """Progress of a part that reaches from the share `low` to `high` of the whole."""
    return lambda share: progress(low + share * (high - low))


def _best(candidates: dict[Blend, Predictions], held: Dataset, metric: str) -> Blend:
    """The blend that scores best on `held`; the weaker one of two that score alike."""
    worth = {blend: measure(p.select_images(held.image_ids), held, metric=metric) for blend, p in candidates.items()}
    return max(worth, key=lambda blend: (worth[blend], -blend.alpha))


def _nested(candidates: dict[Blend, Predictions], held: Dataset, metric: str, part_of: dict[int, int]) -> Predictions:
    """Each part of the pictures rescored with the blend that is best on all others."""
    found: dict[int, Detections] = {}
    for part in set(part_of.values()):
        others = held.subset(i for i in held.image_ids if part_of[i] != part)
        annotated = any(len(s.annotations) for s in others.samples if s.annotations is not None)
        chosen = candidates[_best(candidates, others, metric) if annotated else Blend()]
        found |= {i: chosen[i] for i in held.image_ids if part_of[i] == part}
    return Predictions.of({i: found[i] for i in held.image_ids}, held.classes)


def _parts(held: Dataset, folds: Folds | None, seed: int) -> dict[int, int]:
    """{image id: part} of the predicted pictures: their folds if they are of several, else new ones."""
    if folds is not None:
        given = {i: folds.fold_of[i] for i in held.image_ids if i in folds.fold_of}
        if len(given) == len(held) and len(set(given.values())) > 1:
            return given
    made = make_folds(held, num_folds=PARTS, seed=seed)
    return dict(made.fold_of)


def _some(drawn: Crops, most: int, num_classes: int, rng: np.random.Generator) -> Crops:
    """At most `most` of them: as many of each class where there are enough."""
    if len(drawn) <= most:
        return drawn
    order = rng.permutation(len(drawn))
    rank = np.empty(len(drawn), np.int64)  # of each among its class, in random order
    for label in range(num_classes):
        own = order[drawn.labels[order] == label]
        rank[own] = np.arange(len(own))
    mask = np.zeros(len(drawn), bool)
    mask[np.lexsort((order, rank))[:most]] = True
    return drawn.filter(mask)
