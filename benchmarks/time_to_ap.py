"""What detectors score after so much time: ours as their recipes come, and other libraries' under a plain loop.

    python benchmarks/time_to_ap.py bccd aquatrash playing_cards --seconds 120 300 600 1200 --seeds 0 1 2

Each (data, detector, seconds, seed) is a training of its own, in a process of its own: learnt on train.json, scored on
val.json once the time is gone, at 320 px and batch 8. The clock starts before the first image is decoded and the network
is made; making the predictions is not counted. With `--clock process` it is the processor's time that counts, which is
fairer where other work shares the machine, and rivals then decode in the process that trains.

A training that is in the output file is not run again; seeds are the outermost loop and short trainings come first, so that
what is there after any time can be compared. Without DATA, the tables of what is there are printed. Folders of data are
looked for in $FOLDFUSE_SHARED/data or ../shared/data.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("FOLDFUSE_SHARED", Path(__file__).parents[2] / "shared")) / "data"
OURS = ("lite0_fpn", "efficientdet_lite0", "yolov5n", "swin_tiny_fpn", "vit_tiny_pyramid")
RIVALS = ("torchvision ssdlite320", "effdet lite0")  # of `rivals.RIVALS`; torch is not to be loaded here
CLOCKS = {"wall": time.monotonic, "process": time.process_time}
KEY = ("data", "detector", "clock", "seconds", "seed")
AHEAD, BEHIND = 300, 1200  # seconds: ours after the first are compared with rivals after the second
Row = dict[str, Any]


def main() -> None:
    """Run what is not there yet; print the tables of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="DATA")
    parser.add_argument("--detectors", nargs="+", default=[*OURS, *RIVALS], choices=[*OURS, *RIVALS])
    parser.add_argument("--seconds", type=float, nargs="+", default=[120, 300, 600, 1200])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--out", type=Path, default=Path("time_to_ap.jsonl"))
    parser.add_argument("--worker", help="a training as JSON: run it in this process, and print its row")
    asked = parser.parse_args()
    if asked.worker:
        print(json.dumps(worker(json.loads(asked.worker))))
        return
    rows = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    done = {tuple(row[key] for key in KEY) for row in rows}
    for seed, seconds, name, detector in itertools.product(asked.seeds, asked.seconds, asked.names, asked.detectors):
        training = dict(zip(KEY, (name, detector, asked.clock, seconds, seed), strict=True))
        if tuple(training.values()) in done:
            continue
        command = [sys.executable, __file__, "--worker", json.dumps(training)]
        shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append(json.loads(shown.splitlines()[-1]))
        with asked.out.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(rows[-1], file=sys.stderr, flush=True)
    for clock in CLOCKS:
        mine = [row for row in rows if row["clock"] == clock]
        if mine:
            print(f"\nBy the {clock} clock:\n\n{table(mine)}\n\n{targets(mine)}")


def worker(training: Row) -> Row:
    """Run one training: its key with where its weights started, its steps, the load of the machine, AP and AP50."""
    load = os.getloadavg()[0]
    found = (ours if training["detector"] in OURS else rival)(training)
    return training | found | {"load": [round(load, 1), round(os.getloadavg()[0], 1)]}


def ours(training: Row) -> Row:
    """Train a recipe as `foldfuse train` does, and score it."""
    from foldfuse.system import host

    host.tune_malloc()
    import torch

    from foldfuse.data.readers.coco import read
    from foldfuse.errors import InputError
    from foldfuse.evaluation.coco import score_predictions
    from foldfuse.inference.detector import load_detector, predict_views
    from foldfuse.inference.tta import parse_views
    from foldfuse.models import make_detector
    from foldfuse.recipes import load_recipe
    from foldfuse.storage.run import Run
    from foldfuse.training.budget import Budget
    from foldfuse.training.detector import train_detector
    from foldfuse.training.image_sizes import with_image_size
    from foldfuse.training.session import TrainingSession, run_metadata

    data, held = (read(ROOT / training["data"] / f"{part}.json") for part in ("train", "val"))
    recipe = load_recipe(training["detector"])
    try:
        make_detector(recipe.detector, 1, pretrained=recipe.init_weights == "imagenet")
    except InputError:  # no weights on this machine
        recipe = replace(recipe, init_weights="none", frozen_stages=0)
    budget = Budget(seconds=training["seconds"], clock=CLOCKS[training["clock"]])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # so that every training pays for its own autotuning
        budget.elapsed()  # the clock starts here: the choice of a size, decoding and the making of the network are paid for
        recipe, reason = with_image_size(recipe, data, seconds=training["seconds"])
        metadata = run_metadata(data, data=str(data.source), seed=training["seed"])
        run = Run.create(Path(folder) / "run", recipe, replace(metadata, image_size_reason=reason))
        train_detector(run, data, TrainingSession(budget))
        metadata = run.metadata
        model, classes = load_detector(run)
        (view,) = views = parse_views(["1"])
        found = predict_views(model, held.samples, classes, image_size=recipe.image_size, views=views)[view]
    score = score_predictions(found, held)
    start = "ImageNet" if recipe.init_weights == "imagenet" else "from scratch"
    return {
        "start": start,
        "image_size": recipe.image_size,
        "steps": metadata.steps,
        "data_wait_share": metadata.data_wait_share,
        "compute": metadata.compute,
        "threads": torch.get_num_threads(),
        "ap": round(score.ap or 0, 4),
        "ap50": round(score.ap50 or 0, 4),
    }


def rival(training: Row) -> Row:
    """Train another library's detector by a plain loop, and score it by the same scorer."""
    import torch

    import rivals
    from foldfuse.data.readers.coco import read
    from foldfuse.evaluation.coco import score_predictions
    from foldfuse.training.budget import Budget

    data, held = (read(ROOT / training["data"] / f"{part}.json") for part in ("train", "val"))
    torch.manual_seed(training["seed"])
    budget = Budget(seconds=training["seconds"], clock=CLOCKS[training["clock"]])
    budget.elapsed()
    model = rivals.RIVALS[training["detector"]](len(data.classes))
    steps = rivals.fit(model, data, budget, workers=1 if training["clock"] == "wall" else 0)
    score = score_predictions(rivals.predict(model, held), held)
    return {
        "start": model.start,
        "steps": steps,
        "threads": torch.get_num_threads(),
        "ap": round(score.ap or 0, 4),
        "ap50": round(score.ap50 or 0, 4),
    }


def table(rows: list[Row]) -> str:
    """A Markdown table: a row for each dataset and detector, for each time the means of AP and AP50 over the seeds."""
    times = sorted({row["seconds"] for row in rows})
    lines = [
        f"| data | detector | start | {' | '.join(f'{time:g} s: AP / AP50 (steps; seeds)' for time in times)} |",
        "|" + "---|" * (3 + len(times)),
    ]
    for name, detector in pairs(rows):
        mine = [row for row in rows if (row["data"], row["detector"]) == (name, detector)]
        cells = []
        for seconds in times:
            some = [row for row in mine if row["seconds"] == seconds]
            if some:
                ap, ap50, steps = (mean(some, key) for key in ("ap", "ap50", "steps"))
                cells.append(f"{ap:.3f} / {ap50:.3f} ({steps:.0f}; {len(some)})")
            else:
                cells.append("")
        lines.append(f"| {name} | {detector} | {mine[0]['start']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def targets(rows: list[Row]) -> str:
    """A Markdown table: whether lite0_fpn after 5 minutes has what each rival has after 20; "" if none is there."""
    lines = [
        "| data | rival | lite0_fpn after 5 min: AP / AP50 | rival after 20 min | reached |",
        "|---|---|---|---|---|",
    ]
    for name, detector in pairs(rows):
        early = [r for r in rows if (r["data"], r["detector"], r["seconds"]) == (name, "lite0_fpn", AHEAD)]
        late = [r for r in rows if (r["data"], r["detector"], r["seconds"]) == (name, detector, BEHIND)]
        if detector in RIVALS and early and late:
            ours, theirs = ((mean(some, "ap"), mean(some, "ap50")) for some in (early, late))
            reached = "yes" if ours >= theirs and ours[1] >= theirs[1] else "no"
            shown = (f"{ap:.3f} / {ap50:.3f}" for ap, ap50 in (ours, theirs))
            lines.append(f"| {name} | {detector} | {' | '.join(shown)} | {reached} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def pairs(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """Each dataset with each detector that there are rows of, in their order here."""
    rows = list(rows)
    names = dict.fromkeys(row["data"] for row in rows)
    there = {(row["data"], row["detector"]) for row in rows}
    return [(name, detector) for name in names for detector in (*OURS, *RIVALS) if (name, detector) in there]


def mean(rows: list[Row], key: str) -> float:
    """Of one column."""
    return statistics.mean(row[key] for row in rows)


if __name__ == "__main__":
    main()
