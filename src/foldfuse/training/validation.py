"""The images that a training is scored on and does not train on: a held-out fold, or validation data of their own (--val)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foldfuse.data.content_hashes import image_hashes
from foldfuse.data.dataset import Dataset, Sample, require_annotations
from foldfuse.data.near_duplicates import MAX_BITS, difference_hashes, nearest_hashes
from foldfuse.data.pixels import open_images
from foldfuse.data.readers.coco import read
from foldfuse.data.readers.image_folder import read_classification
from foldfuse.detections import Predictions
from foldfuse.errors import InputError, counted
from foldfuse.evaluation.coco import score_predictions
from foldfuse.inference.class_labels import labels_by_name, relabel
from foldfuse.inference.detector import detector_with_weights, predict_views
from foldfuse.inference.learnt_images import ids_of_hashes
from foldfuse.inference.tta import PLAIN_VIEW
from foldfuse.recipes import Recipe
from foldfuse.training.session import Evaluate

MAX_COMPARED = 2000  # images of each side that are compared by their looks, so that it takes seconds

log = logging.getLogger(__name__)


def read_validation(
    val: Path, train: Dataset, *, images: Path | None, ignore_orientation: bool, classifier: bool
) -> Dataset:
    """The annotated images at `val`, opened as the training images were; their classes are some of the training data's.

    Args:
        val: annotated data in any layout.
        train: the training images, opened.
        images: the folder of the images, where they are not found beside the annotations.
        ignore_orientation: whether pixels are taken as stored, whatever an EXIF tag says.
        classifier: whether they are for a classifier.

    Raises:
        InputError: the data cannot be read, no object is annotated, or a class is unknown to the training data.
    """
    if classifier:
        dataset, _ = read_classification(
            val, classes=train.classes, images=images, ignore_orientation=ignore_orientation
        )
    else:
        dataset = read(val, images=images, ignore_orientation=ignore_orientation)
    labels_by_name(train.classes, dataset, f"the training data {train.source}")
    return open_images(
        require_annotations(dataset), ignore_orientation=ignore_orientation, value_ranges=train.value_ranges
    )


def without_training_images(val: Dataset, train: Dataset, *, where: str) -> Dataset:
    """The validation images that are not among the training images, by the content of their files; warns of the others.

    Images that only look like training images are kept, with a warning too.

    Args:
        val, train: opened datasets.
        where: what the sentences begin with, such as "--val val.json".

    Raises:
        InputError: all are training images, or no object is annotated on the others.
    """
    same = ids_of_hashes(val, set(image_hashes(train.samples)))
    if len(same) == len(val):
        raise InputError(
            f"{where}: all {len(val)} images are training images too, so a score on them says nothing about new images. Give "
            "other images, or hold some out with 'foldfuse split' and --folds."
        )
    others = val.subset(set(val.image_ids) - same)
    if same:
        log.warning(
            f"WARNING: {where}: {len(same)} of the {len(val)} images {'is a' if len(same) == 1 else 'are'} training "
            f"image{'' if len(same) == 1 else 's'} too, and left out of the score."
        )
        require_annotations(others)
    compared, alike = _alike(others.samples, train.samples)
    if alike:
        log.warning(
            f"WARNING: {where}: {alike} of {'the ' if compared == len(others) else ''}{counted(compared, 'image')} "
            f"look{'s' if alike == 1 else ''} almost like training images, so that the score may be too good. 'foldfuse split' "
            "keeps such images in one fold."
        )
    return others


def held_out_scorer(
    recipe: Recipe,
    classes: Sequence[str],
    val: Dataset,
    *,
    device: str,
    keep: Callable[[Predictions], None] = lambda predictions: None,
) -> Evaluate:
    """A function that gives AP and AP50 of averaged weights on held-out images. Random states stay as they were.

    Args:
        recipe: the recipe of the detector.
        classes: names of the classes that it is trained for.
        val: held-out annotated images.
        device: the device to predict on.
        keep: receives the predictions of each evaluation.
    """
    labels = labels_by_name(classes, val, "the training data")

    def evaluate(weights: Mapping[str, Tensor]) -> dict[str, float | None]:
        with torch.random.fork_rng([device] if device.startswith("cuda") else []):  # a new model draws random weights
            model = detector_with_weights(recipe, classes, weights, device=device)
        found = predict_views(model, val.samples, classes, image_size=recipe.image_size, views=[PLAIN_VIEW])
        predictions = relabel(found[PLAIN_VIEW], labels, val)
        keep(predictions)
        score = score_predictions(predictions, val)
        return {"ap": score.ap, "ap50": score.ap50}

    return evaluate


def _alike(val: Sequence[Sample], train: Sequence[Sample]) -> tuple[int, int]:
    """Number of validation images that were compared with training images, and of those that are near-duplicates of one."""
    samples, others = (each[:: -(-len(each) // MAX_COMPARED) or 1] for each in (val, train))
    hashes, known = (
        [bits for bits in difference_hashes([s.path for s in each], [s.orientation for s in each]) if bits is not None]
        for each in (samples, others)
    )
    if not hashes or not known:
        return len(samples), 0
    _, bits = nearest_hashes(hashes, known)
    return len(samples), int(np.count_nonzero(bits <= MAX_BITS))
