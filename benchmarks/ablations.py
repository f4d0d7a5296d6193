"""What each option of a recipe is worth: short trainings with and without it, on processor time, so that a busy machine is fair.

    taskset -c 0 python benchmarks/ablations.py bccd aquatrash --seeds 0 1 2 --seconds 90 --out ablations.jsonl

DATA folders (train.json, val.json) are looked for in $FOLDFUSE_SHARED/data or ../shared/data. A run that is in the output file
already is not run again; seeds are the outermost loop, so that what is there after any time can be compared.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from foldfuse.system import host

host.tune_malloc()

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from foldfuse.data.dataset import Dataset
from foldfuse.data.images import ImageCache
from foldfuse.data.readers.coco import read
from foldfuse.evaluation.coco import score_predictions
from foldfuse.inference.detector import (
    load_detector,
    predict_views,
)
from foldfuse.inference.tta import parse_views
from foldfuse.recipes import (
    Recipe,
    changed,
    load_recipe,
)
from foldfuse.storage.run import Run
from foldfuse.training.budget import Budget
from foldfuse.training.detector import train_detector
from foldfuse.training.session import TrainingSession, run_metadata
from rows import add_row, read_rows

ROOT = Path(os.environ.get("FOLDFUSE_SHARED", Path(__file__).parents[2] / "shared")) / "data"
OPTIONS: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "copy_paste 0.5": ("copy_paste=0.5",),
    "no mosaics": ("mosaic=0.0",),
    "no scale jitter": ("scale_jitter=0.0",),
    "no translation": ("translate=0.0",),
    "no color jitter": ("color_jitter=0.0",),
    "no flips": ("hflip=0.0",),
    "no average": ("ema_decay=0.0",),
    "no warm-up": ("warmup_fraction=0.0",),
    "nothing frozen": ("frozen_stages=0",),
    "layer_decay 0.8": ("layer_decay=0.8",),
}


def main() -> None:
    """Run what is not there yet; print the table of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=90, help="of processor time, for each training")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--recipe", default="efficientdet_lite0")
    parser.add_argument("--options", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--out", type=Path, default=Path("ablations.jsonl"))
    asked = parser.parse_args()
    rows = read_rows(asked.out)
    done = {(row["data"], row["seed"], row["option"]) for row in rows}
    recipe = replace(load_recipe(asked.recipe), image_size=asked.image_size)
    for seed in asked.seeds:
        for name in asked.names:
            data, held = read(ROOT / name / "train.json"), read(ROOT / name / "val.json")
            images = ImageCache.load(data.samples, longest=round(asked.image_size * 1.75))
            for option in asked.options:
                if (name, seed, option) in done:
                    continue
                row = {"data": name, "seed": seed, "option": option}
                row |= run(data, held, images, OPTIONS[option], seed, asked.seconds, recipe)
                rows.append(row)
                add_row(asked.out, row)
                print(row, flush=True)
    print(table(rows))


def run(
    data: Dataset,
    held: Dataset,
    images: ImageCache,
    changes: tuple[str, ...],
    seed: int,
    seconds: float,
    recipe: Recipe,
) -> dict[str, Any]:
    """Train once and score on `held`: steps, AP, AP50."""
    recipe = changed(recipe, changes)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", recipe, run_metadata(data, data=str(data.source), seed=seed))
        session = TrainingSession(Budget(seconds=seconds, clock=time.process_time))
        train_detector(run, data, session, images=images)
        model, classes = load_detector(run)
        views = parse_views(["1"])
        found = predict_views(model, held.samples, classes, image_size=recipe.image_size, views=views)[views[0]]
        score = score_predictions(found, held)
        return {"steps": run.metadata.steps, "ap": round(score.ap or 0, 4), "ap50": round(score.ap50 or 0, 4)}


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: for each dataset and option the means, and the gain over "as it is" of the same seeds."""
    lines = [
        "| data | option | seeds | steps | AP | AP50 | gain in AP, each seed | mean gain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["data"] for row in rows):
        plain = {row["seed"]: row for row in rows if row["data"] == name and row["option"] == "as it is"}
        for option in dict.fromkeys(row["option"] for row in rows):
            mine = [row for row in rows if row["data"] == name and row["option"] == option and row["seed"] in plain]
            if not mine:
                continue
            gains = [row["ap"] - plain[row["seed"]]["ap"] for row in mine]
            steps, ap, ap50 = (statistics.mean(row[key] for row in mine) for key in ("steps", "ap", "ap50"))
            each = ", ".join(f"{gain:+.3f}" for gain in gains) if option != "as it is" else ""
            mean = f"{statistics.mean(gains):+.3f}" if each else ""
            lines.append(f"| {name} | {option} | {len(mine)} | {steps:.0f} | {ap:.3f} | {ap50:.3f} | {each} | {mean} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
