"""Reads the prediction files of a command and tells the user, on standard error, how each file was read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.errors import InputError
from foldfuse.formats.predictions import read_prediction_file
from foldfuse.system import printing


def read_file(path: Path, dataset: Dataset, input_format: str | None) -> Predictions:
    """The predictions in a file; prints the format that was detected, and a warning where boxes are repeated."""
    file = read_prediction_file(path, dataset, format=input_format)
    for note in file.notes():
        printing.write(f"{path}: {note}", to_stderr=True)
    return file.predictions


def read_members(paths: Sequence[Path], dataset: Dataset, input_format: str | None) -> dict[str, Predictions]:
    """{name of the file without its ending: its predictions}. Raises InputError where two files have the same name."""
    members: dict[str, Predictions] = {}
    for path in paths:
        if path.stem in members:
            raise InputError(
                f"{path}: there is another file called {path.stem}. Members are named after their files: rename one."
            )
        members[path.stem] = read_file(path, dataset, input_format)
    return members
