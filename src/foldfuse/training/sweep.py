"""Sweep: a grid of recipes, image sizes and batch sizes, each trained for the same time, one total budget, one table.

A fold is held back from all of them and scored at several moments of every training, off its clock, so that the curves
of score against time can be compared. The learning rate goes with the square root of the batch size, as suits optimizers
that divide by the gradient's size (Malladi et al., arXiv:2205.10287); it is the recipe's own at the recipe's batch size.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from foldfuse.data.dataset import Dataset
from foldfuse.data.images import ImageCache
from foldfuse.errors import InputError
from foldfuse.evaluation.coco import score_predictions
from foldfuse.inference.detector import detector_of, predict_views
from foldfuse.inference.tta import View
from foldfuse.models import make_detector
from foldfuse.recipes import Recipe, load_recipe
from foldfuse.storage.run import Run
from foldfuse.system.atomic_files import write_text
from foldfuse.system.device import best_device
from foldfuse.system.durations import format_duration
from foldfuse.system.progress import progress_bar
from foldfuse.training.budget import Budget
from foldfuse.training.checkpoints import run_metadata
from foldfuse.training.detector import train_run

MOMENTS = 4  # of each training at which the held-back fold is scored, its end included
OVERHEAD = 3.0  # seconds that a training takes beside its steps: a model is made, files are written
SHORTEST = 5.0  # seconds of training below which there is nothing to compare
PLAIN = View.parse("1")


def combinations(recipes: list[str], sizes: list[int], batches: list[int]) -> dict[str, Recipe]:
    """{name: recipe} of the grid, what takes most memory first, so that what cannot be afforded shows before any time is spent.

    The rate of each goes with the square root of its batch size.
    """
    made = {}
    for name, size, batch in itertools.product(recipes, sizes, batches):
        own = load_recipe(name)
        rate = own.lr * (batch / own.batch_size) ** 0.5
        made[f"{name}-{size}-b{batch}"] = replace(own, image_size=size, batch_size=batch, lr=rate)
    return dict(sorted(made.items(), key=lambda item: -item[1].batch_size * item[1].image_size ** 2))


def seconds_each(grid: Mapping[str, Recipe], held: Dataset, left: float) -> float:
    """Seconds of training for each of `grid`, when all may take `left` with the scoring of `held`.

    Raises:
        InputError: there is too little time to compare anything.
    """
    some, scoring = held.samples[:8], 0.0
    for recipe in grid.values():
        model = make_detector(recipe.detector, len(held.classes), anchor_scale=recipe.anchor_scale, pretrained=False)
        model.eval().to(best_device())
        began = time.monotonic()
        predict_views(model, some, held.classes, image_size=recipe.image_size, views=[PLAIN])
        scoring += MOMENTS * (time.monotonic() - began) / len(some) * len(held)
    each = (left - scoring) / len(grid)
    if each < SHORTEST:
        raise InputError(
            f"the budget leaves {max(0.0, each):.0f} s of training for each of {len(grid)} combinations, beside "
            f"{format_duration(scoring)} of scoring. Expected at least {SHORTEST:.0f} s: "
            "give a longer --budget or a smaller grid."
        )
    return each


def _one(
    folder: Path, recipe: Recipe, train: Dataset, held: Dataset, images: ImageCache, seconds: float, seed: int
) -> dict[str, Any]:
    """Train one combination to its end, from where it was stopped if it was; what the sweep keeps of it."""
    run, state = Run(folder), None
    if run.exists:
        state, _ = run.load_checkpoint()
    else:
        Run.create(folder, recipe, run_metadata(train, data=train.source, seed=seed, val_ids=held.image_ids))

    def evaluate(weights: Mapping[str, Tensor]) -> dict[str, float | None]:
        rng = torch.get_rng_state()  # a new model draws its first weights; what training draws next must not change
        model = detector_of(recipe, held.classes, weights, best_device())
        torch.set_rng_state(rng)
        found = predict_views(model, held.samples, held.classes, image_size=recipe.image_size, views=[PLAIN])[PLAIN]
        score = score_predictions(found, held)
        return {"ap": score.ap, "ap50": score.ap50}

    result: dict[str, Any] = {"recipe": asdict(recipe), "finished": True}
    with progress_bar(f"training {folder.name}") as progress:
        try:
            train_run(
                run,
                train,
                Budget(seconds=seconds),
                seed,
                images=images,
                state=state,
                progress=progress,
                every=seconds / MOMENTS * 0.99,
                evaluate=evaluate,
                halve=False,  # or one combination would be trained under the name of another
            )
        except (
            FloatingPointError,
            torch.OutOfMemoryError,
        ) as error:  # the latter is CUDA's; on a CPU the system ends us
            result["failed"] = str(error)
    result["scores"] = [row for row in run.log if "ap50" in row]
    return result | {
        key: getattr(run.metadata, key) for key in ("steps", "seconds", "images_per_second", "data_wait_share")
    }


def table(record: Mapping[str, Any]) -> Table:
    """All finished trainings, the best AP first."""
    shown = Table(title=f"{format_duration(record['seconds_each'])} of training each", title_justify="left")
    for head in ("", "AP", "AP50", "steps", "pictures/s", "lr"):
        shown.add_column(head, justify="left" if not head else "right")
    for row in rows(record):
        shown.add_row(*row)
    return shown


def rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Name, AP, AP50, steps, pictures a second and rate of each finished training as texts, the best AP first."""
    found = []
    for name, run in record["runs"].items():
        last = run["scores"][-1] if run["scores"] else {"ap": None, "ap50": None}
        scores = [_number(last["ap"]), _number(last["ap50"])] if "failed" not in run else ["failed", "–"]
        speed = [str(run["steps"] or "–"), f"{run['images_per_second'] or 0:.1f}", f"{run['recipe']['lr']:.2g}"]
        found.append((last["ap"] or 0.0, (name, *scores, *speed)))
    return [texts for _, texts in sorted(found, key=lambda pair: -pair[0])]


def _record(out: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """What sweep.json holds, or a new record.

    Raises:
        InputError: the folder holds another sweep, or something else.
    """
    path = out / "sweep.json"
    if path.exists():
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if record["asked"] != asked:
            raise InputError(f"{out}: holds a sweep with other arguments or of other data. Choose another --out.")
        return record
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is there already, and holds no sweep. Choose another --out, or remove it.")
    return {"asked": asked, "seconds_each": None, "runs": {}}


def _save(out: Path, record: Mapping[str, Any]) -> None:
    write_text(out / "sweep.json", json.dumps(record, indent=1))


def _longest(recipe: Recipe) -> int:
    return round(recipe.image_size * (1 + recipe.scale_jitter))


def _words(what: str, text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words) or len(set(words)) < len(words):
        raise InputError(f"{what} is {text!r}: expected different values with commas between them.")
    return words


def _numbers(what: str, text: str) -> list[int]:
    words = _words(what, text)
    if not all(word.isdecimal() for word in words):
        raise InputError(f"{what} is {text!r}: expected whole numbers with commas between them, such as 192,256.")
    return [int(word) for word in words]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
