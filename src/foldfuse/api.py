"""The commands as Python functions: `train`, `fuse`, `score`, `run_campaign` and `next_images`.

They take the arguments of the commands, check them as the command line does, print what the commands print, and return values.
A path may be text, a duration a text such as "10m" or a number of seconds, and several values of one option a list.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cyclopts

from foldfuse.campaign.campaign_folder import Campaign
from foldfuse.cli import make_app
from foldfuse.commands import options
from foldfuse.commands.fusion import FusionOptions, chosen_ensemble, fuse_members
from foldfuse.commands.image_sets import read_images
from foldfuse.commands.prediction_files import named_files, read_and_report, read_file, warn_of_better_reading
from foldfuse.commands.predictions import scored_images
from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.ensemble.ensemble import Ensemble
from foldfuse.errors import InputError, Interrupted
from foldfuse.evaluation.coco import Score, score_predictions
from foldfuse.formats.predictions import write_predictions
from foldfuse.formats.raw_boxes import ReadAs
from foldfuse.storage.next_images import NextImages, read_next
from foldfuse.storage.run import Run
from foldfuse.system.notebook import notebook_progress
from foldfuse.system.progress import log_on_standard_error
from foldfuse.system.signals import signals_as_interrupts

log = logging.getLogger(__name__)

AnyPath = str | os.PathLike[str]
Duration = str | float
Members = Predictions | AnyPath | Sequence[Predictions | AnyPath] | Mapping[str, Predictions | AnyPath]
Changes = Sequence[str] | Mapping[str, object]


def train(
    data: AnyPath | Dataset | None = None,
    *,
    out: AnyPath | None = None,
    recipe: str | None = None,
    init_from: AnyPath | None = None,
    set: Changes = (),
    image_size: int | str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    budget: Duration | None = None,
    steps: int | None = None,
    seed: int | None = None,
    folds: AnyPath | None = None,
    fold: int | None = None,
    val: AnyPath | Dataset | None = None,
    images: AnyPath | None = None,
    ignore_orientation: bool = False,
    resume: AnyPath | None = None,
    checkpoint_every: Duration | None = None,
    eval_every: Duration | None = None,
    tracker: Sequence[str] = (),
    device: str = "auto",
    offline: bool = False,
    overwrite: bool = False,
) -> Run:
    """Trains one detector or classifier as `foldfuse train` does, and returns its run, which `foldfuse.load` takes.

    An interrupt stops the training at the next step and keeps what is trained; `train(resume=...)` goes on.

    Args:
        data: the annotated images: a path of any layout, or a Dataset as `read` returned it.
        set: changes to the recipe, such as {"mosaic": 0.5} or ["mosaic=0.5"].
        out, recipe, init_from, image_size, ...: as in `foldfuse train --help`.

    Raises:
        InputError: the data, the recipe or the folder cannot be used.
    """
    return Run(_run("train", locals()))


def run_campaign(
    data: AnyPath | Dataset | None = None,
    *,
    test: AnyPath | Dataset | None = None,
    deadline: Duration = "10m",
    out: AnyPath = "campaign",
    recipe: str | Sequence[str] = (),
    forbid: str | Sequence[str] = (),
    image_size: int | str | Sequence[int] = (),
    set: Changes = (),
    folds: int | AnyPath = 5,
    train_folds: int | str = "auto",
    external_run: AnyPath | Sequence[AnyPath] = (),
    external_predictions: str | Sequence[str] = (),
    seed: int = 0,
    metric: str = "ap50",
    pseudo_labels: bool = False,
    like: AnyPath | None = None,
    format: str | None = None,
    labels: str | None = None,
    image_names: str | None = None,
    images: AnyPath | None = None,
    ignore_orientation: bool = False,
    tracker: Sequence[str] = (),
    device: str = "auto",
    resume: AnyPath | None = None,
    ray: str | None = None,
    offline: bool = False,
    overwrite: bool = False,
) -> Campaign:
    """Makes the best submission possible by a deadline as `foldfuse campaign` does, and returns the campaign.

    An interrupt stops the campaign and keeps the last submission; `run_campaign(resume=...)` goes on.

    Args:
        data: the annotated images: a path of any layout, or a Dataset as `read` returned it.
        test: the images to predict, in any layout or a folder of images.
        deadline: wall-clock time for everything, such as "2h", or seconds.
        out, recipe, forbid, ...: as in `foldfuse campaign --help`.

    Raises:
        InputError: the data cannot be used, the deadline is too short, or the folder is in use.
    """
    campaign = Campaign(Path(_run("campaign", locals())))
    if campaign.state == "interrupted":
        with log_on_standard_error():
            log.info("In Python, resume with: %s", _resumed("campaign", campaign.folder))
    return campaign


def fuse(
    *predictions: Members,
    data: AnyPath | Dataset | None = None,
    out: AnyPath | None = None,
    method: str = "wbf",
    iou: float = 0.55,
    score_threshold: float = 0.0,
    weight: Sequence[float] = (),
    ensemble: AnyPath | None = None,
    input_format: str | None = None,
    image_ids: str | None = None,
    category_ids: str | None = None,
    classes_from: AnyPath | None = None,
    images: AnyPath | None = None,
    ignore_orientation: bool = False,
    overwrite: bool = False,
) -> Predictions:
    """Fuses several predictions of the same images into one, as `foldfuse fuse` does; they are written only where `out` is given.

    Args:
        predictions: Predictions, files of predictions, or both; or one list of them, or one {name: predictions} for `ensemble`.
        data: the images, a path or a Dataset; files of predictions and `out` need it, Predictions do not.
        out: file to write: .parquet, .json (COCO results) or .csv.
        method, iou, score_threshold, weight, ensemble, ...: as in `foldfuse fuse --help`.

    Raises:
        InputError: a file cannot be used, or the predictions do not fit together.
    """
    names, members = _members(predictions)
    files = [one for one in members if isinstance(one, Path)]
    if (files or out is not None) and data is None:
        raise InputError(
            "files of predictions are read, and written, with the ids of their images. Give data=, the images."
        )
    reading = {"input_format": input_format, "image_ids": image_ids, "category_ids": category_ids}
    options_given = {"method": method, "iou": iou, "score_threshold": score_threshold, "weight": weight}
    placeholder = {"predictions": files or [Path("members")], "data": "data", "out": "out.parquet"}
    checked = _parsed("fuse", placeholder | options_given | reading)[1].arguments
    given = FusionOptions(**{name: checked[name] for name in options_given if name in checked})
    with _as_command():
        chosen = chosen_ensemble(None if ensemble is None else Path(ensemble), given)
        named = dict(zip(names or _names(members, chosen), members, strict=True))
        dataset = None
        if data is not None:
            dataset = _images(data, classes_from, files, images=images, ignore_orientation=ignore_orientation)
        if out is not None:
            inputs = [*files, *_paths(data, images, ensemble, classes_from)]
            options.refuse_overwrite(Path(out), overwrite, inputs=inputs)
        read_as = ReadAs(*(checked.get(name) for name in reading))
        found: dict[str, Predictions] = {}
        for name, one in named.items():
            if isinstance(one, Path):
                assert dataset is not None, "files come with data"
                one = read_file(one, dataset, read_as)
            found[name] = one
        fused = fuse_members(found, given, chosen)
        known = {i: image for one in found.values() for i, image in one.images.items()}
        known |= {} if dataset is None else {sample.id: sample for sample in dataset.samples}
        fused = replace(fused, images={i: known[i] for i in fused if i in known})
        if out is not None and dataset is not None:
            write_predictions(fused, Path(out), dataset)
    return fused


def score(
    predictions: Predictions | AnyPath,
    data: AnyPath | Dataset,
    *,
    input_format: str | None = None,
    image_ids: str | None = None,
    category_ids: str | None = None,
    images: AnyPath | None = None,
    ignore_orientation: bool = False,
) -> Score:
    """The COCO scores of predictions on annotated images, on the images that are predicted.

    `foldfuse score` also prints best thresholds, confusion and types of error, compares two files, and knows other metrics.

    Args:
        predictions: Predictions, or a file of them.
        data: the annotated images: a path of any layout, or a Dataset.
        input_format, image_ids, ...: as in `foldfuse score --help`.

    Raises:
        InputError: a file cannot be used, or the predictions do not fit the data.
    """
    path = Path("predictions") if isinstance(predictions, Predictions) else Path(predictions)
    reading = {"input_format": input_format, "image_ids": image_ids, "category_ids": category_ids}
    checked = _parsed("score", {"predictions": path, "data": data, "images": images, **reading})[1].arguments
    with _as_command():
        dataset = data
        if not isinstance(dataset, Dataset):
            dataset = read(Path(dataset), images=checked.get("images"), ignore_orientation=ignore_orientation)
        if isinstance(predictions, Predictions):
            found = predictions
        else:
            file = read_and_report(path, dataset, ReadAs(*(checked.get(name) for name in reading)))
            warn_of_better_reading(path, file, dataset)
            found = file.predictions
        dataset = scored_images(dataset, {path: found})
        return score_predictions(found.select_images(dataset.image_ids), dataset)


def next_images(
    unlabelled: AnyPath,
    campaign: AnyPath | Sequence[AnyPath],
    *,
    number: int = 50,
    out: AnyPath = "next",
    score_threshold: float | str | None = None,
    batch_size: int | None = None,
    images: AnyPath | None = None,
    ignore_orientation: bool = False,
    device: str = "auto",
    engine: str = "auto",
    overwrite: bool = False,
) -> NextImages:
    """Picks the unlabelled images that are worth labelling next as `foldfuse next` does, and returns them with the reasons.

    The folder `out` holds their copies, annotations to correct, a list and a page.

    Args:
        unlabelled: the images to choose from: a folder, a pattern or a dataset.
        campaign: a campaign, or runs of the same classes.
        number, out, score_threshold, ...: as in `foldfuse next --help`.

    Raises:
        InputError: nothing trained is there, all images are labelled already, or the folder exists.
    """
    return read_next(Path(_run("next", locals())))


def _run(command: str, arguments: Mapping[str, Any]) -> Any:
    """The result of a command."""
    function, bound = _parsed(command, arguments)
    for value in arguments.values():
        if isinstance(value, Dataset):
            _require_unchanged(value, arguments["images"])
    with _as_command():
        return function(*bound.args, **bound.kwargs)


def _parsed(command: str, arguments: Mapping[str, Any]) -> tuple[Callable[..., Any], inspect.BoundArguments]:
    """A command's function, and its arguments as the command line converts and checks them."""
    words = [command]
    for name, value in arguments.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif isinstance(value, Mapping):
            words += [f"{option}={key}={_text(each)}" for key, each in value.items()]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words += [f"{option}={_text(each)}" for each in value]
        elif value is not None and value is not False:
            words.append(f"{option}={_text(value)}")
    try:
        function, bound, _ = _app().parse_args(words, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        raise InputError(f"{str(error).rstrip('.')}. See: foldfuse {command} --help") from None
    return function, bound


@functools.cache
def _app() -> cyclopts.App:
    return make_app()


def _text(value: object) -> str:
    """A value as a word of the command line."""
    if isinstance(value, Dataset):
        return str(value.source)
    return os.fspath(value) if isinstance(value, str | os.PathLike) else str(value)


def _require_unchanged(dataset: Dataset, images: AnyPath | None) -> None:
    """Raises InputError for a Dataset that was changed after it was read: a command reads its file again."""
    again = read(dataset.source, annotated=dataset.num_boxes > 0, images=None if images is None else Path(images))
    if not again.has_fingerprint(dataset.fingerprint):
        raise InputError(
            f"{dataset.source}: the Dataset was changed after it was read, and a run records the file alone. Write it with "
            "foldfuse.write(dataset, 'changed.json'), and give that file."
        )


@contextmanager
def _as_command() -> Iterator[None]:
    """Shows the block's log and progress as a command does, and turns an interrupt into a sentence."""
    try:
        with signals_as_interrupts(), log_on_standard_error(), notebook_progress():
            yield
    except KeyboardInterrupt as error:
        sentence = str(error) or "interrupted"
        if isinstance(error, Interrupted) and error.command is not None and error.folder is not None:
            sentence += f", or in Python: {_resumed(error.command, error.folder)}"
        raise Interrupted(sentence) from None


def _resumed(command: str, folder: Path) -> str:
    """The call that resumes what a command left in a folder."""
    return f"foldfuse.{'run_campaign' if command == 'campaign' else command}(resume={str(folder)!r})"


def _members(predictions: Sequence[Members]) -> tuple[tuple[str, ...], list[Predictions | Path]]:
    """The names of the members where they have names, and the members."""
    first = predictions[0] if len(predictions) == 1 else None
    names: tuple[str, ...] = ()
    listed: list[Any] = list(predictions)
    if isinstance(first, Mapping) and not isinstance(first, Predictions):
        names, listed = tuple(first), list(first.values())
    elif isinstance(first, Sequence) and not isinstance(first, str):
        listed = list(first)
    if not listed:
        raise InputError("there are no predictions to fuse. Give Predictions or files of predictions.")
    return names, [one if isinstance(one, Predictions) else Path(one) for one in listed]


def _names(members: Sequence[Predictions | Path], chosen: Ensemble | None) -> list[str]:
    """Names for members: a file's own, of the ensemble's where one fits; "member 1" and so on for Predictions."""
    files = [one for one in members if isinstance(one, Path)]
    of_file = {path: name for name, path in named_files(files, () if chosen is None else chosen.weights).items()}
    return [of_file[one] if isinstance(one, Path) else f"member {i}" for i, one in enumerate(members)]


def _images(
    data: AnyPath | Dataset,
    classes_from: AnyPath | None,
    paths: Sequence[Path],
    *,
    images: AnyPath | None,
    ignore_orientation: bool,
) -> Dataset:
    if isinstance(data, Dataset):
        return data
    return read_images(
        Path(data),
        classes_from=None if classes_from is None else Path(classes_from),
        predictions=paths,
        images=None if images is None else Path(images),
        ignore_orientation=ignore_orientation,
    )


def _paths(*values: AnyPath | Dataset | None) -> list[Path]:
    return [Path(value) for value in values if value is not None and not isinstance(value, Dataset)]
