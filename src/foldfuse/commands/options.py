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
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from foldfuse.commands import option_values as values
from foldfuse.errors import InputError
from foldfuse.recipes import AUTO, AUTO_WORD
from foldfuse.system.atomic_files import check_target
from foldfuse.system.outputs import OWN_FILES, is_own_folder, refuse_input, refuse_loss

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
Names = Annotated[tuple[str, ...], Parameter(converter=values.to_names, metavar="NAME,...")]
Set = Annotated[
    tuple[str, ...],
    Parameter(
        converter=values.to_changes,
        metavar="KEY=VALUE",
        help="change a field of the recipe, such as lr=3e-4; repeat for more.",
    ),
]
Lr = Annotated[float | None, Parameter(validator=values.check_finite, help="learning rate; short for --set lr=.")]
ImageSize = Annotated[int | None, Parameter(validator=values.check_size, metavar="PX")]
AutoImageSize = Annotated[int | None, Parameter(converter=values.to_image_size, metavar="PX|auto")]
AutoImageSizes = Annotated[tuple[int, ...], Parameter(converter=values.to_auto_or_image_sizes, metavar="PX,...|auto")]
ImageSizes = Annotated[tuple[int, ...], Parameter(converter=values.to_counts, metavar="PX,...")]
BatchSize = Annotated[int | None, Parameter(validator=values.check_count, metavar="N")]
BatchSizes = Annotated[tuple[int, ...], Parameter(converter=values.to_counts, metavar="N,...")]

# randomness
Seed = Annotated[int, Parameter(validator=values.check_seed, metavar="N")]
OptionalSeed = Annotated[int | None, Parameter(validator=values.check_seed, metavar="N")]

# counts
Count = Annotated[int, Parameter(validator=values.check_count, metavar="N")]
NumClasses = Annotated[int, Parameter(validator=values.check_num_classes, metavar="N")]
OptionalCount = Annotated[int | None, Parameter(validator=values.check_count, metavar="N")]

# time
_TIME = Parameter(converter=values.to_seconds, metavar="TIME", show_default=values.duration_text)
Duration = Annotated[float, _TIME]
OptionalDuration = Annotated[float | None, _TIME]

# folds
NumFolds = Annotated[int, Parameter(validator=values.check_num_folds, metavar="N")]
FoldsFile = Annotated[Path | None, Parameter(metavar="FILE")]
Folds = Annotated[int | Path, Parameter(converter=values.to_folds, metavar="N|FILE")]
TrainFolds = Annotated[int | Literal["auto"], Parameter(converter=values.to_train_folds, metavar="K|auto")]

# predictions and scores
_METRIC = Parameter(  # checked by `evaluation.metrics.open_metric`, which would make every command load numba
    metavar="METRIC",
    help="the competition's metric: ap50, ap (COCO's), ap75 or another IoU threshold; f1, f2 or f0.5 at the best score "
    "threshold; wheat; or a function of your own, FILE.py:NAME, whose code is run.",
)
Metric = Annotated[str, _METRIC]
OptionalMetric = Annotated[str | None, _METRIC]
Weights = Annotated[tuple[float, ...], Parameter(converter=values.to_weights, metavar="X,...")]
Iou = Annotated[float, Parameter(validator=values.check_fraction)]
ScoreThreshold = Annotated[
    float, Parameter(validator=values.check_fraction, help="leave out boxes whose score is lower.")
]
ThresholdOrBest = Annotated[
    float | str | None, Parameter(converter=values.to_threshold, metavar="X|best|best-by-class")
]
MaxDetections = Annotated[
    int | None,
    Parameter(
        validator=values.check_count,
        metavar="N",
        help="keep the N boxes of each image with the highest scores; all by default.",
    ),
]
InputFormat = Annotated[
    str | None,
    Parameter(
        metavar="FORMAT",
        help="format of the prediction files where their content leaves it open, such as score_xywh or coco_json_xyxy.",
    ),
]
Like = Annotated[
    Path | None,
    Parameter(
        metavar="SAMPLE",
        help="sample submission of the contest: columns, ids, order, labels, boxes and the mark of an image without boxes are "
        "written as it shows them.",
    ),
]
Labels = Annotated[
    Literal["id", "name", "from_zero", "from_one"] | None,
    Parameter(help="what a label is in a submission like a sample that leaves it open; see --category-ids."),
]
ImageNames = Annotated[
    Literal["file_name", "name", "stem", "id"] | None,
    Parameter(
        help="what names an image in a CSV that is written: its file_name in the data (the default), that without folders, that "
        "without its ending too, or its id."
    ),
]
ImageIds = Annotated[
    Literal["id", "name", "position"] | None,
    Parameter(
        help="what names an image in the prediction files: the data's image id, its file name (or the number in it), or its "
        "position in the data from 0; by default the content decides, where only one is possible.",
    ),
]
CategoryIds = Annotated[
    Literal["id", "name", "from_zero", "from_one"] | None,
    Parameter(
        help="what names a class in the prediction files: the data's category id, its name, or its position from 0 or from 1; "
        "by default the content decides, where only one is possible.",
    ),
]

# where a network runs
Device = Annotated[
    str,
    Parameter(
        converter=values.to_device, metavar="DEVICE", help="device to compute on: auto, cpu, cuda, cuda:N or mps."
    ),
]

Engine = Annotated[
    Literal["auto", "eager", "bfloat16", "openvino", "onnxruntime"],
    Parameter(
        help="what runs a detector on a CPU: PyTorch (eager), OpenVINO or ONNX Runtime, by default the fastest, where that "
        "repays the conversion; boxes and scores are the same. bfloat16 is PyTorch in half precision: boxes and scores differ."
    ),
]


Offline = Annotated[bool, Parameter(help="never try a network; the same as HF_HUB_OFFLINE=1.")]


def recipe_changes(
    changes: Sequence[str], *, lr: float | None = None, image_size: int | None = None, batch_size: int | None = None
) -> tuple[str, ...]:
    """The changes of --set, followed by the changes from other options; the last change of a field wins."""
    own = {"lr": lr, "image_size": AUTO_WORD if image_size == AUTO else image_size, "batch_size": batch_size}
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
    may_be_bundle: bool = False,
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
        may_be_bundle: whether the output is a bundle, which may replace another.

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
        refuse_loss(path, may_be_dataset=may_be_dataset, may_be_bundle=may_be_bundle)
    elif not is_own_folder(path, made_by or OWN_FILES):
        raise InputError(
            f"{path}: is a folder without {' or '.join(made_by or OWN_FILES)}, so this command did not make it and leaves it. "
            "Choose another --out, or remove the folder yourself."
        )
    elif (path / ".git").exists():
        raise InputError(
            f"{path}: is a folder under version control (.git), which is not removed. Choose another --out."
        )


def refuse_folder(path: Path, *, inputs: Iterable[Path | None]) -> None:
    """Raises InputError unless a folder can be made at `path`, or is there and neither is nor holds one of the inputs."""
    check_target(path, is_folder=True)
    if path.exists():
        refuse_input(path, inputs)


def remove_old(path: Path, overwrite: bool) -> None:
    """Removes the folder that is to be overwritten. Files need no removal: a new file replaces the old file at once."""
    refuse_overwrite(path, overwrite)
    if overwrite and path.is_dir():
        shutil.rmtree(os.path.realpath(path))
