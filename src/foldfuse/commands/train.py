"""Commands that train: train, sweep and import."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from foldfuse.commands import options
from foldfuse.commands.training_end import report_end
from foldfuse.commands.training_options import (
    Given,
    chosen_recipe,
    new_metadata,
    read_data,
    resumed_data,
    resumed_recipe,
    training_budget,
    training_command,
    warn_of_learnt,
)
from foldfuse.data.dataset import require_annotations
from foldfuse.data.images import ImageCache
from foldfuse.data.pixels import open_images
from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError
from foldfuse.evaluation.metrics import open_metric
from foldfuse.inference.pretraining_images import likeness_warnings
from foldfuse.models.pretrained.yolov5 import category_ids, read_yolov5
from foldfuse.provenance import licence_notes
from foldfuse.recipes import ClassifierRecipe, Recipe, load_recipe
from foldfuse.reporting.sweep_page import TERMINAL_HEADS, sweep_heads, sweep_page, sweep_rows
from foldfuse.storage.run import Run, RunMetadata
from foldfuse.storage.run_tensors import Check
from foldfuse.system import printing
from foldfuse.system.atomic_files import write_text
from foldfuse.system.device import choose_device
from foldfuse.system.durations import duration_option, format_duration
from foldfuse.system.offline import go_offline
from foldfuse.system.progress import progress_bar
from foldfuse.training.classifier import train_classifier, training_crops
from foldfuse.training.detector import train_detector
from foldfuse.training.image_sizes import with_image_size
from foldfuse.training.preparation import check_new_model, state_check
from foldfuse.training.session import DEFAULT_BUDGET, open_session, require_resumable
from foldfuse.training.sweep import Sweep, combinations, run_sweep
from foldfuse.training.targets import longest_side
from foldfuse.training.trackers import check_trackers
from foldfuse.training.validation import held_out_scorer
from foldfuse.training.weights_origin import origins_of


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
    image_size: options.AutoImageSize = None,
    batch_size: options.BatchSize = None,
    lr: options.Lr = None,
    budget: options.OptionalDuration = None,
    steps: options.OptionalCount = None,
    seed: options.OptionalSeed = None,
    folds: options.FoldsFile = None,
    fold: int | None = None,
    val: Annotated[Path | None, Parameter(metavar="DATA")] = None,
    images: options.Images = None,
    ignore_orientation: options.IgnoreOrientation = False,
    resume: Path | None = None,
    checkpoint_every: options.OptionalDuration = None,
    eval_every: options.OptionalDuration = None,
    tracker: tuple[str, ...] = (),
    device: options.Device = "auto",
    offline: options.Offline = False,
    overwrite: options.Overwrite = False,
) -> Path:
    """Train one detector or classifier, and return its run folder.

    Args:
        data: the annotated images, in any layout. A classifier trains on the crops of its objects, or on
            a folder of images with a sub-folder for each class.
        out: folder to make.
        recipe: name of a recipe; `foldfuse recipes` lists them. By default the recipe of `init_from`, else lite0_fpn.
        init_from: folder of a run whose weights to start from. Its classes are matched by name; the head's rows of other
            classes start from random values.
        image_size: longest side of an image as the network sees it, in pixels, or auto to choose it from the data; short
            for --set image_size=.
        batch_size: images per step; short for --set batch_size=.
        budget: time that training may take, such as 90s, 10m or 1h30m; 10m by default.
        steps: train this many steps instead, however long they take: such a training is repeatable bit by bit.
        seed: the seed of every random choice, 0 by default.
        folds: JSON that `foldfuse split` wrote; without it, training uses all images.
        fold: the held-out one of `folds`, 0 by default. Training ends with its score.
        val: annotated images to score instead of a fold, in any layout; their classes are matched by name. None of them is
            trained on.
        resume: folder of a stopped run to resume, with its own data, folds, recipe and options; an option that contradicts them
            is refused, but for --lr. A new --budget or --steps counts from the start of the run.
        checkpoint_every: time between checkpoints, 60s by default; a crash loses the steps since the last one.
        eval_every: score the held-out images each time so much was trained, at the next checkpoint, for the bar and the log. The
            time for it does not count against the budget. By default they are scored once, at the end.
        tracker: a second place for the log: tensorboard:DIR, mlflow:URI, wandb:PROJECT or trackio:PROJECT. Repeat for more.

    Raises:
        InputError: the data, the recipe or the folder cannot be used.

    Examples:
        foldfuse train data/train.json --out run1 --budget 10m
        foldfuse train data/train.json --folds folds.json --out run0 --budget 10m
        foldfuse train data/train.json --out run2 --recipe yolov5n --budget 10m
        foldfuse train data/train.json --out run3 --init-from run1 --budget 5m
        foldfuse train --resume run1 --budget 20m
        foldfuse train --resume run1 --lr 3e-4
    """
    if offline:
        go_offline()
    limits = training_budget(budget, steps)
    all_changes = options.recipe_changes(changes, lr=lr, image_size=image_size, batch_size=batch_size)
    given = Given(
        data, out, recipe, init_from, all_changes, images, ignore_orientation, folds, fold, seed, overwrite, val
    )
    check: Check | None = None
    if resume is None:
        if data is None or out is None:
            raise InputError("a new training needs DATA and --out; give both, or --resume FOLDER alone.")
        run = Run(Path(out))
        if val is not None and folds is not None:
            raise InputError(
                f"--val {val}: the run would be scored on these images, and --folds {folds} holds out others. Give one of them."
            )
        if fold and folds is None:
            raise InputError(f"--fold {fold}: there are no folds. Add --folds FILE, a file of 'foldfuse split'.")
        its_recipe = chosen_recipe(recipe, all_changes, init_from)
        inputs = [data, images, folds, val, init_from, Path(its_recipe.init_weights)]
        options.refuse_overwrite(run.folder, overwrite, inputs=inputs, made_by=["run.json", "recipe.json"])
        classifier = isinstance(its_recipe, ClassifierRecipe)
        found = read_data(
            data, folds, fold or 0, images=images, classifier=classifier, ignore_orientation=ignore_orientation, val=val
        )
        metadata = new_metadata(found, given, its_recipe, seed=seed or 0, fold=fold or 0)
    else:
        run = Run(Path(resume))
        found, metadata = resumed_data(run, given)
        its_recipe = resumed_recipe(run, given)
        check = state_check(its_recipe, len(metadata.classes))
    metadata = replace(
        metadata,
        budget=limits or metadata.budget,
        checkpoint_seconds=checkpoint_every or metadata.checkpoint_seconds,
        eval_seconds=eval_every or metadata.eval_seconds,
        trackers=tuple(tracker) or metadata.trackers,
        device=metadata.device if resume is not None and device == "auto" else device,
    )
    if eval_every is not None and (found.val is None or isinstance(its_recipe, ClassifierRecipe)):
        why = "nothing is held out" if found.val is None else "a classifier is scored at its end alone"
        raise InputError(f"--eval-every {duration_option(eval_every)}: {why}. Leave it out, or give --folds or --val.")
    if resume is None:
        metadata = replace(metadata, command=training_command(given, metadata))
    check_trackers(metadata.trackers)
    choose_device(metadata.device or "auto")
    if resume is None and isinstance(its_recipe, Recipe):
        alone = os.environ.get("WORLD_SIZE", "1") == "1"  # several processes would measure different times
        seconds = (metadata.budget or DEFAULT_BUDGET).get("seconds", math.inf) if alone else math.inf
        its_recipe, reason = with_image_size(its_recipe, found.train, seconds=seconds, device=metadata.device or "auto")
        metadata = replace(metadata, image_size_reason=reason)
    if resume is None:
        for note in licence_notes(origins_of(its_recipe)):
            printing.write(f"WARNING: {note}", to_stderr=True)
        check_new_model(its_recipe, found.train)
        warn_of_learnt(its_recipe, found)
    else:
        require_resumable(run, metadata, check)  # before images are decoded, which may take long
    crops = decoded = None
    if isinstance(its_recipe, ClassifierRecipe):
        crops = training_crops(found.train, its_recipe, context=metadata.crop_context or its_recipe.crop_context)
    else:
        decoded = ImageCache.load(found.train.samples, longest=longest_side(its_recipe))
    if resume is None and os.environ.get("RANK", "0") == "0":
        options.remove_old(run.folder, overwrite)
    title = f"training {run.folder.name}"
    with open_session(run, metadata, recipe=its_recipe, is_new=resume is None, check=check, title=title) as session:
        if crops is None:
            if found.val is not None and metadata.eval_seconds is not None and session.world.is_main:
                device = session.world.device
                scorer = held_out_scorer(run.recipe, found.train.classes, found.val, device=device)
                session = replace(session, evaluate=scorer, evaluate_seconds=metadata.eval_seconds)
            train_detector(run, found.train, session, images=decoded)
        else:
            train_classifier(run, found.train, session, images=crops)
        world = session.world
    if world.is_main:
        report_end(run, found.val, num_learnt=found.num_learnt, device=world.device)
    return run.folder


def sweep(
    data: Path,
    *,
    out: options.Out,
    recipe: options.Names = ("lite0_fpn",),
    image_size: options.ImageSizes = (256, 320),
    batch_size: options.BatchSizes = (8,),
    budget: options.Duration = 1200.0,
    folds: options.NumFolds = 5,
    seed: options.Seed = 0,
    metric: options.Metric = "ap",
    images: options.Images = None,
    ignore_orientation: options.IgnoreOrientation = False,
    device: options.Device = "auto",
    offline: options.Offline = False,
    overwrite: options.Overwrite = False,
) -> Path:
    """Train every combination of recipe, image size and batch size for the same time, compare them, and return the page.

    Each run is compared with the best by its difference in the metric and the 95 % interval of it (bootstrap over the held-out
    images). The same command resumes a sweep that was stopped, and trains nothing twice.

    Args:
        data: the annotated images, in any layout.
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
    if offline:
        go_offline()
    open_metric(metric)
    for option, values in (("recipe", recipe), ("image-size", image_size), ("batch-size", batch_size)):
        if len(set(values)) < len(tuple(values)):
            raise InputError(f"--{option} {','.join(map(str, values))}: expected different values.")
    grid = combinations(recipe, image_size, batch_size)
    dataset = require_annotations(read(data, images=images, ignore_orientation=ignore_orientation))
    dataset = open_images(dataset, ignore_orientation=ignore_orientation)
    out = Path(out)
    if overwrite:
        options.refuse_overwrite(out, overwrite, inputs=[data, images], made_by=["sweep.json"])
    starts = {f"init_weights={each.init_weights}": each for each in grid.values()}
    for sentence in likeness_warnings(starts, dataset, what="images"):
        printing.write(f"WARNING: {sentence}", to_stderr=True)

    def write_page(so_far: Sweep) -> None:
        write_text(out / "sweep.html", sweep_page(so_far, data.name))

    result = run_sweep(
        dataset,
        out,
        grid,
        seconds=budget,
        folds=folds,
        seed=seed,
        metric=metric,
        device=device,
        ignore_orientation=ignore_orientation,
        overwrite=overwrite,
        show_progress=progress_bar,
        show=write_page,
    )
    printing.console().print(_sweep_table(result))
    for sentence in result.comparison.sentences() if result.comparison else ():
        printing.write(sentence)
    return out / "sweep.html"


def _sweep_table(sweep: Sweep) -> Table:
    """All finished runs of a sweep, the best AP first; the page has more columns, and these fit 80 characters."""
    title = f"{format_duration(sweep.seconds_each or 0.0)} of training each"
    table = Table(title=title, title_justify="left")
    heads = sweep_heads(sweep)[:TERMINAL_HEADS]
    for head in heads:
        table.add_column(head, justify="left" if head == "run" else "right", overflow="fold")
    for row in sweep_rows(sweep):
        table.add_row(*row[: len(heads)])
    return table
