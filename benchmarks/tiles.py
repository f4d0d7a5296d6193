"""AP of whole images against tiles after the same time, on large images: mosaics of many images, and the demo at 2048 px.

    python benchmarks/tiles.py --out tiles.jsonl --data bccd_4x4 aquatrash_4x4 demo_2048 --seconds 120 --seeds 0

Three trainings of `lite0_fpn` on each set have the same seconds of processor time on one thread: on whole images at --size px, on
tiles and whole images there (tiles=0.5), and on whole images at twice the size, whose prediction costs as much as that of 2 x 2
tiles. Each predicts the held-out images in several views; several are fused by WBF. Predicting is timed and not part of
the training's seconds. What is in the results file is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rows import read_rows
from trainings import Row, datasets

if TYPE_CHECKING:  # torch is loaded once the allocator is tuned
    from foldfuse.data.dataset import Dataset

DATA = ("bccd_4x4", "aquatrash_4x4", "demo_2048")
ARMS = {"whole": (1, ()), "tiles": (1, ("tiles=0.5",)), "twice": (2, ())}  # {name: (times --size, changes)}
VIEWS = ("1", "1,1+hflip", "1.25", "1,1.25", "1+tiles2x2", "1,1+tiles2x2")
KEY = ("data", "arm", "size", "seconds", "seed")
DEMO_IMAGES, DEMO_HELD_OUT = 60, 20


def main() -> None:
    """Run what is not there yet; print the table of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tiles.jsonl"))
    parser.add_argument("--data", nargs="+", default=list(DATA))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--size", type=int, default=320, help="pixels of the network's input")
    parser.add_argument("--seconds", type=float, default=120, help="of processor time for each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--init", default="detection", help="init_weights: detection, imagenet, or a file")
    parser.add_argument("--worker", help="a training as JSON: run it in this process, and print its row")
    asked = parser.parse_args()
    if asked.worker:
        print(json.dumps(worker(json.loads(asked.worker), asked.init)))
        return
    rows = read_rows(asked.out)
    done = [[row[key] for key in KEY] for row in rows]
    for seed, name, arm in itertools.product(asked.seeds, asked.data, asked.arms):
        key = [name, arm, asked.size, asked.seconds, seed]
        if key in done:
            continue
        env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        words = ["--init", asked.init, "--worker", json.dumps(dict(zip(KEY, key, strict=True)))]
        shown = subprocess.run(
            [sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True, env=env
        )
        with asked.out.open("a") as file:
            file.write(shown.stdout.splitlines()[-1] + "\n")
    print(table(read_rows(asked.out)))


def large_images(name: str, seed: int) -> tuple[Dataset, Dataset]:
    """The images to train on and the held-out images: mosaics (see `trainings`), or the demo at the size in the name."""
    if not name.startswith("demo_"):
        return datasets(name, seed)
    from foldfuse.data.pixels import open_images
    from foldfuse.data.readers.coco import read
    from foldfuse.demo.synthetic import make_dataset

    folder = Path(tempfile.gettempdir()) / "foldfuse_grids" / f"{name}-{seed}"
    make_dataset(
        folder,
        num_images=DEMO_IMAGES,
        num_test_images=DEMO_HELD_OUT,
        image_size=int(name.removeprefix("demo_")),
        seed=seed,
    )
    return open_images(read(folder / "train.json")), open_images(read(folder / "test_truth.json"))


def worker(key: Row, init: str) -> Row:
    """Run one training, and score the held-out images in each of VIEWS."""
    from foldfuse.system import host

    host.tune_malloc()
    import torch

    from foldfuse.evaluation.coco import score_predictions
    from foldfuse.fusion.methods import wbf
    from foldfuse.inference.detector import load_detector, predict_views
    from foldfuse.inference.tta import parse_views
    from foldfuse.recipes import load_recipe
    from foldfuse.storage.run import Run
    from foldfuse.training.budget import Budget
    from foldfuse.training.detector import train_detector
    from foldfuse.training.image_sizes import choose_image_size
    from foldfuse.training.session import TrainingSession, run_metadata

    torch.set_num_threads(1)
    data, held_out = large_images(key["data"], key["seed"])
    times, changes = ARMS[key["arm"]]
    recipe = load_recipe("lite0_fpn", [f"image_size={times * key['size']}", f"init_weights={init}", *changes])
    budget = Budget(seconds=key["seconds"], clock=time.process_time)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        budget.elapsed()  # the clock starts here: decoding is paid for
        run = Run.create(Path(folder) / "run", recipe, run_metadata(data, data=str(data.source), seed=key["seed"]))
        train_detector(run, data, TrainingSession(budget))
        steps = run.metadata.steps
        model, classes = load_detector(run)
        found, seconds = {}, {}
        for view in parse_views(sorted({name for names in VIEWS for name in names.split(",")})):
            start = time.process_time()
            options = {"image_size": recipe.image_size, "views": [view]}
            found |= predict_views(model, held_out.samples, classes, **options)
            seconds[view] = (time.process_time() - start) / len(held_out)
    views = {}
    for names in VIEWS:
        some = parse_views(names.split(","))
        score = score_predictions(found[some[0]] if len(some) == 1 else wbf([found[v] for v in some]), held_out)
        views[names] = {
            "ap": round(score.ap or 0, 4),
            "ap50": round(score.ap50 or 0, 4),
            "image_seconds": round(sum(seconds[view] for view in some), 3),
        }
    choice = choose_image_size(data, recipe)
    images = [len(data), len(held_out), held_out.num_boxes]
    return key | {"steps": steps, "images": images, "object_px": choice.object_px, "at": choice.size, "views": views}


def table(rows: list[Row]) -> str:
    """A Markdown table: for each training the mean AP over the seeds and the seconds of an image in each view."""
    lines = [f"| data | arm | steps | seeds | {' | '.join(VIEWS)} |", "|" + "---|" * (4 + len(VIEWS))]
    for kind in dict.fromkeys((row["data"], row["arm"], row["size"], row["seconds"]) for row in rows):
        mine = [row for row in rows if (row["data"], row["arm"], row["size"], row["seconds"]) == kind]
        cells = []
        for names in VIEWS:
            ap, seconds = (sum(row["views"][names][key] for row in mine) / len(mine) for key in ("ap", "image_seconds"))
            cells.append(f"{ap:.3f} ({seconds:.2f} s)")
        steps = sum(row["steps"] for row in mine) / len(mine)
        arm = f"{kind[1]}, {ARMS[kind[1]][0] * kind[2]} px, {kind[3]:g} s"
        lines.append(f"| {kind[0]} | {arm} | {steps:.0f} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
