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


def keeps_code(loop: Any) -> bool:
    """Whether the machine code of a compiled loop has a place on disk."""
    return getattr(getattr(loop, "_cache", None), "_cache_file", None) is not None


def has_kept(loop: Any) -> bool:
    """Whether machine code of a compiled loop, from its present source and for this processor, is kept on disk."""
    try:
        processor = loop.targetctx.codegen().magic_tuple()
        return any(key[1] == processor for key in loop._cache._cache_file._load_index())
    except Exception as error:  # numba offers no such question, and a broken file fails in any of pickle's ways
        log.debug("the cache of compiled loops cannot be read: %s", error)
        return False


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
