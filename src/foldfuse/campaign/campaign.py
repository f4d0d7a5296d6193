"""The whole competition under one clock: fold, train, predict out-of-fold, choose views, fuse, submit.

The members are branches of trunks (see `segments`): a trunk trains on small pictures at a level learning rate; branches go on
from its end with image sizes and seeds of their own while the rate falls to 0. So every member costs a fraction of a
training of its own. With more time several trunks are tried, and those that add most to the ensemble are promoted. One
fold is held back from all of them: what they find there is out-of-fold for each, and the ensemble is chosen on it.

From the first finished member on there is a valid submission on disk. It is only replaced by one that does better on the
held-back fold. What was done is kept in a ledger, so that a campaign that was killed can be resumed.
"""

from __future__ import annotations

import errno
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError

from foldfuse.campaign.external_members import welcome
from foldfuse.campaign.planning.allocation import successive_halving
from foldfuse.campaign.request import Asked, on_cluster
from foldfuse.campaign.task import Inputs
from foldfuse.errors import InputError
from foldfuse.reporting.campaign_page import write_campaign_page
from foldfuse.reporting.live import live
from foldfuse.storage import ledger as ledgers
from foldfuse.storage.ledger import Ledger
from foldfuse.system.durations import format_duration, parse_duration

SHORTEST = 60.0  # seconds: in less not even one member can be trained, used and fused


def _joined(ray: str | None) -> AbstractContextManager[None]:
    """While it lasts, this process is part of the Ray cluster at an address; of none where there is no address."""
    if ray is None:
        return nullcontext()
    from foldfuse.campaign.execution.ray_cluster import joined  # here: it loads torch, and nobody else needs Ray

    return joined(ray)


def _begin(asked: Asked, start: float, *, ray: str | None) -> Path:
    """Check what is asked, make the folder, and work in it."""
    seconds = parse_duration(asked.deadline)
    if seconds < SHORTEST:
        raise InputError(
            f"the deadline is {format_duration(seconds)}, and even one member needs {format_duration(SHORTEST)}. Give more time."
        )
    out = Path(asked.out)
    if out.exists() and (not out.is_dir() or {p.name for p in out.iterdir()} - _LEFT):
        again = f", or go on with --resume {out}" if (out / ledgers.NAME).is_file() else ""
        raise InputError(f"{out}: is there already. Choose another --out, or remove it{again}.")
    asked.recipes()
    inputs = asked.inputs()
    facts: dict[str, Any] = {
        "state": "running",
        "asked": asdict(asked.absolute()),
        "command": on_cluster(asked.command(), ray),
        "data": str(inputs.labelled.source.resolve()),
        "test": str(inputs.target.source.resolve()) if inputs.target is not None else None,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": None,
        "seed": asked.seed,
        "left_out": [],
        "fingerprints": inputs.fingerprints(),
    }
    with _full_disk_told(out):
        out.mkdir(parents=True, exist_ok=True)
        with ledgers.exclusive(out), closing(ledgers.create(out, facts, deadline=seconds, start=start)) as ledger:
            _work(asked, inputs, ledger, new=True, clustered=ray is not None)
    return out


def _show_plan(asked: Asked, start: float) -> None:
    """Look at the data in a folder that is thrown away, and print the plan."""
    seconds, recipes = parse_duration(asked.deadline), asked.recipes()
    inputs = asked.inputs()
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(ledgers.create(Path(folder), {}, deadline=seconds, start=start)) as ledger,
    ):
        task = asked.task(inputs, recipes, ledger)

    from foldfuse.campaign.planning.estimates import (
        show,
    )  # here, so that torch is loaded after the input was found good

    show(task, seconds, Console())


def _resume(out: Path, start: float, *, ray: str | None) -> Path:
    """Go on with the campaign in a folder; one that has finished is left as it is."""
    if not (out / ledgers.NAME).is_file():
        raise InputError(f"{out}: holds no campaign that has begun. Begin one: foldfuse campaign DATA --out {out}")
    with _full_disk_told(out), ledgers.exclusive(out), closing(ledgers.resume(out, start=start)) as ledger:
        if ledger.get("state") == "finished":
            if ledger.get("reported") is False:  # the disk was full just then
                write_campaign_page(out)
                ledger.export()
                ledger.set(reported=True)
            print(f"{out}: has finished already; nothing is left to do.", file=sys.stderr)
            return out
        asked = Asked.of(ledger.get("asked"))
        inputs = asked.inputs()
        if inputs.fingerprints() != ledger.get("fingerprints"):
            raise InputError(f"{out}: was begun with other data than {asked.data} holds now. Begin a new campaign.")
        for left in out.rglob(".*"):  # files and folders that were being written when the process was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        ledger.set(command=on_cluster(ledger.get("command"), ray))
        if ledger.get("looked"):
            ledger.log(f"Resumed after {format_duration(ledger.before)} of work.")
        _work(asked, inputs, ledger, new=False, clustered=ray is not None)
    return out


def _work(asked: Asked, inputs: Inputs, ledger: Ledger, *, new: bool, clustered: bool) -> None:
    """Look at the data and the guests, then carry the campaign out; where they are no good, a new folder is removed."""
    with ledger.heartbeat(), live(ledger.folder), _interrupt_told(ledger):
        try:
            with ledger.timed("look at the data", "setup"):
                task = asked.task(inputs, asked.recipes(), ledger)
                welcome(asked.member, asked.foreign, task, ledger)
        except InputError:
            if new:
                shutil.rmtree(ledger.folder)  # it held nothing before: once the data is mended, the same command works
            raise

        from foldfuse.campaign.execution.ray_cluster import Cluster
        from foldfuse.campaign.execution.workers import Here
        from foldfuse.campaign.runner import carry_out

        with closing(Cluster(task, ledger) if clustered else Here(task, ledger)) as workers:
            carry_out(task, ledger, successive_halving, workers)
    out = ledger.folder
    print(f"{out / 'submission.csv'} is what to submit; {out / 'report.html'} says why.", file=sys.stderr)


@contextmanager
def _interrupt_told(ledger: Ledger) -> Iterator[None]:
    """An interrupt that ends all work is written down, with a sentence on what there is, and goes on."""
    try:
        yield
    except KeyboardInterrupt:
        if ledger.get("state") == "running":
            ledger.set(state="interrupted")
        there = (
            "nothing has been submitted yet"
            if ledger.latest_submission() is None
            else "what was submitted before stays"
        )
        ledger.log(f"Interrupted: {there}. Go on with: foldfuse campaign --resume {ledger.folder}")
        raise


_LEFT = {ledgers.LOCK, f".{ledgers.NAME}.new"}  # by a process that was killed before it wrote the ledger
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_WORDS = ("disk is full", "no space left", "file too large", "quota exceeded", "os error 28", "os error 27")
_TORCH_WORDS = ("pytorchstreamwriter failed", "file write failed", "unexpected pos")  # torch does not say why
_SQLITE_WORDS = ("disk i/o error",)  # of a quota, for one


@contextmanager
def _full_disk_told(out: Path) -> Iterator[None]:
    """A full disk becomes one clear sentence. Nothing is broken by it: files are whole or not there, and so are rows."""
    try:
        yield
    except (OSError, sqlite3.Error, RuntimeError, InputError, SafetensorError) as error:
        words = str(error).lower()
        full = isinstance(error, OSError) and error.errno in _FULL
        if not full and not any(word in words for word in (*_FULL_WORDS, *_TORCH_WORDS, *_SQLITE_WORDS)):
            raise
        kind = "the disk is broken, over its quota or full" if _SQLITE_WORDS[0] in words else "the disk is full"
        again = (
            f"What was finished is safe; make room, then go on with: foldfuse campaign --resume {out}"
            if (out / ledgers.NAME).is_file()
            else "Nothing was begun; make room, then give the same command again."
        )
        raise InputError(f"{out}: {kind}. {again}") from error
