"""Removes what a killed campaign was writing: files and folders under temporary names, and nothing else.

A person's own hidden files (.git, notes, settings) stay, and links are never followed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from foldfuse.storage import ledger as ledgers
from foldfuse.storage import notes

_WRITTEN = (  # names of files and folders that a campaign writes by way of temporary names
    r"(submission|fused_oof|fused_test|ensemble|report|campaign|folds|rescore|run|recipe|learnt_images|pseudo|log|weights"
    r"|checkpoint|(val|test)@[^/]*)\.(csv|json|jsonl|parquet|html|safetensors|pt)|\d+(\.json)?"
)
_TEMPORARY = re.compile(rf"\.({_WRITTEN})\.[a-z0-9_]{{8}}(\.[a-z]+)?")  # as `system.atomic_files` makes them


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files and folders of a process that was killed, from the folder of a campaign."""
    for place in _places(folder):
        for path in place.iterdir():
            if path.is_symlink() or not is_leftover(path.name):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            elif path.is_file():
                path.unlink()


def is_leftover(name: str) -> bool:
    """Whether a file or folder has a temporary name of a campaign's own files."""
    return name == f".{ledgers.NAME}.new" or _TEMPORARY.fullmatch(name) is not None


def _places(folder: Path) -> Iterator[Path]:
    """The folders that a campaign writes to, without links."""
    yield folder
    for name in ("members", "submissions", notes.FOLDER):
        own = folder / name
        if own.is_dir() and not own.is_symlink():
            yield own
            if name != notes.FOLDER:
                yield from (path for path in own.iterdir() if path.is_dir() and not path.is_symlink())
