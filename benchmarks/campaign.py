"""Scores of campaigns, and of a single training with the same time, on test images whose annotations neither reads.

    python benchmarks/campaign.py bccd aquatrash playing_cards --seeds 0 1 2 --deadline 10m --out runs
    python benchmarks/campaign.py bccd aquatrash playing_cards --seeds 0 1 2 --deadline 10m --out runs --single lite0_fpn

DATA folders (train.json, val.json) are looked for in $FOLDFUSE_SHARED/data or ../shared/data. Finished runs in the output
folder are scored, not run again; a campaign that was stopped is resumed. Each command is a process of its own; put
`taskset -c 0` before this one for one core. The single training uses all annotated images and predicts in the plain view; SPARE
seconds of the deadline are reserved for starting and predicting.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from foldfuse.data.readers.coco import read
from foldfuse.evaluation.coco import score_predictions
from foldfuse.formats.predictions import read_predictions
from foldfuse.storage.ledger import snapshot
from foldfuse.system.durations import parse_duration

ROOT = Path(os.environ.get("FOLDFUSE_SHARED", Path(__file__).parents[2] / "shared")) / "data"
SPARE = 15


def main() -> None:
    """Runs what is missing, and prints a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--deadline", default="10m")
    parser.add_argument("--single", metavar="RECIPE", help="one training of this recipe instead of campaigns")
    parser.add_argument("--set", nargs="*", default=[], dest="changes", metavar="NAME=VALUE", help="of the recipes")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    print("| data | way | seed | AP50 | AP | out-of-fold AP50 | seconds |")
    print("|---|---|---|---|---|---|---|")
    for seed in arguments.seeds:
        for name in arguments.names:
            folder = arguments.out / f"{arguments.single or 'campaign'}-{name}-{seed}"
            deadline = parse_duration(arguments.deadline)
            changes = [word for change in arguments.changes for word in ("--set", change)]
            files = ROOT / name / "train.json", ROOT / name / "val.json"
            if arguments.single:
                recipe, out_of_fold = arguments.single, None
                seconds = single(*files, seed=seed, deadline=deadline, folder=folder, recipe=recipe, options=changes)
                predictions = folder / "predictions.json"
            else:
                facts = campaign(*files, seed=seed, deadline=deadline, folder=folder, options=changes)
                predictions, seconds = folder / "submission.json", facts["seconds_used"]
                out_of_fold = facts["fused"]["ap50"]
            truth = read(ROOT / name / "val.json")
            score = score_predictions(read_predictions(predictions, truth), truth)
            way = arguments.single or "campaign"
            oof = "–" if out_of_fold is None else f"{out_of_fold:.3f}"
            print(
                f"| {name} | {way} | {seed} | {score.ap50:.3f} | {score.ap:.3f} | {oof} | {seconds:.0f} |",
                flush=True,
            )


def campaign(
    data: Path, test: Path, *, seed: int, deadline: float, folder: Path, options: Sequence[str] = ()
) -> dict[str, Any]:
    """The facts of a campaign, which runs, or resumes, where it has not finished; `options` are more words of its command."""
    if not (folder / "campaign.sqlite").is_file():
        own = ["--test", str(test), "--deadline", f"{deadline:.0f}s", "--seed", str(seed), "--out", str(folder)]
        run("campaign", str(data), *own, *options)
    elif snapshot(folder)["state"] != "finished":
        run("campaign", "--resume", str(folder))
    facts: dict[str, Any] = json.loads((folder / "campaign.json").read_text(encoding="utf-8"))
    return facts


def single(
    data: Path, test: Path, *, seed: int, deadline: float, folder: Path, recipe: str, options: Sequence[str] = ()
) -> float:
    """Seconds of one training and its predictions.json, which are made where they are missing; `options` as for `campaign`."""
    took = folder / "seconds.json"
    if not took.is_file():
        start = time.monotonic()
        if folder.exists():
            shutil.rmtree(folder)  # of a stopped one: its clock is not known
        budget = f"{deadline - SPARE:.0f}s"
        words = ["--recipe", recipe, "--budget", budget, "--seed", str(seed), *options]
        run("train", str(data), "--out", str(folder), *words)
        images = [word for name, value in pairwise(options) if name == "--images" for word in (name, value)]
        run("predict", str(folder), str(test), "--out", str(folder / "predictions.json"), *images)
        took.write_text(json.dumps(time.monotonic() - start))
    seconds: float = json.loads(took.read_text())
    return seconds


def run(*words: str) -> None:
    """Runs a command of Foldfuse to its end."""
    command = [sys.executable, "-m", "foldfuse", *words]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
