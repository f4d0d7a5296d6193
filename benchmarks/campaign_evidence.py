"""Campaigns beside the best single training with all the time, in the order in which they tell most.

    python benchmarks/campaign_evidence.py --out evidence --hours 2
    python benchmarks/campaign_evidence.py --out evidence --hours 0

The second form runs nothing and writes the page from what is there. A pair of runs that has its row in campaign_evidence.jsonl
is not run again, nor is a run that has finished in the output folder; a stopped campaign is resumed. A campaign and its training
follow each other, since a machine's speed drifts; nothing begins that would not end within --hours, and a pair is never cut in
two. The datasets of the pool are divided 80/20 by the seed, with near-duplicates on one side.
Folders are looked for in $FOLDFUSE_SHARED or ../shared: data/ and pool/. Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from campaign import ROOT, SPARE, campaign, single
from foldfuse.data.readers.coco import read
from foldfuse.evaluation.coco import score_predictions
from foldfuse.formats.predictions import read_predictions
from foldfuse.system.durations import duration_option, parse_duration
from rows import read_rows
from trainings import EVALUATION, SHARED, datasets

RECIPE = "lite0_fpn"
MAIN = ("bccd", "aquatrash", "playing_cards")
ORDER = (  # deadline, datasets, seeds
    ("10m", MAIN, (0, 1)),
    ("10m", EVALUATION, (0, 1)),
    ("10m", MAIN, (2,)),
    ("30m", ("bccd",), (0, 1)),
    ("5m", MAIN, (0, 1)),
)
WAYS = ("campaign", "single")
METRIC = "ap"  # that campaigns choose by, since the page compares AP
PAGE = Path(__file__).parent / "campaign_evidence.md"
TEXT = f"""# Campaigns beside the best single training

By `python benchmarks/campaign_evidence.py`. A campaign (`--metric {METRIC}`) holds out a fifth of the annotated images, or
several in turn, and writes a submission; the single training (`{RECIPE}`, as its recipe comes) learns from all of them, has
the deadline less {SPARE} s, and predicts in the plain view. AP50 (AP) on test images whose annotations neither reads. The speed
of a machine may change in the hours between the ends of both.
"""


@dataclass(frozen=True)
class Cell:
    """One row of the page: a campaign and a training.

    Attributes:
        deadline: as a command takes it.
        data: the name of a dataset.
        seed: of both, and of the division of a dataset of the pool.
    """

    deadline: str
    data: str
    seed: int

    def folder(self, out: Path, way: str) -> Path:
        """The folder of the campaign, or of the training."""
        return out / f"{way}-{self.data}-{self.seed}-{self.deadline}"


def cells() -> list[Cell]:
    """All cells, in order; seeds are the outer loop of each block."""
    return [Cell(deadline, name, seed) for deadline, names, seeds in ORDER for seed, name in product(seeds, names)]


def files_of(cell: Cell, out: Path) -> tuple[Path, Path, list[str]]:
    """The annotations of the images to learn from and of the test images, and the option that says where the images lie."""
    if cell.data not in EVALUATION:
        return ROOT / cell.data / "train.json", ROOT / cell.data / "val.json", []
    source, folder = SHARED / "pool" / cell.data, out / "data" / f"{cell.data}-{cell.seed}"
    paths = folder / "train.json", folder / "val.json"
    if not all(path.is_file() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        document = json.loads((source / "instances.json").read_text(encoding="utf-8"))
        for path, part in zip(paths, datasets(cell.data, cell.seed), strict=True):
            ids = set(part.image_ids)
            kept = {
                **document,
                "images": [image for image in document["images"] if image["id"] in ids],
                "annotations": [row for row in document["annotations"] if row["image_id"] in ids],
            }
            path.write_text(json.dumps(kept), encoding="utf-8")
    return *paths, ["--images", str(source / "images")]


def is_done(cell: Cell, out: Path, way: str) -> bool:
    """Whether the campaign or the training of a cell has finished."""
    name = "submission.json" if way == "campaign" else "seconds.json"
    folder = cell.folder(out, way)
    if not (folder / name).is_file():
        return False
    return way == "single" or json.loads((folder / "campaign.json").read_text(encoding="utf-8"))["state"] == "finished"


def run(cell: Cell, out: Path, way: str) -> None:
    """Runs, or resumes, the campaign or the training of a cell."""
    data, test, images = files_of(cell, out)
    seconds, folder = parse_duration(cell.deadline), cell.folder(out, way)
    if way == "campaign":
        options = ["--metric", METRIC, *images]
        campaign(data, test, seed=cell.seed, deadline=seconds, folder=folder, options=options)
    else:
        single(data, test, seed=cell.seed, deadline=seconds, folder=folder, recipe=RECIPE, options=images)


def scored(cell: Cell, out: Path, way: str) -> tuple[float, float]:
    """AP50 and AP on the test images."""
    _, test, images = files_of(cell, out)
    truth = read(test, images=images[1] if images else None)
    name = "submission.json" if way == "campaign" else "predictions.json"
    score = score_predictions(read_predictions(cell.folder(out, way) / name, truth), truth)
    return score.ap50 or 0.0, score.ap or 0.0


def measured(cell: Cell, out: Path) -> dict[str, Any]:
    """The row of a cell: the scores of both ways, and what they were measured with."""
    facts = json.loads((cell.folder(out, "campaign") / "campaign.json").read_text(encoding="utf-8"))
    ours, theirs = (scored(cell, out, way) for way in WAYS)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=PAGE.parent, capture_output=True, text=True
    ).stdout
    return {
        "deadline": cell.deadline,
        "data": cell.data,
        "seed": cell.seed,
        "campaign": [round(value, 4) for value in ours],
        "single": [round(value, 4) for value in theirs],
        "folds": len(facts.get("folds_in_time") or facts["train_folds"] or [0]),
        "used": round(facts["seconds_used"] / facts["deadline_seconds"], 3),
        "cpu": facts["machine"]["cpu"],
        "commit": commit.strip(),
        "hours_apart": round(hours_apart(cell, out), 1),
    }


def hours_apart(cell: Cell, out: Path) -> float:
    """Hours between the ends of the campaign and of the training; a machine's speed may have changed meanwhile."""
    ends = (cell.folder(out, way) / name for way, name in zip(WAYS, ("submission.json", "seconds.json"), strict=True))
    first, second = (path.stat().st_mtime for path in ends)
    return abs(first - second) / 3600


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The page: a row for each cell that is there, the means of both ways, and what is missing."""
    lines = [TEXT]
    for deadline in dict.fromkeys(cell.deadline for cell in cells()):
        own = [row for row in rows if row["deadline"] == deadline]
        if not own:
            continue
        lines += [
            f"## {deadline}\n",
            "| data | seed | folds | campaign | single training | gain in AP | deadline used | hours apart | processor, commit |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in own:
            ours, theirs = (f"{ap50:.3f} ({ap:.3f})" for ap50, ap in (row["campaign"], row["single"]))
            gain, used = row["campaign"][1] - row["single"][1], row["used"]
            where = f"{row['cpu']}, {row['commit']}"
            words = (
                row["data"],
                row["seed"],
                row["folds"],
                ours,
                theirs,
                f"{gain:+.3f}",
                f"{used:.0%}",
                row["hours_apart"],
                where,
            )
            lines.append(f"| {' | '.join(map(str, words))} |")
        groups = {"the main sets": MAIN, "the evaluation sources of the pool": EVALUATION, "all": (*MAIN, *EVALUATION)}
        parts = {name: [row for row in own if row["data"] in sets] for name, sets in groups.items()}
        lines += ["", *(f"* {summary(name, part)}" for name, part in parts.items() if part), ""]
    missing = [cell for cell in cells() if row_of(cell, rows) is None]
    if missing:
        first = missing[0]
        lines.append(
            f"{len(missing)} of {len(cells())} pairs are missing, the next one: {first.deadline} on {first.data}, seed "
            f"{first.seed}.\n"
        )
    return "\n".join(lines)


def summary(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """The mean AP of both ways over some rows, and how much more the campaign has."""
    ours, theirs = (mean(row[way][1] for row in rows) for way in WAYS)
    wins = sum(row["campaign"][1] > row["single"][1] for row in rows)
    return (
        f"Mean AP of {name}: {ours:.3f} and {theirs:.3f}, {ours / max(theirs, 1e-9) - 1:+.1%}. The campaign has more in {wins} "
        f"of {len(rows)}."
    )


def row_of(cell: Cell, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of a cell, where it is there."""
    key = (cell.deadline, cell.data, cell.seed)
    return next((row for row in rows if (row["deadline"], row["data"], row["seed"]) == key), None)


def main(words: Sequence[str] | None = None) -> None:
    """Runs what is missing and has time, and writes the rows and the page after each cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("evidence"))
    parser.add_argument("--hours", type=float, default=8.0)
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args(words)
    end = time.monotonic() + 3600 * asked.hours
    record = asked.page.with_suffix(".jsonl")
    rows = read_rows(record)
    asked.out.mkdir(parents=True, exist_ok=True)
    for cell in cells():
        seconds = parse_duration(cell.deadline)
        ways = [way for way in WAYS if not is_done(cell, asked.out, way)]
        if row_of(cell, rows) is not None or time.monotonic() + seconds * len(ways) > end:
            continue
        for way in ways:
            print(f"{way} of {cell.data}, seed {cell.seed}, {duration_option(seconds)}", flush=True)
            run(cell, asked.out, way)
        rows.append(measured(cell, asked.out))
        record.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        asked.page.write_text(page(rows), encoding="utf-8")
    asked.page.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
