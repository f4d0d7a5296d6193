"""Progress bars in a notebook: plain HTML that IPython replaces, which needs no widgets and no thread."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from html import escape

from rich.console import Console

from foldfuse.system import printing
from foldfuse.system.durations import format_duration
from foldfuse.system.progress import Progress, Status, progress_on

REFRESH_SECONDS = 0.5


class NotebookDisplay:
    """A ProgressDisplay whose bars are in the output of the notebook's cell."""

    def __init__(self, show: Callable[[str], Callable[[str], None]]) -> None:
        self._show = show  # shows HTML and returns the function that replaces it

    @property
    def console(self) -> Console:
        """A console on standard error."""
        return printing.console(stderr=True)

    @contextmanager
    def progress_bar(self, text: str) -> Iterator[Progress]:
        """Shows the progress of the block."""
        with self.status_bar(text) as (progress, _):
            yield progress

    @contextmanager
    def status_bar(self, text: str) -> Iterator[tuple[Progress, Status]]:
        """Shows the progress of the block, and named values beside it; the bar goes when the block ends."""
        start = drawn = time.monotonic()
        shown: dict[str, str] = {}
        done = 0.0
        handle = self._show(_bar(text, 0.0, 0.0, ""))

        def progress(share: float) -> None:
            nonlocal drawn, done
            done = min(1.0, share)
            if (now := time.monotonic()) - drawn >= REFRESH_SECONDS:
                drawn = now
                handle(_bar(text, done, now - start, "  ".join(f"{name} {value}" for name, value in shown.items())))

        def status(values: Mapping[str, str]) -> None:
            shown.update(values)
            progress(done)

        try:
            yield progress, status
        finally:
            handle("")


def notebook_progress() -> AbstractContextManager[None]:
    """Shows the progress bars of the block in the notebook, where this process is the kernel of one."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None or not hasattr(shell, "kernel"):  # a terminal has bars of its own
        return nullcontext()
    from IPython.display import HTML, display

    def show(html: str) -> Callable[[str], None]:
        handle = display(HTML(html), display_id=True)
        return lambda new: handle.update(HTML(new))

    return progress_on(NotebookDisplay(show))


def _bar(text: str, share: float, seconds: float, status: str) -> str:
    left = f", {format_duration(seconds * (1 - share) / share)} left" if share > 0.02 and share < 1 else ""
    words = f"{100 * share:.0f} %{left}{'  ' if status else ''}{status}"
    return f'<div>{escape(text)} <progress value="{share:.3f}" max="1"></progress> {escape(words)}</div>'
