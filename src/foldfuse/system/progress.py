"""Progress of long work as a share from 0 to 1, progress bars that show it, and the log on standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from foldfuse.system import printing

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[float], None]
Status = Callable[[Mapping[str, str]], None]  # {name: value as text}; values of other names stay as they were


class ProgressDisplay(Protocol):
    """A display that shows progress bars in its own way, such as the live view of a campaign."""

    @property
    def console(self) -> Console:
        """A console that prints above the display."""

    def progress_bar(self, text: str) -> AbstractContextManager[Progress]:
        """Shows the progress of the block."""


@runtime_checkable
class StatusDisplay(Protocol):
    """A ProgressDisplay that can show named values beside its bars."""

    def status_bar(self, text: str) -> AbstractContextManager[tuple[Progress, Status]]:
        """Shows the progress of the block, and named values."""


_displays: list[ProgressDisplay] = []  # the last one shows the bars


def no_progress(share: float) -> None:
    """A Progress that ignores the share."""


def span(progress: Progress, low: float, high: float) -> Progress:
    """A Progress for one part of the work, which covers the shares `low` to `high` of the whole."""
    return lambda share: progress(low + share * (high - low))


def no_status(values: Mapping[str, str]) -> None:
    """A Status that ignores the values."""


@contextmanager
def progress_on(display: ProgressDisplay) -> Iterator[None]:
    """Hands the progress bars of the block to `display`."""
    _displays.append(display)
    try:
        yield
    finally:
        _displays.remove(display)


def error_console() -> Console:
    """A console on standard error; it prints above the display, where one is active."""
    return _displays[-1].console if _displays else printing.console(stderr=True)


@contextmanager
def progress_bar(text: str, *, num_images: int | None = None) -> Iterator[Progress]:
    """Shows a bar with the elapsed and the remaining time on standard error, where that is a terminal.

    Args:
        text: the work.
        num_images: the number of images of the whole work; with it the bar shows images per second.
    """
    if _displays:
        with _displays[-1].progress_bar(text) as progress:
            yield progress
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    rate = (TextColumn("{task.fields[rate]}", markup=False),) if num_images is not None else ()
    with RichProgress(*columns, *rate, console=error_console(), transient=True) as bars:
        task = bars.add_task(text, total=1.0, rate="")

        def show(share: float) -> None:
            elapsed = bars.tasks[0].elapsed
            rate = f"{share * num_images / elapsed:.1f} images/s" if num_images is not None and elapsed else ""
            bars.update(task, completed=min(1.0, share), rate=rate)

        yield show


@contextmanager
def status_bar(text: str) -> Iterator[tuple[Progress, Status]]:
    """Shows a bar, named values such as "step 120 loss 1.25" and the remaining time on standard error, if it is a terminal."""
    if _displays and isinstance(display := _displays[-1], StatusDisplay):
        with display.status_bar(text) as bar:
            yield bar
        return
    if _displays:
        with progress_bar(text) as progress:
            yield progress, no_status
        return
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=10),
        TextColumn("{task.fields[status]}", markup=False),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    shown: dict[str, str] = {}
    with RichProgress(*columns, console=error_console(), transient=True) as bars:
        task = bars.add_task(text, total=1.0, status="")

        def status(values: Mapping[str, str]) -> None:
            shown.update(values)
            bars.update(task, status=" ".join(f"{name} {value}" for name, value in shown.items()))

        yield lambda share: bars.update(task, completed=min(1.0, share)), status


class _StandardError(logging.Handler):
    """Prints on the standard error of the moment, which a live display redirects so that lines appear above the display."""

    def emit(self, record: logging.LogRecord) -> None:
        print(printing.sentence(self.format(record)), file=sys.stderr)


@contextmanager
def log_on_standard_error() -> Iterator[None]:
    """Prints the package's log messages from INFO up, as the command line does; a library call leaves logging as it is."""
    logger, handler = logging.getLogger("foldfuse"), _StandardError()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
