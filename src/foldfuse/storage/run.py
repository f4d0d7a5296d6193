"""Run: the folder of one training run.

recipe.json          the recipe
run.json             data, classes, seed, budget, and the results of the training: see `RunMetadata`
log.jsonl            a row for each step; a row with "ap50" or "accuracy" for each evaluation
weights.safetensors  the averaged (EMA) weights, for prediction
learnt_images.json   hashes of the images that the weights have learnt from, those of the runs it started from included
checkpoint.pt        the training state at the last checkpoint, read with weights_only
checkpoint.previous.pt  the training state at the checkpoint before

torch is imported only where tensors are read or written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foldfuse.errors import InputError
from foldfuse.recipes import ClassifierRecipe, Recipe, read_classifier_recipe, read_recipe, write_recipe
from foldfuse.system.atomic_files import atomic, write_text
from foldfuse.system.files import parse_json, read_text
from foldfuse.system.records import read_record, write_record

if TYPE_CHECKING:
    from torch import Tensor, nn

RUN_FORMAT = 1
LEARNT_FORMAT = 1


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
        budget: {"seconds": number} or {"steps": number}.
        checkpoint_seconds: seconds between checkpoints.
        trackers: trackers that got the log too, such as "tensorboard:DIR".
        device: the device that the user asked for, such as "auto".
        ignore_orientation: whether pixels are taken as stored, whatever an EXIF tag says.
        value_ranges: values that become black and white in images of more than 8 bits; see `Dataset`.
        crop_context: side of a classifier's crops, as a multiple of the box's longer side.
        origin: file, sha256 and licence of imported weights.
        trained_on: the device of the training, such as "cuda".
        compute: fields of the compute configuration.
        autotune: the measurements that chose `compute`, if it was measured.
        canvas: (height, width) of the network's input, in pixels.
        mosaic_end: the first step without mosaics.
        steps: optimizer steps taken.
        seconds: seconds of the budget that were used.
        images_per_second: training images per second.
        data_wait_share: share of the time that was spent waiting for batches.
        processes: number of processes that trained together.
        crops: crops that a classifier trained on.
    """

    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    data: str = ""
    images: str | None = None
    data_fingerprint: str = ""
    seed: int = 0
    val_ids: tuple[int, ...] = ()
    folds: str | None = None
    fold: int = 0
    budget: dict[str, float] | None = None
    checkpoint_seconds: float = 60.0
    trackers: tuple[str, ...] = ()
    device: str | None = None
    ignore_orientation: bool = False
    value_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    crop_context: float | None = None
    origin: dict[str, str] | None = None
    trained_on: str | None = None
    compute: dict[str, Any] | None = None
    autotune: dict[str, Any] | None = None
    canvas: tuple[int, int] | None = None
    mosaic_end: int | None = None
    steps: int | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    data_wait_share: float | None = None
    processes: int | None = None
    crops: int | None = None


@dataclass(frozen=True)
class LearntImages:
    """What learnt_images.json holds: `data.content_hashes` of the images, in rising order."""

    hashes: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """The folder of one run; every method reads or writes one file in it."""

    folder: Path

    @staticmethod
    def create(folder: Path, recipe: Recipe | ClassifierRecipe, metadata: RunMetadata) -> Run:
        """A new run folder with its recipe and metadata.

        Raises:
            InputError: the folder holds a run already, or something else.
        """
        folder = Path(folder)
        left = {"recipe.json"}  # by a process that was stopped right here, before it wrote run.json
        if folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} - left):
            raise InputError(f"{folder}: is there already. Choose another --out, or remove it.")
        run = Run(folder)
        write_recipe(recipe, folder / "recipe.json")
        run.write_metadata(metadata)
        return run

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run, trained or not."""
        return (self.folder / "run.json").exists()

    @property
    def is_classifier(self) -> bool:
        """Whether the run trains a classifier, whose recipe is `classifier_recipe`, and not a detector."""
        path = self.folder / "recipe.json"
        return path.exists() and '"classifier":' in read_text(path, what="a recipe")

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
        path = self.folder / "learnt_images.json"
        if not path.exists():
            return None
        return frozenset(read_record(path, LearntImages, version=LEARNT_FORMAT, what="a list of learnt images").hashes)

    def write_learnt_images(self, hashes: Iterable[str]) -> None:
        """Replace learnt_images.json."""
        record = LearntImages(tuple(sorted(set(hashes))))
        write_record(self.folder / "learnt_images.json", record, version=LEARNT_FORMAT)

    @property
    def log(self) -> list[dict[str, Any]]:
        """The rows of log.jsonl; none without a log. A last line that a crash cut short is left out.

        Raises:
            InputError: another line is broken.
        """
        path = self.folder / "log.jsonl"
        if not path.exists():
            return []
        *lines, _unfinished = read_text(path, what="the log of a run").split(
            "\n"
        )  # each whole line ends with a newline
        try:
            return [parse_json(line, f"{path}: line {i}", what="the log of a run") for i, line in enumerate(lines, 1)]
        except InputError as error:
            raise InputError(f"{error} Remove the run, and train it again.") from None

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
        """Replace weights.safetensors."""
        from safetensors.torch import save_file

        with atomic(self.folder / "weights.safetensors") as path:
            save_file({key: t.detach().cpu().contiguous() for key, t in weights.items()}, path)

    def load_weights(self) -> dict[str, Tensor]:
        """The weights for prediction, on the CPU.

        Raises:
            InputError: there are none yet, or the file is broken.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.folder / "weights.safetensors"
        try:
            return load_file(path)
        except FileNotFoundError:
            raise InputError(f"{path}: there is no such file. Was the run trained to its end?") from None
        except SafetensorError as error:
            raise InputError(f"{path}: is broken ({error}). Train the run again.") from None

    def init_model(self, model: nn.Module) -> str:
        """Load the weights of this run into `model`, and return a sentence on it.

        Tensors of the head whose shape depends on other classes keep their random initial values.

        Raises:
            InputError: the run is of another model, or not trained.
        """
        theirs, ours = self.load_weights(), model.state_dict()
        fitting = {key: t for key, t in theirs.items() if key in ours and ours[key].shape == t.shape}
        missing = sorted(ours.keys() - fitting.keys())
        if theirs.keys() != ours.keys() or any("head" not in key and "class_net" not in key for key in missing):
            raise InputError(
                f"{self.folder}: is a run of {self.recipe.detector}, whose weights do not fit. Begin with one of the same model."
            )
        model.load_state_dict(fitting, strict=False)
        if not missing:
            return f"{self.folder}: all weights were loaded."
        return (
            f"{self.folder}: was trained for {len(self.metadata.classes)} other classes: {len(missing)} tensors of the head "
            "start from random values, all other weights were loaded."
        )

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint."""
        return (self.folder / "checkpoint.pt").exists()

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace checkpoint.pt; the one before it is kept as checkpoint.previous.pt."""
        import torch

        path = self.folder / "checkpoint.pt"
        with atomic(path) as temporary:
            torch.save(dict(state), temporary)
            if path.exists():
                path.replace(self.folder / "checkpoint.previous.pt")

    def load_checkpoint(self) -> tuple[dict[str, Any] | None, str | None]:
        """The last good checkpoint, or None; and a sentence where a broken one was skipped."""
        import torch

        broken: list[str] = []
        for name in ("checkpoint.pt", "checkpoint.previous.pt"):
            path = self.folder / name
            if not path.exists():
                continue
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                return state, f"{broken[0]}; resuming from the checkpoint before it." if broken else None
            except Exception as error:  # a cut or damaged file can fail in any of torch's, zip's or pickle's ways
                broken.append(f"{path}: is broken ({type(error).__name__})")
        return None, f"{'; '.join(broken)}; starting from step 0." if broken else None


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(dict(row)) + "\n" for row in rows)
