"""Commands that train: train, sweep and import."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from foldfuse.data.crops import object_crops
from foldfuse.data.dataset import require_annotations
from foldfuse.data.folds import make_folds, read_folds
from foldfuse.data.images import ImageCache
from foldfuse.data.readers.coco import read
from foldfuse.data.readers.image_folder import read_classification
from foldfuse.errors import InputError
from foldfuse.inference.classifier import _learner, accuracy, classify
from foldfuse.models.pretrained.yolov5 import category_ids, read_yolov5
from foldfuse.recipes import CLASSIFIER_RECIPES, ClassifierRecipe, Recipe, changed, load_classifier_recipe, load_recipe
from foldfuse.reporting.sweep_page import page
from foldfuse.storage.run import Run, RunMetadata
from foldfuse.system.atomic_files import write_text
from foldfuse.system.durations import parse_duration
from foldfuse.system.processes import World
from foldfuse.system.progress import progress_bar
from foldfuse.training.checkpoints import opened, parse_budget, run_metadata
from foldfuse.training.classifier import train_run as train_classifier_run
from foldfuse.training.detector import _begin, _detector, train_run
from foldfuse.training.sweep import (
    OVERHEAD,
    _longest,
    _numbers,
    _one,
    _record,
    _save,
    _words,
    combinations,
    seconds_each,
    table,
)
from foldfuse.training.trackers import check_trackers


def import_weights(weights: Path, *, out: Path) -> Path:
    """Make a run folder of your own checkpoint of the original YOLOv5 toolkit; its path comes back. Nothing in it is run.

    Predict with it like with any run, or begin a training with it: `foldfuse train DATA --start RUN --out OUT`.

    Args:
        weights: checkpoint (.pt) of a detector of sizes n to x.
        out: folder to make; it must not exist yet.

    Raises:
        InputError: the file is damaged, would run code, or holds another network.
    """
    weights = Path(weights)
    found = read_yolov5(weights)
    origin = {
        "file": weights.name,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "licence": f"{found.licence}; Foldfuse claims nothing",
    }
    recipe = replace(load_recipe("yolov5n"), detector=found.name, image_size=found.model.image_size)
    metadata = RunMetadata(found.classes, tuple(category_ids(found.classes)), origin=origin)
    run = Run.create(out, recipe, metadata)
    run.save_weights(found.model.state_dict())
    Console().print(
        f"{found.name} for {len(found.classes)} classes from {weights} is in {run.folder}. Mind its licence: {found.licence}.",
        markup=False,
    )
    return run.folder


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
        recipe: name of a recipe; `foldfuse recipes` lists them. By default that of `start`, else lite0_fpn.
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
    if recipe in CLASSIFIER_RECIPES or (resume and Run(out).is_classifier):
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
    every = parse_duration(checkpoint)
    check_trackers(tracker)
    wanted = parse_budget(steps, budget)
    dataset = require_annotations(read(data))
    held: tuple[int, ...] = ()
    if folds is not None:
        split = read_folds(folds)
        dataset, held = dataset.subset(split.train_ids(fold)), tuple(split.val_ids(fold))
    run = Run(Path(out))

    def begin(together: World) -> tuple[Recipe, RunMetadata]:
        made = _wanted_recipe(recipe, change, start)
        together.part(made.batch_size)
        _begin(made, _detector(made, dataset))  # made to see that it can be
        return made, run_metadata(dataset, data=data, seed=seed, val_ids=held)

    def title(run: Run) -> str:
        return f"training {run.recipe.detector} at {run.recipe.image_size} px"

    with opened(
        run, dataset, data=data, wanted=wanted, resume=resume, tracker=tracker, begin=begin, title=title
    ) as now:
        train_run(
            run,
            dataset,
            now.budget,
            run.metadata.seed,
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
        return load_recipe(name or "lite0_fpn", change)
    change, own = (f"init_weights={start}", *change), Run(Path(start)).recipe
    made = changed(own, change) if name is None else load_recipe(name, change)
    if made.detector != own.detector:
        raise InputError(f"{start}: is a run of {own.detector}, and {made.detector} cannot begin with its weights.")
    return made


def train_classifier(
    data: Path,
    out: Path,
    *,
    recipe: str,
    change: tuple[str, ...] = (),
    budget: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    folds: Path | None = None,
    fold: int = 0,
    resume: bool = False,
    checkpoint: str = "60s",
    tracker: tuple[str, ...] = (),
) -> Path:
    """As `train`, for the recipe of a classifier; the run folder comes back."""
    every = parse_duration(checkpoint)
    check_trackers(tracker)
    wanted = parse_budget(steps, budget)
    whole, of_pictures = read_classification(data)
    dataset, held = require_annotations(whole), None
    if folds is not None:
        parts = read_folds(folds)
        dataset, held = whole.subset(parts.train_ids(fold)), whole.subset(parts.val_ids(fold))
    run = Run(Path(out))

    def begin(together: World) -> tuple[ClassifierRecipe, RunMetadata]:
        made = load_classifier_recipe(recipe, change)
        together.part(made.batch_size)
        _learner(made, len(dataset.classes), pretrained=made.init_weights == "imagenet")  # made to see that it can be
        metadata = run_metadata(dataset, data=data, seed=seed, val_ids=held.image_ids if held else ())
        return made, replace(metadata, crop_context=1.0 if of_pictures else made.crop_context)

    def title(run: Run) -> str:
        return f"training {run.classifier_recipe.classifier}"

    with opened(
        run, dataset, data=data, wanted=wanted, resume=resume, tracker=tracker, begin=begin, title=title
    ) as now:
        train_classifier_run(
            run,
            dataset,
            now.budget,
            state=now.state,
            progress=now.progress,
            every=every,
            track=now.track,
            together=now.together,
        )
    if held and now.together.first:
        right = accuracy(classify(run, object_crops(held)), object_crops(held).labels)
        learnt = [row for row in run.log if "accuracy" not in row]
        run.write_log([*learnt, {"step": run.metadata.steps, "seconds": run.metadata.seconds, "accuracy": right}])
        print(f"accuracy on the {len(object_crops(held))} objects held back: {right:.4f}")
    return run.folder


def sweep(
    data: Path,
    *,
    out: Path,
    sizes: str = "256,320",
    batches: str = "8",
    recipes: str = "lite0_fpn",
    budget: str = "20m",
    k: int = 5,
    seed: int = 0,
) -> Path:
    """Train every combination for the same time, and compare them; the path of the page comes back.

    Called again with the same arguments, it goes on where it was stopped, and trains nothing twice.

    Args:
        data: COCO JSON with annotations, or a folder with a train.json.
        out: folder for the trainings, sweep.json and sweep.html.
        sizes: image sizes, such as 192,256.
        batches: batch sizes, such as 4,8. The learning rate is that of the recipe x sqrt(batch size / that of the recipe).
        recipes: names of recipes.
        budget: for all of it: trainings, scoring and setting up.
        k: folds; the first is held back and scored.
        seed: of the folds and of every training.

    Raises:
        InputError: the data or an argument cannot be used, or `out` holds another sweep.
    """
    began, out = time.monotonic(), Path(out)
    grid = combinations(_words("recipes", recipes), _numbers("sizes", sizes), _numbers("batches", batches))
    dataset = require_annotations(read(data))
    total = parse_duration(budget)
    asked = {"fingerprint": dataset.fingerprint, "budget": total, "k": k, "seed": seed}
    asked["recipes"] = {name: asdict(recipe) for name, recipe in grid.items()}
    split = make_folds(dataset, num_folds=k, seed=seed)
    train, held = dataset.subset(split.train_ids(0)), dataset.subset(split.val_ids(0))
    record = _record(out, asked)
    with progress_bar(f"decoding {len(train)} pictures"):
        images = ImageCache.load(train.samples, longest=max(_longest(recipe) for recipe in grid.values()))
    if record["seconds_each"] is None:
        left = total - (time.monotonic() - began) - OVERHEAD * len(grid)
        record["seconds_each"] = seconds_each(grid, held, left)
        _save(out, record)
    for name, recipe in grid.items():
        if record["runs"].get(name, {}).get("finished"):
            continue
        record["runs"][name] = _one(out / "runs" / name, recipe, train, held, images, record["seconds_each"], seed)
        _save(out, record)
        write_text(out / "sweep.html", page(record, data.name))
    Console().print(table(record))
    return out / "sweep.html"
