"""Ctrl-C and the SIGTERM of batch systems: both become a KeyboardInterrupt, at once or at a safe point."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


def raise_interrupt(number: int, frame: Any) -> NoReturn:
    """A SIGTERM handler that raises KeyboardInterrupt, as Ctrl-C does."""
    raise KeyboardInterrupt


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Makes SIGTERM act like Ctrl-C within the block, so that no work is lost at a batch system's time limit."""
    if not _can_replace(signal.SIGTERM, signal.SIG_DFL):
        yield
        return
    signal.signal(signal.SIGTERM, raise_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Records the first interrupt within the block instead of raising it, so that the work can stop at a safe point.

    A second Ctrl-C interrupts at once. Handlers other than Python's own and `raise_interrupt` stay as they are.

    Yields:
        A function that says whether an interrupt was requested.
    """
    requested = False

    def request(number: int, frame: Any) -> None:
        nonlocal requested
        if requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        requested = True

    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: raise_interrupt}
    replaced = {number: handler for number, handler in usual.items() if _can_replace(number, handler)}
    for number in replaced:
        signal.signal(number, request)
    try:
        yield lambda: requested
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def _can_replace(number: int, handler: Any) -> bool:
    """Whether `handler` is the signal's current handler and this is the main thread, the only one that may set a handler."""
    return threading.current_thread() is threading.main_thread() and signal.getsignal(number) == handler
