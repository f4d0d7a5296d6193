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
import shlex
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError

from foldfuse import ledger as ledgers
from foldfuse import machine
from foldfuse.candidates import candidates, check_sizes
from foldfuse.durations import clock_text, seconds_of
from foldfuse.errors import InputError
from foldfuse.ledger import Ledger
from foldfuse.metrics import metric_called
from foldfuse.recipes import Recipe
from foldfuse.strategy import rung_by_rung
from foldfuse.task import Inputs, Task, look, read_inputs
from foldfuse.watch import live

SHORTEST = 60.0  # seconds: in less not even one member can be trained, used and fused


@dataclass(frozen=True)
class Asked:
    """What a campaign was asked, as the command line says it; paths as text."""

    data: str | None = None
    test: str | None = None
    deadline: str = "10m"
    out: str = "campaign"
    recipe: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    size: tuple[int, ...] = ()
    change: tuple[str, ...] = ()
    folds: int | str = 5
    member: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    seed: int = 0
    metric: str = "ap50"
    pseudo_labels: bool = False

    @staticmethod
    def of(value: dict[str, Any]) -> Asked:
        """What `asdict` gave, read back from JSON."""
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in value.items()}
        return Asked(**plain)

    def command(self) -> str:
        """The command that asks this."""
        words = ["foldfuse", "campaign", str(self.data)]
        for name, value in vars(self).items():
            if name != "data" and (value != getattr(Asked, name) or name in ("deadline", "out", "seed")):
                flag = f"--{name.replace('_', '-')}"
                for one in value if isinstance(value, tuple) else (value,):
                    words += [flag] if one is True else [flag, str(one)]
        return shlex.join(words)

    def absolute(self) -> Asked:
        """The same, from whatever folder it is asked."""
        folds = self.folds if isinstance(self.folds, int) else str(Path(self.folds).resolve())
        data, test = (None if path is None else str(Path(path).resolve()) for path in (self.data, self.test))
        member = tuple(str(Path(folder).resolve()) for folder in self.member)
        foreign = tuple(":".join(str(Path(p).resolve()) for p in pair.rpartition(":")[::2]) for pair in self.foreign)
        return replace(self, data=data, test=test, folds=folds, member=member, foreign=foreign)

    def inputs(self) -> Inputs:
        """The data, read. Raises InputError where it cannot be used."""
        assert self.data is not None
        test = None if self.test is None else Path(self.test)
        return read_inputs(Path(self.data), test, self.folds if isinstance(self.folds, int) else Path(self.folds))

    def recipes(self) -> dict[str, Recipe]:
        """{name: recipe} of what members may be made of. Raises InputError where there is none, or no such metric."""
        recipes = candidates(self.recipe, self.forbid, self.change)
        for recipe in recipes.values():
            check_sizes(self.size, recipe)
        metric_called(self.metric)
        return recipes

    def task(self, inputs: Inputs, recipes: dict[str, Recipe], ledger: Ledger) -> Task:
        """What is to be done with the data, once it has been looked at."""
        made = look(inputs, recipes, sizes=self.size, seed=self.seed, ledger=ledger)
        return replace(made, metric=self.metric, pseudo=self.pseudo_labels)


def on_cluster(command: str, ray: str | None) -> str:
    """A campaign's command, to be carried out on the Ray cluster at an address; unchanged where there is no address."""
    if ray is None:
        return command
    words = shlex.split(command)
    if "--ray" in words:
        at = words.index("--ray")
        del words[at : at + 2]
    return shlex.join([*words, "--ray", ray])


def campaign(
    data: Path | None = None,
    *,
    test: Path | None = None,
    deadline: str = "10m",
    out: Path = Path("campaign"),
    recipe: tuple[str, ...] = (),
    forbid: tuple[str, ...] = (),
    size: tuple[int, ...] = (),
    change: tuple[str, ...] = (),
    folds: int | Path = 5,
    member: tuple[Path, ...] = (),
    foreign: tuple[str, ...] = (),
    seed: int = 0,
    metric: str = "ap50",
    pseudo_labels: bool = False,
    resume: Path | None = None,
    ray: str | None = None,
    plan: bool = False,
) -> Path | None:
    """Make the best submission that can be had by the deadline; the folder that holds it comes back, None for a plan.

    It leaves submission.csv (`PredictionString,image_id`), submission.json (COCO results) and report.html there.

    Args:
        data: COCO JSON with annotations, its pictures beside it or in images/ beside it; or a folder with a train.json
            and perhaps a test.json.
        test: COCO JSON of the pictures to predict; its annotations, if it has any, are never read. Without it, a
            held-back fold stands in.
        deadline: wall-clock time for everything, such as 10m, 2h or 1h30m.
        out: folder to make.
        recipe: allowed for members; house, house_lite1 and yolov5n by default. With little time only the first is
            taken. `foldfuse recipes` lists them.
        forbid: recipes that are not allowed.
        size: image sizes that are allowed, in pixels; all by default.
        change: changes to the recipes, such as lr=3e-4.
        folds: one of so many is held back from training, to choose the ensemble on; or the file of `foldfuse split`, whose
            fold 0 is held back.
        member: folders of runs that were trained without the pictures held back; they join the ensemble.
        foreign: HELD:TEST, another toolkit's predictions of the pictures held back and of the test pictures, in any format
            that `fuse` takes; they join the ensemble.
        seed: of every random choice.
        metric: the contest's, that everything is chosen by out-of-fold: ap50, ap (COCO's), f2 or wheat.
        pseudo_labels: let the last members learn from what the ensemble is sure of in the test pictures, too, where the
            contest's rules allow it; the pictures held back stay held back.
        resume: folder of a campaign that was stopped, to go on with what it was asked; given alone, or with `ray`. The time
            that it has worked counts against its deadline, the time that it lay still does not.
        ray: address of a running Ray cluster, such as 10.0.0.1:6379, or auto for the one of this machine: its nodes train
            the members. Needs foldfuse[ray].
        plan: only measure the candidates, show the plan, and stop.

    Raises:
        InputError: the data cannot be used, the deadline is too short, the folder is in use, the disk is full, or there is
            no such cluster.
    """
    start = time.monotonic()
    asked = Asked(
        None if data is None else str(data),
        None if test is None else str(test),
        deadline,
        str(out),
        tuple(recipe),
        tuple(forbid),
        tuple(size),
        tuple(change),
        folds if isinstance(folds, int) else str(folds),
        tuple(map(str, member)),
        tuple(foreign),
        seed,
        metric,
        pseudo_labels,
    )
    machine.tune()
    if resume is not None:
        if asked != Asked():
            raise InputError(
                f"--resume {resume} goes on with what the campaign was asked. Give it alone, or with --ray."
            )
        with _joined(ray):
            return _resume(Path(resume), start, ray=ray)
    if asked.data is None:
        raise InputError("no data is given. Give a COCO JSON or a folder with a train.json; or --resume DIR.")
    if plan:
        if ray is not None:
            raise InputError("--plan measures this machine, not the nodes of a cluster. Leave out --ray.")
        _show_plan(asked, start)
        return None
    with _joined(ray):
        return _begin(asked, start, ray=ray)


def _joined(ray: str | None) -> AbstractContextManager[None]:
    """While it lasts, this process is part of the Ray cluster at an address; of none where there is no address."""
    if ray is None:
        return nullcontext()
    from foldfuse.cluster import joined  # here: it loads torch, and nobody else needs Ray

    return joined(ray)


def _begin(asked: Asked, start: float, *, ray: str | None) -> Path:
    """Check what is asked, make the folder, and work in it."""
    seconds = seconds_of(asked.deadline)
    if seconds < SHORTEST:
        raise InputError(
            f"the deadline is {clock_text(seconds)}, and even one member needs {clock_text(SHORTEST)}. Give more time."
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
        with ledgers.held_alone(out), closing(ledgers.begin(out, facts, deadline=seconds, start=start)) as ledger:
            _work(asked, inputs, ledger, new=True, clustered=ray is not None)
    return out


def _show_plan(asked: Asked, start: float) -> None:
    """Look at the data in a folder that is thrown away, and print the plan."""
    seconds, recipes = seconds_of(asked.deadline), asked.recipes()
    inputs = asked.inputs()
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(ledgers.begin(Path(folder), {}, deadline=seconds, start=start)) as ledger,
    ):
        task = asked.task(inputs, recipes, ledger)

    from foldfuse.plan import show  # here, so that torch is loaded after the input was found good

    show(task, seconds, Console())


def _resume(out: Path, start: float, *, ray: str | None) -> Path:
    """Go on with the campaign in a folder; one that has finished is left as it is."""
    if not (out / ledgers.NAME).is_file():
        raise InputError(f"{out}: holds no campaign that has begun. Begin one: foldfuse campaign DATA --out {out}")
    with _full_disk_told(out), ledgers.held_alone(out), closing(ledgers.go_on(out, start=start)) as ledger:
        if ledger.fact("state") == "finished":
            if ledger.fact("reported") is False:  # the disk was full just then
                from foldfuse.report import report

                report(out)
                ledger.export()
                ledger.tell(reported=True)
            print(f"{out}: has finished already; nothing is left to do.", file=sys.stderr)
            return out
        asked = Asked.of(ledger.fact("asked"))
        inputs = asked.inputs()
        if inputs.fingerprints() != ledger.fact("fingerprints"):
            raise InputError(f"{out}: was begun with other data than {asked.data} holds now. Begin a new campaign.")
        for left in out.rglob(".*"):  # files and folders that were being written when the process was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        ledger.tell(command=on_cluster(ledger.fact("command"), ray))
        if ledger.fact("looked"):
            ledger.note(f"Resumed after {clock_text(ledger.before)} of work.")
        _work(asked, inputs, ledger, new=False, clustered=ray is not None)
    return out


def _work(asked: Asked, inputs: Inputs, ledger: Ledger, *, new: bool, clustered: bool) -> None:
    """Look at the data and the guests, then carry the campaign out; where they are no good, a new folder is removed."""
    with ledger.beating(), live(ledger.folder), _interrupt_told(ledger):
        try:
            with ledger.stage("look at the data", "setup"):
                task = asked.task(inputs, asked.recipes(), ledger)
                from foldfuse.guests import welcome  # here, so that torch is loaded after the input was found good

                welcome(asked.member, asked.foreign, task, ledger)
        except InputError:
            if new:
                shutil.rmtree(ledger.folder)  # it held nothing before: once the data is mended, the same command works
            raise

        from foldfuse.cluster import Cluster
        from foldfuse.stages import carry_out
        from foldfuse.workers import Here

        with closing(Cluster(task, ledger) if clustered else Here(task, ledger)) as workers:
            carry_out(task, ledger, rung_by_rung, workers)
    out = ledger.folder
    print(f"{out / 'submission.csv'} is what to submit; {out / 'report.html'} says why.", file=sys.stderr)


@contextmanager
def _interrupt_told(ledger: Ledger) -> Iterator[None]:
    """An interrupt that ends all work is written down, with a sentence on what there is, and goes on."""
    try:
        yield
    except KeyboardInterrupt:
        if ledger.fact("state") == "running":
            ledger.tell(state="interrupted")
        there = "nothing has been submitted yet" if ledger.submission() is None else "what was submitted before stays"
        ledger.note(f"Interrupted: {there}. Go on with: foldfuse campaign --resume {ledger.folder}")
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
