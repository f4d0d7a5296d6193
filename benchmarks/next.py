"""Images picked by `foldfuse next` against random ones: AP of a training on the labelled and the picked images.

    taskset -c 1 python benchmarks/next.py

For each data set and seed some images are labelled. Three short members are trained on them, each with another third held out. Of
the other images as many are picked: at random, by the members' disagreement alone, and as `next` does, by disagreement times
difficulty and by diversity. A training of a fixed number of steps on labelled and picked images is scored on the held-out
images; "none" is the training on the labelled images alone, with as many steps. A busy machine changes nothing. What the
results file holds is not done again; seeds are the outermost loop. Where the data come from: `trainings.py`.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from foldfuse.system import host

host.tune_malloc()

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from foldfuse import api
from foldfuse.data.dataset import Dataset
from foldfuse.data.folds import make_folds
from foldfuse.data.readers.coco import write
from foldfuse.ensemble.disagreement import class_difficulties
from foldfuse.ensemble.picking import pick
from foldfuse.inference.committee import committee, predict_committee
from foldfuse.inference.held_out_evidence import held_out_evidence
from foldfuse.inference.image_features import image_encoder
from foldfuse.inference.predictor import load
from foldfuse.recipes import Recipe, load_recipe
from foldfuse.training.budget import Budget
from rows import add_row, read_rows
from trainings import Row, datasets, train_and_score

DATA = ("bccd", "aquatrash", "playing_cards")
ARMS = ("random", "disagreement", "next", "none")
NUM_MEMBERS = 3


def main() -> None:
    """Run what the results file lacks, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=DATA)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--labelled", type=int, default=40, help="images, and as many are picked")
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--member-steps", type=int, default=60)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "next.jsonl")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("foldfuse").addHandler(logging.NullHandler())
    changes = [f"image_size={asked.image_size}", "batch_size=8", "precision=float32"]
    recipe = load_recipe("lite0_fpn", changes)
    rows = read_rows(asked.out)
    for seed in asked.seeds:
        for name in asked.names:
            data, held_out = datasets(name, seed)
            cell = {"data": name, "seed": seed}
            for arm in ("picks", *asked.arms):
                if any(row["arm"] == arm and row["data"] == name and row["seed"] == seed for row in rows):
                    continue
                start = time.process_time()
                if arm == "picks":
                    row = picks(data, changes, asked.labelled, asked.member_steps, seed)
                else:
                    made = next(r for r in rows if r["arm"] == "picks" and r["data"] == name and r["seed"] == seed)
                    row = score_arm(data, held_out, made, arm, recipe, asked.steps, seed)
                row = cell | {"arm": arm} | row | {"cpu_seconds": round(time.process_time() - start, 1)}
                rows.append(row)
                add_row(asked.out, row)
                print({key: value for key, value in row.items() if key not in ("picked", "labelled")}, flush=True)
    print(table(rows))


def picks(data: Dataset, changes: Sequence[str], number: int, steps: int, seed: int) -> Row:
    """Train the members on `number` labelled images; the ids of these, and of as many that each arm picks of the others."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(data.image_ids).tolist()
    labelled = data.subset(order[:number])
    others = data.subset(order[number:]).without_annotations()
    with tempfile.TemporaryDirectory() as temporary:
        folder, images = Path(temporary), data.samples[0].path.parent
        os.environ["XDG_CACHE_HOME"] = temporary
        write(labelled, folder / "labelled.json")
        make_folds(labelled, num_folds=NUM_MEMBERS, seed=seed).write(folder / "folds.json")
        for fold in range(NUM_MEMBERS):
            api.train(
                folder / "labelled.json",
                out=folder / f"member{fold}",
                recipe="lite0_fpn",
                set=changes,
                steps=steps,
                seed=seed * NUM_MEMBERS + fold,
                folds=folder / "folds.json",
                fold=fold,
                images=images,
                device="cpu",
            )
        predictors = [load(folder / f"member{fold}", device="cpu", engine="eager") for fold in range(NUM_MEMBERS)]
        evidence = held_out_evidence(predictors)
        seen = predict_committee(committee(predictors, evidence.calibrations), others.samples, image_encoder("cpu"))
    difficulties = class_difficulties(data.classes, evidence.average_precisions)
    even, weighted = (
        np.array([float(one.disagreements(weights).sum()) for one in seen.candidates])
        for weights in (np.ones(len(data.classes)), difficulties)
    )
    chosen = {
        "random": rng.permutation(len(others))[:number],
        "disagreement": np.argsort(-even, kind="stable")[:number],
        "next": pick(weighted, seen.features, number),
        "none": [],
    }
    return {
        "labelled": list(labelled.image_ids),
        "picked": {arm: [seen.samples[i].id for i in some] for arm, some in chosen.items()},
        "mean_bits": {arm: round(float(even[some].mean()), 3) for arm, some in chosen.items() if len(some)},
        "all_bits": round(float(even.mean()), 3),
        "out_of_fold_ap": evidence.average_precisions,
        "slopes": [round(calibration.slope, 3) for calibration in evidence.calibrations.values()],
    }


def score_arm(data: Dataset, held_out: Dataset, made: Row, arm: str, recipe: Recipe, steps: int, seed: int) -> Row:
    """The score of a training on the labelled images and those that an arm picked."""
    some = data.subset([*made["labelled"], *made["picked"][arm]])
    found = train_and_score(some, held_out, recipe, Budget(steps=steps), seed=seed)
    kept = ("steps_made", "images", "ap", "ap50", "image_size")
    picked = data.subset(made["picked"][arm])
    return {"boxes": picked.num_boxes, **{key: found[key] for key in kept}}


def table(rows: Sequence[Row]) -> str:
    """A Markdown table: AP of each arm by data set, the mean over the seeds, and the boxes that were labelled for it."""
    lines = [
        "| data | seeds | arm | boxes picked | AP | AP50 | AP of each seed | AP - random |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["data"] for row in rows):
        of = {(row["arm"], row["seed"]): row for row in rows if row["data"] == name and "ap" in row}
        for arm in ARMS:
            seeds = sorted(seed for each, seed in of if each == arm)
            if not seeds:
                continue
            mine = [of[arm, seed] for seed in seeds]
            boxes, ap, ap50 = (statistics.mean(row[key] for row in mine) for key in ("boxes", "ap", "ap50"))
            each = ", ".join(f"{row['ap']:.3f}" for row in mine)
            gains = [of[arm, seed]["ap"] - of["random", seed]["ap"] for seed in seeds if ("random", seed) in of]
            gain = f"{statistics.mean(gains):+.3f}" if gains and arm != "random" else ""
            lines.append(f"| {name} | {len(mine)} | {arm} | {boxes:.0f} | {ap:.3f} | {ap50:.3f} | {each} | {gain} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
