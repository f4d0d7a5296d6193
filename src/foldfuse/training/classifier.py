"""Classifiers of pictures, and of the crops of objects: their training, by the loop of `train`, and their predictions.

A folder of pictures is read as a dataset whose every picture is one object, all of it; so there is one kind of data here:
crops with labels.

Shapes: B crops, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from foldfuse.data.crops import CropCache, object_crops
from foldfuse.data.dataset import Dataset
from foldfuse.inference.classifier import load_learner
from foldfuse.storage.run import Run
from foldfuse.system.device import best_device
from foldfuse.system.processes import World
from foldfuse.system.progress import Progress, no_progress
from foldfuse.training.batches import CropBatches
from foldfuse.training.budget import Budget
from foldfuse.training.checkpoints import Checkpointer
from foldfuse.training.loop import fit
from foldfuse.training.optimizers import classifier_optimizer
from foldfuse.training.trackers import Tracker


def train_run(
    run: Run,
    dataset: Dataset,
    budget: Budget,
    *,
    state: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
    every: float = 60.0,
    track: Tracker | None = None,
    together: World | None = None,
) -> dict[str, Any]:
    """Train the classifier of a run folder on the objects of `dataset`; its last state comes back.

    Args:
        run: folder with a classifier's recipe and facts.
        dataset: annotated pictures to learn from.
        budget: when to stop.
        state: of this very run, to go on with.
        progress: is told the share of the budget that is spent.
        every: seconds between checkpoints.
        track: is given the rows of the log, at each checkpoint the new ones.
        together: the processes that train as one; this one alone by default.
    """
    recipe, metadata, together = run.classifier_recipe, run.metadata, together or World(device=best_device())
    torch.manual_seed(metadata.seed)
    model = load_learner(run, pretrained=state is None and recipe.init_weights == "imagenet")
    model.to(together.device)
    if together.rank:
        torch.manual_seed(metadata.seed + 1_000_003 * together.rank)
    crops = object_crops(dataset)
    side = round(recipe.image_size * (1 + recipe.scale_jitter))
    images = CropCache.load(crops, context=metadata.crop_context or recipe.crop_context, size=side)
    samples = [dataset.samples[i] for i in crops.image_index]
    keep = Checkpointer(run, state, budget, together=together, track=track)
    last = fit(
        model,
        CropBatches(samples, images, crops.labels, recipe, metadata.seed),
        recipe,
        budget,
        log=keep.log,
        resume=state,
        checkpoint=keep,
        every=every,
        progress=progress,
        together=together,
        make_optimizer=classifier_optimizer,
    )
    if together.first:
        run.save_weights(last["ema"])
        seconds = round(last["seconds"], 2)
        run.write_metadata(replace(run.metadata, steps=last["step"], seconds=seconds, crops=len(crops)))
    together.wait()
    return last
