"""The folds that a campaign trains: chosen once, by the user or by the clock, and kept in the ledger for a resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from foldfuse.campaign import constants as c
from foldfuse.campaign.compiling import compile_training_loops
from foldfuse.campaign.external_members import free_folds
from foldfuse.campaign.planning.fold_count import FoldCount, as_asked, choose_number
from foldfuse.campaign.planning.measuring import measuring_seconds
from foldfuse.campaign.planning.segments import base_runs
from foldfuse.campaign.planning.state import CampaignState
from foldfuse.campaign.task import Task
from foldfuse.data.folds import Folds
from foldfuse.errors import InputError, counted
from foldfuse.inference.learnt_images import ids_of_hashes, learnt_before
from foldfuse.storage.ledger import Ledger
from foldfuse.system.device import devices_of

AUTO: Literal["auto"] = "auto"
TrainFolds = int | Literal["auto"]


def with_trained_folds(
    task: Task,
    folds: Folds,
    *,
    wanted: TrainFolds,
    ledger: Ledger,
    external_runs: Sequence[Path] = (),
    external_predictions: Sequence[str] = (),
) -> Task:
    """The task with all folds that are trained; the first is fold 0, as in the given task.

    Args:
        task: with fold 0 held out alone.
        folds: gives each annotated image a fold.
        wanted: number of folds to train, or "auto" for the clock's choice.
        ledger: remembers the choice.
        external_runs, external_predictions: external members, see `external_members.add_all`.

    Raises:
        InputError: so many folds cannot be held out, or an external member cannot be read.
    """
    chosen = ledger.get("train_folds")
    if chosen is None and ledger.segments():
        chosen = [0]  # a campaign of an earlier version
    if chosen is None:
        available, limited = _available(task, folds), False
        may_be_several = ledger.deadline >= c.MIN_FOLDS_DEADLINE if wanted == AUTO else wanted > 1
        if (external_runs or external_predictions) and may_be_several:
            free = free_folds(external_runs, external_predictions, task, folds, available)
            available, limited = free, len(free) < len(available)
        count = _count(task, available, limited=limited, wanted=wanted, ledger=ledger)
        chosen = available[: count.number]
        ledger.set(train_folds=chosen, train_folds_reason=count.reason, train_folds_auto=wanted == AUTO)
        ledger.log(count.reason)
    if len(chosen) == 1:
        return task
    labeled, ids = task.labeled, set(task.labeled.image_ids)
    held_out = {fold: frozenset(ids.intersection(folds.val_ids(fold))) for fold in chosen}
    all_held_out = frozenset[int]().union(*held_out.values())
    return replace(task, train=labeled.subset(ids - all_held_out), val=labeled.subset(all_held_out), held_out=held_out)


def _available(task: Task, folds: Folds) -> list[int]:
    """The folds that can be held out: with objects, learnt by no initial weights, and not the test images."""
    labeled, starts = task.labeled, {recipe.init_weights for recipe in task.recipes.values()}
    learnt = frozenset[int]().union(*(ids_of_hashes(labeled, learnt_before(start)) for start in starts))
    with_objects = {s.id for s in labeled.samples if s.annotations is not None and (~s.annotations.crowd).any()}
    available = []
    for fold in range(folds.num_folds):
        ids = set(folds.val_ids(fold))
        if ids & with_objects and with_objects - ids and not ids & learnt:
            available.append(fold)
    return available


def _count(task: Task, available: list[int], *, limited: bool, wanted: TrainFolds, ledger: Ledger) -> FoldCount:
    """The number of folds to train. Raises InputError where the user wants more than can be held out.

    Args:
        task: the task.
        available: the folds that can be held out.
        limited: whether the external members leave out some of them.
        wanted: number of folds, or "auto".
        ledger: of the campaign, whose clock decides whether a training step is measured.
    """
    must = "a run must not have learnt its images, and a file must predict them all, by models that have not"
    if limited and wanted != AUTO and wanted > len(available):
        raise InputError(
            f"--train-folds {wanted}: the external members predict {counted(len(available), 'fold')} out-of-fold. For each fold "
            f"{must}. Give that number or less, or auto."
        )
    if limited and len(available) == 1:
        reason = (
            f"1 of {task.num_folds} folds is trained: the external members predict no other one out-of-fold; {must}."
        )
        return FoldCount(1, reason)
    if wanted != AUTO:
        if not 1 <= wanted <= len(available):
            raise InputError(
                f"--train-folds {wanted}: {len(available)} of the {task.num_folds} folds can be held out. The others have no "
                "object, are the test images, or were learnt by the initial weights. Give that number or less, or auto."
            )
        seconds = c.TRAINING_SHARE * ledger.deadline * len(devices_of(task.device))
        return as_asked(wanted, task.num_folds, seconds=seconds)
    limit = measuring_seconds(ledger.deadline, ledger.elapsed) if ledger.deadline >= c.MIN_FOLDS_DEADLINE else 0.0
    step_seconds = _step_seconds(task, limit) / len(devices_of(task.device)) if limit else None
    count = choose_number(len(available), task.num_folds, deadline=ledger.deadline, step_seconds=step_seconds)
    if not limited:
        return count
    more = f"The external members predict no more than {len(available)} folds out-of-fold."
    return replace(count, reason=f"{count.reason} {more}")


def _step_seconds(task: Task, limit: float) -> float:
    """Measured seconds of a training step of a base run with the default recipe; after `limit` seconds the first step counts."""
    from foldfuse.training.step_cost import measure_step  # loads torch

    state = CampaignState(
        recipes=task.recipes,
        image_sizes=task.image_sizes,
        seed=task.seed,
        deadline=0.0,
        elapsed=0.0,
        num_val=len(task.val),
        num_test=len(task.test),
        auto_image_size=task.auto_image_size,
    )
    compile_training_loops()  # else the first step would be measured with it
    return measure_step(base_runs(state)[0].recipe, task.train, device=task.device, limit=limit).step_seconds
