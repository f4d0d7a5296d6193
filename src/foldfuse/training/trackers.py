"""Trackers: they write the rows of a run's log to TensorBoard or MLflow as well.

A tracker is a function that takes new rows of the log; each number in a row becomes a point of a curve at the row's step.
The packages are optional, and imported only where a tracker is asked for.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from foldfuse.errors import InputError, unknown_name

log = logging.getLogger(__name__)

Row = Mapping[str, Any]
Tracker = Callable[[Sequence[Row]], None]


@contextmanager
def open_trackers(wanted: Sequence[str], name: str) -> Iterator[Tracker]:
    """One tracker that writes to all of `wanted`, closed at the end of the block.

    Args:
        wanted: such as "tensorboard:DIR" or "mlflow:URI".
        name: the name of the run.

    Raises:
        InputError: there is no such kind of tracker, or its package is not installed.
    """
    with ExitStack() as stack:
        members = [stack.enter_context(_KINDS[kind](where, name)) for kind, where in map(_parse, wanted)]

        def write(rows: Sequence[Row]) -> None:
            for member in members:
                member(rows)

        yield write


def check_trackers(wanted: Sequence[str]) -> None:
    """Raise InputError unless each of `wanted` is a tracker whose package is installed."""
    for kind, _ in map(_parse, wanted):
        _module(_MODULES[kind], kind)


def _parse(text: str) -> tuple[str, str]:
    kind, _, where = text.partition(":")
    if kind not in _KINDS:
        raise unknown_name("tracker", kind, _KINDS)
    if not where:
        raise InputError(f"the tracker {text!r} does not say where: write it as {kind}:{_PLACES[kind]}.")
    return kind, where


@contextmanager
def _tensorboard(where: str, name: str) -> Iterator[Tracker]:
    make = _module("torch.utils.tensorboard", "tensorboard").SummaryWriter
    writer: Any = None

    def write(rows: Sequence[Row]) -> None:
        nonlocal writer
        writer = writer or make(f"{where}/{name}")  # not before: DIR may be the run's own folder, which has to be new
        for row in rows:
            for key, value in _numbers(row).items():
                writer.add_scalar(key, value, row["step"])
        writer.flush()

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


@contextmanager
def _mlflow(where: str, name: str) -> Iterator[Tracker]:
    mlflow = _module("mlflow", "mlflow")
    try:
        mlflow.set_tracking_uri(where)
        mlflow.start_run(run_name=name)
    except Exception as error:  # the server's, the network's, a database's or MLflow's own
        raise InputError(
            f"the tracker mlflow:{where} cannot be opened ({_first_line(error)}). Is its server running, and is the URI right?"
        ) from None

    def write(rows: Sequence[Row]) -> None:
        for row in rows:
            mlflow.log_metrics(_numbers(row), step=row["step"], synchronous=False)

    status = "FAILED"
    try:
        yield write
        status = "FINISHED"
    finally:
        try:
            mlflow.flush_async_logging()
            mlflow.end_run(status)
        except Exception as error:  # the server is gone: no reason to lose the run
            log.warning(f"the tracker mlflow:{where} was lost ({_first_line(error)}); log.jsonl has all rows.")


_KINDS = {"tensorboard": _tensorboard, "mlflow": _mlflow}
_MODULES = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow"}
_PLACES = {"tensorboard": "DIR", "mlflow": "URI"}


def _numbers(row: Row) -> dict[str, float]:
    return {key: float(value) for key, value in row.items() if key != "step" and isinstance(value, int | float)}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no further message'}"


def _module(name: str, kind: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"the tracker {kind} is not installed: pip install 'foldfuse[{kind}]' brings it.") from None
