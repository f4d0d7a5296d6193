"""Progress of long work: a share from 0 to 1, told to whoever asked, and a bar with an honest estimate of the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[float], None]


class Screen(Protocol):
    """A view of its own that shows bars in its own way."""

    @property
    def console(self) -> Console:
        """To print on, above the view."""

    def progress_bar(self, text: str) -> AbstractContextManager[Progress]:
        """Show what is done while it lasts."""


_screens: list[Screen] = []  # the last one is in charge


def no_progress(share: float) -> None:
    """Progress that nobody watches."""


@contextmanager
def progress_on(screen: Screen) -> Iterator[None]:
    """While it lasts, bars are left to `screen`."""
    _screens.append(screen)
    try:
        yield
    finally:
        _screens.remove(screen)


def error_console() -> Console:
    """Standard error, to print on: above the view, where there is one."""
    from rich.console import Console

    return _screens[-1].console if _screens else Console(stderr=True)


@contextmanager
def progress_bar(text: str) -> Iterator[Progress]:
    """Progress shown on standard error as a bar with the time used and the time left, where that is a terminal."""
    if _screens:
        with _screens[-1].progress_bar(text) as progress:
            yield progress
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn(text),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=error_console(), transient=True) as shown:
        task = shown.add_task(text, total=1.0)
        yield lambda share: shown.update(task, completed=min(1.0, share))
