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

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from foldfuse.boxes import pairwise_iou
from foldfuse.classify import look_of
from foldfuse.crops import Crops, detected, objects
from foldfuse.data import Dataset, Sample, read, require_annotations
from foldfuse.detections import Annotations, Array, Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.files import atomic_folder, write_text
from foldfuse.formats import read_told, write_predictions
from foldfuse.looks import Head, Look, features, fit_head, imagenet, mirrored
from foldfuse.metrics import Difference, bootstrap_difference, measure, require_same
from foldfuse.progress import Progress, bar, silent
from foldfuse.run import Run
from foldfuse.split import Folds, read_folds
from foldfuse.split import folds as folds_of

PARTS = 5  # that the predicted pictures are cut into where `folds` does not
ON_OBJECT, OFF_OBJECT = 0.5, 0.3  # IoU from which a box shows an object's class, and below which it shows background
RIDGES = (0.03, 0.1, 0.3, 1.0)
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
DRAWN = 0.5  # weight of an annotated object among what is learnt from; a detection weighs 1
SURE = 0.8  # share of resampled picture sets in which there must be a gain for it to be believed
NONE = -2  # no part at all; pictures that were not predicted are in part -1
LOWEST = -12.0  # logarithm of the least probability that is believed


@dataclass(frozen=True)
class Blend:
    """How the classifier's word counts.

    Attributes:
        share: a in s^(1 - a) p^a; 0 leaves scores as they are.
        background: whether p is of all K + 1 classes, or of the K classes given that there is an object.
    """

    share: float = 0.0
    background: bool = True


@dataclass(frozen=True, eq=False)
class Rescorer:
    """What `fit` learnt, for `apply`.

    Attributes:
        head: the classifier's last layer.
        look: the rest of it.
        blend: how much its word counts.
        most: boxes of a picture that are looked at, those of the highest scores.
        unseen: log p of a box that is not looked at.
    """

    head: Head
    look: Look
    blend: Blend
    most: int
    unseen: float


@dataclass(frozen=True, eq=False)
class Fitted:
    """A rescorer and what speaks for it.

    Attributes:
        rescorer: learnt from everything; leaves scores as they are where `gain` is not to be believed.
        predictions: the given ones rescored, each picture by a classifier that has not seen it.
        before, after: the metric of the given and of the rescored predictions, the blend chosen on these very pictures.
        gain: over resampled pictures, with each picture's blend chosen on others.
        right: share of the boxes on an object whose class the classifier, which has not seen it, tells right.
        best: the blend that scores best on these pictures, believed or not.
        ridge: the head's.
    """

    rescorer: Rescorer
    predictions: Predictions
    before: float
    after: float
    gain: Difference
    right: float
    best: Blend
    ridge: float

    @property
    def kept(self) -> bool:
        """Whether the gain is believed."""
        return self.rescorer.blend.share > 0

    def to_dict(self) -> dict[str, Any]:
        """What it was worth, as JSON holds it."""
        return {
            "kept": self.kept,
            "share": self.rescorer.blend.share,
            "background": self.rescorer.blend.background,
            "before": self.before,
            "after": self.after,
            "gain": {"mean": self.gain.mean, "low": self.gain.low, "high": self.gain.high, "above": self.gain.above},
            "right": self.right,
            "ridge": self.ridge,
        }


def fit(
    predictions: Predictions,
    dataset: Dataset,
    *,
    folds: Folds | None = None,
    look: Look | None = None,
    metric: str = "ap50",
    most: int = 30,
    examples: int = 1500,
    seed: int = 0,
    progress: Progress = silent,
) -> Fitted:
    """A rescorer learnt from out-of-fold predictions and annotated pictures, and these predictions rescored.

    Args:
        predictions: out-of-fold, of all pictures of `dataset` or some.
        dataset: annotated; objects on pictures that were not predicted are learnt from as well.
        folds: pictures of one fold are rescored together where the predictions cover several folds.
        look: what crops are looked at with; EfficientNet-Lite0 with ImageNet weights by default.
        metric: ap50, ap, f2 or wheat.
        most: boxes of a picture that are looked at, those of the highest scores.
        examples: crops of annotated objects that are learnt from at the most; if there are more objects, some are drawn, as
            many of each class; if there are fewer than half, their mirror images are learnt from as well.
        seed: of that draw, of the parts and of the resampling.
        progress: is told the share that is done.

    Raises:
        InputError: the predictions do not fit the dataset, nothing was found on any picture, or a picture cannot be decoded.
    """
    require_same(predictions, require_annotations(dataset))
    held = dataset.subset(predictions)
    predictions = predictions.of_images(held.image_ids)
    if not len(predictions.boxes):
        raise InputError("there is no box in the predictions to rescore.")
    look = look or imagenet()
    num_classes = len(dataset.classes)
    found, rows = detected(predictions, held.samples, most=most)
    found = labelled(found, num_classes)
    drawn = _some(objects(dataset), examples, num_classes, np.random.default_rng(seed))
    looks = [look, mirrored(look)] if 2 * len(drawn) <= examples else [look]
    seen = len(looks) * len(drawn)
    share = seen / (seen + len(found))
    of_drawn = [
        features(drawn, each, progress=lambda done, i=i: progress((i + done) * share / len(looks)))  # type: ignore[misc]
        for i, each in enumerate(looks)
    ]
    of_found = features(found, look, progress=lambda done: progress(share + done * (1 - share)))

    part_of = _parts(held, folds, seed)
    part = np.array([part_of[i] for i in held.image_ids])[found.image]
    drawn_part = np.array([part_of.get(s.id, NONE + 1) for s in dataset.samples])[drawn.image]
    x = np.concatenate([*of_drawn, of_found])
    y = np.concatenate([*[drawn.labels] * len(looks), found.labels])
    weights = np.repeat([DRAWN, 1.0], [seen, len(found)])
    parts = np.concatenate([*[drawn_part] * len(looks), part])

    def head(ridge: float, *, without: int = NONE) -> Head:
        own = (y >= 0) & (parts != without)
        return fit_head(x[own], y[own], weights[own], num_classes=num_classes + 1, ridge=ridge)

    def unseen(ridge: float) -> Array:
        """(n, K + 1) log p of the detections, each by a head that has not seen its picture."""
        log_p = np.empty((len(found), num_classes + 1))
        for each in np.unique(part):
            log_p[part == each] = head(ridge, without=each).log_probabilities(of_found[part == each])
        return log_p

    known = np.flatnonzero(found.labels >= 0)
    opinions = {ridge: unseen(ridge) for ridge in RIDGES}
    ridge = max(RIDGES, key=lambda r: float(opinions[r][known, found.labels[known]].mean()))
    log_p = opinions[ridge]

    candidates = {
        blend: blended(predictions, rows, log_p, blend)
        for blend in (Blend(a, background) for background in (True, False) for a in SHARES)
        if blend.share or blend.background
    }
    best = _best(candidates, held, metric)
    nested = _nested(candidates, held, metric, part_of)
    gain = bootstrap_difference(nested, predictions, held, metric, seed=seed)
    before = measure(predictions, held, metric=metric)
    chosen = best if gain.above >= SURE else Blend()
    on = np.flatnonzero((found.labels >= 0) & (found.labels < num_classes))
    return Fitted(
        rescorer=Rescorer(head(ridge), look, chosen, most, _unseen(predictions, rows, log_p, best)),
        predictions=candidates[chosen],
        before=before,
        after=measure(candidates[chosen], held, metric=metric),
        gain=gain,
        right=float((log_p[on, :num_classes].argmax(1) == found.labels[on]).mean()) if len(on) else 0.0,
        best=best,
        ridge=ridge,
    )


def apply(
    rescorer: Rescorer, predictions: Predictions, samples: Sequence[Sample], *, progress: Progress = silent
) -> Predictions:
    """Predictions of the pictures `samples`, rescored; as they are where the rescorer found no gain.

    Raises:
        InputError: a picture was not predicted, or cannot be decoded.
    """
    predictions = predictions.of_images([s.id for s in samples])
    if not rescorer.blend.share or not len(predictions.boxes):
        return predictions
    found, rows = detected(predictions, samples, most=rescorer.most)
    log_p = rescorer.head.log_probabilities(features(found, rescorer.look, progress=progress))
    return blended(predictions, rows, log_p, rescorer.blend, unseen=rescorer.unseen)


def labelled(found: Crops, num_classes: int) -> Crops:
    """Detections with the class of the object that they lie on, `num_classes` for background, -1 in between."""
    labels = np.full(len(found), num_classes)
    for i in np.unique(found.image):
        drawn = found.samples[i].annotations or Annotations.empty()
        if len(drawn):
            rows = np.flatnonzero(found.image == i)
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
    if not blend.share:
        return predictions
    word = np.full(len(predictions.boxes), _unseen(predictions, rows, log_p, blend) if unseen is None else unseen)
    word[rows] = _words(predictions, rows, log_p, blend)
    log_s = np.log(np.maximum(predictions.scores, np.finfo(np.float32).tiny).astype(np.float64))
    scores = np.exp((1 - blend.share) * log_s + blend.share * word)
    return replace(predictions, scores=scores.astype(np.float32))


def _words(predictions: Predictions, rows: Array, log_p: Array, blend: Blend) -> Array:
    """(m,) log p of each looked-at box's own class."""
    own = log_p[np.arange(len(rows)), predictions.labels[rows]]
    if not blend.background:
        own = own - np.log(np.maximum(1 - np.exp(log_p[:, -1]), np.exp(LOWEST)))
    return own.clip(LOWEST, 0)


def _unseen(predictions: Predictions, rows: Array, log_p: Array, blend: Blend) -> float:
    return float(np.median(_words(predictions, rows, log_p, blend)))


def _best(candidates: dict[Blend, Predictions], held: Dataset, metric: str) -> Blend:
    """The blend that scores best on `held`; the weaker one of two that score alike."""
    worth = {blend: measure(p.of_images(held.image_ids), held, metric=metric) for blend, p in candidates.items()}
    return max(worth, key=lambda blend: (worth[blend], -blend.share))


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
    made = folds_of(held, k=min(PARTS, len(held)), seed=seed)
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
    return drawn.where(mask)


def rescore(
    predictions: Path,
    *,
    data: Path,
    out: Path,
    folds: Path | None = None,
    test_predictions: Path | None = None,
    test: Path | None = None,
    run: Path | None = None,
    metric: str = "ap50",
    seed: int = 0,
    read_as: str | None = None,
) -> Path:
    """Have a crop classifier look at each detection, and blend its word into the scores where that helps; the folder comes back.

    The folder holds oof.parquet, the out-of-fold predictions, each rescored by a classifier that has not seen its picture;
    test.parquet, the test predictions; and rescore.json, which tells what it was worth. Where there is no gain to be
    believed, scores are as they were.

    Args:
        predictions: out-of-fold predictions of annotated pictures, all or some: Parquet, COCO results JSON or a CSV. Pictures
            that a Parquet file lacks are not rescored.
        data: the annotated pictures: COCO JSON, or a folder with a train.json.
        out: folder to make.
        folds: JSON that `foldfuse split` wrote: pictures of one fold are rescored together, where the predictions cover several.
        test_predictions: of the pictures of `test`, by the same detectors; `test` must be given as well.
        test: the pictures to submit: COCO JSON; its annotations, if it has any, are not read.
        run: folder of a trained classifier, which must have been trained with the predicted pictures held back; by default
            crops are looked at with EfficientNet-Lite0 as ImageNet left it.
        metric: ap50, ap, f2 or wheat: what must gain.
        seed: of what is drawn at random.
        read_as: what the files of predictions are, where their content leaves that open, such as score_xywh.

    Raises:
        InputError: a file cannot be used, or they do not fit together.
    """
    if (test_predictions is None) != (test is None):
        raise InputError("--test-predictions and --test belong together: give both, or neither.")
    dataset = read(data)
    oof = read_told(predictions, dataset, read_as=read_as)
    known = None if folds is None else read_folds(folds)
    target = test if test is None else read(test, annotated=False)
    found = None if target is None or test_predictions is None else read_told(test_predictions, target, read_as=read_as)
    look = imagenet() if run is None else _look_held_back(Run(run), oof)
    with atomic_folder(out) as folder:
        with bar("looking at the detections") as progress:
            fitted = fit(oof, dataset, folds=known, look=look, metric=metric, seed=seed, progress=progress)
        write_predictions(fitted.predictions, folder / "oof.parquet", dataset)
        if found is not None and target is not None:
            with bar("looking at the test detections") as progress:
                rescored = apply(fitted.rescorer, found, target.samples, progress=progress)
            write_predictions(rescored, folder / "test.parquet", target)
        write_text(folder / "rescore.json", json.dumps({"metric": metric, **fitted.to_dict()}, indent=1) + "\n")
    Console(highlight=False).print(told(fitted, metric), soft_wrap=True)
    return out


def _look_held_back(run: Run, predictions: Predictions) -> Look:
    """The classifier of a run as a look at crops, if it has learnt from none of the predicted pictures."""
    learnt = set(predictions) - set(run.facts["held"])
    if learnt:
        raise InputError(
            f"{run.folder}: has learnt from {len(learnt)} of the {len(predictions)} pictures to rescore, such as image id "
            f"{min(learnt)}. Train it with --folds and the --fold that was predicted."
        )
    return look_of(run)


def told(fitted: Fitted, metric: str) -> str:
    """What the second opinion was worth, in sentences."""
    gain, blend = fitted.gain, fitted.rescorer.blend
    measured = f"{gain.mean:+.4f} (95 % of the draws: {gain.low:+.4f} to {gain.high:+.4f})"
    begin = f"The classifier tells {fitted.right:.0%} of the boxes on objects right that it has not seen. "
    if not fitted.kept:
        return begin + f"It does not help {metric}: {measured}. Scores are left as they were."
    of = "class, background counted" if blend.background else "class given an object"
    return begin + (
        f"It counts with {blend.share:g} (p of the {of}): {metric} {fitted.before:.4f} -> {fitted.after:.4f} on the pictures "
        f"it was chosen on; chosen on others: {measured}."
    )
