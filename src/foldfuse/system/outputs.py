"""Checks the outputs of a command before it works: none replaces an input, a file of a dataset, or a record of Foldfuse."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

from foldfuse.errors import InputError
from foldfuse.system.files import read_start

OWN_FILES = ("run.json", "recipe.json", "campaign.sqlite", "sweep.json", "rescore.json")  # each marks a folder as ours
RECORDS = (  # names of files that hold work which cannot be made again at once
    *OWN_FILES,
    "campaign.sqlite-wal",
    "campaign.sqlite-shm",
    "campaign.json",
    "weights.safetensors",
    "checkpoint.pt",
    "checkpoint.previous.pt",
    "log.jsonl",
)
_IMAGES = re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|BM|II\*\0|MM\0\*|RIFF....WEBP|P[1-6]\s", re.DOTALL)
_COCO = re.compile(rb'\s*\{\s*"(info|licenses|images|videos|annotations|categories|type)"')


def refuse_input(out: Path, inputs: Iterable[Path | None]) -> None:
    """Raises InputError where an output is one of the inputs, under whatever name, or a folder that an input lies in."""
    for path in inputs:
        if path is None:
            continue
        if _is_same(out, path):
            raise InputError(f"{out}: is an input of this command ({path}), which would be lost. Choose another --out.")
        if out.is_dir() and Path(os.path.realpath(out)) in Path(os.path.realpath(path)).parents:
            raise InputError(
                f"{out}: holds an input of this command ({path}), which would be lost. Choose another --out."
            )


def refuse_loss(path: Path, *, may_be_dataset: bool = False, may_be_bundle: bool = False) -> None:
    """Checks that the file at `path` may be replaced by an output.

    Args:
        path: an existing file.
        may_be_dataset: whether the output is a dataset in COCO JSON, which may replace another.
        may_be_bundle: whether the output is a bundle (a zip with bundle.json), which may replace another.

    Raises:
        InputError: it is a record of a run or campaign, a database, an image, annotations or a checkpoint.
    """
    if may_be_bundle and _is_bundle(path):
        return
    what = _valuable(path, may_be_dataset)
    if what is not None:
        raise InputError(
            f"{path}: is {what}, which Foldfuse does not replace. Choose another --out, or remove it yourself."
        )


def is_own_folder(path: Path, markers: Iterable[str] = OWN_FILES) -> bool:
    """Whether a folder holds one of the files that mark it as made by Foldfuse."""
    return any((path / name).exists() for name in markers)


def _is_same(one: Path, other: Path) -> bool:
    try:
        return Path(one).samefile(other)
    except (OSError, ValueError):  # one of them does not exist
        return os.path.realpath(one) == os.path.realpath(other)


def _is_bundle(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return "bundle.json" in archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError):
        return False


def _valuable(path: Path, may_be_dataset: bool) -> str | None:
    folder = Path(os.path.realpath(path)).parent
    if path.name in RECORDS and is_own_folder(folder):
        return f"a record of the run or campaign in {folder}"
    start = read_start(path, what="a file to replace", num_bytes=512)
    if start.startswith(b"SQLite format 3"):
        return "a database"
    if _IMAGES.match(start):
        return "an image"
    if path.suffix.lower() in (".xml", ".yaml", ".yml"):
        return "an annotation or a description of a dataset"
    if start.startswith(b"PK\x03\x04") or path.suffix.lower() in (".pt", ".pth", ".safetensors"):
        return "an archive or a checkpoint"
    if _COCO.match(start) and not may_be_dataset:
        return "a dataset in COCO JSON"
    return None
