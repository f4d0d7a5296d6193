"""Atomic writes: a file or folder is written under a temporary name, then renamed, so that it appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from foldfuse.errors import InputError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to, and renames it to `path` when the block ends without an error.

    Raises:
        InputError: `path` is a folder, or the parent folder cannot be created or written to.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a file to write. Add the name of a file to it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}). Choose a folder that you may write to."
        ) from None
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path` to fill, and renames it to `path` when the block ends without an error.

    Raises:
        InputError: `path` exists already and is no empty folder, or the folder cannot be created.
    """
    given, path = path, Path(path).resolve()
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        kind = "file" if path.is_file() else "folder that is not empty"
        raise InputError(f"{given}: is a {kind}, expected a new or an empty folder. Choose another name, or remove it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise InputError(
            f"{given}: cannot be written ({error.strerror}). Choose a folder that you may write to."
        ) from None
    try:
        yield temporary
        temporary.chmod(0o755)
        with suppress(FileNotFoundError):
            path.rmdir()  # not every system renames onto an empty folder
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` in UTF-8, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
