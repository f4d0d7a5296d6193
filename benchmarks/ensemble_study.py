"""The chosen ensemble in finished campaigns: chosen on their held-out images, measured on their test sets.

    foldfuse campaign DATA/train.json --test DATA/val.json --deadline 10m --seed SEED --out FOLDER
    taskset -c 0 python benchmarks/ensemble_study.py FOLDER... --views VIEWS --out study.jsonl

A FOLDER is a campaign's; its campaign.json names the data and the test set, whose annotations are read only here, to measure.
A campaign predicts the test set only in the views that it submits; the others are predicted here and kept in VIEWS.
Choices are made by the metric that they are measured by. A campaign that is in the output file is not run again.
With `--useless N` so many members join that find the boxes of a real one and score them by chance.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from foldfuse.system import host

host.tune_malloc()

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.ensemble.ensemble import Ensemble, apply_ensemble, build_ensemble
from foldfuse.evaluation.bootstrap import bootstrap_difference
from foldfuse.evaluation.metrics import measure
from foldfuse.formats.predictions import (
    read_predictions,
    write_predictions,
)
from foldfuse.fusion.methods import fuse
from foldfuse.inference.detector import (
    load_detector,
    predict_views,
)
from foldfuse.inference.tta import View
from foldfuse.storage.run import Run

METRICS = ("ap50", "ap")
WAYS = ("chosen", "WBF of all", "WBF of plain views", "NMS of all", "best member", "best in hindsight")


def main() -> None:
    """Run what is not there yet; print the tables of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--views", type=Path, default=Path("study-views"), help="folder for predictions made here")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the processor, for each search")
    parser.add_argument("--useless", type=int, default=0, help="members to add that score by chance")
    parser.add_argument("--out", type=Path, default=Path("study.jsonl"))
    asked = parser.parse_args()
    rows = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    for folder in asked.folders:
        facts = json.loads((folder / "campaign.json").read_text())
        data, seed = Path(facts["data"]).parent.name, facts["seed"]
        if (data, seed) in {(row["data"], row["seed"]) for row in rows}:
            continue
        test = read(Path(facts["test"]))
        held_names = {f"{p.parent.name}@{p.stem.removeprefix('held@')}": p for p in folder.glob("members/*/held@*")}
        train = read(Path(facts["data"]))
        held = {name: read_predictions(path, train) for name, path in sorted(held_names.items())}
        target = {name: target_of(folder, name, asked.views / folder.name, test) for name in held}
        for name in list(held)[: asked.useless]:
            held[f"useless {name}"], target[f"useless {name}"] = by_chance(held[name]), by_chance(target[name])
        row = {"data": data, "seed": seed} | {m: run(held, target, train, test, m, asked.seconds) for m in METRICS}
        rows.append(row)
        with asked.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)
    for metric in METRICS:
        print(table(rows, metric))


def target_of(folder: Path, name: str, made: Path, test: Dataset) -> Predictions:
    """What a member finds in the test set in a view: the campaign's predictions, or else made here once."""
    member, view = name.split("@")
    path = folder / "members" / member / f"target@{view}.parquet"
    if not path.exists():
        path = made / f"{name}.parquet"
    if not path.exists():
        seen_in, trained = View.parse(view), Run(folder / "members" / member)
        model, classes = load_detector(trained)
        size = trained.recipe.image_size
        found = predict_views(model, test.samples, classes, image_size=size, views=(seen_in,))[seen_in]
        made.mkdir(parents=True, exist_ok=True)
        write_predictions(found, path, test)
    return read_predictions(path, test)


def by_chance(member: Predictions) -> Predictions:
    """Its boxes, with its scores in another order."""
    return replace(member, scores=np.random.default_rng(0).permutation(member.scores))


def run(
    held: Mapping[str, Predictions],
    target: Mapping[str, Predictions],
    train: Dataset,
    test: Dataset,
    metric: str,
    seconds: float,
) -> dict[str, Any]:
    """Choose on the held-out images; {way: [value there, value on the test set]} and what was chosen."""
    seen = set(next(iter(held.values())).image_ids.tolist())
    kept = train.subset(seen)
    built = build_ensemble(held, kept, metric=metric, seconds=seconds, threads=1, clock=time.process_time)
    plain = [name for name in held if name.endswith("@1")]
    ways: dict[str, Callable[[Mapping[str, Predictions]], Predictions]] = {
        "chosen": lambda members: apply_ensemble(built.ensemble, members),
        "WBF of all": lambda members: fuse(list(members.values()), threads=1),
        "WBF of plain views": lambda members: fuse([members[name] for name in plain], threads=1),
        "NMS of all": lambda members: fuse(list(members.values()), method="nms", threads=1),
        "best member": lambda members: members[built.best_single[0]],
    }
    hindsight = max(target, key=lambda name: measure(target[name], test, metric=metric))
    ways["best in hindsight"] = lambda members: members[hindsight]
    values = {
        name: [measure(way(held), kept, metric=metric), measure(way(target), test, metric=metric)]
        for name, way in ways.items()
    }
    gain = bootstrap_difference(ways["chosen"](target), ways["WBF of all"](target), test, metric)
    return {
        "values": values,
        "nested": built.nested_score,
        "against_all": [gain.mean, gain.low, gain.high],
        "ensemble": told(built.ensemble),
        "tried": built.num_candidates,
        "images": [len(kept), len(test)],
    }


def told(ensemble: Ensemble) -> str:
    """The ensemble in a line."""
    parts = [
        f"{weight:g} x {name}^{ensemble.score_exponents.get(name, 1):g}" for name, weight in ensemble.weights.items()
    ]
    return f"{ensemble.method} {ensemble.iou:g} {ensemble.score_threshold:g}: {', '.join(parts)}"


def table(rows: list[dict[str, Any]], metric: str) -> str:
    """A Markdown table of the test sets: a row a campaign, then a row a data set, then wins and losses."""
    rows = sorted(rows, key=lambda row: (row["data"], row["seed"]))
    lines = [
        f"\n| {metric} on the test set | seed | {' | '.join(WAYS)} | chosen, held-out | nested |",
        "|" + "---|" * (len(WAYS) + 4),
    ]
    on_test = {(row["data"], row["seed"]): {w: row[metric]["values"][w][1] for w in WAYS} for row in rows}
    for row in rows:
        values = " | ".join(f"{v:.3f}" for v in on_test[row["data"], row["seed"]].values())
        lines.append(
            f"| {row['data']} | {row['seed']} | {values} | {row[metric]['values']['chosen'][0]:.3f} | "
            f"{row[metric]['nested']:.3f} |"
        )
    for data in sorted({data for data, _ in on_test}):
        columns = {w: [values[w] for (of, _), values in on_test.items() if of == data] for w in WAYS}
        spread = [f"{mean(c):.3f}" + (f" ± {stdev(c):.3f}" if len(c) > 1 else "") for c in columns.values()]
        lines.append(f"| {data}, mean ± spread | {len(columns[WAYS[0]])} | {' | '.join(spread)} | | |")
    counts = []
    for way in WAYS:
        gains = [values["chosen"] - values[way] for values in on_test.values()]
        counts.append(f"{sum(g > 0 for g in gains)} : {sum(g < 0 for g in gains)}")
    lines.append(f"| chosen wins : loses | | – | {' | '.join(counts[1:])} | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
