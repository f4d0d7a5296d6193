"""Progress of long work: a share from 0 to 1, told to whoever asked, and a bar with an honest estimate of the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[float], None]


def silent(share: float) -> None:
    """Progress that nobody watches."""


@contextmanager
def bar(text: str) -> Iterator[Progress]:
    """Progress shown on standard error as a bar with the time used and the time left, where that is a terminal."""
    from rich.console import Console
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
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(text, total=1.0)
        yield lambda share: shown.update(task, completed=min(1.0, share))
