"""Commands that train: train, sweep and import."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from foldfuse.commands import options
from foldfuse.data.dataset import Dataset, require_annotations
from foldfuse.data.folds import divide, read_folds
from foldfuse.data.pixels import open_images
from foldfuse.data.readers.coco import read
from foldfuse.data.readers.image_folder import read_classification
from foldfuse.errors import InputError
from foldfuse.inference.classifier import new_classifier
from foldfuse.inference.learnt_images import ids_of_hashes, learnt_before
from foldfuse.models.pretrained.yolov5 import category_ids, read_yolov5
from foldfuse.recipes import (
    CLASSIFIER_RECIPES,
    ClassifierRecipe,
    Recipe,
    changed,
    load_classifier_recipe,
    load_recipe,
)
from foldfuse.reporting.sweep_page import sweep_page, sweep_rows
from foldfuse.storage.run import Run, RunMetadata
from foldfuse.system import printing
from foldfuse.system.atomic_files import write_text
from foldfuse.system.device import choose_device
from foldfuse.system.durations import format_duration
from foldfuse.system.progress import progress_bar
from foldfuse.training.classifier import train_classifier, val_accuracy
from foldfuse.training.detector import load_init_weights, new_detector, train_detector
from foldfuse.training.session import open_session, require_same_data, run_metadata
from foldfuse.training.sweep import Sweep, combinations, run_sweep
from foldfuse.training.trackers import check_trackers


def import_weights(weights: Path, *, out: options.Out, overwrite: options.Overwrite = False) -> Path:
    """Import a YOLOv5 .pt checkpoint as a run, and return its folder; no code in the file is executed.

    Predict with the run, or start a training from it with --init-from.

    Args:
        weights: checkpoint (.pt) of a detector of sizes n to x.
        out: folder to make.

    Raises:
        InputError: the file is damaged, would execute code, or holds another network.

    Examples:
        foldfuse import yolov5s.pt --out yolov5s
    """
    weights, out = Path(weights), Path(out)
    options.refuse_overwrite(out, overwrite, inputs=[weights], made_by=["run.json", "recipe.json"])
    imported = read_yolov5(weights)
    origin = {
        "file": weights.name,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "licence": f"{imported.licence}; Foldfuse claims nothing",
    }
    recipe = replace(load_recipe("yolov5n"), detector=imported.name, image_size=imported.model.image_size)
    metadata = RunMetadata(imported.classes, tuple(category_ids(imported.classes)), origin=origin)
    options.remove_old(out, overwrite)
    run = Run.create(out, recipe, metadata)
    run.save_weights(imported.model.state_dict())
    printing.console().print(
        f"{imported.name} for {len(imported.classes)} classes from {weights} is in {run.folder}. "
        f"Mind its licence: {imported.licence}.",
    )
    return run.folder


def train(
    data: Path | None = None,
    *,
    out: options.OptionalOut = None,
    recipe: str | None = None,
    init_from: Path | None = None,
    changes: Annotated[options.Set, Parameter(name="--set")] = (),
    image_size: options.ImageSize = None,
    batch_size: options.BatchSize = None,
    lr: options.Lr = None,
    budget: options.OptionalDuration = None,
    steps: int | None = None,
    seed: int = 0,
    folds: options.FoldsFile = None,
    fold: int = 0,
    images: options.Images = None,
    ignore_orientation: options.IgnoreOrientation = False,
    resume: Path | None = None,
    checkpoint_every: options.OptionalDuration = None,
    tracker: tuple[str, ...] = (),
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
) -> Path:
    """Train one detector or classifier, and return its run folder.

    Args:
        data: COCO JSON with annotations, or a folder with a train.json. A classifier trains on the crops of its objects, or on
            a folder of images with a sub-folder for each class.
        out: folder to make.
        recipe: name of a recipe; `foldfuse recipes` lists them. By default the recipe of `init_from`, else lite0_fpn.
        init_from: folder of a detector's run whose weights to start from; where its classes differ, the head starts from
            random weights.
        image_size: longest side of an image as the network sees it; short for --set image_size=.
        batch_size: images per step; short for --set batch_size=.
        budget: time that training may take, such as 90s, 10m or 1h30m; 10m by default.
        steps: train this many steps instead, however long they take: such a training is repeatable bit by bit.
        seed: the seed of every random choice.
        folds: JSON that `foldfuse split` wrote; without it, training uses all images.
        fold: the held-out one of `folds`.
        resume: folder of a stopped run to resume, with its own data, folds, recipe and options. A new --budget or --steps
            counts from the start of the run.
        checkpoint_every: time between checkpoints, 60s by default; a crash loses the steps since the last one.
        tracker: a second place for the log: tensorboard:DIR or mlflow:URI.

    Raises:
        InputError: the data, the recipe or the folder cannot be used.

    Examples:
        foldfuse train data/train.json --out run1 --budget 10m
        foldfuse train data/train.json --out run2 --recipe yolov5n --budget 10m
        foldfuse train data/train.json --out run3 --init-from run1 --budget 5m
        foldfuse train --resume run1 --budget 20m
    """
    limits = _budget(budget, steps)
    if resume is None:
        if data is None or out is None:
            raise InputError("a new training needs DATA and --out; give both, or --resume FOLDER alone.")
        run = Run(Path(out))
        inputs = [data, images, folds, init_from]
        options.refuse_overwrite(run.folder, overwrite, inputs=inputs, made_by=["run.json", "recipe.json"])
        if fold and folds is None:
            raise InputError(f"--fold {fold}: there are no folds. Add --folds FILE, a file of 'foldfuse split'.")
        check_trackers(tracker)
        all_changes = options.recipe_changes(changes, lr=lr, image_size=image_size, batch_size=batch_size)
        new = _chosen_recipe(recipe, all_changes, init_from)
        dataset, val, whole_images = _read_data(
            data,
            folds,
            fold,
            images=images,
            classifier=isinstance(new, ClassifierRecipe),
            ignore_orientation=ignore_orientation,
        )
        metadata = replace(
            run_metadata(dataset, data=str(Path(data).resolve()), seed=seed, val_ids=val.image_ids if val else ()),
            images=None if images is None else str(images.resolve()),
            folds=None if folds is None else str(folds.resolve()),
            fold=fold,
            budget=limits,
            checkpoint_seconds=checkpoint_every or 60.0,
            trackers=tuple(tracker),
            device=device,
            ignore_orientation=ignore_orientation,
        )
        if isinstance(new, ClassifierRecipe):
            metadata = replace(metadata, crop_context=1.0 if whole_images else new.crop_context)
        if val is not None and isinstance(new, Recipe):
            _warn_of_learnt(new, val)
        choose_device(device)
        _check_model(new, len(dataset.classes))
        if os.environ.get("RANK", "0") == "0":
            options.remove_old(run.folder, overwrite)
    else:
        others: dict[str, Any] = {
            "DATA": data,
            "--out": out,
            "--recipe": recipe,
            "--init-from": init_from,
            "--images": images,
            "--ignore-orientation": ignore_orientation,
            "--folds": folds,
            "--lr": lr,
            "--seed": seed,
            "--fold": fold,
        }
        others |= {"--set": changes, "--image-size": image_size, "--batch-size": batch_size, "--overwrite": overwrite}
        if given := [name for name, value in others.items() if value]:
            raise InputError(
                f"--resume {resume}: the run keeps its own data and options; leave out {', '.join(given)}."
            )
        run, new = Run(Path(resume)), None
        metadata = run.metadata
        if not metadata.data:
            raise InputError(f"--resume {resume}: holds imported weights. Start a training from them with --init-from.")
        metadata = replace(
            metadata,
            budget=limits or metadata.budget,
            checkpoint_seconds=checkpoint_every or metadata.checkpoint_seconds,
            trackers=tuple(tracker) or metadata.trackers,
            device=metadata.device if device == "auto" else device,
        )
        check_trackers(metadata.trackers)
        its_folds = None if metadata.folds is None else Path(metadata.folds)
        its_images = None if metadata.images is None else Path(metadata.images)
        dataset, val, _ = _read_data(
            Path(metadata.data),
            its_folds,
            metadata.fold,
            images=its_images,
            classifier=run.is_classifier,
            ignore_orientation=metadata.ignore_orientation,
            value_ranges=metadata.value_ranges,
        )
        require_same_data(run, dataset)
    is_classifier = run.is_classifier if new is None else isinstance(new, ClassifierRecipe)
    with open_session(run, metadata, new=new, title=f"training {run.folder.name}") as session:
        if not is_classifier:
            train_detector(run, dataset, session)
            return run.folder
        train_classifier(run, dataset, session)
    if val is not None and session.world.is_main:
        accuracy, objects = val_accuracy(run, val, device=session.world.device)
        printing.write(f"accuracy on the {objects} held-out objects: {accuracy:.4f}")
    return run.folder


def _budget(seconds: float | None, steps: int | None) -> dict[str, float] | None:
    """The budget that was asked for; None where none was."""
    if steps is not None and steps < 1:
        raise InputError(f"steps is {steps}, and must be 1 or more.")
    if steps is not None:
        return {"steps": steps}
    return None if seconds is None else {"seconds": seconds}


def _chosen_recipe(name: str | None, changes: tuple[str, ...], init_from: Path | None) -> Recipe | ClassifierRecipe:
    """The recipe with the given name, or the recipe of the run to start from, with the changes applied."""
    if name in CLASSIFIER_RECIPES:
        if init_from is not None:
            raise InputError(f"--init-from {init_from}: a classifier cannot start from a run. Leave the option out.")
        return load_classifier_recipe(name, changes)
    if init_from is None:
        return load_recipe(name or "lite0_fpn", changes)
    own, changes = Run(Path(init_from)).recipe, (f"init_weights={init_from}", *changes)
    recipe = changed(own, changes) if name is None else load_recipe(name, changes)
    if recipe.detector != own.detector:
        raise InputError(
            f"--init-from {init_from}: is a run of {own.detector}, and {recipe.detector} cannot start from its weights."
        )
    return recipe


def _read_data(
    data: Path,
    folds: Path | None,
    fold: int,
    *,
    images: Path | None,
    classifier: bool,
    ignore_orientation: bool,
    value_ranges: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[Dataset, Dataset | None, bool]:
    """The images to train on, the held-out ones, and whether a classifier's data are whole images rather than objects."""
    dataset, whole_images = (
        read_classification(data, images=images, ignore_orientation=ignore_orientation)
        if classifier
        else (read(data, images=images, ignore_orientation=ignore_orientation), False)
    )
    dataset = open_images(
        require_annotations(dataset), ignore_orientation=ignore_orientation, value_ranges=value_ranges
    )
    if folds is None:
        return dataset, None, whole_images
    train, val = divide(dataset, read_folds(folds), fold, where=str(folds))
    return train, val, whole_images


def _warn_of_learnt(recipe: Recipe, val: Dataset) -> None:
    """Tells of held-out images that the run to start from has learnt from: their predictions will not be out-of-fold."""
    learnt = ids_of_hashes(val, learnt_before(recipe.init_weights))
    if learnt:
        share = f"{len(learnt)} of the {len(val)} held-out images"
        warning = f"has learnt from {share}, so that predictions of them will not be out-of-fold"
        printing.write(f"WARNING: {recipe.init_weights}: {warning}.", to_stderr=True)


def _check_model(recipe: Recipe | ClassifierRecipe, num_classes: int) -> None:
    """Make the model and load its initial weights, so that a missing file shows before there is a folder."""
    if isinstance(recipe, ClassifierRecipe):
        new_classifier(recipe, num_classes, initialized=True)
    else:
        load_init_weights(recipe, new_detector(recipe, num_classes))


def sweep(
    data: Path,
    *,
    out: options.Out,
    recipe: options.Names = ("lite0_fpn",),
    image_size: options.ImageSizes = (256, 320),
    batch_size: options.BatchSizes = (8,),
    budget: options.Duration = 1200.0,
    folds: options.NumFolds = 5,
    seed: int = 0,
    images: options.Images = None,
    ignore_orientation: options.IgnoreOrientation = False,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
) -> Path:
    """Train every combination of recipe, image size and batch size for the same time, compare them, and return the page.

    The same command resumes a sweep that was stopped, and trains nothing twice.

    Args:
        data: COCO JSON with annotations, or a folder with a train.json.
        out: folder for the runs, sweep.json and sweep.html.
        recipe: names of recipes.
        image_size: image sizes.
        batch_size: batch sizes. The learning rate is the recipe's times sqrt(batch size / the recipe's batch size).
        budget: the budget for everything: trainings, scoring and overhead.
        folds: number of folds; the first one is held out and scored.
        seed: the random seed of the folds and of every training.

    Raises:
        InputError: the data or an argument cannot be used, or `out` holds another sweep.

    Examples:
        foldfuse sweep data/train.json --out sweep --image-size 192,256 --budget 20m
    """
    for option, values in (("recipe", recipe), ("image-size", image_size), ("batch-size", batch_size)):
        if len(set(values)) < len(tuple(values)):
            raise InputError(f"--{option} {','.join(map(str, values))}: expected different values.")
    grid = combinations(recipe, image_size, batch_size)
    dataset = require_annotations(read(data, images=images, ignore_orientation=ignore_orientation))
    dataset = open_images(dataset, ignore_orientation=ignore_orientation)
    out = Path(out)
    if overwrite:
        options.refuse_overwrite(out, overwrite, inputs=[data, images], made_by=["sweep.json"])
        options.remove_old(out, overwrite)

    def write_page(so_far: Sweep) -> None:
        write_text(out / "sweep.html", sweep_page(so_far, data.name))

    result = run_sweep(
        dataset,
        out,
        grid,
        seconds=budget,
        folds=folds,
        seed=seed,
        device=device,
        ignore_orientation=ignore_orientation,
        show_progress=progress_bar,
        show=write_page,
    )
    printing.console().print(_sweep_table(result))
    return out / "sweep.html"


def _sweep_table(sweep: Sweep) -> Table:
    """All finished runs of a sweep, the best AP first."""
    title = f"{format_duration(sweep.seconds_each or 0.0)} of training each"
    table = Table(title=title, title_justify="left")
    for head in ("run", "AP", "AP50", "steps", "images/s", "lr"):
        table.add_column(head, justify="left" if head == "run" else "right")
    for row in sweep_rows(sweep):
        table.add_row(*row)
    return table
