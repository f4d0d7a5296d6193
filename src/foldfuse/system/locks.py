"""Locks a folder against other processes by a file in it; the operating system frees the lock however the process ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from foldfuse.errors import InputError
from foldfuse.system.files import kind_of_file


@contextmanager
def exclusive(path: Path, *, refusal: str) -> Iterator[None]:
    """Holds the lock on the file `path`, which is made and stays, within the block.

    Args:
        path: the lock's file.
        refusal: the sentence where another process holds the lock.

    Raises:
        InputError: another process holds the lock, or the file cannot be made, or is no regular file.
    """
    kind = kind_of_file(path.stat().st_mode) if path.exists() else None
    if kind is not None:
        raise InputError(f"{path}: is {kind}, expected a file to lock. Remove it.")
    try:
        file = path.open("a")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}). Choose a folder that you may write to."
        ) from None
    with file:
        try:
            _lock(file)
        except OSError:
            raise InputError(refusal) from None
        yield


def _lock(file: IO[str]) -> None:
    """Locks a file for this process; OSError where another process has it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
