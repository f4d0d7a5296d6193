"""Campaigns: a whole competition under one deadline, from the data to a submission and a report.

The members are cooldown runs of base runs (see `planning.segments`): a base run trains on small images at a constant learning
rate, and cooldown runs continue it at other image sizes and with other seeds while the rate decays to 0. So each member costs a
fraction of a full training. With more time several base runs are compared, and the runs that add most to the ensemble are
promoted. Every run holds out a fold, fold 0 where time is short: its predictions of it are out-of-fold, and the ensemble is
chosen on them. With time for it several folds are trained, each with the same segments (see `trained_folds`).

From the first finished member on there is a valid submission on disk. Only one with a better score on the held-out images, or
one that was chosen on more folds, replaces it. The ledger records all work, so that a killed campaign can be resumed.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from foldfuse.campaign.card_warm_up import CardWarmUp
from foldfuse.campaign.compiling import CompilingProcesses, compile_by_clock
from foldfuse.campaign.custom_metric import check_resumed, check_speed, stored_facts
from foldfuse.campaign.external_members import add_all
from foldfuse.campaign.image_size import auto_bounds
from foldfuse.campaign.leftovers import remove_leftovers
from foldfuse.campaign.planning.slack import to_the_deadline
from foldfuse.campaign.request import SAMPLE, CampaignRequest, command_line
from foldfuse.campaign.task import Inputs, Task, check_and_fold
from foldfuse.campaign.tracking import tracked
from foldfuse.errors import InputError, Interrupted, counted
from foldfuse.recipes import AUTO, Recipe
from foldfuse.reporting.campaign_page import write_campaign_page
from foldfuse.reporting.live import live
from foldfuse.storage import ledger as ledgers
from foldfuse.storage.ledger import Ledger
from foldfuse.storage.ledger_file import check_facts
from foldfuse.system import host
from foldfuse.system.atomic_files import atomic
from foldfuse.system.device import devices_of
from foldfuse.system.disk_full import disk_full_as_input_error
from foldfuse.system.durations import format_duration
from foldfuse.system.offline import go_offline
from foldfuse.system.records import from_plain, to_plain
from foldfuse.training.image_sizes import choose_image_size
from foldfuse.training.targets import check_image_sizes

if TYPE_CHECKING:
    from foldfuse.campaign.execution.workers import Workers
    from foldfuse.campaign.planning.estimates import CampaignPlan

REQUEST_FORMAT = 1
_LEFTOVERS = {ledgers.LOCK, f".{ledgers.NAME}.new"}  # of a process that was killed before it wrote the ledger

logger = logging.getLogger(__name__)


def run_campaign(
    request: CampaignRequest,
    *,
    ray: str | None = None,
    overwrite: bool = False,
    console: Console | None = None,
    start: float | None = None,
) -> Path:
    """Runs a new campaign until its deadline, and returns the folder with the submission and the report.

    Args:
        request: the checked options of the campaign.
        ray: address of a Ray cluster whose nodes train the members, or "auto"; this process trains them by default.
        overwrite: whether an earlier campaign in the folder is removed.
        console: shows the live view, where it is a terminal.
        start: reading of `time.monotonic` at which the deadline begins; now by default.

    Raises:
        InputError: the data cannot be used, the deadline is too short, the folder is in use, the disk is full, or there is
            no such cluster.
    """
    start = time.monotonic() if start is None else start
    candidates = request.check()
    recipes, out = candidates.recipes, request.out
    is_campaign = (out / ledgers.NAME).is_file()
    if out.is_symlink() and overwrite:
        raise InputError(f"{out}: is a link, which --overwrite does not follow. Give the folder itself as --out.")
    in_use = out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - _LEFTOVERS)
    if in_use and not (overwrite and is_campaign):
        ways = f"resume it with --resume {out}, or add --overwrite" if is_campaign else "or remove it"
        raise InputError(f"{out}: exists already. Choose another --out, {ways}.")
    inputs = request.read_inputs()
    sample = request.read_sample(inputs)
    _check_image_sizes(inputs, recipes, request)
    facts: dict[str, Any] = {
        "state": "running",
        "request": to_plain(request.absolute(), version=REQUEST_FORMAT),
        "command": command_line(request.absolute(), ray=ray),
        "data": str(inputs.labeled.source.resolve()),
        "test": str(inputs.test.source.resolve()) if inputs.test is not None else None,
        "images": str(request.images.resolve()) if request.images is not None else None,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": None,
        "seed": request.seed,
        "ignore_orientation": request.ignore_orientation,
        "left_out": [],
        "fingerprints": inputs.fingerprints(),
        "candidates": {name: to_plain(recipe) for name, recipe in recipes.items()},
        **stored_facts(request.metric),
    }
    with _connected(ray), _disk_full_reported(out):
        if in_use:
            with ledgers.exclusive(out):
                pass  # a running campaign would have refused
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        with (
            ledgers.exclusive(out),
            closing(ledgers.create(out, facts, deadline=request.deadline, start=start)) as ledger,
        ):
            if sample is not None:
                with atomic(out / SAMPLE) as temporary:
                    shutil.copyfile(sample.path, temporary)
                for note in sample.notes:
                    ledger.log(f"{sample.path.name}: {note}")
            if candidates.reason is not None:
                ledger.log(candidates.reason)
            _work(request, inputs, recipes, ledger, new=True, cluster=ray is not None, console=console)
    return out


def _check_image_sizes(inputs: Inputs, recipes: Mapping[str, Recipe], request: CampaignRequest) -> None:
    """Raises InputError where the image sizes make every object too small to be learnt."""
    sized = list(recipes.values())
    if left_open := [recipe for recipe in sized if recipe.image_size == AUTO]:
        size = choose_image_size(inputs.labeled, left_open[0], **auto_bounds(request.device)).size
        sized = [replace(recipe, image_size=size) if recipe.image_size == AUTO else recipe for recipe in sized]
    check_image_sizes(inputs.labeled, sized, request.image_size)


def resume_campaign(
    out: Path,
    *,
    ray: str | None = None,
    metric: str | None = None,
    device: str | None = None,
    console: Console | None = None,
    start: float | None = None,
) -> Path:
    """Resumes the campaign in a folder with its own request, and returns the folder; a finished campaign stays as it is.

    Args:
        out: folder of the campaign. The time that it has worked counts against its deadline, the time in between does not.
        metric: the campaign's metric again, where it is a function of the user's own.
        device: the device from now on, in place of the campaign's own.
        ray, console, start: see `run_campaign`.

    Raises:
        InputError: the folder holds no campaign, its data has changed, the disk is full, or there is no such cluster.
    """
    start = time.monotonic() if start is None else start
    ledgers.check_exists(out)
    facts = ledgers.snapshot(out)  # everything is checked before anything is locked or written
    check_facts(facts, out / ledgers.NAME)
    if facts.get("state") == "finished":
        if facts.get("reported") is False:  # the disk was full at that moment
            with _disk_full_reported(out), ledgers.exclusive(out), closing(ledgers.resume(out, start=start)) as ledger:
                write_campaign_page(out)
                ledger.export()
                ledger.set(reported=True)
        logger.info("%s: has finished already; nothing is left to do.", out)
        return out
    where = str(out / ledgers.NAME)
    what = "a campaign's request"
    request = from_plain(facts.get("request"), CampaignRequest, where=where, what=what, version=REQUEST_FORMAT)
    request = replace(
        request, metric=check_resumed(out, facts, request.metric, metric), device=device or request.device
    )
    if request.offline:
        go_offline()
    recipes, inputs = _stored_candidates(facts, request, where=where), request.read_inputs()
    if not inputs.have_fingerprints(facts.get("fingerprints") or {}):
        raise InputError(f"{out}: was started with other data than {request.data} holds now. Start a new campaign.")
    with (
        _connected(ray),
        _disk_full_reported(out),
        ledgers.exclusive(out),
        closing(ledgers.resume(out, start=start)) as ledger,
    ):
        remove_leftovers(out)
        ledger.set(resumed=(ledger.get("resumed") or 0) + 1)
        if device is not None:
            ledger.set(request=to_plain(request.absolute(), version=REQUEST_FORMAT))
        if ray is not None:
            ledger.set(command=command_line(request, ray=ray))
        if ledger.get("undecodable_train") is not None:
            ledger.log(f"Resumed after {format_duration(ledger.elapsed_before)} of work.")
        _work(request, inputs, recipes, ledger, new=False, cluster=ray is not None, console=console)
    return out


def _stored_candidates(facts: Mapping[str, Any], request: CampaignRequest, *, where: str) -> dict[str, Recipe]:
    """The candidates with which a campaign began, whatever hardware it is resumed on.

    A campaign of an earlier version has not stored them; it had the recipes of a CPU.
    """
    stored = facts.get("candidates")
    if stored is None:
        return request.check(cards=()).recipes
    replace(request, forbid=()).check(cards=())  # all but the candidates
    return {name: from_plain(recipe, Recipe, where=where, what="a recipe") for name, recipe in stored.items()}


def plan_campaign(request: CampaignRequest) -> CampaignPlan:
    """The plan of a campaign on this machine, with the measured cost of each candidate; nothing is written.

    Raises:
        InputError: the data cannot be used, or the deadline is too short.
    """
    candidates, inputs = request.check(download=False), request.read_inputs()
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(ledgers.create(Path(folder), {}, deadline=request.deadline, start=time.monotonic())) as ledger,
    ):
        task = request.make_task(inputs, candidates.recipes, ledger)
        folds_reason = ledger.get("train_folds_reason")

    from foldfuse.campaign.planning.estimates import estimate_campaign  # loads torch, after the input was checked

    estimate = estimate_campaign(task, request.deadline)
    return replace(estimate, candidates_reason=candidates.reason, folds_reason=folds_reason)


def _work(
    request: CampaignRequest,
    inputs: Inputs,
    recipes: dict[str, Recipe],
    ledger: Ledger,
    *,
    new: bool,
    cluster: bool,
    console: Console | None,
) -> None:
    """Prepares the task and the external members, then runs the campaign; unusable input removes a new folder."""
    from foldfuse.campaign.pace import settle_threads  # loads torch
    from foldfuse.campaign.runner import run

    with (
        ledger.heartbeat(),
        live(ledger.folder, console=console),
        _interrupt_recorded(ledger),
        closing(CompilingProcesses(request.metric)) as compiling,
        closing(CardWarmUp(request.device)) as card,
    ):
        try:
            with ledger.timed("check the data", "setup"):
                check_and_fold(inputs, request.seed, ledger)
            with ledger.timed("compile", "setup"):
                compiled = compile_by_clock(request.metric, compiling, deadline=ledger.deadline, elapsed=ledger.elapsed)
            if not compiled:
                ledger.log("The loops of scoring and fusion are still being compiled; training begins without them.")
            with ledger.timed("load the card's kernels", "setup"):
                card.wait()
            with ledger.timed("choose sizes and folds", "setup"):
                settle_threads(request.device, ledger)  # before a step is measured, once nothing compiles any more
                task = request.make_task(inputs, recipes, ledger)
                check_speed(task.metric, task.val, ledger.deadline)
                add_all(request.external_run, request.external_predictions, task, ledger)
        except InputError:
            if new:
                shutil.rmtree(ledger.folder)  # so that the same command works once the data is fixed
            raise

        with closing(_workers(task, ledger, cluster=cluster)) as workers, tracked(ledger.folder, request.tracker):
            run(task, ledger, to_the_deadline, workers, compiling=compiling)
    out = ledger.folder
    share = ledger.get("cpu_share")
    cores = (
        ""
        if share is None
        else f" This process used {share:.0%} of the time of {counted(host.usable_cores(), 'core')}."
    )
    report = f"; {out / 'report.html'} explains it" if ledger.get("reported") else ""
    logger.info("The submission is %s%s.%s", out / "submission.csv", report, cores)


def _workers(task: Task, ledger: Ledger, *, cluster: bool) -> Workers:
    """The nodes of the cluster, or a process for each of several cards, or this process."""
    from foldfuse.campaign.execution.card_workers import CardWorkers
    from foldfuse.campaign.execution.ray_cluster import RayCluster
    from foldfuse.campaign.execution.workers import LocalWorker

    if cluster:
        return RayCluster(task, ledger)
    devices = devices_of(task.device)
    return CardWorkers(task, ledger, devices) if len(devices) > 1 else LocalWorker(task, ledger)


def _connected(ray: str | None) -> AbstractContextManager[None]:
    """Joins the Ray cluster at an address for the block; does nothing without an address."""
    if ray is None:
        return nullcontext()
    from foldfuse.campaign.execution.ray_cluster import connected  # loads torch

    return connected(ray)


@contextmanager
def _interrupt_recorded(ledger: Ledger) -> Iterator[None]:
    """Records an interrupt that ends the campaign, with a sentence on the submission so far, and says how to resume it."""
    try:
        yield
    except KeyboardInterrupt:
        again = f"foldfuse campaign --resume {ledger.folder}"
        if ledger.get("state") == "finished":
            raise Interrupted(
                f"{ledger.folder}: has finished; its report was not written. Write it with: {again}",
                command="campaign",
                folder=ledger.folder,
            ) from None
        if ledger.get("state") == "running":
            ledger.set(state="interrupted")
        result = "there is no submission yet" if ledger.latest_submission() is None else "the last submission stays"
        ledger.log(f"Interrupted: {result}.")
        raise Interrupted(
            f"{ledger.folder}: is interrupted. Resume with: {again}", command="campaign", folder=ledger.folder
        ) from None


def _disk_full_reported(out: Path) -> AbstractContextManager[None]:
    """Turns a full disk into one sentence that says how to resume. Files and rows are written whole or not at all."""

    def hint() -> str:
        if (out / ledgers.NAME).is_file():
            return f"Finished work is safe; make room, then resume with: foldfuse campaign --resume {out}"
        return "Nothing was started; make room, then give the same command again."

    return disk_full_as_input_error(out, hint)
