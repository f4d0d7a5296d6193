"""What benchmarks of trainings share: the datasets to train on and to score on, and one training with its score.

Folders are looked for in $FOLDFUSE_SHARED or ../shared: data/NAME with train.json and val.json, and pool/NAME with
instances.json, which is split 80/20 by the seed with near-duplicates on one side. NAME_2x2 is NAME with four of its images on a
grid as one image, so that its objects are half as large; NAME_4x4 has sixteen.
"""

from __future__ import annotations

import json
import os
import random
import re
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch is loaded once the allocator is tuned
    from foldfuse.data.dataset import Dataset
    from foldfuse.recipes import Recipe
    from foldfuse.training.budget import Budget

SHARED = Path(os.environ.get("FOLDFUSE_SHARED", Path(__file__).parents[2] / "shared"))
EVALUATION = ("safety_gear", "allergen_food", "car_damage")
GRID = re.compile(r"(.+)_(\d)x\2")
Row = dict[str, Any]


def datasets(name: str, seed: int) -> tuple[Dataset, Dataset]:
    """The images to train on and the held-out images of a dataset."""
    from foldfuse.data.folds import make_folds
    from foldfuse.data.pixels import open_images
    from foldfuse.data.readers.coco import read

    whole_name, grid = name, GRID.fullmatch(name)
    name = grid[1] if grid else name
    if name in EVALUATION:
        whole = open_images(read(SHARED / "pool" / name / "instances.json"))
        folds = make_folds(whole, num_folds=5, seed=seed)
        parts = whole.subset(folds.train_ids(0)), whole.subset(folds.val_ids(0))
    else:
        train, val = (open_images(read(SHARED / "data" / name / f"{part}.json")) for part in ("train", "val"))
        parts = train, val
    if not grid:
        return parts
    folder, side = Path(tempfile.gettempdir()) / "foldfuse_grids" / f"{whole_name}-{seed}", int(grid[2])
    copies = side**2 // 4  # of a held-out image: some grids must be there to score on
    return (
        grids(parts[0], folder / "train", copies=max(4, 2 * copies), side=side),
        grids(parts[1], folder / "val", copies=copies, side=side),
    )


def grids(dataset: Dataset, folder: Path, *, copies: int, side: int = 2) -> Dataset:
    """The dataset with `side` x `side` of its images, drawn at random, on each image; it is written to `folder` once.

    Args:
        dataset: the images.
        folder: gets instances.json and the images.
        copies: the number of grids that have the same image.
        side: images along a side of the grid.
    """
    from PIL import Image

    from foldfuse.data.pixels import open_images
    from foldfuse.data.readers.coco import read

    made = folder / "instances.json"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rng, rows, images = random.Random(0), [], []
        width, height = (max(getattr(s, key) for s in dataset.samples) for key in ("width", "height"))
        cells = [s for _ in range(copies) for s in rng.sample(dataset.samples, len(dataset))]
        for number in range(len(cells) // side**2):
            canvas = Image.new("RGB", (side * width, side * height), (114, 114, 114))
            some = cells[number * side**2 : (number + 1) * side**2]
            for sample, (row, column) in zip(some, product(range(side), repeat=2), strict=True):
                left, top = column * width, row * height
                with Image.open(sample.path) as image:
                    canvas.paste(image.convert("RGB"), (left, top))
                assert sample.annotations is not None
                found = sample.annotations
                for (x0, y0, x1, y1), label, crowd in zip(
                    found.boxes.tolist(), found.labels.tolist(), found.crowd.tolist(), strict=True
                ):
                    ids = {"id": len(rows) + 1, "image_id": number, "category_id": label, "iscrowd": int(crowd)}
                    rows.append(ids | {"bbox": [left + x0, top + y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)})
            canvas.save(folder / f"{number}.jpg", quality=90)
            images.append({"id": number, "file_name": f"{number}.jpg", "width": canvas.width, "height": canvas.height})
        categories = [{"id": label, "name": name} for label, name in enumerate(dataset.classes)]
        made.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    return open_images(read(made))


def train_and_score(data: Dataset, held_out: Dataset, recipe: Recipe, budget: Budget, *, seed: int) -> Row:
    """Train as `foldfuse train` does, and score the held-out images: steps, seconds, losses, AP and AP50, and more."""
    from foldfuse.evaluation.coco import score_predictions
    from foldfuse.inference.detector import load_detector, predict_views
    from foldfuse.inference.tta import parse_views
    from foldfuse.storage.run import Run
    from foldfuse.training.detector import train_detector
    from foldfuse.training.image_sizes import with_image_size
    from foldfuse.training.session import TrainingSession, run_metadata

    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # so that every training pays for its own autotuning
        budget.elapsed()  # the clock starts here: the choice of a size, decoding and the making of the network are paid for
        recipe, reason = with_image_size(recipe, data, seconds=budget.seconds)
        metadata = run_metadata(data, data=str(data.source), seed=seed)
        run = Run.create(Path(folder) / "run", recipe, replace(metadata, image_size_reason=reason))
        train_detector(run, data, TrainingSession(budget))
        metadata = run.metadata
        model, classes = load_detector(run)
        (view,) = views = parse_views(["1"])
        found = predict_views(model, held_out.samples, classes, image_size=recipe.image_size, views=views)[view]
        losses = [entry["loss"] for entry in run.log if "loss" in entry]
    score = score_predictions(found, held_out)
    return {
        "image_size": recipe.image_size,
        "init_weights": recipe.init_weights,
        "steps_made": metadata.steps,
        "training_seconds": metadata.seconds,
        "data_wait_share": metadata.data_wait_share,
        "compute": metadata.compute,
        "images": [len(data), len(held_out)],
        "ap": round(score.ap or 0, 4),
        "ap50": round(score.ap50 or 0, 4),
        "loss": [round(sum(losses[i : i + 20]) / len(losses[i : i + 20]), 3) for i in range(0, len(losses), 20)],
    }
