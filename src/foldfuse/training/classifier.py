"""Trains a classifier of images, or of the crops of objects, in its run folder. Detectors share the training loop.

A folder of images is read as a dataset in which each image is one object, so that a classifier always trains on crops.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from foldfuse.data.crops import CropCache, object_crops
from foldfuse.data.dataset import Dataset
from foldfuse.inference.classifier import accuracy, classify, new_classifier
from foldfuse.inference.learnt_images import record_learnt_images
from foldfuse.recipes import ClassifierRecipe
from foldfuse.storage.run import Run
from foldfuse.training.batches import CropBatches
from foldfuse.training.checkpoints import Checkpointer, TrainingResult, finish_run
from foldfuse.training.init_weights import load_init_weights
from foldfuse.training.loop import fit
from foldfuse.training.optimizers import make_classifier_optimizer
from foldfuse.training.session import TrainingSession
from foldfuse.training.weights_origin import origins_of

log = logging.getLogger(__name__)


def train_classifier(
    run: Run, dataset: Dataset, session: TrainingSession, *, images: CropCache | None = None
) -> TrainingResult:
    """Train the classifier of a run folder on the objects of `dataset`, and write log, checkpoints, weights and metadata.

    Args:
        run: folder with a classifier's recipe and metadata.
        dataset: annotated images to train on.
        session: budget, processes, checkpoint and trackers of this call.
        images: the crops of the objects, where they are cut out already.

    Raises:
        FloatingPointError: the loss or a tensor is not finite.
    """
    recipe, metadata, world = run.classifier_recipe, run.metadata, session.world
    if world.is_main:
        record_learnt_images(run, dataset.samples, init_weights=recipe.init_weights)
    torch.manual_seed(metadata.seed)
    fresh = session.checkpoint is None
    if fresh and world.is_main:
        run.write_metadata(replace(run.metadata, weights=origins_of(recipe)))
    model = new_classifier(recipe, len(metadata.classes), initialized=fresh)
    if fresh and (sentence := load_init_weights(recipe, model, metadata.classes)):
        log.info(sentence)
    model.to(world.device)
    if world.rank:
        torch.manual_seed(metadata.seed + 1_000_003 * world.rank)  # so that DropPath differs between processes
    if images is None:
        images = training_crops(dataset, recipe, context=metadata.crop_context or recipe.crop_context)
    crops = images.crops
    samples = [dataset.samples[i] for i in crops.image_index]
    checkpointer = Checkpointer(run, session)
    last = fit(
        model,
        CropBatches(samples, images, crops.labels, recipe, metadata.seed),
        recipe,
        session,
        log=checkpointer.log,
        save=checkpointer,
        make_optimizer=make_classifier_optimizer,
    )
    return finish_run(run, session, last, replace(run.metadata, crops=len(crops)), batch_size=recipe.batch_size)


def training_crops(dataset: Dataset, recipe: ClassifierRecipe, *, context: float) -> CropCache:
    """The crops of all objects, at the largest size that scale jitter can ask for.

    Raises:
        InputError: an image is missing or cannot be decoded.
    """
    size = round(recipe.image_size * (1 + recipe.scale_jitter))
    return CropCache.load(object_crops(dataset), context=context, size=size)


def val_accuracy(run: Run, val: Dataset, *, device: str = "auto") -> tuple[float, int]:
    """The accuracy of a trained run on held-out objects, which the run's log keeps too; and the number of objects."""
    crops = object_crops(val)
    score = accuracy(classify(run, crops, device=device), crops.labels)
    metadata = run.metadata
    rows = [row for row in run.log if "accuracy" not in row]
    run.write_log([*rows, {"step": metadata.steps, "seconds": metadata.seconds, "accuracy": score}])
    return score, len(crops)
