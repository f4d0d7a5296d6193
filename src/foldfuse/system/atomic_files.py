"""Atomic writes: a file or folder is written under a temporary name, then renamed, so that it appears whole or not at all.

A link to a file is followed: the file that it names is replaced. New files and folders have the permissions that the umask gives;
a file that replaces another keeps the other's. What is not a regular file is never written to.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from foldfuse.errors import InputError, shown
from foldfuse.system.disk_full import disk_full_reason
from foldfuse.system.files import kind_of_file

_SYSTEM_FOLDERS = (Path("/dev"), Path("/proc"), Path("/sys"))
_NO_PLACE = (PermissionError, NotADirectoryError, FileExistsError)
_umask_lock = threading.Lock()


def check_target(path: Path, *, is_folder: bool = False) -> None:
    """Checks that a file, or a folder, can be written at `path`, before the work that it will hold.

    Raises:
        InputError: something else than a file (or a folder) is at `path`, or there is no way to write there.
    """
    path = Path(path)
    mode = _mode_of(path)
    kind = None if mode is None else kind_of_file(mode)
    absolute = Path(os.path.normpath(Path.cwd() / path))
    if kind is None and any(folder in absolute.parents for folder in _SYSTEM_FOLDERS) and absolute.parts[2] != "shm":
        kind = "a name of the system"
    if is_folder and mode is not None and kind != "a folder":
        raise InputError(f"{path}: is {kind or 'a file'}, expected a folder to make. Choose another name.")
    if not is_folder and kind is not None:
        advice = "Add the name of a file to it." if kind == "a folder" else "Choose another name."
        raise InputError(f"{path}: is {kind}, expected a file to write. {advice}")
    above = next(folder for folder in Path(os.path.realpath(path)).parents if folder.exists())
    if not above.is_dir():
        raise InputError(f"{path}: cannot be written, since {above} is a file. Choose another name.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(
            f"{path}: cannot be written, since {above} is read-only. Choose a folder that you may write to."
        )


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to, and renames it to `path` when the block ends without an error.

    Raises:
        InputError: `path` is no regular file, the parent folder cannot be created or written to, or the disk is full.
    """
    path = Path(path)
    check_target(path)
    target = Path(os.path.realpath(path))
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_umask()
    with _write_errors(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{_short(target.name)}.", suffix=target.suffix, dir=target.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        with _write_errors(path):
            yield temporary
            _flush(temporary)
            temporary.chmod(mode)
            temporary.replace(target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path` to fill, and renames it to `path` when the block ends without an error.

    Raises:
        InputError: `path` exists already and is no empty folder, the folder cannot be created, or the disk is full.
    """
    given, path = Path(path), Path(os.path.realpath(path))
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        kind = "file" if path.is_file() else "folder that is not empty"
        raise InputError(f"{given}: is a {kind}, expected a new or an empty folder. Choose another name, or remove it.")
    check_target(given, is_folder=True)
    with _write_errors(given):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{_short(path.name)}.", dir=path.parent))
    try:
        with _write_errors(given):
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            with suppress(FileNotFoundError):
                path.rmdir()  # not every system renames onto an empty folder
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` in UTF-8, whole or not at all.

    Raises:
        InputError: see `atomic`; or the text holds a character that UTF-8 cannot hold (half of a surrogate pair).
    """
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.start + 20]
        raise InputError(
            f"{path}: the text {shown(around)} cannot be written, since it holds half of a character. Rename what has that name."
        ) from None
    with atomic(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Turns errors of the file system about the place of `path` within the block into an InputError; others pass."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if reason := disk_full_reason(error):
            raise InputError(f"{path}: {reason}. Nothing was written there; make room, then try again.") from error
        if isinstance(error, OSError) and (isinstance(error, _NO_PLACE) or error.errno == errno.EROFS):
            raise InputError(
                f"{path}: cannot be written ({(error.strerror or str(error)).lower()}). "
                "Choose a folder that you may write to."
            ) from None
        raise


def _mode_of(path: Path) -> int | None:
    """The mode of what is at `path`, links followed; None for nothing. Raises InputError for a name that cannot be."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # a name too long, a loop of links
        raise InputError(
            f"{path}: cannot be written ({(error.strerror or str(error)).lower()}). Choose another name."
        ) from None
    except ValueError:
        raise InputError(f"{shown(str(path))}: is no name of a file: it holds a null character.") from None


def _umask() -> int:
    """The permissions that new files of this process lack."""
    with _umask_lock:  # it can only be read by setting it
        umask = os.umask(0o077)
        os.umask(umask)
    return umask


def _short(name: str) -> str:
    """The beginning of a name that leaves room for more in the name of a file."""
    return name if len(name.encode("utf-8", "replace")) < 150 else name[:40]


def _flush(path: Path) -> None:
    """Makes sure that the content is on the disk: some disks say only here that they are full."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
