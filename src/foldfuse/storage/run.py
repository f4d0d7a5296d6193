"""Run: the folder of one training run, and what lies in it.

recipe.json          all that decides the run but data, budget and seed
run.json             data, classes, fold, seed, budget, what came of it
log.jsonl            a row for each step; a row with "ap50" for each evaluation
weights.safetensors  the averaged (EMA) weights, ready for prediction
state.pt             all that is needed to go on from the last checkpoint: read with weights_only
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foldfuse.errors import InputError
from foldfuse.recipes import ClassifierRecipe, Recipe, read_classifier_recipe, read_recipe, write_recipe
from foldfuse.system.atomic_files import atomic, write_text


@dataclass(frozen=True)
class Run:
    """The folder of one run; every method reads or writes one file in it, whole or not at all."""

    folder: Path

    @staticmethod
    def create(folder: Path, recipe: Recipe | ClassifierRecipe, facts: Mapping[str, Any]) -> Run:
        """A new run folder with its recipe and facts.

        Raises:
            InputError: the folder holds a run already, or something else.
        """
        folder = Path(folder)
        left = {"recipe.json"}  # by a process that was stopped right here, before it wrote run.json
        if folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} - left):
            raise InputError(f"{folder}: is there already. Choose another --out, or remove it.")
        run = Run(folder)
        write_recipe(recipe, folder / "recipe.json")
        run.write_facts(facts)
        return run

    @property
    def begun(self) -> bool:
        """Whether the folder holds a run, trained or not."""
        return (self.folder / "run.json").exists()

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        return read_recipe(self.folder / "recipe.json")

    @property
    def of_classifier(self) -> bool:
        """Whether what is trained is a classifier; `classifier_recipe` then says how."""
        path = self.folder / "recipe.json"
        return path.exists() and '"classifier":' in path.read_text(encoding="utf-8")

    @property
    def classifier_recipe(self) -> ClassifierRecipe:
        """How a classifier is trained."""
        return read_classifier_recipe(self.folder / "recipe.json")

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json holds.

        Raises:
            InputError: the folder holds no run.
        """
        path = self.folder / "run.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path}: there is no such file. Is {self.folder} the folder of a run?") from None
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: is broken ({error}).") from None

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Replace run.json."""
        write_text(self.folder / "run.json", json.dumps(dict(facts), indent=1))

    def write_log(self, rows: list[dict[str, Any]]) -> None:
        """Replace log.jsonl."""
        write_text(self.folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    @property
    def log(self) -> list[dict[str, Any]]:
        """The rows of log.jsonl; none where there is no log yet."""
        path = self.folder / "log.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def save_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace weights.safetensors."""
        with atomic(self.folder / "weights.safetensors") as path:
            save_file({key: t.detach().cpu().contiguous() for key, t in weights.items()}, path)

    def load_weights(self) -> dict[str, Tensor]:
        """The weights for prediction.

        Raises:
            InputError: there are none yet, or the file is broken.
        """
        path = self.folder / "weights.safetensors"
        try:
            return load_file(path)
        except FileNotFoundError:
            raise InputError(f"{path}: there is no such file. Was the run trained to its end?") from None
        except SafetensorError as error:
            raise InputError(f"{path}: is broken ({error}). Train the run again.") from None

    def start(self, model: nn.Module) -> str:
        """Give `model` the weights of this run; a sentence comes back. What depends on the classes may begin anew.

        Raises:
            InputError: the run is of another model, or not trained.
        """
        theirs, ours = self.load_weights(), model.state_dict()
        fits = {key: t for key, t in theirs.items() if key in ours and ours[key].shape == t.shape}
        anew = sorted(ours.keys() - fits.keys())
        if theirs.keys() != ours.keys() or any("head" not in key for key in anew):
            raise InputError(
                f"{self.folder}: is a run of {self.recipe.detector}, whose weights do not fit. Begin with one of the same model."
            )
        model.load_state_dict(fits, strict=False)
        num_known = len(self.facts["classes"])
        if not anew:
            return f"{self.folder}: all weights were taken."
        return f"{self.folder}: knows {num_known} other classes: {len(anew)} tensors of the head begin anew, the rest was taken."

    @property
    def has_state(self) -> bool:
        """Whether there is a checkpoint."""
        return (self.folder / "state.pt").exists()

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replace state.pt; the one before it is kept as state.previous.pt."""
        path = self.folder / "state.pt"
        with atomic(path) as temporary:
            torch.save(dict(state), temporary)
            if path.exists():
                path.replace(self.folder / "state.previous.pt")

    def load_state(self) -> tuple[dict[str, Any] | None, str | None]:
        """The last good checkpoint, or None; and a sentence if a broken one was passed over."""
        broken: list[str] = []
        for name in ("state.pt", "state.previous.pt"):
            path = self.folder / name
            if not path.exists():
                continue
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                return state, f"{broken[0]}; going on from the checkpoint before it." if broken else None
            except Exception as error:  # a cut or damaged file can fail in any of torch's, zip's or pickle's ways
                broken.append(f"{path}: is broken ({type(error).__name__})")
        return None, f"{'; '.join(broken)}; going on from the start." if broken else None
