"""The chosen ensemble where members differ in architecture: chosen on held-out images, measured on images that took no part.

    taskset -c 0 python benchmarks/unlike.py --out unlike

Each member is trained for the same seconds on four fifths of train.json of a DATA folder (looked for in $FOLDFUSE_SHARED/data
or ../shared/data), and predicts the other fifth and val.json in the plain view and mirrored. The ensemble is chosen on that
fifth, as in ensemble_study.py, and measured once on val.json. A member whose predictions lie in the output folder is not trained
again; the page is written after each dataset. Run it alone on its core: members are trained by the clock.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from foldfuse.system import host

host.tune_malloc()

import argparse
import shutil
from pathlib import Path
from typing import Any

from ensemble_study import METRICS, run, table
from foldfuse.data.dataset import Dataset
from foldfuse.data.folds import make_folds
from foldfuse.data.readers.coco import read
from foldfuse.ensemble.member_views import MemberView
from foldfuse.formats.predictions import read_predictions, write_predictions
from foldfuse.inference.detector import load_detector, predict_views
from foldfuse.inference.tta import parse_views
from foldfuse.recipes import load_recipe
from foldfuse.storage.run import Run
from foldfuse.training.budget import Budget
from foldfuse.training.detector import train_detector
from foldfuse.training.session import TrainingSession, run_metadata
from rows import add_row, read_rows
from trainings import SHARED

MEMBERS = {  # recipe: image size
    "lite0_fpn": 320,
    "lite1_fpn": 320,
    "efficientdet_lite0_256": 256,
    "yolov5n": 320,
}
VIEWS = ("1", "1+hflip")
PAGE = Path(__file__).parent / "unlike.md"
TEXT = """# The chosen ensemble of unlike members

By `python benchmarks/unlike.py`. {number} detectors of different architectures ({members}),
each trained for {seconds:.0f} s on one core and predicted in the views {views}: {candidates} candidates. The ensemble is chosen
on the held-out images of one fold and measured on val.json, which took no part. "Best in hindsight" is the best member on
val.json, which no method can choose.
"""


def train_member(name: str, seed: int, train: Dataset, out: Path, *, seconds: float) -> Run:
    """The run of a recipe, trained for some seconds."""
    changes = [f"image_size={MEMBERS[name]}", "precision=float32"]  # no time for autotuning
    made = Run.create(out, load_recipe(name, changes), run_metadata(train, data=str(train.source), seed=seed))
    train_detector(made, train, TrainingSession(Budget(seconds=seconds)))
    return made


def member_paths(folder: Path, name: str, part: str) -> dict[str, Path]:
    """{view: the file of a member's predictions} of a part of the data."""
    return {view: folder / f"{name}@{view}.{part}.parquet" for view in VIEWS}


def make_member(name: str, seed: int, parts: dict[str, Dataset], folder: Path, *, seconds: float) -> None:
    """Trains a member and writes its predictions, unless they are there."""
    wanted = {part: member_paths(folder, name, part) for part in ("held-out", "test")}
    if all(path.exists() for paths in wanted.values() for path in paths.values()):
        return
    made = folder / name
    if not (made / "weights.safetensors").exists():
        shutil.rmtree(made, ignore_errors=True)  # of a training that was stopped
        train_member(name, seed, parts["train"], made, seconds=seconds)
    model, classes = load_detector(Run(made))
    for part, paths in wanted.items():
        samples = parts[part].samples
        found = predict_views(model, samples, classes, image_size=MEMBERS[name], views=parse_views(list(VIEWS)))
        for view, predictions in found.items():
            write_predictions(predictions, paths[str(view)], parts[part])


def row_of(data: str, seed: int, folder: Path, *, seconds: float) -> dict[str, Any]:
    """The row of a dataset and seed: all ways to combine the members."""
    source = SHARED / "data" / data
    labeled, test = read(source / "train.json"), read(source / "val.json")
    folds = make_folds(labeled, num_folds=5, seed=seed)
    held_out = labeled.subset(folds.val_ids(0))
    parts = {"train": labeled.subset(folds.train_ids(0)), "held-out": held_out, "test": test}
    folder.mkdir(parents=True, exist_ok=True)
    for name in MEMBERS:
        make_member(name, seed, parts, folder, seconds=seconds)
    on_val, on_test = (
        {
            MemberView(name, view): read_predictions(path, parts[part])
            for name in MEMBERS
            for view, path in member_paths(folder, name, part).items()
        }
        for part in ("held-out", "test")
    )
    row = {"data": data, "seed": seed, "seconds": seconds, "cpu": host.describe("cpu")["cpu"]}
    return row | {metric: run(on_val, on_test, labeled, test, metric, 10.0) for metric in METRICS}


def page(rows: list[dict[str, Any]]) -> str:
    """The page of all rows."""
    head = TEXT.format(
        number=len(MEMBERS),
        members=", ".join(f"{name} at {size} px" for name, size in MEMBERS.items()),
        seconds=rows[0]["seconds"],
        views=" and ".join(VIEWS),
        candidates=len(MEMBERS) * len(VIEWS),
    )
    gains = [
        f"* {row['data']}, seed {row['seed']}, {metric}: {value:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"
        for row in rows
        for metric in METRICS
        for value, low, high in [row[metric]["against_all"]]
    ]
    cpus = ", ".join(sorted({row["cpu"] for row in rows}))
    where = f"\nOn {cpus}. Chosen minus WBF of all, on val.json (bootstrap over its images):\n"
    return "\n".join([head, *(table(rows, metric) for metric in METRICS), where, *gains]) + "\n"


def main(words: list[str] | None = None) -> None:
    """Measures what is missing, and writes rows and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["bccd", "aquatrash", "playing_cards"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--seconds", type=float, default=150.0, help="of training, of each member")
    parser.add_argument("--out", type=Path, default=Path("unlike"))
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args(words)
    record = asked.page.with_suffix(".jsonl")
    rows = read_rows(record)
    for seed in asked.seeds:
        for data in asked.data:
            if (data, seed) in {(row["data"], row["seed"]) for row in rows}:
                continue
            rows.append(row_of(data, seed, asked.out / f"{data}-{seed}", seconds=asked.seconds))
            add_row(record, rows[-1])
            asked.page.write_text(page(rows), encoding="utf-8")
            print(page(rows), flush=True)


if __name__ == "__main__":
    main()
