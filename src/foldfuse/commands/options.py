"""Options that several commands share: types for signatures, with their checks and help texts.

A command annotates its arguments with these types, and the command line converts and checks the values:

    def predict(run: Path, data: Path, *, out: options.Out, overwrite: options.Overwrite = False) -> Path:

A type with a help text here (Overwrite, Set, Lr, Metric, Device, ...) needs no line in the command's docstring; a type without
one does. Names and numbers in tuples are given by commas, by repeating, or both (`--weight 2,1`, `--weight 2 --weight 1`);
other tuples by repeating alone. Durations arrive as seconds. A default of (), None or False is not shown in the help. An
option that is True by default cannot be switched off: give it the opposite name, and False by default.

`refuse_overwrite(out, overwrite, inputs=...)` is the first line of every command that writes a file or folder. A command that
writes a folder calls `remove_old(out, overwrite)` right before writing.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token, validators

from foldfuse.errors import InputError
from foldfuse.system.atomic_files import check_target
from foldfuse.system.durations import duration_option, parse_duration
from foldfuse.system.outputs import OWN_FILES, is_own_folder, refuse_input, refuse_loss


def _split_values(tokens: Sequence[Token]) -> list[str]:
    """The values of an option that is given several times, with commas between values, or both."""
    values = [text.strip() for token in tokens for text in token.value.split(",")]
    if not all(values):
        raise InputError("a comma has no value before or after it.")
    return values


def _numbers(kind: type[int] | type[float], values: Sequence[str]) -> tuple[Any, ...]:
    try:
        return tuple(kind(value) for value in values)
    except ValueError:
        name = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{','.join(values)!r} are not {name} with commas between them.") from None


def _to_names(type_: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    return tuple(_split_values(tokens))


def _to_counts(type_: Any, tokens: Sequence[Token]) -> tuple[int, ...]:
    counts: tuple[int, ...] = _numbers(int, _split_values(tokens))
    if min(counts) < 1:
        raise InputError(f"{min(counts)} is below 1.")
    return counts


def _to_floats(type_: Any, tokens: Sequence[Token]) -> tuple[float, ...]:
    return _numbers(float, _split_values(tokens))


def _to_seconds(type_: Any, tokens: Sequence[Token]) -> float:
    return parse_duration(tokens[-1].value)


def _to_folds(type_: Any, tokens: Sequence[Token]) -> int | Path:
    text = tokens[-1].value
    if not text.lstrip("+-").isdigit():
        return Path(text)
    _check_num_folds(int, int(text))
    return int(text)


def _check_num_folds(type_: Any, num_folds: int | None) -> None:
    if num_folds is not None and num_folds < 2:
        raise InputError(f"{num_folds} folds are too few; expected 2 or more.")


def _to_changes(type_: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    for token in tokens:
        if not re.match(r"\w+=", token.value):
            raise InputError(f"{token.value!r} is no change to a recipe; write key=value, such as lr=3e-4.")
    return tuple(token.value for token in tokens)


def _to_device(type_: Any, tokens: Sequence[Token]) -> str:
    device = tokens[-1].value
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", device):
        raise InputError(f"no device is called {device!r}; expected auto, cpu, cuda, cuda:N or mps.")
    return device


def duration_text(seconds: float | None) -> str | None:
    """Seconds as text that an option accepts: "90s", "10m", "1h30m"; None for None."""
    return None if seconds is None else duration_option(seconds)


MAX_STEPS, MAX_SEED = 10**9, 2**32 - 1
_count = validators.Number(gte=1)
_fraction = validators.Number(gte=0, lte=1)

# output
Out = Annotated[Path, Parameter(name=("--out", "-o"))]
OptionalOut = Annotated[Path | None, Parameter(name=("--out", "-o"))]
Overwrite = Annotated[bool, Parameter(help="replace an existing --out.")]

# data
Images = Annotated[
    Path | None,
    Parameter(metavar="DIR", help="folder of the images, where they are not found beside the annotations."),
]

IgnoreOrientation = Annotated[
    bool,
    Parameter(
        help="take pixels as they are stored, whatever an EXIF tag says; by default the tag is applied, except where the "
        "annotations state the stored size."
    ),
]

ClassesFrom = Annotated[
    Path | None,
    Parameter(metavar="DATA|RUN", help="training data or run that names the classes, where the test images have none."),
]

# recipes and their changes
Names = Annotated[tuple[str, ...], Parameter(converter=_to_names, metavar="NAME,...")]
Set = Annotated[
    tuple[str, ...],
    Parameter(
        converter=_to_changes,
        metavar="KEY=VALUE",
        help="change a field of the recipe, such as lr=3e-4; repeat for more.",
    ),
]
Lr = Annotated[float | None, Parameter(help="learning rate; short for --set lr=.")]
ImageSize = Annotated[int | None, Parameter(validator=_count, metavar="PX")]
ImageSizes = Annotated[tuple[int, ...], Parameter(converter=_to_counts, metavar="PX,...")]
BatchSize = Annotated[int | None, Parameter(validator=_count, metavar="N")]
BatchSizes = Annotated[tuple[int, ...], Parameter(converter=_to_counts, metavar="N,...")]

# randomness
Seed = Annotated[int, Parameter(validator=validators.Number(gte=0, lte=MAX_SEED))]
OptionalSeed = Annotated[int | None, Parameter(validator=validators.Number(gte=0, lte=MAX_SEED))]

# time
Duration = Annotated[float, Parameter(converter=_to_seconds, metavar="TIME", show_default=duration_text)]
OptionalDuration = Annotated[float | None, Parameter(converter=_to_seconds, metavar="TIME", show_default=duration_text)]

# folds
NumFolds = Annotated[int, Parameter(validator=_check_num_folds, metavar="N")]
FoldsFile = Annotated[Path | None, Parameter(metavar="FILE")]
Folds = Annotated[int | Path, Parameter(converter=_to_folds, metavar="N|FILE")]

# predictions and scores
Metric = Annotated[
    Literal["ap50", "ap", "f2", "wheat"],
    Parameter(help="the competition's metric: AP50, COCO's AP, the best F2, or the wheat competition's."),
]
Weights = Annotated[tuple[float, ...], Parameter(converter=_to_floats, metavar="X,...")]
ScoreThreshold = Annotated[float, Parameter(validator=_fraction, help="leave out boxes whose score is lower.")]
MaxDetections = Annotated[
    int | None,
    Parameter(
        validator=_count, metavar="N", help="keep the N boxes of each image with the highest scores; all by default."
    ),
]
InputFormat = Annotated[
    str | None,
    Parameter(
        metavar="FORMAT", help="layout of the prediction files where their content leaves it open, such as score_xywh."
    ),
]

# where a network runs
Device = Annotated[
    str,
    Parameter(converter=_to_device, metavar="DEVICE", help="device to compute on: auto, cpu, cuda, cuda:N or mps."),
]


def recipe_changes(
    changes: Sequence[str], *, lr: float | None = None, image_size: int | None = None, batch_size: int | None = None
) -> tuple[str, ...]:
    """The changes of --set, followed by the changes from other options; the last change of a field wins."""
    own = {"lr": lr, "image_size": image_size, "batch_size": batch_size}
    return (*changes, *(f"{key}={value}" for key, value in own.items() if value is not None))


def require_torch() -> None:
    """Raises ModuleNotFoundError where torch is not installed.

    A command that imports torch late calls this function before it writes anything.
    """
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")


def check_ending(out: Path, *endings: str) -> None:
    """Raises InputError unless the name of an output ends in one of `endings`."""
    if out.suffix not in endings:
        raise InputError(f"{out}: ends in {out.suffix or 'nothing'}, and must end in {' or '.join(endings)}.")


def refuse_overwrite(
    path: Path,
    overwrite: bool,
    *,
    is_file: bool = False,
    inputs: Iterable[Path | None] = (),
    made_by: Sequence[str] = (),
    may_be_dataset: bool = False,
) -> None:
    """Checks that an output may be written: nothing or an empty folder is at `path`, or `overwrite` is given.

    Args:
        path: the output.
        overwrite: whether an existing output may be replaced.
        is_file: whether the command writes a file there; a folder is then refused.
        inputs: the files and folders that the command reads; None stands for an option that is not given.
        made_by: where the command makes a folder, the names of files that mark a folder of its kind; only such a folder may be
            replaced. By default a folder with any of OWN_FILES.
        may_be_dataset: whether the output is a dataset in COCO JSON, which may replace another.

    Raises:
        InputError: `path` exists and `overwrite` is False; it is an input or holds one; it is a record of Foldfuse or a file of
            a dataset; a folder to overwrite was not made by such a command; or there is no way to write there.
    """
    path = Path(path)
    if is_file or made_by:
        check_target(path, is_folder=not is_file)
    elif not path.is_dir():
        check_target(path)
    if not path.exists():
        return
    refuse_input(path, inputs)
    if path.is_dir() and not any(path.iterdir()):
        return
    if not overwrite:
        raise InputError(f"{path}: exists already. Choose another --out, or add --overwrite to replace it.")
    if not path.is_dir():
        refuse_loss(path, may_be_dataset=may_be_dataset)
    elif not is_own_folder(path, made_by or OWN_FILES):
        raise InputError(
            f"{path}: is a folder without {' or '.join(made_by or OWN_FILES)}, so this command did not make it and leaves it. "
            "Choose another --out, or remove the folder yourself."
        )
    elif (path / ".git").exists():
        raise InputError(
            f"{path}: is a folder under version control (.git), which is not removed. Choose another --out."
        )


def remove_old(path: Path, overwrite: bool) -> None:
    """Removes the folder that is to be overwritten. Files need no removal: a new file replaces the old file at once."""
    refuse_overwrite(path, overwrite)
    if overwrite and path.is_dir():
        shutil.rmtree(os.path.realpath(path))
