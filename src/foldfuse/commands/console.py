"""The library's log on the console: what the package logs while a command runs goes to standard error, as plain sentences."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from foldfuse.system.progress import error_console


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        error_console().print(self.format(record), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def log_to_console() -> Iterator[None]:
    """A context in which the package's log is shown; under torchrun only the log of the first process."""
    logger, handler = logging.getLogger("foldfuse"), _ConsoleHandler()
    level = logger.level
    if os.environ.get("RANK", "0") == "0" and not logger.handlers:  # the command line may show the log already
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
