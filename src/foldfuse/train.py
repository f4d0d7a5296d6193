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

from foldfuse.batches import Batches
from foldfuse.budget import Budget
from foldfuse.data import Dataset, Sample, read, require_annotations
from foldfuse.distributed import World, best_device
from foldfuse.durations import seconds_of
from foldfuse.errors import InputError
from foldfuse.images import Fit, Pictures, canvas_for
from foldfuse.keeping import Evaluate, Keeper, budget_of, opened
from foldfuse.loop import fit
from foldfuse.models import make_detector
from foldfuse.models.weights import load_effdet
from foldfuse.precision import Setting, usual
from foldfuse.probe import probe
from foldfuse.progress import Progress, silent
from foldfuse.recipes import CLASSIFIER_RECIPES, Recipe, changed, load_recipe, write_recipe
from foldfuse.run import Run
from foldfuse.split import read_folds
from foldfuse.trackers import Tracker, check_trackers

__all__ = ["Budget", "fit", "run_facts", "train", "train_run"]


def train(
    data: Path,
    out: Path,
    *,
    recipe: str | None = None,
    change: tuple[str, ...] = (),
    start: Path | None = None,
    budget: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    folds: Path | None = None,
    fold: int = 0,
    resume: bool = False,
    checkpoint: str = "60s",
    tracker: tuple[str, ...] = (),
) -> Path:
    """Train one detector or classifier; its run folder comes back.

    Args:
        data: COCO JSON with annotations, or a folder with a train.json. A classifier learns the crops of its objects, or a
            folder of pictures with a sub-folder for each class.
        out: folder to make; it must not exist yet, unless `resume` is given.
        recipe: name of a recipe; `foldfuse recipes` lists them. By default that of `start`, else house.
        change: changes to the recipe, such as lr=3e-4.
        start: folder of a detector's run whose weights to begin with; where its classes are other ones, the head begins anew.
        budget: time that training may take, such as 90s, 10m or 1h30m; 10m by default.
        steps: train this many steps instead, however long they take: such a run can be repeated bit by bit.
        seed: of every random choice.
        folds: JSON that `foldfuse split` wrote; without it, all pictures are trained on.
        fold: which of `folds` to hold back.
        resume: go on with a run that was stopped, with its own recipe, seed and, unless one is given, budget. A run that
            was stopped before it began is begun.
        checkpoint: time between checkpoints, such as 60s; what was learnt since the last one is lost in a crash.
        tracker: where the rows of the log are to be written besides: tensorboard:DIR or mlflow:URI.

    Raises:
        InputError: the data, the recipe or the folder cannot be used.
    """
    if steps is not None and steps < 1:
        raise InputError(f"steps is {steps}, and must be 1 or more.")
    if recipe in CLASSIFIER_RECIPES or (resume and Run(out).of_classifier):
        from foldfuse.classify import train_classifier  # it trains by the same `fit`

        if start is not None:
            raise InputError(
                f"start is {start}, and a classifier cannot begin with the weights of a run. Leave it out."
            )
        return train_classifier(
            data,
            out,
            recipe=recipe or "",
            change=change,
            budget=budget,
            steps=steps,
            seed=seed,
            folds=folds,
            fold=fold,
            resume=resume,
            checkpoint=checkpoint,
            tracker=tracker,
        )
    every = seconds_of(checkpoint)
    check_trackers(tracker)
    wanted = budget_of(steps, budget)
    dataset = require_annotations(read(data))
    held: tuple[int, ...] = ()
    if folds is not None:
        split = read_folds(folds)
        dataset, held = dataset.subset(split.train_ids(fold)), tuple(split.held_ids(fold))
    run = Run(Path(out))

    def begin(together: World) -> tuple[Recipe, dict[str, Any]]:
        made = _wanted_recipe(recipe, change, start)
        together.part(made.batch_size)
        _begin(made, _detector(made, dataset))  # made to see that it can be
        return made, run_facts(dataset, data=data, seed=seed, held=held)

    def title(run: Run) -> str:
        return f"training {run.recipe.detector} at {run.recipe.image_size} px"

    with opened(
        run, dataset, data=data, wanted=wanted, resume=resume, tracker=tracker, begin=begin, title=title
    ) as now:
        train_run(
            run,
            dataset,
            now.budget,
            run.facts["seed"],
            state=now.state,
            progress=now.progress,
            every=every,
            track=now.track,
            together=now.together,
        )
    return run.folder


def _wanted_recipe(name: str | None, change: tuple[str, ...], start: Path | None) -> Recipe:
    """The recipe that a training is asked for: by name, or that of the run it starts from; with the changes."""
    if start is None:
        return load_recipe(name or "house", change)
    change, own = (f"weights={start}", *change), Run(Path(start)).recipe
    made = changed(own, change) if name is None else load_recipe(name, change)
    if made.detector != own.detector:
        raise InputError(f"{start}: is a run of {own.detector}, and {made.detector} cannot begin with its weights.")
    return made


def _detector(recipe: Recipe, dataset: Dataset, *, fresh: bool = True) -> Any:
    """A new detector for a recipe; a `fresh` one has ImageNet weights where the recipe wants them."""
    imagenet = fresh and recipe.weights == "imagenet"
    return make_detector(recipe.detector, len(dataset.classes), anchor_scale=recipe.anchor_scale, pretrained=imagenet)


def _begin(recipe: Recipe, model: Any) -> str:
    """Give `model` the weights of the run or checkpoint that the recipe names; a sentence on it, "" where it names none."""
    if recipe.weights in ("imagenet", "none"):
        return ""
    path = Path(recipe.weights)
    return Run(path).start(model) if path.is_dir() else load_effdet(path, model)


def run_facts(dataset: Dataset, *, data: Path, seed: int, held: Sequence[int]) -> dict[str, Any]:
    """What run.json holds before training."""
    return {
        "data": str(data),
        "data_fingerprint": dataset.fingerprint,
        "classes": list(dataset.classes),
        "category_ids": list(dataset.category_ids),
        "seed": seed,
        "held": list(held),
    }


def train_run(
    run: Run,
    dataset: Dataset,
    budget: Budget,
    seed: int,
    *,
    pictures: Pictures | None = None,
    state: Mapping[str, Any] | None = None,
    start: Mapping[str, Any] | None = None,
    progress: Progress = silent,
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
        pictures: of the dataset, where they are decoded already.
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
    if pictures is None:
        pictures = Pictures.of(samples, longest=round(recipe.image_size * (1 + recipe.scale_jitter)))
    batches = Batches(samples, pictures, recipe, canvas, seed)
    keep = Keeper(run, state, budget, together=together, track=track, evaluate=evaluate)
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
        too_large = halve and together.size == 1 and not run.has_state and out_of_memory(error)
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
            pictures=pictures,
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
        run.write_facts(
            run.facts
            | {
                "canvas": list(canvas),
                "steps": steps,
                "seconds": round(seconds, 2),
                "images_per_second": round(steps * recipe.batch_size / max(seconds, 1e-9), 2),
                "loading_share": round(last["loading"] / seconds, 4) if keep.log else None,
                "processes": together.size,
            }
        )
    together.wait()
    return last


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not allocate: on CUDA that is an error of its own, on a CPU its text must be read."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def halved(recipe: Recipe) -> Recipe:
    """The recipe with half the pictures in a batch, and a rate that goes with the square root, as `sweep` has it.

    Raises:
        InputError: half a batch is too small to learn from.
    """
    size = recipe.batch_size // 2
    try:
        return replace(recipe, batch_size=size, lr=recipe.lr * (size / recipe.batch_size) ** 0.5)
    except InputError:
        raise InputError(
            f"batch_size is {recipe.batch_size}, which does not fit in memory at {recipe.image_size} px, and half of it "
            "cannot be learnt from. Take a smaller image_size, or a smaller detector."
        ) from None


def _setting(run: Run, model: Any, batches: Batches, budget: Budget, together: World) -> Setting:
    """How the run is computed: as it began, as its recipe says, or as a probe finds, and then run.json tells of it.

    Only a single process on a budget of time is probed: a run of so many steps is to give the same bits on every day.
    """
    recipe, facts, device = run.recipe, run.facts, torch.device(together.device)
    if "setting" in facts:
        return Setting(**facts["setting"])
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
        told = {"probe": found.to_dict()} if found is not None else {}
        run.write_facts(facts | {"setting": setting.to_dict()} | told)
    together.wait()
    return setting


def _object_sizes(samples: Sequence[Sample], canvas: tuple[int, int]) -> Tensor:
    """(N, 2) width and height of all objects, in pixels of the network's input; crowd regions are left out."""
    sides = []
    for sample in samples:
        assert sample.annotations is not None
        boxes = Fit(sample.width, sample.height, canvas).boxes(sample.annotations.boxes[~sample.annotations.crowd])
        sides.append(boxes[:, 2:] - boxes[:, :2])
    return torch.from_numpy(np.concatenate(sides)).float()
