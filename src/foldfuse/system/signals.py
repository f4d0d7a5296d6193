"""Ctrl-C, and the SIGTERM of batch systems, which means the same here: both are a KeyboardInterrupt, at a moment that suits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


def terminated(number: int, frame: Any) -> NoReturn:
    """Let a SIGTERM be the interrupt that Ctrl-C is."""
    raise KeyboardInterrupt


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """While it lasts, SIGTERM does what Ctrl-C does, so that a time limit of a batch system loses nothing."""
    if not _ours(signal.SIGTERM, signal.SIG_DFL):
        yield
        return
    signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """While it lasts, a first interrupt is only noted, for the work within to end where nothing is lost.

    A second Ctrl-C interrupts at once. Handlers that are not Python's own or `terminated` stay as they are.

    Yields:
        Whether an interrupt was asked for.
    """
    asked = False

    def note(number: int, frame: Any) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: terminated}
    taken = {number: handler for number, handler in usual.items() if _ours(number, handler)}
    for number in taken:
        signal.signal(number, note)
    try:
        yield lambda: asked
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


def _ours(number: int, handler: Any) -> bool:
    """Whether `handler` is what a signal has, and this thread, the main one, may set another."""
    return threading.current_thread() is threading.main_thread() and signal.getsignal(number) == handler
