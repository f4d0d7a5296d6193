"""Pre-trains detectors on the boxes of many datasets, and proves on datasets left out that training from them is worth it.

    python benchmarks/pretraining.py pretrain POOL --seconds 240 --out runs/lite0_fpn --export lite0_fpn.safetensors
    python benchmarks/pretraining.py judge --out results.jsonl --start imagenet lite0_fpn.safetensors --steps 200 --seeds 0 1
    python benchmarks/pretraining.py all --out results

POOL is a folder of datasets: POOL/NAME/instances.json (COCO), images beside it in images/. `pretrain` leaves out the datasets
in BARRED and EVALUATION and those after --leave-out; in a run folder that is there already it goes on. On a GPU the images lie
decoded in the card's memory; a CPU does the same, more slowly. `--set image_size=256 --set batch_size=16` suits two cores.

`judge` trains a detector on each dataset of JUDGED from each start, on the CPU, one thread each, as `foldfuse train` would, and
scores it on the held-out images (`trainings.py`). A training that is in the results file is not run again.

`ship FILE OUT` writes the copy of a file that a package ships: without the rows of the classes, but for that of any object.

`hashes POOL FILE OUT` writes a copy of a file that tells by which images of POOL it was trained, as `pretrain` does by itself, so
that a training from it tells of held-out images that look like them.

`all` does everything in turn within STAGES' seconds: it pre-trains on the first device while all other cores judge the starts
that are ready. `--dry` does the same with tiny numbers. Folders are looked for in $FOLDFUSE_SHARED or ../shared: pool/ and data/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from rows import read_rows
from trainings import EVALUATION, SHARED, Row, datasets, train_and_score

BARRED = (  # images that look like stock, press or film images: in no weights that ship
    *("indonesian_food", "egg_quality", "endangered_animals", "gym_machines", "military_vehicles", "guns_knives"),
    *("football_players", "fencing", "hard_hats", "construction_workers"),
)
RELATED = (  # datasets of the domains of those that are judged: food, waste, microscopy, damage and defects
    *("school_meals", "malay_cakes", "food_trays", "burger_parts", "eggs_fertile", "snacks_drinks", "tomatoes"),
    *("street_garbage", "dumping", "particle_tracks", "laptop_defects", "wagon_defects", "potholes"),
)
ONE_CLASS = {"us_road_signs": "road sign", "car_logos": "car logo"}  # many classes with few objects each
SYNONYMS = {"human": "person", "pedestrian": "person", "vehicle": "car"}
JUDGED = ("bccd", "aquatrash", "playing_cards", *EVALUATION)
STAGES = (  # name, detector, seconds of training, datasets left out
    ("lite0_fpn", "lite0_fpn", 220.0, ()),
    ("lite0_fpn_left_out", "lite0_fpn", 125.0, RELATED),
    ("lite1_fpn", "lite1_fpn", 125.0, ()),
)
STARTS = (
    ("imagenet", 0),
    ("imagenet", 1),
    ("lite0_fpn", 0),
    ("lite0_fpn_boxes", 0),
    ("lite0_fpn_left_out", 0),
    ("lite0_fpn_left_out_boxes", 0),
)
# Starts and seeds that `all` judges, in the order in which they are ready; "boxes": all weights but the class branch's.
KEY = ("detector", "data", "start", "steps", "seed", "changes")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("pretrain")
    hashes = commands.add_parser("hashes")
    for command in (one, hashes):
        command.add_argument("pool", type=Path)
        command.add_argument("--leave-out", nargs="*", default=[])
        command.add_argument("--only", nargs="*", help="these datasets of the pool alone")
    hashes.add_argument("file", type=Path)
    hashes.add_argument("out", type=Path)
    one.add_argument("--detector", default="lite0_fpn")
    one.add_argument("--seconds", type=float, default=240.0)
    one.add_argument("--out", type=Path, required=True, help="the run folder")
    one.add_argument("--export", type=Path, required=True, help="the file of weights")
    one.add_argument("--longest", type=int, default=352, help="pixels: images are kept at this size")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--device", default="auto")
    one.add_argument("--set", nargs="*", default=[], dest="changes", metavar="NAME=VALUE")
    two = commands.add_parser("judge")
    two.add_argument("--out", type=Path, required=True)
    two.add_argument("--start", nargs="+", default=["imagenet"], help="imagenet, or files of weights")
    two.add_argument("--data", nargs="+", default=list(JUDGED), choices=JUDGED)
    two.add_argument("--detector", default="lite0_fpn")
    two.add_argument("--steps", type=int, default=200)
    two.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    two.add_argument("--set", nargs="*", default=[], dest="changes", metavar="NAME=VALUE")
    two.add_argument("--jobs", type=int, default=os.cpu_count())
    three = commands.add_parser("all")
    three.add_argument("--out", type=Path, required=True)
    three.add_argument("--dry", action="store_true")
    three.add_argument("--device", default="auto", help="of the pre-trainings")
    three.add_argument("--limit", type=float, default=555.0, help="seconds after which everything is ended")
    ship = commands.add_parser("ship")
    ship.add_argument("file", type=Path)
    ship.add_argument("out", type=Path)
    four = commands.add_parser("worker")
    four.add_argument("row")
    asked = parser.parse_args()
    if asked.command == "pretrain":
        pretrain_pool(asked)
    elif asked.command == "judge":
        rows = [
            dict(zip(KEY, (asked.detector, data, start, asked.steps, seed, list(asked.changes)), strict=True))
            for seed in asked.seeds
            for start in asked.start
            for data in asked.data
        ]
        judge(rows, asked.out, jobs=asked.jobs, deadline=float("inf"))
        print(table(read_rows(asked.out)))
    elif asked.command == "all":
        with tempfile.TemporaryDirectory() as scratch:
            run_all(asked.out, Path(scratch), device=asked.device, dry=asked.dry, limit=asked.limit)
    elif asked.command == "ship":
        from foldfuse.models.pretrained.detection import keep_object_class

        keep_object_class(asked.file, asked.out)
    elif asked.command == "hashes":
        from foldfuse.inference.pretraining_images import hash_images
        from foldfuse.models.pretrained.detection import add_pretraining_images

        images = hash_images({name: dataset.samples for name, dataset in datasets_of(asked).items()})
        add_pretraining_images(asked.file, asked.out, images)
        print(f"{asked.out}: {len(images.hashes)} images of {len(images.counts)} datasets")
    else:
        print(json.dumps(worker(json.loads(asked.row))))


def pretrain_pool(asked: argparse.Namespace) -> None:
    """Pre-train one detector on a pool, or go on with it."""
    import logging

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    import torch

    from foldfuse.recipes import changed, load_recipe
    from foldfuse.storage.run import Run
    from foldfuse.training.pretraining import join_sources, pretrain, pretraining_recipe
    from foldfuse.training.session import open_session, run_metadata

    torch.backends.cudnn.benchmark = True  # every step has the same shapes
    torch.set_num_threads(min(4, os.cpu_count() or 1))
    datasets = datasets_of(asked)
    sources = join_sources(datasets, one_class=ONE_CLASS, synonyms=SYNONYMS)
    recipe = changed(pretraining_recipe(load_recipe(asked.detector)), asked.changes)
    run = Run(asked.out)
    metadata = replace(
        run_metadata(sources.dataset, data=str(asked.pool), seed=asked.seed),
        budget={"seconds": asked.seconds},
        checkpoint_seconds=20.0,
        device=asked.device,
    )
    if run.exists:
        if run.metadata.data_fingerprint != sources.dataset.fingerprint:
            sys.exit(
                f"{run.folder}: was pre-trained on other data. Give the same pool and the same datasets to leave out."
            )
        metadata = replace(run.metadata, budget={"seconds": asked.seconds})
    is_new = not run.exists
    recipe = recipe if is_new else run.recipe
    with open_session(run, metadata, recipe=recipe, is_new=is_new, title="pre-training") as session:
        result = pretrain(run, sources, session, export=asked.export, longest=asked.longest)
    rate = run.metadata.images_per_second or 0.0
    print(
        f"{asked.detector}: {result.steps} steps in {result.seconds:.0f} s, {rate:.0f} images a second, to {asked.export}"
    )
    print("datasets:", ", ".join(datasets))


def datasets_of(asked: argparse.Namespace) -> dict[str, Any]:
    """{name: dataset} of the pool, without those that are left out."""
    from foldfuse.data.pixels import open_images
    from foldfuse.data.readers.coco import read

    names = sorted(path.parent.name for path in asked.pool.glob("*/instances.json"))
    out = {*BARRED, *EVALUATION, *asked.leave_out}
    used = [name for name in names if name not in out and (not asked.only or name in asked.only)]
    return {name: open_images(read(asked.pool / name / "instances.json")) for name in used}


def judge(
    rows: Sequence[Row], results: Path, *, jobs: int, deadline: float, ready: dict[str, threading.Event] | None = None
) -> None:
    """Run the trainings that are not in the results file, `jobs` at a time, until the deadline.

    Args:
        rows: keys of trainings, in the order in which to run them.
        results: file that gets a row for each training.
        jobs: trainings at a time.
        deadline: of `time.monotonic`; a training that would pass it is ended.
        ready: set for each start whose file is there; None if all are.
    """
    done = {json.dumps([row[key] for key in KEY]) for row in read_rows(results)}
    lock = threading.Lock()

    def run(row: Row) -> None:
        event = ready.get(Path(row["start"]).stem) if ready else None
        if event is not None:
            event.wait(max(0.0, min(deadline - time.monotonic(), 1e6)))
        remaining = deadline - time.monotonic()
        if remaining < 5 or not (row["start"] == "imagenet" or Path(row["start"]).exists()):
            print("left out:", json.dumps(row), flush=True)
            return
        command = [sys.executable, __file__, "worker", json.dumps(row)]
        env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        try:
            ended = subprocess.run(command, capture_output=True, text=True, env=env, timeout=min(remaining, 1e6))
        except subprocess.TimeoutExpired:
            print("no time left:", json.dumps(row), flush=True)
            return
        if ended.returncode:
            print("failed:", json.dumps(row), ended.stderr[-2000:], flush=True)
            return
        with lock, results.open("a") as file:
            file.write(ended.stdout.splitlines()[-1] + "\n")
            print(ended.stdout.splitlines()[-1], flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, [row for row in rows if json.dumps([row[key] for key in KEY]) not in done]))


def worker(row: Row) -> Row:
    """Run one training on the CPU: its key with what `train_and_score` returns."""
    import torch

    from foldfuse.recipes import changed, load_recipe
    from foldfuse.training.budget import Budget

    torch.set_num_threads(1)
    if hasattr(os, "nice"):
        os.nice(10)  # a pre-training beside it comes first
    data, held_out = datasets(row["data"], row["seed"])
    recipe = changed(
        replace(load_recipe(row["detector"], ["image_size=320"]), init_weights=row["start"]), row["changes"]
    )
    return row | train_and_score(data, held_out, recipe, Budget(steps=row["steps"]), seed=row["seed"])


def run_all(out: Path, scratch: Path, *, device: str, dry: bool, limit: float) -> None:
    """Pre-train each of STAGES in turn, and judge each start as soon as it is ready; run folders go to `scratch`."""
    from foldfuse.storage.run import Run

    deadline = time.monotonic() + (900.0 if dry else limit)
    out.mkdir(parents=True, exist_ok=True)
    ready = {start: threading.Event() for start, _ in STARTS if start != "imagenet"}
    curves: dict[str, list[Row]] = {}
    steps, data = (3, ("bccd",)) if dry else (200, JUDGED)
    small = ["image_size=96", "batch_size=4"] if dry else []
    files = {name: (scratch if name.endswith("_boxes") else out) / f"{name}.safetensors" for name, _ in STARTS}
    starts = [("imagenet" if name == "imagenet" else str(files[name]), seed) for name, seed in STARTS]
    rows = [
        dict(zip(KEY, ("lite0_fpn", name, start, steps, seed, list(small)), strict=True))
        for start, seed in starts
        if seed == 0 or not dry
        for name in data
    ]
    jobs = 1 if dry else max(1, (os.cpu_count() or 1) - 4)
    judges = threading.Thread(
        target=judge, args=(rows, out / "results.jsonl"), kwargs={"jobs": jobs, "deadline": deadline, "ready": ready}
    )
    judges.start()
    for name, detector, seconds, left_out in STAGES:
        export = out / f"{name}.safetensors"
        command = [sys.executable, __file__, "pretrain", str(SHARED / "pool"), "--detector", detector]
        seconds = 6.0 if dry else max(20.0, min(seconds, deadline - time.monotonic() - 35))
        command += ["--seconds", str(seconds), "--leave-out", *left_out, "--longest", "288", "--device", device]
        command += ["--out", str(scratch / name), "--export", str(export)]
        if dry:
            command += ["--only", "bottles", "nuts", "car_logos", "street_mixed", "dumping", "--set", *small]
        began = time.monotonic()
        try:
            subprocess.run(command, check=True, timeout=max(1.0, deadline - began - 5))
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"{name}: {error}", flush=True)
            if not export.exists():  # nothing of it can be used: give the machine back at once
                os._exit(1)
        write_without_classes(export, scratch / f"{name}_boxes.safetensors")
        for start in (name, f"{name}_boxes"):
            if start in ready:
                ready[start].set()
        print(f"{name}: {time.monotonic() - began:.0f} s in all", flush=True)
        losses = [row for row in Run(scratch / name).log if "loss" in row]
        every = max(1, len(losses) // 200)
        curves[name] = losses[::every]
        (out / "losses.json").write_text(json.dumps(curves))
    judges.join()
    print(table(read_rows(out / "results.jsonl")))


def write_without_classes(path: Path, out: Path) -> None:
    """Write a copy of a file of detection weights without the class branch."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from foldfuse.models.pretrained.detection import CLASS_BRANCH

    with safe_open(path, "pt") as file:
        kept = {key: file.get_tensor(key) for key in file.keys() if not key.startswith(CLASS_BRANCH)}  # noqa: SIM118
        save_file(kept, out, metadata=file.metadata())


def table(rows: list[Row]) -> str:
    """A Markdown table: for each dataset the means over the seeds of AP / AP50, a column for each start."""
    starts = list(dict.fromkeys(row["start"] for row in rows))
    lines = [
        f"| data | steps | {' | '.join(Path(start).stem for start in starts)} |",
        "|" + "---|" * (2 + len(starts)),
    ]
    for name, steps in dict.fromkeys((row["data"], row["steps"]) for row in rows):
        cells = []
        for start in starts:
            mine = [r for r in rows if (r["data"], r["steps"], r["start"]) == (name, steps, start)]
            means = (statistics.mean(r[key] for r in mine) for key in ("ap", "ap50")) if mine else ()
            cells.append(" / ".join(f"{value:.3f}" for value in means) + (f" ({len(mine)})" if mine else ""))
        lines.append(f"| {name} | {steps} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
