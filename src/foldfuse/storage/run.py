"""Run: the folder of one training run.

recipe.json          the recipe
run.json             data, classes, seed, budget, and the results of the training: see `RunMetadata`
run.lock             locked while a process trains the run
log.jsonl            a row for each step; a row with "ap50" or "accuracy" for each evaluation
weights.safetensors  the averaged (EMA) weights, for prediction
oof.parquet, val.parquet  predictions of the held-out images: of the fold, or of the data given as --val
evaluation.json      their score, and what was scored: see `evaluation.record`
thresholds.json      the best score thresholds on them: see `evaluation.thresholds`
learnt_images.json   hashes of the images that the weights have learnt from, those of the runs it started from included
checkpoint.pt        the training state at the last checkpoint, read with weights_only
checkpoint.previous.pt  the training state at the checkpoint before

`run_tensors` reads and writes the tensors; torch is imported only there.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foldfuse.display import note_html, table_html, value_html
from foldfuse.errors import InputError, kind_of, shown
from foldfuse.provenance import WeightsOrigin
from foldfuse.recipes import ClassifierRecipe, Recipe
from foldfuse.storage import run_tensors
from foldfuse.storage.recipe_file import read_classifier_recipe, read_recipe, write_recipe
from foldfuse.system import locks
from foldfuse.system.atomic_files import write_text
from foldfuse.system.durations import format_duration
from foldfuse.system.files import parse_json, read_json, read_text
from foldfuse.system.records import read_record, write_record

if TYPE_CHECKING:
    from torch import Tensor

RUN_FORMAT = 2  # 1 had no val, val_fingerprint, eval_seconds and command
LEARNT = "learnt_images.json"
LEARNT_FORMAT = 1
LOCK = "run.lock"
MAX_CLASSES = 100_000  # more than any dataset has; a network has memory for each


@dataclass(frozen=True)
class LrChange:
    """Another learning rate from `step` on: given by a resume, or by a campaign after a loss that was not finite."""

    step: int
    lr: float


@dataclass(frozen=True)
class RunMetadata:
    """Everything that run.json holds; None for a fact that is not known yet or does not apply.

    Attributes:
        classes: names of the classes, in the order of the labels.
        category_ids: the organiser's id of each class.
        data: the training data, as the user named it.
        images: the folder of the images; None where they were found beside the annotations.
        data_fingerprint: the fingerprint of the training samples.
        seed: the seed of every random choice.
        val_ids: ids of the held-out images.
        folds: file of the folds that the run was trained with; None where it trained on all images.
        fold: the held-out one of `folds`.
        val: annotated data that the run is scored on and does not train on; None where a fold is held out, or nothing.
        val_fingerprint: the fingerprint of the data in `val`.
        budget: {"seconds": number} or {"steps": number}.
        checkpoint_seconds: seconds between checkpoints.
        eval_seconds: seconds of training between scores of the held-out images; None for one at the end.
        trackers: trackers that got the log too, such as "tensorboard:DIR".
        device: the device that the user asked for, such as "auto".
        ignore_orientation: whether pixels are taken as stored, whatever an EXIF tag says.
        value_ranges: values that become black and white in images of more than 8 bits; see `Dataset`.
        crop_context: side of a classifier's crops, as a multiple of the box's longer side.
        origin: file, sha256 and licence of imported weights.
        image_size_reason: why the recipe's image size was chosen from the data; None where it was given.
        started_from: which weights a detector's training took and how they fitted, where it did not start from ImageNet's.
        weights: where the initial weights come from, and what they started from themselves; none for random weights, None in a
            run of an earlier version.
        trained_on: the device of the training, such as "cuda".
        compute: fields of the compute configuration.
        autotune: the measurements that chose `compute`, if it was measured.
        canvas: (height, width) of the network's input, in pixels.
        mosaic_end: the first step without mosaics.
        micro_batch: images that each process computed at a time, where this was less than its share of a batch.
        steps: optimizer steps taken.
        seconds: seconds of the budget that were used.
        images_per_second: training images per second.
        data_wait_share: share of the time that was spent waiting for batches.
        processes: number of processes that trained together.
        crops: crops that a classifier trained on.
        command: the command that began the run.
        lr_changes: learning rates that a resume or a campaign gave; before the first, the log's rows show the rate.
        kept_from: step of the checkpoint that a campaign took as the run's end, since the loss after it was not finite.
    """

    classes: tuple[str, ...] = field(default=(), repr=False)
    category_ids: tuple[int, ...] = field(default=(), repr=False)
    data: str = ""
    images: str | None = None
    data_fingerprint: str = ""
    seed: int = 0
    val_ids: tuple[int, ...] = field(default=(), repr=False)
    folds: str | None = None
    fold: int = 0
    val: str | None = None
    val_fingerprint: str | None = None
    budget: dict[str, float] | None = None
    checkpoint_seconds: float = 60.0
    eval_seconds: float | None = None
    trackers: tuple[str, ...] = ()
    device: str | None = None
    ignore_orientation: bool = False
    value_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    crop_context: float | None = None
    origin: dict[str, str] | None = None
    image_size_reason: str | None = None
    started_from: str | None = None
    weights: tuple[WeightsOrigin, ...] | None = None
    trained_on: str | None = None
    compute: dict[str, Any] | None = None
    autotune: dict[str, Any] | None = None
    canvas: tuple[int, int] | None = None
    mosaic_end: int | None = None
    micro_batch: int | None = None
    steps: int | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    data_wait_share: float | None = None
    processes: int | None = None
    crops: int | None = None
    command: str | None = None
    lr_changes: tuple[LrChange, ...] = ()
    kept_from: int | None = None

    def __post_init__(self) -> None:
        """Check what the types leave open. Raises InputError, which names the field."""
        if self.category_ids and len(self.category_ids) != len(self.classes):
            raise InputError(f"{len(self.classes)} classes have {len(self.category_ids)} category_ids")
        if self.budget is not None and not (
            self.budget.keys()
            and self.budget.keys() <= {"seconds", "steps"}
            and all(v > 0 for v in self.budget.values())
        ):
            raise InputError(f"budget is {shown(self.budget)}, expected seconds or steps, a number above 0")
        numbers = {name: value for name, value in vars(self).items() if isinstance(value, int | float)}
        for name, value in (numbers | {f"budget.{key}": value for key, value in (self.budget or {}).items()}).items():
            if not 0 <= value <= sys.float_info.max or (name == "seed" and value >= 2**63):
                raise InputError(f"{name} is {shown(value)}, expected a number of 0 or more")
        if any(not name.strip() for name in self.classes):
            raise InputError("a class has no name")
        if len(self.classes) > MAX_CLASSES:
            raise InputError(f"there are {len(self.classes)} classes, and at most {MAX_CLASSES} can be")


@dataclass(frozen=True)
class LearntImages:
    """What learnt_images.json holds: `data.content_hashes` of the images, in rising order."""

    hashes: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, repr=False)
class Run:
    """The folder of one run; every method reads or writes one file in it."""

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))

    def __fspath__(self) -> str:
        """The folder, so that a run stands where a path may stand."""
        return str(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """What a notebook shows: what was trained, on what, and for how long."""
        try:
            metadata = self.metadata
            recipe: Recipe | ClassifierRecipe = self.classifier_recipe if self.is_classifier else self.recipe
        except InputError as error:
            return value_html(repr(self), note_html(str(error)))
        seconds, rate = metadata.seconds, metadata.images_per_second
        rows = {
            "network": recipe.classifier if isinstance(recipe, ClassifierRecipe) else recipe.detector,
            "image size": str(recipe.image_size),
            "classes": ", ".join(metadata.classes),
            "data": metadata.data,
            "held-out images": str(len(metadata.val_ids)),
            "steps": "–" if metadata.steps is None else f"{metadata.steps:,}",
            "time": "–" if seconds is None else format_duration(seconds),
            "images/s": "–" if rate is None else f"{rate:.1f}",
            "weights": "weights.safetensors" if self.is_trained else "none yet",
        }
        return value_html(repr(self), table_html(["", ""], rows.items()))

    @staticmethod
    def create(folder: Path, recipe: Recipe | ClassifierRecipe, metadata: RunMetadata) -> Run:
        """A new run folder with its recipe and metadata.

        Raises:
            InputError: the folder holds a run already, or something else.
        """
        run = Run(Path(folder))
        run.require_free()
        write_recipe(recipe, run.folder / "recipe.json")
        run.write_metadata(metadata)
        return run

    def require_free(self) -> None:
        """Raise InputError where the folder holds a run already, or something else."""
        left = {"recipe.json", LOCK}  # by a process that was stopped before it wrote run.json
        folder = self.folder
        if folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} - left):
            raise InputError(f"{folder}: is there already. Choose another --out, or remove it.")

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run, trained or not."""
        return (self.folder / "run.json").exists()

    @property
    def is_classifier(self) -> bool:
        """Whether the run trains a classifier, whose recipe is `classifier_recipe`, and not a detector."""
        path = self.folder / "recipe.json"
        if not path.exists():
            return False
        fields = read_json(path, what="a recipe")
        return isinstance(fields, dict) and "classifier" in fields

    @property
    def recipe(self) -> Recipe:
        """The recipe of a detector's run."""
        return read_recipe(self.folder / "recipe.json")

    @property
    def classifier_recipe(self) -> ClassifierRecipe:
        """The recipe of a classifier's run."""
        return read_classifier_recipe(self.folder / "recipe.json")

    @property
    def metadata(self) -> RunMetadata:
        """The metadata in run.json.

        Raises:
            InputError: the folder holds no run, or the file is broken.
        """
        hint = f"Is {self.folder} the folder of a run?"
        return read_record(
            self.folder / "run.json", RunMetadata, version=RUN_FORMAT, what="the metadata of a run", hint=hint
        )

    def write_metadata(self, metadata: RunMetadata) -> None:
        """Replace run.json."""
        write_record(self.folder / "run.json", metadata, version=RUN_FORMAT)

    @property
    def learnt_images(self) -> frozenset[str] | None:
        """Hashes of the images that the weights have learnt from; None where the run has no record of them.

        Raises:
            InputError: the file is broken.
        """
        path = self.folder / LEARNT
        if not path.exists():
            return None
        return frozenset(read_record(path, LearntImages, version=LEARNT_FORMAT, what="a list of learnt images").hashes)

    def write_learnt_images(self, hashes: Iterable[str]) -> None:
        """Replace learnt_images.json."""
        record = LearntImages(tuple(sorted(set(hashes))))
        write_record(self.folder / LEARNT, record, version=LEARNT_FORMAT)

    @property
    def log(self) -> list[dict[str, Any]]:
        """The rows of log.jsonl; none without a log. A last line that a crash cut short is left out.

        Raises:
            InputError: another line is broken.
        """
        path = self.folder / "log.jsonl"
        if not path.exists():
            return []
        text = read_text(path, what="the log of a run")
        *lines, _unfinished = text.split("\n")  # each whole line ends with a newline
        rows = []
        for number, line in enumerate(lines, 1):
            where = f"{path}: line {number}"
            try:
                row = parse_json(line, where, what="the log of a run")
                if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                    raise InputError(f"{where}: is {kind_of(row)}, expected an object with a step.")
            except InputError as error:
                raise InputError(f"{error} Remove the run, and train it again.") from None
            rows.append(row)
        return rows

    def write_log(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace log.jsonl."""
        write_text(self.folder / "log.jsonl", _json_lines(rows))

    def append_log(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to log.jsonl, whose last line must be whole: after a crash `write_log` comes first."""
        with (self.folder / "log.jsonl").open("a", encoding="utf-8", newline="\n") as file:
            file.write(_json_lines(rows))
            file.flush()
            os.fsync(file.fileno())

    def save_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace weights.safetensors. Raises `NotFinite` where a tensor holds NaN or infinity."""
        run_tensors.save_weights(self.folder, weights)

    def load_weights(self) -> dict[str, Tensor]:
        """The weights for prediction, on the CPU.

        Raises:
            InputError: there are none yet, or the file is broken or holds NaN or infinity.
        """
        return run_tensors.load_weights(self.folder)

    @property
    def is_trained(self) -> bool:
        """Whether there are weights for prediction."""
        return (self.folder / run_tensors.WEIGHTS).exists()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint."""
        return (self.folder / run_tensors.CHECKPOINT).exists()

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace checkpoint.pt; the one before it is kept as checkpoint.previous.pt.

        Raises:
            NotFinite: a tensor or number is NaN or infinite; both files stay as they are.
        """
        run_tensors.save_checkpoint(self.folder, state)

    def load_checkpoint(self, check: run_tensors.Check | None = None) -> tuple[dict[str, Any] | None, str | None]:
        """The last good checkpoint, or None; and a sentence where one was passed over.

        Args:
            check: raises InputError for a state that does not fit the run; such a checkpoint is passed over too.
        """
        return run_tensors.load_checkpoint(self.folder, check)

    def exclusive(self) -> AbstractContextManager[None]:
        """A context that locks the folder against other trainings.

        Raises:
            InputError: another process trains in the folder.
        """
        refusal = f"{self.folder}: another process is training this run. Wait for it, or stop it first."
        return locks.exclusive(self.folder / LOCK, refusal=refusal)


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(dict(row)) + "\n" for row in rows)
