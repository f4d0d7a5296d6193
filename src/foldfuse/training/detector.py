"""Train one detector: from the command line, or in a run folder that is there already. The loop itself is in `loop`."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.images import ImageCache, Letterbox, canvas_for
from foldfuse.models import make_detector
from foldfuse.models.pretrained.effdet import load_effdet
from foldfuse.recipes import Recipe, write_recipe
from foldfuse.storage.run import Run
from foldfuse.system.device import best_device
from foldfuse.system.processes import World
from foldfuse.system.progress import Progress, no_progress
from foldfuse.training.batches import Batches
from foldfuse.training.budget import Budget
from foldfuse.training.checkpoints import Checkpointer, Evaluate
from foldfuse.training.loop import fit
from foldfuse.training.memory import halved, out_of_memory
from foldfuse.training.precision import Setting, probe, usual
from foldfuse.training.trackers import Tracker


def _detector(recipe: Recipe, dataset: Dataset, *, fresh: bool = True) -> Any:
    """A new detector for a recipe; a `fresh` one has ImageNet weights where the recipe wants them."""
    imagenet = fresh and recipe.init_weights == "imagenet"
    return make_detector(recipe.detector, len(dataset.classes), anchor_scale=recipe.anchor_scale, pretrained=imagenet)


def _begin(recipe: Recipe, model: Any) -> str:
    """Give `model` the weights of the run or checkpoint that the recipe names; a sentence on it, "" where it names none."""
    if recipe.init_weights in ("imagenet", "none"):
        return ""
    path = Path(recipe.init_weights)
    return Run(path).init_model(model) if path.is_dir() else load_effdet(path, model)


def train_run(
    run: Run,
    dataset: Dataset,
    budget: Budget,
    seed: int,
    *,
    images: ImageCache | None = None,
    state: Mapping[str, Any] | None = None,
    start: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
    every: float = 60.0,
    evaluate: Evaluate | None = None,
    track: Tracker | None = None,
    together: World | None = None,
    halve: bool = True,
) -> dict[str, Any]:
    """Train the detector of a run folder, and leave weights, log and facts in it; the last state comes back.

    All steps see pictures of one size, so that the first ones tell what memory holds: where a batch does not fit, it is halved,
    the rate goes with its square root, and the run begins anew.

    Args:
        run: folder with a recipe.
        dataset: annotated pictures to learn from.
        budget: when to stop.
        seed: of every random choice.
        images: of the dataset, where they are decoded already.
        state: of this very run, to go on with.
        start: the last state of another run, whose weights this one begins with.
        progress: is told the share of the budget that is spent.
        every: seconds between checkpoints.
        evaluate: gives the scores of averaged weights; asked at each checkpoint, off the budget, for a row in the log.
        track: is given the rows of the log, at each checkpoint the new ones.
        together: the processes that train as one; this one alone by default.
        halve: whether a batch that does not fit may be halved; that of several processes is not.

    Raises:
        FloatingPointError: the loss is not finite.
        InputError: not even the smallest batch fits in memory.
    """
    recipe, together = run.recipe, together or World(device=best_device())
    torch.manual_seed(seed)
    fresh = start is None and state is None
    model = _detector(recipe, dataset, fresh=fresh)
    samples = dataset.samples
    canvas = canvas_for(samples, image_size=recipe.image_size, stride=model.stride)
    if fresh and hasattr(model, "fit_anchors"):
        model.fit_anchors(_object_sizes(samples, canvas))
    if fresh and (told := _begin(recipe, model)):  # after the fit: a run's weights mean its own anchors
        print(told)
    if start is not None:
        model.load_state_dict(start["model"])
    model.to(together.device)
    if together.rank:
        torch.manual_seed(seed + 1_000_003 * together.rank)  # DropPath is to drop other pictures' paths elsewhere
    if images is None:
        images = ImageCache.load(samples, longest=round(recipe.image_size * (1 + recipe.scale_jitter)))
    batches = Batches(samples, images, recipe, canvas, seed)
    keep = Checkpointer(run, state, budget, together=together, track=track, evaluate=evaluate)
    too_large = False
    try:
        last = fit(
            model,
            batches,
            recipe,
            budget,
            log=keep.log,
            resume=state,
            checkpoint=keep,
            every=every,
            progress=progress,
            setting=_setting(run, model, batches, budget, together),
            together=together,
        )
    except RuntimeError as error:
        too_large = halve and together.size == 1 and not run.has_checkpoint and out_of_memory(error)
        if not too_large:
            raise
    if too_large:  # not within `except`: there the error keeps the step that failed, and all its memory
        smaller = halved(recipe)
        print(
            f"{run.folder}: {recipe.batch_size} pictures at a time do not fit in memory. Training with {smaller.batch_size}, "
            f"and a learning rate of {smaller.lr:.2g} in place of {recipe.lr:.2g}.",
            file=sys.stderr,
        )
        write_recipe(smaller, run.folder / "recipe.json")
        return train_run(
            run,
            dataset,
            budget,
            seed,
            images=images,
            start=start,
            progress=progress,
            every=every,
            evaluate=evaluate,
            track=track,
            together=together,
        )
    if together.first:
        run.save_weights(last["ema"])
        seconds, steps = last["seconds"], last["step"]
        run.write_metadata(
            replace(
                run.metadata,
                canvas=canvas,
                steps=steps,
                seconds=round(seconds, 2),
                images_per_second=round(steps * recipe.batch_size / max(seconds, 1e-9), 2),
                data_wait_share=round(last["loading"] / seconds, 4) if keep.log else None,
                processes=together.size,
            )
        )
    together.wait()
    return last


def _setting(run: Run, model: Any, batches: Batches, budget: Budget, together: World) -> Setting:
    """How the run is computed: as it began, as its recipe says, or as a probe finds, and then run.json tells of it.

    Only a single process on a budget of time is probed: a run of so many steps is to give the same bits on every day.
    """
    recipe, metadata, device = run.recipe, run.metadata, torch.device(together.device)
    if metadata.compute is not None:
        return Setting(**metadata.compute)
    setting, found = usual(device), None
    if recipe.precision != "auto":
        setting = replace(setting, precision=recipe.precision)
    elif together.size == 1 and budget.seconds < math.inf:
        budget.elapsed()  # the clock starts here: probing is paid for
        found = probe(
            model,
            batches.batch(0, 0.0),
            frozen_stages=recipe.frozen_stages,
            seconds=budget.seconds,
            key=f"{recipe.detector} at {batches.canvas}, {recipe.batch_size} at a time, {recipe.frozen_stages} stages frozen",
        )
    if found is not None:
        setting = found.setting
        print(found, file=sys.stderr)
    if together.first:
        measured = found.to_dict() if found is not None else None
        run.write_metadata(replace(metadata, compute=setting.to_dict(), autotune=measured))
    together.wait()
    return setting


def _object_sizes(samples: Sequence[Sample], canvas: tuple[int, int]) -> Tensor:
    """(N, 2) width and height of all objects, in pixels of the network's input; crowd regions are left out."""
    sides = []
    for sample in samples:
        assert sample.annotations is not None
        boxes = Letterbox(sample.width, sample.height, canvas).apply_boxes(
            sample.annotations.boxes[~sample.annotations.crowd]
        )
        sides.append(boxes[:, 2:] - boxes[:, :2])
    return torch.from_numpy(np.concatenate(sides)).float()
