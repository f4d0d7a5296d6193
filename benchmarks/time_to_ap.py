"""What detectors score after so much time: ours as their recipes come, and other libraries' under a plain loop.

    python benchmarks/time_to_ap.py bccd aquatrash playing_cards --seconds 120 300 600 1200 --seeds 0 1 2

Each (data, detector, seconds, seed) is a training of its own, in a process of its own: learnt on train.json, scored on
val.json once the time is gone, at 320 px and batch 8. The clock starts before the first image is decoded and the network
is made; making the predictions is not counted. With `--clock process` it is the processor's time that counts, which is
fairer where other work shares the machine, and rivals then decode in the process that trains.

A training that is in the output file is not run again; seeds are the outermost loop and short trainings come first, so that
what is there after any time can be compared. Without DATA, the tables of what is there are printed. Where the data
come from: `trainings.py`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from rows import add_row, read_rows
from trainings import Row, datasets, train_and_score

OURS = ("lite0_fpn", "efficientdet_lite0", "yolov5n", "swin_tiny_fpn", "vit_tiny_pyramid")
RIVALS = ("torchvision ssdlite320", "effdet lite0")  # of `rivals.RIVALS`; torch is not to be loaded here
CLOCKS = {"wall": time.monotonic, "process": time.process_time}
KEY = ("data", "detector", "clock", "seconds", "seed", "changes")
AHEAD, BEHIND = 60, 1200  # seconds: ours after the first are compared with rivals after the second


def main() -> None:
    """Run what is not there yet; print the tables of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="DATA")
    parser.add_argument("--detectors", nargs="+", default=[*OURS, *RIVALS], choices=[*OURS, *RIVALS])
    parser.add_argument("--seconds", type=float, nargs="+", default=[120, 300, 600, 1200])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--set", nargs="*", default=[], dest="changes", metavar="NAME=VALUE", help="of our recipes")
    parser.add_argument("--out", type=Path, default=Path("time_to_ap.jsonl"))
    parser.add_argument("--worker", help="a training as JSON: run it in this process, and print its row")
    asked = parser.parse_args()
    if asked.worker:
        print(json.dumps(worker(json.loads(asked.worker))))
        return
    rows = read_rows(asked.out)
    done = [[row[key] for key in KEY] for row in rows]
    for seed, seconds, name, detector in itertools.product(asked.seeds, asked.seconds, asked.names, asked.detectors):
        values = [name, detector, asked.clock, seconds, seed, [] if detector in RIVALS else asked.changes]
        training = dict(zip(KEY, values, strict=True))
        if values in done:
            continue
        command = [sys.executable, __file__, "--worker", json.dumps(training)]
        shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append(json.loads(shown.splitlines()[-1]))
        add_row(asked.out, rows[-1])
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

    from foldfuse.errors import InputError
    from foldfuse.models import make_detector
    from foldfuse.recipes import load_recipe
    from foldfuse.training.budget import Budget

    data, held_out = datasets(training["data"], training["seed"])
    recipe = load_recipe(training["detector"], training["changes"])
    try:
        make_detector(recipe.detector, 1, pretrained=recipe.init_weights == "imagenet")
    except InputError:  # no weights on this machine
        recipe = replace(recipe, init_weights="none", frozen_stages=0)
    budget = Budget(seconds=training["seconds"], clock=CLOCKS[training["clock"]])
    found = train_and_score(data, held_out, recipe, budget, seed=training["seed"])
    starts = {"imagenet": "ImageNet", "none": "from scratch"}
    start = starts.get(recipe.init_weights, recipe.init_weights)
    return {"start": start, "steps": found.pop("steps_made"), "threads": torch.get_num_threads()} | found


def rival(training: Row) -> Row:
    """Train another library's detector by a plain loop, and score it by the same scorer."""
    import torch

    import rivals
    from foldfuse.evaluation.coco import score_predictions
    from foldfuse.training.budget import Budget

    data, held = datasets(training["data"], training["seed"])
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
    """A Markdown table: a row for each dataset, detector and start, for each time the means of AP and AP50 over the seeds."""
    times = sorted({row["seconds"] for row in rows})
    lines = [
        f"| data | detector | start | {' | '.join(f'{time:g} s: AP / AP50 (steps; seeds)' for time in times)} |",
        "|" + "---|" * (3 + len(times)),
    ]
    for kind in kinds(rows):
        cells = []
        for seconds in times:
            some = [row for row in rows if kind_of(row) == kind and row["seconds"] == seconds]
            if some:
                ap, ap50, steps = (mean(some, key) for key in ("ap", "ap50", "steps"))
                cells.append(f"{ap:.3f} / {ap50:.3f} ({steps:.0f}; {len(some)})")
            else:
                cells.append("")
        lines.append(f"| {' | '.join(kind)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def targets(rows: list[Row]) -> str:
    """A Markdown table: whether lite0_fpn after a minute has what each rival has after 20; "" if none is there."""
    lines = [
        "| data | start | rival | lite0_fpn after 1 min: AP / AP50 | rival after 20 min | reached |",
        "|---|---|---|---|---|---|",
    ]
    early = [row for row in rows if (row["detector"], row["seconds"]) == ("lite0_fpn", AHEAD)]
    late = [row for row in rows if row["detector"] in RIVALS and row["seconds"] == BEHIND]
    for (name, _, start), (data, rival, _) in itertools.product(kinds(early), kinds(late)):
        if name != data:
            continue
        ours, theirs = (
            (mean(some, "ap"), mean(some, "ap50"))
            for some in (
                [row for row in early if kind_of(row) == (name, "lite0_fpn", start)],
                [row for row in late if kind_of(row)[:2] == (name, rival)],
            )
        )
        reached = "yes" if ours >= theirs and ours[1] >= theirs[1] else "no"
        shown = (f"{ap:.3f} / {ap50:.3f}" for ap, ap50 in (ours, theirs))
        lines.append(f"| {name} | {start} | {rival} | {' | '.join(shown)} | {reached} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def kind_of(row: Row) -> tuple[str, str, str]:
    """The dataset, the detector and its start."""
    return row["data"], row["detector"], row["start"]


def kinds(rows: Iterable[Row]) -> list[tuple[str, str, str]]:
    """The kinds that there are rows of, by dataset and then in the order of the detectors here."""
    names = [*OURS, *RIVALS]
    found = dict.fromkeys(kind_of(row) for row in rows)
    order = list(dict.fromkeys(name for name, _, _ in found))
    return sorted(found, key=lambda kind: (order.index(kind[0]), names.index(kind[1])))


def mean(rows: list[Row], key: str) -> float:
    """Of one column."""
    return statistics.mean(row[key] for row in rows)


if __name__ == "__main__":
    main()
