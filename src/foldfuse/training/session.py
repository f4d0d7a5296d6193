"""TrainingSession: everything about one call of a training but the run and the data; and how a session opens a run folder."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from foldfuse.data.dataset import Dataset
from foldfuse.errors import InputError, Interrupted, counted
from foldfuse.recipes import ClassifierRecipe, Recipe
from foldfuse.storage.recipe_file import write_recipe
from foldfuse.storage.run import LOCK, LrChange, Run, RunMetadata
from foldfuse.storage.run_tensors import Check
from foldfuse.system.durations import duration_option
from foldfuse.system.processes import SINGLE_PROCESS, World, open_world
from foldfuse.system.progress import Progress, Status, no_progress, no_status, status_bar
from foldfuse.training.budget import Budget
from foldfuse.training.precision import stored_config
from foldfuse.training.trackers import Tracker, open_trackers

log = logging.getLogger(__name__)

Evaluate = Callable[[Mapping[str, Tensor]], dict[str, float | None]]
DEFAULT_BUDGET = {"seconds": 600.0}


@dataclass(frozen=True)
class TrainingSession:
    """The settings of one call of a training.

    Attributes:
        budget: the budget of the whole training, with the part that is spent already.
        world: the processes that train together, and this process's device.
        checkpoint: the last checkpoint of the same run, to resume from; None starts at step 0.
        checkpoint_seconds: seconds between checkpoints; the last one is written at the end.
        progress: gets the share of the budget that is spent.
        status: gets the step, the loss, the learning rate and the scores, as texts to show beside the progress.
        tracker: receives the new rows of the log at each checkpoint.
        evaluate: gives the scores of averaged weights. The session calls it at checkpoints, outside the budget, and logs the
            scores.
        after_step: called after each step; it may change the budget.
        evaluate_seconds: seconds of training between two evaluations, the last state excepted, which the caller scores itself;
            None evaluates at every checkpoint, the last one included.
    """

    budget: Budget
    world: World = SINGLE_PROCESS
    checkpoint: Mapping[str, Any] | None = None
    checkpoint_seconds: float = 60.0
    progress: Progress = no_progress
    status: Status = no_status
    tracker: Tracker | None = None
    evaluate: Evaluate | None = None
    evaluate_seconds: float | None = None
    after_step: Callable[[], None] = lambda: None


@contextmanager
def open_session(
    run: Run,
    metadata: RunMetadata,
    *,
    recipe: Recipe | ClassifierRecipe,
    is_new: bool,
    check: Check | None = None,
    title: str,
) -> Iterator[TrainingSession]:
    """A session for a new run, whose folder is made here, or for a run to resume. The folder is locked until the session ends.

    A new folder is removed again where the training is refused before its first checkpoint; a refused resume changes nothing.

    Args:
        run: the folder.
        metadata: the metadata of the run, with its budget, device, trackers and seconds between checkpoints.
        recipe: the recipe of the run; a resumed run may have another learning rate than its folder says.
        is_new: whether to begin a new run; False resumes the run in the folder.
        check: raises InputError for a checkpoint that does not fit the run.
        title: the title of the progress bar.

    Raises:
        InputError: the folder cannot be used or is in use, no checkpoint in it can be used, the budget is spent already, or the
            device or a tracker is not there.
        FloatingPointError: re-raised with a sentence on the checkpoint that is kept.
        Interrupted: in place of KeyboardInterrupt, with a sentence on how to resume.
    """
    budget = metadata.budget or DEFAULT_BUDGET
    metadata = replace(metadata, budget=budget)
    with ExitStack() as stack:
        world = stack.enter_context(open_world(metadata.device or "auto"))
        world.shard(recipe.batch_size)
        wanted = metadata.trackers if world.is_main else ()
        tracker = stack.enter_context(open_trackers(wanted, run.folder.name, must_open=is_new))
        checkpoint = None
        if is_new and world.is_main:
            stack.enter_context(_new_folder(run, recipe, metadata))
        elif not is_new:
            if world.is_main:
                stack.enter_context(run.exclusive())
            checkpoint, trouble = usable_checkpoint(run, check)
            _require_budget(run, budget, checkpoint)
            if trouble and world.is_main:
                log.warning(trouble)
            if world.is_main:
                _note_if_spent(run, budget, checkpoint)
                _write_changes(run, recipe, metadata, step=checkpoint["step"] if checkpoint else 0)
        world.barrier()
        limits = Budget(budget.get("seconds", math.inf), budget.get("steps", math.inf))
        try:
            silent = nullcontext((no_progress, no_status))
            with status_bar(title) if world.is_main else silent as (progress, status):
                seconds = min(metadata.checkpoint_seconds, metadata.eval_seconds or math.inf)
                yield TrainingSession(limits, world, checkpoint, seconds, progress, status, tracker)
        except KeyboardInterrupt:
            raise Interrupted(f"{run.folder}: {_progress_kept(run)}", command="train", folder=run.folder) from None
        except FloatingPointError as error:
            raise FloatingPointError(f"{run.folder}: {error} {_lower_rate(run, recipe)}") from None


def require_resumable(run: Run, metadata: RunMetadata, check: Check | None = None) -> None:
    """Raise InputError where `open_session` refuses to resume a run: no checkpoint can be used, or the budget is too short."""
    checkpoint, _ = usable_checkpoint(run, check)
    _require_budget(run, metadata.budget or DEFAULT_BUDGET, checkpoint)


def usable_checkpoint(run: Run, check: Check | None = None) -> tuple[dict[str, Any] | None, str | None]:
    """The last good checkpoint, and a sentence where one was passed over; None for a run that was stopped before its first.

    Raises:
        InputError: the run has checkpoints, but none can be used; it is trained to its end and has none; or another file in its
            folder is broken.
    """
    _ = run.log, stored_config(run)  # a broken one shows here
    checkpoint, trouble = run.load_checkpoint(check)
    if checkpoint is None and trouble is not None:
        reasons = trouble.removesuffix("; starting from step 0.")
        raise InputError(f"--resume {run.folder}: no checkpoint can be used. {reasons}. Train a new run.")
    if checkpoint is None and run.is_trained:
        raise InputError(
            f"--resume {run.folder}: is trained to its end, and its checkpoint.pt is gone. Start a new training from its weights "
            f"with --init-from {run.folder}."
        )
    return checkpoint, trouble


def _require_budget(run: Run, budget: Mapping[str, float], checkpoint: Mapping[str, Any] | None) -> None:
    """Raise InputError where a resume is given less than is done."""
    if checkpoint is None or budget == run.metadata.budget:
        return
    steps, seconds = budget.get("steps", math.inf), budget.get("seconds", math.inf)
    done = counted(checkpoint["step"], "step") if steps < math.inf else f"{checkpoint['seconds']:.0f} s"
    if steps < checkpoint["step"] or seconds < checkpoint["seconds"]:
        option = f"--steps {steps:g}" if steps < math.inf else f"--budget {duration_option(seconds)}"
        raise InputError(f"--resume {run.folder}: {done} of training are done, and {option} is less. Give more.")


def _note_if_spent(run: Run, budget: Mapping[str, float], checkpoint: Mapping[str, Any] | None) -> None:
    """Log where a resumed run has nothing left to train."""
    if checkpoint is not None and (
        budget.get("steps", math.inf) <= checkpoint["step"] or budget.get("seconds", math.inf) <= checkpoint["seconds"]
    ):
        spent = counted(int(budget["steps"]), "step") if "steps" in budget else f"{budget['seconds']:g} s"
        log.warning(f"{run.folder}: its budget of {spent} is spent. Give a longer --budget or --steps to train on.")


def _write_changes(run: Run, recipe: Recipe | ClassifierRecipe, metadata: RunMetadata, *, step: int) -> None:
    """Record the options of a resume, and a learning rate that differs from the folder's, in the run."""
    own = run.classifier_recipe if run.is_classifier else run.recipe
    if recipe.lr != own.lr:
        metadata = replace(metadata, lr_changes=(*metadata.lr_changes, LrChange(step, recipe.lr)))
        write_recipe(recipe, run.folder / "recipe.json")
        log.info(f"{run.folder}: from step {step} on the learning rate is {recipe.lr:g} instead of {own.lr:g}.")
    run.write_metadata(metadata)


@contextmanager
def _new_folder(run: Run, recipe: Recipe | ClassifierRecipe, metadata: RunMetadata) -> Iterator[None]:
    """Makes and locks the folder of a new run; removes it where the block raises InputError before a checkpoint is written."""
    run.require_free()
    made = [folder for folder in (run.folder, *run.folder.parents) if not folder.exists()]
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{run.folder}: cannot be made ({error.strerror}). Choose a folder that you may write to."
        ) from None
    try:
        with run.exclusive():
            Run.create(run.folder, recipe, metadata)
            yield
    except InputError:
        if not run.has_checkpoint:
            for name in ("recipe.json", "run.json", "log.jsonl", "learnt_images.json", LOCK):
                (run.folder / name).unlink(missing_ok=True)
            with suppress(OSError):  # it holds something else, such as a tracker's files
                for folder in made:
                    folder.rmdir()
        raise


def run_metadata(dataset: Dataset, *, data: str, seed: int, val_ids: tuple[int, ...] = ()) -> RunMetadata:
    """The metadata of a run before its training.

    Args:
        dataset: the dataset to train on.
        data: the path of the user's dataset.
        seed: the seed of every random choice.
        val_ids: ids of the held-out images.
    """
    return RunMetadata(
        classes=dataset.classes,
        category_ids=dataset.category_ids,
        data=data,
        data_fingerprint=dataset.fingerprint,
        seed=seed,
        val_ids=val_ids,
        value_ranges=dict(dataset.value_ranges),
    )


def _progress_kept(run: Run) -> str:
    """A sentence on the steps of an interrupted run that are on disk, and the command that resumes the run."""
    again = f"Resume with: foldfuse train --resume {run.folder}"
    kept = _steps_kept(run)
    if not kept:
        return f"stopped before the first checkpoint. {again}"
    return f"stopped; {counted(kept, 'step')} {'is' if kept == 1 else 'are'} kept. {again}"


def _lower_rate(run: Run, recipe: Recipe | ClassifierRecipe) -> str:
    """A sentence on the checkpoint of a run that diverged, and the command that resumes from it with a lower learning rate."""
    again = f"foldfuse train --resume {run.folder} --lr {recipe.lr / 3:.2g}"
    kept = _steps_kept(run)
    if not kept:
        return f"No checkpoint was written before; begin again with a lower learning rate: {again}"
    return f"The checkpoint after {counted(kept, 'step')} is kept; resume from it with a lower learning rate: {again}"


def _steps_kept(run: Run) -> int:
    """Steps in the run's checkpoint; 0 without one."""
    steps = [row for row in run.log if "loss" in row]
    return steps[-1]["step"] + 1 if steps and run.has_checkpoint else 0
