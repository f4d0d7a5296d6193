"""Trackers: they write the rows of a run's log to TensorBoard, MLflow, W&B or Trackio as well.

A tracker is a function that takes new rows of the log; each number in a row becomes a point of a curve at the row's step. Names
may have a prefix, such as "base/loss": curves of one prefix share their steps, and those of another have steps of their own.

The packages are optional, and imported only where a tracker is asked for. A tracker that fails is reported once and then left: no
training ends because of it, and log.jsonl has all rows.
"""

from __future__ import annotations

import importlib
import logging
import netrc
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from foldfuse.errors import InputError, unknown_name
from foldfuse.system.offline import is_offline

log = logging.getLogger(__name__)

Row = Mapping[str, Any]
Tracker = Callable[[Sequence[Row]], None]


class Opened(NamedTuple):
    """An open tracker.

    Attributes:
        write: writes new rows.
        close: ends the tracker's run; True where the training ended well.
    """

    write: Tracker
    close: Callable[[bool], None]


@dataclass
class _Guarded:
    """An open tracker whose failure is reported once."""

    label: str
    opened: Opened
    is_lost: bool = False

    def write(self, rows: Sequence[Row]) -> None:
        if not self.is_lost and rows:
            self._try(lambda: self.opened.write(rows))

    def close(self, is_well: bool) -> None:
        if self.is_lost:
            with suppress(Exception):  # so that another run of this process can be opened
                self.opened.close(False)
        else:
            self._try(lambda: self.opened.close(is_well))

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # the server's, the network's, the disk's or the package's own
            self.is_lost = True
            log.warning(f"the tracker {self.label} was lost ({_first_line(error)}); log.jsonl has all rows.")


@contextmanager
def open_trackers(wanted: Sequence[str], name: str, *, must_open: bool = True) -> Iterator[Tracker]:
    """One tracker that writes to all of `wanted`, closed at the end of the block.

    Args:
        wanted: such as "tensorboard:DIR", "mlflow:URI", "wandb:PROJECT" or "trackio:PROJECT".
        name: the name of the run.
        must_open: whether a tracker that cannot be opened is an error; otherwise it is reported, and the others go on.

    Raises:
        InputError: there is no such kind of tracker, its package is not installed, or it cannot be opened.
    """
    members: list[_Guarded] = []
    is_well = False
    try:
        for label in wanted:
            try:
                members.append(_Guarded(label, _open(label, name)))
            except InputError as error:
                if must_open:
                    raise
                log.warning(f"{error} It goes on without this tracker; log.jsonl has all rows.")

        def write(rows: Sequence[Row]) -> None:
            for member in members:
                member.write(rows)

        yield write
        is_well = True
    finally:
        for member in members:
            member.close(is_well)


def check_trackers(wanted: Sequence[str]) -> None:
    """Raise InputError unless each of `wanted` is a tracker whose package is installed."""
    for kind, _ in map(_parse, wanted):
        _module(_KINDS[kind].module, kind)


def absolute_tracker(text: str) -> str:
    """A tracker that means the same in another working folder."""
    kind, where = _parse(text)
    return f"{kind}:{Path(where).resolve()}" if kind == "tensorboard" else text


def _open(label: str, name: str) -> Opened:
    kind, where = _parse(label)
    try:
        return _KINDS[kind].open(where, name)
    except InputError:
        raise
    except Exception as error:  # the server's, the network's, a database's or the package's own
        raise InputError(f"the tracker {label} cannot be opened ({_first_line(error)}). {_KINDS[kind].hint}") from None


def _parse(text: str) -> tuple[str, str]:
    kind, _, where = text.partition(":")
    if kind not in _KINDS:
        raise unknown_name("tracker", kind, _KINDS)
    if not where:
        raise InputError(f"the tracker {text!r} does not say where: write it as {kind}:{_KINDS[kind].place}.")
    return kind, where


def _tensorboard(where: str, name: str) -> Opened:
    make = _module("torch.utils.tensorboard", "tensorboard").SummaryWriter
    writer: Any = None

    def write(rows: Sequence[Row]) -> None:
        nonlocal writer
        writer = writer or make(f"{where}/{name}")  # not before: DIR may be the run's own folder, which has to be new
        for row in rows:
            for key, value in _numbers(row).items():
                writer.add_scalar(key, value, row["step"])
        writer.flush()

    def close(is_well: bool) -> None:
        if writer is not None:
            writer.close()

    return Opened(write, close)


def _mlflow(where: str, name: str) -> Opened:
    mlflow = _module("mlflow", "mlflow")
    mlflow.set_tracking_uri(where)
    mlflow.start_run(run_name=name)

    def write(rows: Sequence[Row]) -> None:
        for row in rows:
            mlflow.log_metrics(_numbers(row), step=row["step"], synchronous=False)

    def close(is_well: bool) -> None:
        mlflow.flush_async_logging()
        mlflow.end_run("FINISHED" if is_well else "FAILED")

    return Opened(write, close)


def _wandb(where: str, name: str) -> Opened:
    wandb = _module("wandb", "wandb")
    mode = _wandb_mode()
    run = wandb.init(
        project=where, name=name, mode=mode, reinit="create_new", settings=wandb.Settings(console="off", silent=True)
    )
    if mode == "offline":
        log.info(
            f"wandb:{where}: the run is kept in {Path(run.dir).parent}; 'wandb sync' uploads it once you have an account."
        )
    elif run.url:
        log.info(f"wandb:{where}: the run is at {run.url}")
    defined: set[str] = set()

    def write(rows: Sequence[Row]) -> None:
        for row in rows:
            numbers = _numbers(row)
            prefix = next(iter(numbers), "").rpartition("/")[0]
            step = f"{prefix}/step" if prefix else "step"
            if step not in defined:  # W&B's own step never falls, and segments begin at 0 each
                run.define_metric(step)
                run.define_metric(f"{prefix}/*" if prefix else "*", step_metric=step)
                defined.add(step)
            run.log({**numbers, step: row["step"]})

    return Opened(write, lambda is_well: run.finish(exit_code=0 if is_well else 1))


def _wandb_mode() -> str | None:
    """How W&B runs: as WANDB_MODE says, offline where nothing may be sent or no account is known, else as W&B does."""
    if is_offline():
        return "offline"
    if os.environ.get("WANDB_MODE"):
        return None
    keys = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    return None if any(map(os.environ.get, keys)) or _has_wandb_login() else "offline"


def _has_wandb_login() -> bool:
    """Whether `wandb login` has stored a key for the server, in ~/.netrc or the file that NETRC names."""
    host = (
        os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("://")[2].partition("/")[0].partition(":")[0]
    )
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        with suppress(OSError, netrc.NetrcParseError):
            if path and netrc.netrc(Path(path).expanduser()).authenticators(host) is not None:
                return True
    return False


def _trackio(where: str, name: str) -> Opened:
    trackio = _module("trackio", "trackio")
    with redirect_stdout(sys.stderr):  # Trackio says where its files are
        run = trackio.init(project=where, name=name, embed=False, auto_log_gpu=False, auto_log_cpu=False)

    def write(rows: Sequence[Row]) -> None:
        for row in rows:
            run.log(_numbers(row), step=row["step"])

    def close(is_well: bool) -> None:
        with redirect_stdout(sys.stderr):
            run.finish()

    return Opened(write, close)


class _Kind(NamedTuple):
    """A kind of tracker: how it is opened, its module, what its place is, and what helps where it cannot be opened."""

    open: Callable[[str, str], Opened]
    module: str
    place: str
    hint: str


_KINDS: dict[str, _Kind] = {
    "tensorboard": _Kind(_tensorboard, "torch.utils.tensorboard", "DIR", "Can the folder be written to?"),
    "mlflow": _Kind(_mlflow, "mlflow", "URI", "Is its server running, and is the URI right?"),
    "wandb": _Kind(_wandb, "wandb", "PROJECT", "Log in with 'wandb login', or set WANDB_MODE=offline."),
    "trackio": _Kind(_trackio, "trackio", "PROJECT", "Can its folder be written to? TRACKIO_DIR names another one."),
}


def _numbers(row: Row) -> dict[str, float]:
    return {key: float(value) for key, value in row.items() if key != "step" and isinstance(value, int | float)}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no further message'}"


def _module(name: str, kind: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"the tracker {kind} is not installed: pip install 'foldfuse[{kind}]' brings it.") from None
