"""Sweep: trains each combination of recipe, image size and batch size for the same time, within one total budget.

One fold is held out from all trainings, and scored several times in each, outside its budget, so that the curves of
score over time can be compared. Each run keeps its held-out predictions, so that its difference to the best run has an
interval. The learning rate scales with the square root of the batch size, as suits optimizers that
divide by the gradient's magnitude (Malladi et al., arXiv:2205.10287); it is the recipe's own at the recipe's batch size.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from foldfuse.data.dataset import Dataset, require_annotations
from foldfuse.data.folds import make_folds
from foldfuse.data.images import ImageCache
from foldfuse.detections import Predictions
from foldfuse.errors import InputError
from foldfuse.evaluation.custom_metric import absolute_name, check_ranks, custom_metric, is_custom
from foldfuse.evaluation.matching import ground_truth
from foldfuse.evaluation.record import OOF
from foldfuse.formats.predictions import write_predictions
from foldfuse.inference.detector import predict_views
from foldfuse.inference.tta import PLAIN_VIEW
from foldfuse.models import make_detector
from foldfuse.recipes import Recipe, load_recipe
from foldfuse.storage.run import Run
from foldfuse.system import locks
from foldfuse.system.device import choose_device, release_memory
from foldfuse.system.durations import format_duration
from foldfuse.system.processes import World
from foldfuse.system.progress import Progress, no_progress
from foldfuse.system.records import read_record, write_record
from foldfuse.training.budget import Budget
from foldfuse.training.detector import train_detector
from foldfuse.training.memory import NotEnoughMemory
from foldfuse.training.preparation import check_new_model, state_check
from foldfuse.training.session import TrainingSession, run_metadata
from foldfuse.training.sweep_comparison import SweepComparison, compare_runs
from foldfuse.training.targets import longest_side
from foldfuse.training.validation import held_out_scorer

EVALUATIONS = 4  # of each training on the held-out fold, the last at its end
OVERHEAD = 3.0  # seconds that a training takes besides its steps: it makes a model and writes files
MIN_SECONDS = 5.0  # of training, below which there is nothing to compare
SWEEP_FORMAT = 1

log = logging.getLogger(__name__)
ShowProgress = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class SweepRequest:
    """A request for a sweep: the recipes to compare, the budget and the folds.

    Attributes:
        data_fingerprint: the fingerprint of all samples.
        recipes: {name of the combination: its recipe}, in the order of training.
        seconds: budget of the whole sweep in seconds.
        folds: number of folds; the first one is held out.
        seed: the random seed of the folds and of every training.
        ignore_orientation: whether pixels are taken as stored, whatever an EXIF tag says.
        metric: the metric that the runs are compared by.
        metric_sha256: of the text of a custom metric; None for another.
    """

    data_fingerprint: str
    recipes: dict[str, Recipe]
    seconds: float
    folds: int
    seed: int
    ignore_orientation: bool = False
    metric: str = "ap"
    metric_sha256: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Scores on the held-out fold during a training. `seconds` is the training time so far."""

    step: int
    seconds: float
    ap: float | None
    ap50: float | None


@dataclass(frozen=True)
class SweepRun:
    """The result of one combination; `failed` is the error of a training that could not be finished."""

    evaluations: tuple[Evaluation, ...] = ()
    failed: str | None = None
    steps: int | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    data_wait_share: float | None = None


@dataclass(frozen=True)
class Sweep:
    """A sweep, finished or not, as sweep.json holds it.

    Attributes:
        request: the recipes that are compared, the budget and the folds.
        seconds_each: seconds of training for each combination; None before it is measured.
        runs: {name of the combination: its result}; of the finished combinations.
        comparison: the finished runs compared with the best; None in sweeps of earlier versions.
    """

    request: SweepRequest
    seconds_each: float | None = None
    runs: dict[str, SweepRun] = field(default_factory=dict)
    comparison: SweepComparison | None = None


def combinations(recipes: Sequence[str], image_sizes: Sequence[int], batch_sizes: Sequence[int]) -> dict[str, Recipe]:
    """{name: recipe} of the grid. The largest inputs come first, so that lack of memory shows before time is spent.

    Raises:
        InputError: there is no such recipe, or a recipe cannot have such a size.
    """
    grid = {}
    for name, image_size, batch_size in itertools.product(recipes, image_sizes, batch_sizes):
        recipe = load_recipe(name)
        lr = recipe.lr * (batch_size / recipe.batch_size) ** 0.5
        grid[f"{name}-{image_size}-b{batch_size}"] = replace(
            recipe, image_size=image_size, batch_size=batch_size, lr=lr
        )
    return dict(sorted(grid.items(), key=lambda item: -item[1].batch_size * item[1].image_size ** 2))


def run_sweep(
    dataset: Dataset,
    out: Path,
    recipes: Mapping[str, Recipe],
    *,
    seconds: float,
    folds: int = 5,
    seed: int = 0,
    metric: str = "ap",
    device: str = "auto",
    ignore_orientation: bool = False,
    overwrite: bool = False,
    show_progress: ShowProgress = lambda title: nullcontext(no_progress),
    show: Callable[[Sweep], None] = lambda sweep: None,
) -> Sweep:
    """Train all combinations in folder `out`, and return the sweep. Called again, it resumes, and trains nothing twice.

    Args:
        dataset: annotated.
        out: folder for the runs and sweep.json.
        recipes: the recipes of `combinations`.
        seconds: budget in seconds for everything: trainings, scoring and overhead.
        folds: number of folds; the first one is held out.
        seed: the random seed of the folds and of every training.
        metric: the metric that the runs are compared by.
        device: the device to compute on.
        ignore_orientation: how the images were opened, for the runs to remember.
        overwrite: whether to begin anew where `out` holds a sweep; it is removed right before the first file is written.
        show_progress: a context that shows the progress of a titled piece of work.
        show: receives the sweep after each training, and a resumed one that an earlier version began.

    Raises:
        InputError: `out` holds something else or is in use, there is too little time, or a training cannot begin.
    """
    began, device = time.monotonic(), choose_device(device)
    custom = custom_metric(metric) if is_custom(metric) else None
    request = SweepRequest(
        dataset.fingerprint,
        dict(recipes),
        seconds,
        folds,
        seed,
        ignore_orientation,
        absolute_name(metric),
        None if custom is None else custom.sha256,
    )
    sweep = Sweep(request) if overwrite else _read_or_new(out, request, dataset)
    split = make_folds(dataset, num_folds=folds, seed=seed)
    train, val = dataset.subset(split.train_ids(0)), dataset.subset(split.val_ids(0))
    require_annotations(train)
    if custom is not None:
        check_ranks(custom, ground_truth(require_annotations(val)))
    for name, recipe in recipes.items():
        if name not in sweep.runs:
            check_new_model(recipe, train)
    with show_progress(f"decoding {len(train)} images"):
        images = ImageCache.load(train.samples, longest=max(longest_side(recipe) for recipe in recipes.values()))
    if sweep.seconds_each is None:
        remaining = seconds - (time.monotonic() - began) - OVERHEAD * len(recipes)
        sweep = replace(sweep, seconds_each=seconds_for_each(recipes, val, remaining, device=device))
        if overwrite and out.is_dir():
            shutil.rmtree(out)
        _write(sweep, out)
    assert sweep.seconds_each is not None
    refusal = f"{out}: another process is at work on this sweep. Wait for it, or stop it first."
    with locks.exclusive(out / "sweep.lock", refusal=refusal):
        if sweep.runs and sweep.comparison is None:  # of an earlier version
            sweep = _compared(sweep, out, val)
            show(sweep)
        for name, recipe in recipes.items():
            if name in sweep.runs:
                continue
            run = Run(out / "runs" / name)
            with show_progress(f"training {name}") as progress:
                result = _train_one(run, recipe, train, val, images, sweep, device, progress)
            sweep = _compared(replace(sweep, runs=sweep.runs | {name: result}), out, val)
            _write(sweep, out)
            show(sweep)
    return sweep


def seconds_for_each(recipes: Mapping[str, Recipe], val: Dataset, remaining: float, *, device: str) -> float:
    """Seconds of training for each recipe, if all recipes may take `remaining` seconds, with the scoring of `val`.

    Raises:
        InputError: there is too little time to compare anything.
    """
    some, scoring = val.samples[:8], 0.0
    for recipe in recipes.values():
        model = make_detector(
            recipe.detector,
            len(val.classes),
            anchor_scale=recipe.anchor_scale,
            pretrained=False,
            numerics=recipe.numerics,
        )
        model.eval().to(device)
        if torch.device(device).type != "cpu":  # a card loads its libraries and kernels at the first image
            predict_views(model, some, val.classes, image_size=recipe.image_size, views=[PLAIN_VIEW])
        began = time.monotonic()
        predict_views(model, some, val.classes, image_size=recipe.image_size, views=[PLAIN_VIEW])
        scoring += EVALUATIONS * (time.monotonic() - began) / len(some) * len(val)
    each = (remaining - scoring) / len(recipes)
    if each < MIN_SECONDS:
        raise InputError(
            f"the budget leaves {max(0.0, each):.0f} s of training for each of {len(recipes)} combinations, besides "
            f"{format_duration(scoring)} of scoring. Expected at least {MIN_SECONDS:.0f} s: give a longer --budget or a "
            "smaller grid."
        )
    return each


def _train_one(
    run: Run,
    recipe: Recipe,
    train: Dataset,
    val: Dataset,
    images: ImageCache,
    sweep: Sweep,
    device: str,
    progress: Progress,
) -> SweepRun:
    """Train one combination to its end, from its last checkpoint if it has one."""
    seconds, checkpoint = sweep.seconds_each, None
    assert seconds is not None
    if run.exists:
        checkpoint, trouble = run.load_checkpoint(state_check(recipe, len(train.classes)))
        if trouble:
            log.warning(trouble)
    else:
        seed = sweep.request.seed
        metadata = run_metadata(train, data=str(train.source), seed=seed, val_ids=val.image_ids)
        Run.create(run.folder, recipe, replace(metadata, ignore_orientation=sweep.request.ignore_orientation))

    def keep(predictions: Predictions) -> None:
        write_predictions(predictions, run.folder / OOF, val)

    session = TrainingSession(
        Budget(seconds=seconds),
        World(device=device),
        checkpoint=checkpoint,
        checkpoint_seconds=seconds / EVALUATIONS * 0.99,
        progress=progress,
        evaluate=held_out_scorer(recipe, train.classes, val, device=device, keep=keep),
    )
    failed = None
    try:
        train_detector(run, train, session, images=images)
    except (FloatingPointError, NotEnoughMemory) as error:
        failed = str(error)
    release_memory(device)
    rows = [row for row in run.log if "ap50" in row]
    metadata = run.metadata
    return SweepRun(
        evaluations=tuple(Evaluation(row["step"], row["seconds"], row["ap"], row["ap50"]) for row in rows),
        failed=failed,
        steps=metadata.steps,
        seconds=metadata.seconds,
        images_per_second=metadata.images_per_second,
        data_wait_share=metadata.data_wait_share,
    )


def _compared(sweep: Sweep, out: Path, val: Dataset) -> Sweep:
    """The sweep with its finished runs compared with the best."""
    last = {name: run.evaluations[-1].ap for name, run in sweep.runs.items() if run.evaluations and not run.failed}
    scores = {name: ap for name, ap in last.items() if ap is not None}
    files = {name: out / "runs" / name / OOF for name in scores}
    return replace(sweep, comparison=compare_runs(scores, files, val, metric=sweep.request.metric))


def _read_or_new(out: Path, request: SweepRequest, dataset: Dataset) -> Sweep:
    """The sweep in a folder, or a new one for a folder that is empty or missing.

    Raises:
        InputError: the folder holds another sweep, or something else.
    """
    path = out / "sweep.json"
    if path.exists():
        sweep = read_record(path, Sweep, version=SWEEP_FORMAT, what="a sweep")
        if dataset.has_fingerprint(sweep.request.data_fingerprint):  # perhaps written by an earlier version
            request = replace(request, data_fingerprint=sweep.request.data_fingerprint)
        if sweep.request != request:
            raise InputError(f"{out}: holds a sweep with other arguments or of other data. Choose another --out.")
        return sweep
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is there already, and holds no sweep. Choose another --out, or remove it.")
    return Sweep(request)


def _write(sweep: Sweep, out: Path) -> None:
    write_record(out / "sweep.json", sweep, version=SWEEP_FORMAT)
