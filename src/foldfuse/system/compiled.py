"""Compiles numeric loops with numba at their first call, and keeps the machine code on disk where there is a place for it.

numba itself raises where neither the package nor the user's home is writable, or where the disk is full; here the code is then
compiled anew in each process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from numba import njit

log = logging.getLogger(__name__)


def compiled(*, error_model: str = "python", fastmath: bool | set[str] = False) -> Callable[[Any], Any]:
    """A decorator that compiles a function; it runs without Python's global lock.

    Args:
        error_model: "numpy" where a division by zero gives infinity or NaN instead of an error.
        fastmath: the liberties that the compiler may take with floating-point numbers.
    """

    def decorate(function: Any) -> Any:
        try:
            dispatcher = njit(cache=True, nogil=True, error_model=error_model, fastmath=fastmath)(function)
        except (RuntimeError, OSError) as error:  # no place to keep machine code
            log.debug("%s is compiled anew in each process: %s", function.__name__, error)
            return njit(nogil=True, error_model=error_model, fastmath=fastmath)(function)
        _forgive(dispatcher._cache)
        return dispatcher

    return decorate


def _forgive(cache: Any) -> None:
    """Makes a numba cache that cannot be read or written one that has nothing, instead of an error."""
    load, save = cache.load_overload, cache.save_overload

    def load_overload(signature: Any, context: Any) -> Any:
        try:
            return load(signature, context)
        except Exception as error:  # a broken file fails in any of pickle's ways
            log.debug("the cache of compiled loops cannot be read: %s", error)
            return None

    def save_overload(signature: Any, data: Any) -> None:
        try:
            save(signature, data)
        except OSError as error:
            log.debug("the cache of compiled loops cannot be written: %s", error)

    cache.load_overload, cache.save_overload = load_overload, save_overload
