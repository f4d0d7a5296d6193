"""Ctrl-C, the SIGTERM of batch systems, the SIGHUP of a closed terminal: each becomes a KeyboardInterrupt, at once or later."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

RETRY_SECONDS = 0.1  # while torch loads
_USUAL: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
if hasattr(signal, "SIGHUP"):
    _USUAL[signal.SIGHUP] = signal.SIG_DFL
_terminals: list[int] = []  # descriptors of standard input and output that are a terminal, while signals are interrupts


def raise_interrupt(number: int, frame: Any) -> None:
    """A signal handler that raises KeyboardInterrupt, as Python's own does for Ctrl-C; while torch loads, right after that.

    An exception in the middle of loading torch's C++ library would abort the process.
    """
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    if getattr(spec, "_initializing", False):
        timer = threading.Timer(RETRY_SECONDS, _send, (number,))
        timer.daemon = True
        timer.start()
        return
    if _is_hangup(number):
        _leave_terminal()
    raise KeyboardInterrupt


@contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP act like Ctrl-C within the block, so that no work is lost at a time limit or with a terminal.

    A signal that is ignored stays ignored, as nohup wants it.
    """
    _terminals[:] = [descriptor for descriptor in (0, 1, 2) if os.isatty(descriptor)]
    replaced = {number: usual for number, usual in _USUAL.items() if _has_handler(number, usual)}
    for number in replaced:
        signal.signal(number, raise_interrupt)
    try:
        yield
    finally:
        for number, usual in replaced.items():
            signal.signal(number, usual)


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
        if _is_hangup(number):
            _leave_terminal()
        if requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        requested = True

    possible: list[tuple[int, Any]] = [(number, raise_interrupt) for number in _USUAL]
    possible.append((signal.SIGINT, signal.default_int_handler))
    replaced = {number: handler for number, handler in possible if _has_handler(number, handler)}
    for number in replaced:
        signal.signal(number, request)
    try:
        yield lambda: requested
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def _has_handler(number: int, handler: Any) -> bool:
    """Whether `handler` is the signal's current handler and this is the main thread, the only one that may set a handler."""
    return threading.current_thread() is threading.main_thread() and signal.getsignal(number) == handler


def _send(number: int) -> None:
    """Sends a signal to the main thread of this process."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, number)  # wakes a thread that waits, too
    else:
        signal.raise_signal(number)


def _is_hangup(number: int) -> bool:
    return number == getattr(signal, "SIGHUP", None)


def _leave_terminal() -> None:
    """Sends whatever is printed from now on nowhere: printing to a terminal that was closed is an error."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in _terminals:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)
