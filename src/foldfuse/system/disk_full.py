"""Recognises a full disk in the errors of Python, SQLite, torch and safetensors, and turns such an error into one sentence."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from foldfuse.errors import InputError

_ERRNOS = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)}
_FULL = ("disk is full", "no space left", "file too large", "quota exceeded", "os error 28", "os error 27")
_TORCH = ("pytorchstreamwriter failed", "file write failed", "unexpected pos")  # torch gives no reason
_SQLITE = "disk i/o error"  # for example at a quota


def disk_full_reason(error: BaseException) -> str | None:
    """ "the disk is full" or a similar clause if a full disk caused `error`; None for any other cause."""
    words = str(error).lower()
    if _SQLITE in words:
        return "the disk is broken, over its quota or full"
    full = isinstance(error, OSError) and error.errno in _ERRNOS
    return "the disk is full" if full or any(word in words for word in (*_FULL, *_TORCH)) else None


@contextmanager
def disk_full_as_input_error(folder: Path, hint: Callable[[], str]) -> Iterator[None]:
    """Turns a full disk within the block into an InputError that names `folder` and ends with `hint()`."""
    try:
        yield
    except Exception as error:
        reason = disk_full_reason(error)
        if reason is None:
            raise
        raise InputError(f"{folder}: {reason}. {hint()}") from error
