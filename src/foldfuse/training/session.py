"""TrainingSession: everything about one call of a training but the run and the data; and how a session opens a run folder."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from foldfuse.data.dataset import Dataset
from foldfuse.errors import InputError
from foldfuse.recipes import ClassifierRecipe, Recipe
from foldfuse.storage.run import Run, RunMetadata
from foldfuse.system.processes import SINGLE_PROCESS, World, open_world
from foldfuse.system.progress import Progress, no_progress, progress_bar
from foldfuse.training.budget import Budget
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
        tracker: receives the new rows of the log at each checkpoint.
        evaluate: gives the scores of averaged weights. The session calls it at each checkpoint, outside the budget, and
            logs the scores.
    """

    budget: Budget
    world: World = SINGLE_PROCESS
    checkpoint: Mapping[str, Any] | None = None
    checkpoint_seconds: float = 60.0
    progress: Progress = no_progress
    tracker: Tracker | None = None
    evaluate: Evaluate | None = None


@contextmanager
def open_session(
    run: Run, metadata: RunMetadata, *, new: Recipe | ClassifierRecipe | None = None, title: str
) -> Iterator[TrainingSession]:
    """A session for a new run, whose folder is made here, or for a run to resume.

    Args:
        run: the folder.
        metadata: the metadata of the run, with its budget, device, trackers and seconds between checkpoints.
        new: recipe of a new run; None resumes the run in the folder.
        title: the title of the progress bar.

    Raises:
        InputError: the folder cannot be used, or the device or a tracker is not there.
        KeyboardInterrupt: re-raised with a sentence on how to resume.
    """
    budget = metadata.budget or DEFAULT_BUDGET
    metadata = replace(metadata, budget=budget)
    with open_world(metadata.device or "auto") as world:
        wanted = metadata.trackers if world.is_main else ()
        with open_trackers(wanted, run.folder.name) as tracker:
            checkpoint = None
            if new is not None:
                world.shard(new.batch_size)
                if world.is_main:
                    Run.create(run.folder, new, metadata)
            else:
                checkpoint, trouble = run.load_checkpoint()
                if trouble and world.is_main:
                    log.warning(trouble)
                if world.is_main:
                    run.write_metadata(metadata)
            world.barrier()
            try:
                with progress_bar(title) if world.is_main else nullcontext(no_progress) as progress:
                    limits = Budget(budget.get("seconds", math.inf), budget.get("steps", math.inf))
                    yield TrainingSession(limits, world, checkpoint, metadata.checkpoint_seconds, progress, tracker)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"{run.folder}: {_progress_kept(run)}") from None


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


def require_same_data(run: Run, dataset: Dataset) -> None:
    """Raise InputError unless a run was trained on `dataset`."""
    metadata = run.metadata
    if not dataset.has_fingerprint(metadata.data_fingerprint):
        raise InputError(
            f"{run.folder}: was trained on other data than {metadata.data} holds now. Restore the data, or train a new run."
        )


def _progress_kept(run: Run) -> str:
    """A sentence on the steps of an interrupted run that are on disk, and the command that resumes the run."""
    steps = [row for row in run.log if "loss" in row]
    again = f"Resume with: foldfuse train --resume {run.folder}"
    if not steps or not run.has_checkpoint:
        return f"stopped before the first checkpoint. {again}"
    return f"stopped; {steps[-1]['step'] + 1} steps are kept. {again}"
