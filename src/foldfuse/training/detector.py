"""Trains a detector in its run folder; `loop` holds the training loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.images import ImageCache, Letterbox, canvas_for
from foldfuse.inference.learnt_images import record_learnt_images
from foldfuse.models import make_detector
from foldfuse.models.pretrained.state_dicts import load_exactly
from foldfuse.recipes import Recipe
from foldfuse.storage.run import Run
from foldfuse.system.device import is_out_of_memory
from foldfuse.training.autotune import autotune
from foldfuse.training.batches import Batches
from foldfuse.training.checkpoints import Checkpointer, TrainingResult, finish_run
from foldfuse.training.init_weights import load_init_weights
from foldfuse.training.loop import fit
from foldfuse.training.precision import ComputeConfig, config_for, default_config, stored_config
from foldfuse.training.session import TrainingSession
from foldfuse.training.targets import longest_side
from foldfuse.training.weights_origin import origins_of

log = logging.getLogger(__name__)


def new_detector(recipe: Recipe, num_classes: int, *, initialized: bool = True) -> Any:
    """A new detector with the architecture that the recipe names.

    Args:
        recipe: the recipe of the run.
        num_classes: the number of classes in the data.
        initialized: whether to load the ImageNet weights that the recipe may ask for.

    Raises:
        InputError: the weights are not available.
    """
    imagenet = initialized and recipe.init_weights == "imagenet"
    return make_detector(
        recipe.detector,
        num_classes,
        anchor_scale=recipe.anchor_scale,
        pretrained=imagenet,
        numerics=recipe.numerics,
    )


def train_detector(
    run: Run,
    dataset: Dataset,
    session: TrainingSession,
    *,
    images: ImageCache | None = None,
    init_state: Mapping[str, Any] | None = None,
) -> TrainingResult:
    """Train the detector of a run folder, and write its log, checkpoints, weights and metadata there.

    A batch that does not fit in memory is computed in parts; see `memory`.

    Args:
        run: folder with a recipe and metadata.
        dataset: annotated images to train on.
        session: budget, processes, checkpoint and trackers of this call.
        images: the images of the dataset, where they are decoded already.
        init_state: the last checkpoint of another run; training starts from its weights.

    Raises:
        FloatingPointError: the loss is not finite.
        InputError: not even one image fits in memory, or the recipe's micro-batch is too small for batch norms.
    """
    recipe, world, seed = run.recipe, session.world, run.metadata.seed
    if world.is_main:
        record_learnt_images(run, dataset.samples, init_weights=recipe.init_weights)
    torch.manual_seed(seed)
    fresh = init_state is None and session.checkpoint is None
    if session.checkpoint is None and world.is_main:
        run.write_metadata(replace(run.metadata, weights=origins_of(recipe)))
    model = new_detector(recipe, len(dataset.classes), initialized=fresh)
    samples = dataset.samples
    canvas = canvas_for(samples, image_size=recipe.image_size, stride=model.stride)
    if fresh and hasattr(model, "fit_anchors"):
        model.fit_anchors(object_sizes(samples, canvas, tile_zoom=recipe.tile_zoom))
    if fresh:
        sentence = load_init_weights(
            recipe, model, dataset.classes
        )  # after the anchors: the weights belong to their own
        if sentence:
            log.info(sentence)
            if world.is_main:
                run.write_metadata(replace(run.metadata, started_from=sentence))
    if init_state is not None:
        load_exactly(model, init_state["model"], source="the checkpoint to start from")
    model.to(world.device)
    if world.rank:
        torch.manual_seed(seed + 1_000_003 * world.rank)  # DropPath must draw different samples on each process
    if images is None:
        images = ImageCache.load(samples, longest=longest_side(recipe))
    batches = Batches(samples, images, recipe, canvas, seed)
    checkpointer = Checkpointer(run, session)
    config = _compute_config(run, model, batches, session)
    last = fit(model, batches, recipe, session, log=checkpointer.log, save=checkpointer, config=config)
    return finish_run(run, session, last, replace(run.metadata, canvas=canvas), batch_size=recipe.batch_size)


def object_sizes(samples: Sequence[Sample], canvas: tuple[int, int], *, tile_zoom: float = 1.0) -> Tensor:
    """(N, 2) width and height of all objects, in pixels of the network's input; crowd regions are left out.

    With a `tile_zoom`, each object is there twice: as the whole image shows it, and as a tile does.
    """
    sizes = []
    for sample in samples:
        assert sample.annotations is not None
        letterbox = Letterbox(sample.width, sample.height, canvas)
        objects = sample.annotations[~sample.annotations.crowd].clipped(sample.width, sample.height)
        boxes = letterbox.apply_boxes(objects.boxes)
        sizes.append(boxes[:, 2:] - boxes[:, :2])
    found = torch.from_numpy(np.concatenate(sizes)).float()
    return found if tile_zoom == 1 else torch.cat([found, found * tile_zoom])


def _compute_config(run: Run, model: Any, batches: Batches, session: TrainingSession) -> ComputeConfig:
    """The run's compute configuration, from run.json, from the recipe or from the autotuner; run.json records it.

    Only a single process with a time budget is autotuned: a training with a step budget must give the same bits every time.
    """
    recipe, metadata, world, budget = run.recipe, run.metadata, session.world, session.budget
    stored = stored_config(run)
    world.barrier()  # every process has read run.json before process 0 writes it, so all take the same way
    device = torch.device(world.device)
    if stored is not None:
        return config_for(stored, device, precision=recipe.precision)
    config, result = default_config(device, precision=recipe.precision), None
    if recipe.precision == "auto" and world.size == 1 and budget.seconds < math.inf:
        budget.elapsed()  # the clock starts here: autotuning is paid from the budget
        key = f"{recipe.detector} at {batches.canvas}, batch {recipe.batch_size}, {recipe.frozen_stages} stages frozen"
        if device.type == "cuda":
            key += f", {budget.seconds:.0f} s"  # the time decides on compiling
        try:
            result = autotune(
                model, batches.batch(0), frozen_stages=recipe.frozen_stages, seconds=budget.seconds, key=key
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            log.info("Autotuning is left out: a whole batch does not fit in memory.")
    if result is not None:
        config = result.config
        log.info(str(result))
    if world.is_main:
        measured = asdict(result) if result is not None else None
        run.write_metadata(replace(metadata, compute=asdict(config), autotune=measured))
    world.barrier()
    return config
