"""lite0_fpn against EfficientDet-Lite0 and a YOLOv5-style one: short trainings of equal processor time, one thread.

    taskset -c 1 python benchmarks/lite0_fpn.py bccd aquatrash playing_cards --seeds 0 1 2 --seconds 120 --out lite0_fpn.jsonl

Processor time, so that a busy machine is fair to all. DATA folders (train.json, val.json) are looked for in
$FOLDFUSE_SHARED/data or ../shared/data. A run that is in the output file already is not run again; seeds are the outermost
loop, so that the finished runs can be compared at any time. A name of `--recipes` may be a composed detector
(compose:BACKBONE+NECK+HEAD).
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
    RECIPES,
    Recipe,
    load_recipe,
)
from foldfuse.storage.run import Run
from foldfuse.training.budget import Budget
from foldfuse.training.detector import train_detector
from foldfuse.training.session import TrainingSession, run_metadata
from rows import add_row, read_rows

ROOT = Path(os.environ.get("FOLDFUSE_SHARED", Path(__file__).parents[2] / "shared")) / "data"


def main() -> None:
    """Run the missing trainings; print the table of all finished ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=120, help="of processor time, for each training")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--recipes", nargs="+", default=["efficientdet_lite0", "lite0_fpn", "yolov5n"])
    parser.add_argument("--out", type=Path, default=Path("lite0_fpn.jsonl"))
    asked = parser.parse_args()
    rows = read_rows(asked.out)
    done = {(row["data"], row["seed"], row["recipe"]) for row in rows}
    for seed in asked.seeds:
        for name in asked.names:
            data, val = read(ROOT / name / "train.json"), read(ROOT / name / "val.json")
            images = ImageCache.load(data.samples, longest=round(asked.image_size * 1.75))
            for recipe in asked.recipes:
                if (name, seed, recipe) in done:
                    continue
                made = replace(recipe_of(recipe), image_size=asked.image_size, precision="float32")
                row = {"data": name, "seed": seed, "recipe": recipe}
                row |= run(data, val, images, made, seed, asked.seconds)
                rows.append(row)
                add_row(asked.out, row)
                print(row, flush=True)
    print(table(rows))


def recipe_of(name: str) -> Recipe:
    """The recipe called `name`, or that of EfficientDet-Lite0 with the composed detector of that name in its place."""
    recipe = load_recipe(name) if name in RECIPES else load_recipe("efficientdet_lite0", [f"detector={name}"])
    return replace(recipe, init_weights="imagenet") if recipe.init_weights == "detection" else recipe  # compared alike


def run(data: Dataset, val: Dataset, images: ImageCache, recipe: Recipe, seed: int, seconds: float) -> dict[str, Any]:
    """Train once and score on `val`: steps, AP, AP50."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", recipe, run_metadata(data, data=str(data.source), seed=seed))
        session = TrainingSession(Budget(seconds=seconds, clock=time.process_time))
        train_detector(run, data, session, images=images)
        model, classes = load_detector(run)
        views = parse_views(["1"])
        found = predict_views(model, val.samples, classes, image_size=recipe.image_size, views=views)[views[0]]
        score = score_predictions(found, val)
        return {"steps": run.metadata.steps, "ap": round(score.ap or 0, 4), "ap50": round(score.ap50 or 0, 4)}


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: for each dataset and recipe the means, and AP of each seed."""
    lines = ["| data | recipe | seeds | steps | AP | AP50 | AP of each seed |", "|---|---|---|---|---|---|---|"]
    for name in dict.fromkeys(row["data"] for row in rows):
        for recipe in dict.fromkeys(row["recipe"] for row in rows):
            mine = [row for row in rows if row["data"] == name and row["recipe"] == recipe]
            if not mine:
                continue
            steps, ap, ap50 = (statistics.mean(row[key] for row in mine) for key in ("steps", "ap", "ap50"))
            each = ", ".join(f"{row['ap']:.3f}" for row in mine)
            lines.append(f"| {name} | {recipe} | {len(mine)} | {steps:.0f} | {ap:.3f} | {ap50:.3f} | {each} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
