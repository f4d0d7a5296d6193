"""What `train` is asked for, read and checked: a new run, or a run to resume with the options that do not contradict it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from foldfuse.commands import option_values
from foldfuse.data.dataset import Dataset, require_annotations
from foldfuse.data.folds import divide, read_folds
from foldfuse.data.pixels import open_images
from foldfuse.data.readers.coco import read
from foldfuse.data.readers.image_folder import read_classification
from foldfuse.errors import InputError, shown
from foldfuse.inference.learnt_images import ids_of_hashes, learnt_before
from foldfuse.inference.pretraining_images import likeness_warnings
from foldfuse.recipes import (
    AUTO,
    CLASSIFIER_RECIPES,
    ClassifierRecipe,
    Recipe,
    changed,
    load_classifier_recipe,
    load_recipe,
)
from foldfuse.storage.run import Run, RunMetadata
from foldfuse.system import printing
from foldfuse.system.durations import duration_option
from foldfuse.training.backbone_defaults import with_backbone_defaults
from foldfuse.training.init_weights import require_same_network
from foldfuse.training.session import run_metadata
from foldfuse.training.validation import read_validation, without_training_images


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The data of one training.

    Attributes:
        train: the images to train on.
        val: the images to score on, of a held-out fold or of --val; None where there are none.
        whole_images: whether a classifier's data are whole images rather than objects.
        val_fingerprint: the fingerprint of the data given as --val.
        num_learnt: images of --val that are training images too, and not in `val`.
    """

    train: Dataset
    val: Dataset | None
    whole_images: bool
    val_fingerprint: str | None = None
    num_learnt: int = 0


@dataclass(frozen=True)
class Given:
    """The options that a resume may not contradict, as they were given; None, () or False where one was not.

    Attributes:
        changes: of the recipe, those of short options such as --image-size included.
    """

    data: Path | None
    out: Path | None
    recipe: str | None
    init_from: Path | None
    changes: tuple[str, ...]
    images: Path | None
    ignore_orientation: bool
    folds: Path | None
    fold: int | None
    seed: int | None
    overwrite: bool
    val: Path | None = None


def chosen_recipe(name: str | None, changes: Sequence[str], init_from: Path | None) -> Recipe | ClassifierRecipe:
    """The recipe with the given name, or the recipe of the run to start from, with the changes applied.

    Raises:
        InputError: there is no such recipe, field or run, or the run is of another network.
    """
    if init_from is None:
        return _by_name(name or "lite0_fpn", changes)
    run, changes = Run(Path(init_from)), (f"init_weights={init_from}", *changes)
    try:
        if name is not None:
            recipe = _by_name(name, changes)
        elif run.is_classifier:
            recipe = changed(run.classifier_recipe, changes)
        else:
            recipe = changed(run.recipe, changes)
        require_same_network(recipe, run)
    except InputError as error:
        raise InputError(f"--init-from {error}" if str(error).startswith(str(init_from)) else str(error)) from None
    return recipe


def _by_name(name: str, changes: Sequence[str]) -> Recipe | ClassifierRecipe:
    if name in CLASSIFIER_RECIPES:
        return load_classifier_recipe(name, changes)
    return load_recipe(name, with_backbone_defaults(load_recipe(name), changes))


def read_data(
    data: Path,
    folds: Path | None,
    fold: int,
    *,
    images: Path | None,
    ignore_orientation: bool,
    classifier: bool,
    val: Path | None = None,
    run: RunMetadata | None = None,
) -> TrainingData:
    """The images to train on and the ones to score on.

    Args:
        data: the annotated data.
        folds: the file of folds; None to train on all images.
        fold: the held-out one.
        images: the folder of the images.
        ignore_orientation: whether pixels are taken as stored, whatever an EXIF tag says.
        classifier: whether a classifier is to be trained.
        val: annotated data to score on, where there are no folds.
        run: of a run to resume: its value ranges are used, and its held-out images where the file of folds is gone.

    Raises:
        InputError: the data or the folds cannot be read, or no object is left to train on.
    """
    dataset, whole_images = (
        read_classification(data, images=images, ignore_orientation=ignore_orientation)
        if classifier
        else (read(data, images=images, ignore_orientation=ignore_orientation), False)
    )
    dataset = open_images(
        require_annotations(dataset),
        ignore_orientation=ignore_orientation,
        value_ranges=None if run is None else run.value_ranges,
    )
    if val is not None:
        found = read_validation(
            val, dataset, images=images, ignore_orientation=ignore_orientation, classifier=classifier
        )
        new = without_training_images(found, dataset, where=f"--val {val}")
        return TrainingData(dataset, new, whole_images, found.fingerprint, len(found) - len(new))
    if folds is None:
        return TrainingData(dataset, None, whole_images)
    if run is not None and run.val_ids and not folds.exists():
        held_out = set(run.val_ids)
        return TrainingData(dataset.subset(set(dataset.image_ids) - held_out), dataset.subset(held_out), whole_images)
    train, held_out_fold = divide(dataset, read_folds(folds), fold, where=str(folds))
    return TrainingData(train, held_out_fold, whole_images)


def resumed_recipe(run: Run, given: Given) -> Recipe | ClassifierRecipe:
    """The recipe of a run to resume, with the learning rate that was given.

    Raises:
        InputError: an option asks for another recipe than the run has.
    """
    own: Recipe | ClassifierRecipe
    wanted: Recipe | ClassifierRecipe
    if run.is_classifier:
        own = run.classifier_recipe
        wanted = changed(own, given.changes)
    else:
        own = run.recipe
        wanted = changed(own, given.changes)
    if given.recipe is not None or given.init_from is not None:
        wanted = chosen_recipe(given.recipe, given.changes, given.init_from)
    has_init = given.init_from is not None or any(change.startswith("init_weights=") for change in given.changes)
    if type(wanted) is not type(own):
        kind = "a classifier" if run.is_classifier else "a detector"
        raise InputError(
            f"--resume {run.folder}: is a run of {kind}, and --recipe {given.recipe} is another. Leave it out."
        )
    for field in fields(own):
        found, asked = getattr(own, field.name), getattr(wanted, field.name, None)
        same_path = field.name == "init_weights" and Path(str(found)).resolve() == Path(str(asked)).resolve()
        is_auto = field.name == "image_size" and asked == AUTO  # whatever number was chosen when the run began
        if (
            found == asked
            or same_path
            or is_auto
            or field.name in ("lr", "numerics")
            or (field.name == "init_weights" and not has_init)
        ):
            continue
        raise InputError(
            f"--resume {run.folder}: the run has {field.name}={found}, and the options ask for {shown(asked)}. A run keeps its "
            "recipe, but for the learning rate (--lr). Leave the other options out, or train a new run with --init-from."
        )
    has_lr = any(change.startswith("lr=") for change in given.changes)
    return replace(own, lr=wanted.lr) if has_lr else own


def resumed_data(run: Run, given: Given) -> tuple[TrainingData, RunMetadata]:
    """The data of a run to resume, and its metadata with the paths that were given.

    A path may be another one than the run's, for data that have moved; what they hold must be the same.

    Raises:
        InputError: an option contradicts the run, or the data have changed.
    """
    metadata = run.metadata
    where = f"--resume {run.folder}"
    if not metadata.data:
        raise InputError(f"{where}: holds imported weights. Start a training from them with --init-from.")
    if given.overwrite:
        raise InputError(f"{where}: --overwrite would remove the run to resume. Leave it out.")
    if given.out is not None and given.out.resolve() != run.folder.resolve():
        raise InputError(f"{where}: a run is resumed in its own folder, not in {given.out}. Leave --out out.")
    for name, wanted, own in (("seed", given.seed, metadata.seed), ("fold", given.fold, metadata.fold)):
        if wanted is not None and wanted != own:
            raise InputError(f"{where}: the run has --{name} {own}, and --{name} {wanted} was given. Leave it out.")
    if given.ignore_orientation and not metadata.ignore_orientation:
        raise InputError(f"{where}: the run follows the images' orientation tags. Leave --ignore-orientation out.")
    if given.folds is not None and metadata.folds is None:
        raise InputError(f"{where}: the run trains on all images, and --folds {given.folds} was given. Leave it out.")
    if given.val is not None and metadata.folds is not None:
        raise InputError(f"{where}: the run holds out a fold, and --val {given.val} was given. Leave it out.")
    moved = replace(
        metadata,
        data=metadata.data if given.data is None else str(given.data.resolve()),
        folds=metadata.folds if given.folds is None else str(given.folds.resolve()),
        images=metadata.images if given.images is None else str(given.images.resolve()),
        val=metadata.val if given.val is None else str(given.val.resolve()),
    )
    data = read_data(
        Path(moved.data),
        None if moved.folds is None else Path(moved.folds),
        moved.fold,
        images=None if moved.images is None else Path(moved.images),
        ignore_orientation=metadata.ignore_orientation,
        classifier=run.is_classifier,
        val=None if moved.val is None else Path(moved.val),
        run=metadata,
    )
    val_ids = set(data.val.image_ids) if data.val is not None and moved.val is None else set()
    if not data.train.has_fingerprint(metadata.data_fingerprint) or val_ids != set(metadata.val_ids):
        raise InputError(
            f"{run.folder}: was trained on other data than {moved.data}"
            f"{f' with the folds of {moved.folds}' if moved.folds else ''} holds now. Restore the data, or train a new run."
        )
    if metadata.val_fingerprint is not None and data.val_fingerprint != metadata.val_fingerprint:
        raise InputError(
            f"{run.folder}: is scored on other images than --val {moved.val} holds now. Restore the data, or train a new run."
        )
    return data, replace(moved, val_fingerprint=data.val_fingerprint)


def new_metadata(
    data: TrainingData, given: Given, recipe: Recipe | ClassifierRecipe, *, seed: int, fold: int
) -> RunMetadata:
    """The metadata of a new run, but for its budget, checkpoints, trackers and device."""
    assert given.data is not None
    metadata = run_metadata(
        data.train,
        data=str(given.data.resolve()),
        seed=seed,
        val_ids=data.val.image_ids if data.val is not None and given.val is None else (),
    )
    metadata = replace(
        metadata,
        images=None if given.images is None else str(given.images.resolve()),
        folds=None if given.folds is None else str(given.folds.resolve()),
        fold=fold,
        val=None if given.val is None else str(given.val.resolve()),
        val_fingerprint=data.val_fingerprint,
        ignore_orientation=given.ignore_orientation,
    )
    if isinstance(recipe, ClassifierRecipe):
        return replace(metadata, crop_context=1.0 if data.whole_images else recipe.crop_context)
    return metadata


def warn_of_learnt(recipe: Recipe | ClassifierRecipe, data: TrainingData) -> None:
    """Tell of held-out images that the weights to start from know: those of a run surely, those of a pre-training by likeness."""
    if data.val is None:
        return
    for sentence in likeness_warnings({f"init_weights={recipe.init_weights}": recipe}, data.val):
        printing.write(f"WARNING: {sentence}", to_stderr=True)
    learnt = ids_of_hashes(data.val, learnt_before(recipe.init_weights))
    if learnt:
        share = f"{len(learnt)} of the {len(data.val)} held-out images"
        warning = f"has learnt from {share}, so that predictions of them will not be out-of-fold"
        printing.write(f"WARNING: {recipe.init_weights}: {warning}.", to_stderr=True)


def training_budget(seconds: float | None, steps: int | None) -> dict[str, float] | None:
    """The budget that was asked for; None where none was."""
    if steps is not None and not 1 <= steps <= option_values.MAX_COUNT:
        raise InputError(f"steps is {shown(steps)}, and must be in 1..{option_values.MAX_COUNT}.")
    if steps is not None:
        return {"steps": steps}
    return None if seconds is None else {"seconds": seconds}


def training_command(given: Given, metadata: RunMetadata) -> str:
    """The command that begins a new run, with absolute paths."""
    assert given.data is not None
    paths = {
        "--out": given.out,
        "--init-from": given.init_from,
        "--images": given.images,
        "--folds": given.folds,
        "--val": given.val,
    }
    budget = metadata.budget or {}
    texts = {
        "--recipe": given.recipe,
        "--fold": None if given.folds is None else given.fold,
        "--budget": duration_option(budget["seconds"]) if "seconds" in budget else None,
        "--steps": int(budget["steps"]) if "steps" in budget else None,
        "--seed": given.seed,
        "--eval-every": None if metadata.eval_seconds is None else duration_option(metadata.eval_seconds),
        "--device": None if metadata.device == "auto" else metadata.device,
    }
    words = ["foldfuse", "train", str(given.data.resolve())]
    for flag, path in paths.items():
        words += [] if path is None else [flag, str(path.resolve())]
    for flag, value in texts.items():
        words += [] if value is None else [flag, str(value)]
    words += [word for change in given.changes for word in ("--set", change)]
    words += [word for tracker in metadata.trackers for word in ("--tracker", tracker)]
    return shlex.join([*words, *(["--ignore-orientation"] if given.ignore_orientation else [])])
