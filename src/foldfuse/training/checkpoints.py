"""What every training does with its run folder: begin it or go on with it, keep log and state, and say how to go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from foldfuse.data.dataset import Dataset
from foldfuse.errors import InputError
from foldfuse.recipes import ClassifierRecipe, Recipe
from foldfuse.storage.run import Run, RunMetadata
from foldfuse.system.durations import parse_duration
from foldfuse.system.processes import World, world
from foldfuse.system.progress import Progress, no_progress, progress_bar
from foldfuse.training.budget import Budget
from foldfuse.training.trackers import Tracker, trackers

Evaluate = Callable[[Mapping[str, Tensor]], dict[str, float | None]]
DEFAULT = "10m"  # of training, where nothing is asked for


@dataclass(frozen=True)
class Opened:
    """What training a run begins with, beside the run itself.

    Attributes:
        state: the last checkpoint, to go on from; None at the start.
        budget: in all, what is spent already included.
        track: is given the rows of the log.
        together: the processes that train as one.
        progress: is told the share of the budget that is spent.
    """

    state: dict[str, Any] | None
    budget: Budget
    track: Tracker
    together: World
    progress: Progress


def parse_budget(steps: int | None, time: str | None) -> dict[str, float] | None:
    """The budget that was asked for, in steps or in seconds; None where none was.

    Raises:
        InputError: the time cannot be read.
    """
    if steps is not None:
        return {"steps": steps}
    return None if time is None else {"seconds": parse_duration(time)}


@contextmanager
def opened(
    run: Run,
    dataset: Dataset,
    *,
    data: Path,
    wanted: dict[str, float] | None,
    resume: bool,
    tracker: tuple[str, ...],
    begin: Callable[[World], tuple[Recipe | ClassifierRecipe, RunMetadata]],
    title: Callable[[Run], str],
) -> Iterator[Opened]:
    """Make the folder of a run, or go on with it; an interrupt is told with what is kept and how to go on.

    Args:
        run: whose folder it is.
        dataset: that it learns from.
        data: where the user has it.
        wanted: budget that was asked for.
        resume: go on with a run that has begun.
        tracker: where the log is to be written besides.
        begin: gives recipe and metadata of a new run; what cannot be trained raises there, before there is a folder.
        title: of the progress bar.

    Raises:
        InputError: the run was trained on other data, or its folder cannot be used.
        KeyboardInterrupt: as it came, with a sentence on how to go on.
    """
    state = None
    with world() as together, trackers(tracker if together.first else (), run.folder.name) as track:
        if resume and run.exists:
            metadata = run.metadata
            wanted = wanted or metadata.budget or {}
            state, trouble = run.load_checkpoint()
            if trouble and together.first:
                print(trouble)
            if metadata.data_fingerprint != dataset.fingerprint:
                raise InputError(
                    f"{run.folder}: was trained on other data than {data}. Resume it with the data it began with."
                )
        else:
            wanted = wanted or {"seconds": parse_duration(DEFAULT)}
            recipe, metadata = begin(together)
            if together.first:
                Run.create(run.folder, recipe, metadata)
        together.wait()
        if together.first:
            run.write_metadata(replace(run.metadata, budget=wanted))
        try:
            with progress_bar(title(run)) if together.first else nullcontext(no_progress) as progress:
                budget = Budget(wanted.get("seconds", math.inf), wanted.get("steps", math.inf))
                yield Opened(state, budget, track, together, progress)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{run.folder}: {_kept(run)} Go on with the same command and --resume.") from None


def _kept(run: Run) -> str:
    """How much of a run that was stopped is on the disk."""
    steps = [row for row in run.log if "loss" in row]
    if not steps or not run.has_checkpoint:
        return "stopped before anything was learnt."
    return f"stopped; what was learnt in {steps[-1]['step'] + 1} steps is kept."


class Checkpointer:
    """The log of a training, and what is done with it and the state at each checkpoint.

    Attributes:
        log: the rows so far; the loop appends to it.
    """

    def __init__(
        self,
        run: Run,
        state: Mapping[str, Any] | None,
        budget: Budget,
        *,
        together: World,
        track: Tracker | None = None,
        evaluate: Evaluate | None = None,
    ) -> None:
        """`evaluate` gives the scores of averaged weights: asked at each checkpoint, off the budget, for a row in the log."""
        self.run = run
        self.budget = budget
        self.together = together
        self.track = track
        self.evaluate = evaluate
        self.log = [row for row in run.log if state is not None and _before(row, state["step"])]
        self.tracked = len(self.log)

    def __call__(self, state: dict[str, Any]) -> None:
        """Keep what there is."""
        if self.evaluate is not None and (not self.log or "loss" in self.log[-1]):
            with self.budget.paused():
                scores = self.evaluate(state["ema"])
            self.log.append({"step": state["step"], "seconds": round(state["seconds"], 3), **scores})
        if self.together.first:
            self.run.write_log(
                self.log
            )  # first: a log that is longer than the state can be cut, a shorter one lost rows
            self.run.save_checkpoint(state)
        if self.track is not None:
            self.track(self.log[self.tracked :])
            self.tracked = len(self.log)


def _before(row: Mapping[str, Any], step: int) -> bool:
    """Whether a row of the log was written before a checkpoint at `step`; an evaluation at it was."""
    return row["step"] < step or (row["step"] == step and "loss" not in row)


def run_metadata(dataset: Dataset, *, data: Path, seed: int, val_ids: Sequence[int]) -> RunMetadata:
    """The metadata of a run before its training."""
    return RunMetadata(
        classes=dataset.classes,
        category_ids=dataset.category_ids,
        data=str(data),
        data_fingerprint=dataset.fingerprint,
        seed=seed,
        val_ids=tuple(val_ids),
    )
