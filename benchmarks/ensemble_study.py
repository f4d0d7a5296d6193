"""The chosen ensemble in finished campaigns: chosen on their held-out images, measured on their test sets.

    foldfuse campaign DATA/train.json --test DATA/val.json --deadline 10m --seed SEED --out FOLDER
    taskset -c 0 python benchmarks/ensemble_study.py FOLDER... --views VIEWS --out study.jsonl

A FOLDER is a campaign's; its campaign.json names the data and the test set, whose annotations are read only here, to measure.
A campaign predicts the test set only in the views that it submits; this benchmark predicts the others and keeps them in VIEWS.
The metric that chooses an ensemble also measures it. A campaign that is in the output file is not run again.
`--useless N` adds N members with the boxes of a real one and its scores shuffled.
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

from foldfuse.campaign.task import predictions_path
from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.ensemble.build import build_ensemble
from foldfuse.ensemble.ensemble import Ensemble, apply_ensemble
from foldfuse.ensemble.member_views import MemberView
from foldfuse.evaluation.bootstrap import bootstrap_difference
from foldfuse.evaluation.metrics import measure
from foldfuse.formats.predictions import read_predictions, write_predictions
from foldfuse.fusion.methods import fuse
from foldfuse.inference.detector import load_detector, predict_views
from foldfuse.inference.tta import View
from foldfuse.storage.run import Run
from rows import add_row, read_rows

METRICS = ("ap50", "ap")
WAYS = ("chosen", "WBF of all", "WBF of plain views", "NMS of all", "best member", "best in hindsight")


def main() -> None:
    """Run the campaigns that the output file lacks, and print the tables of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--views", type=Path, default=Path("study-views"), help="folder for predictions made here")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the processor, for each search")
    parser.add_argument("--useless", type=int, default=0, help="members to add that score by chance")
    parser.add_argument("--out", type=Path, default=Path("study.jsonl"))
    asked = parser.parse_args()
    rows = read_rows(asked.out)
    for folder in asked.folders:
        facts = json.loads((folder / "campaign.json").read_text())
        data, seed = Path(facts["data"]).parent.name, facts["seed"]
        if (data, seed) in {(row["data"], row["seed"]) for row in rows}:
            continue
        test = read(Path(facts["test"]))
        train = read(Path(facts["data"]))
        members = [
            MemberView(segment["name"], view)
            for segment in facts["segments"]
            for view in segment["result"].get("predicted_views", ())
        ]
        on_val = {
            key: read_predictions(predictions_path(folder / "members" / key.member, "val", key.view), train)
            for key in members
        }
        on_test = {key: test_predictions(folder, key, asked.views / folder.name, test) for key in members}
        for key in members[: asked.useless]:
            useless = MemberView(f"useless {key.member}", key.view)
            on_val[useless], on_test[useless] = shuffled(on_val[key]), shuffled(on_test[key])
        row = {"data": data, "seed": seed} | {m: run(on_val, on_test, train, test, m, asked.seconds) for m in METRICS}
        rows.append(row)
        add_row(asked.out, row)
        print(row, flush=True)
    for metric in METRICS:
        print(table(rows, metric))


def test_predictions(folder: Path, key: MemberView, cache: Path, test: Dataset) -> Predictions:
    """A member's predictions of the test set in a view: the campaign's, or else predicted here once."""
    path = predictions_path(folder / "members" / key.member, "test", key.view)
    if not path.exists():
        path = cache / f"{key}.parquet"
    if not path.exists():
        view, trained = View.parse(key.view), Run(folder / "members" / key.member)
        model, classes = load_detector(trained)
        size = trained.recipe.image_size
        found = predict_views(model, test.samples, classes, image_size=size, views=(view,))[view]
        cache.mkdir(parents=True, exist_ok=True)
        write_predictions(found, path, test)
    return read_predictions(path, test)


def shuffled(member: Predictions) -> Predictions:
    """The member's boxes with its scores in another order."""
    return replace(member, scores=np.random.default_rng(0).permutation(member.scores))


def run(
    on_val: Mapping[MemberView, Predictions],
    on_test: Mapping[MemberView, Predictions],
    train: Dataset,
    test: Dataset,
    metric: str,
    seconds: float,
) -> dict[str, Any]:
    """Choose on the held-out images; {way: [value there, value on the test set]}, and the chosen ensemble."""
    plain = [str(key) for key in on_val if key.view == "1"]
    val_members, test_members = ({str(key): p for key, p in part.items()} for part in (on_val, on_test))
    val = train.subset(next(iter(on_val.values())).image_ids.tolist())
    report = build_ensemble(val_members, val, metric=metric, seconds=seconds, threads=1, clock=time.process_time)
    ways: dict[str, Callable[[Mapping[str, Predictions]], Predictions]] = {
        "chosen": lambda members: apply_ensemble(report.ensemble, members),
        "WBF of all": lambda members: fuse(list(members.values()), threads=1),
        "WBF of plain views": lambda members: fuse([members[name] for name in plain], threads=1),
        "NMS of all": lambda members: fuse(list(members.values()), method="nms", threads=1),
        "best member": lambda members: members[report.best_single[0]],
    }
    hindsight = max(test_members, key=lambda name: measure(test_members[name], test, metric=metric))
    ways["best in hindsight"] = lambda members: members[hindsight]
    values = {
        name: [measure(way(val_members), val, metric=metric), measure(way(test_members), test, metric=metric)]
        for name, way in ways.items()
    }
    gain = bootstrap_difference(ways["chosen"](test_members), ways["WBF of all"](test_members), test, metric)
    return {
        "values": values,
        "nested": report.nested_score,
        "against_all": [gain.value, gain.low, gain.high],
        "ensemble": describe(report.ensemble),
        "candidates": report.num_candidates,
        "images": [len(val), len(test)],
    }


def describe(ensemble: Ensemble) -> str:
    """The ensemble in a line."""
    parts = [
        f"{weight:g} x {name}^{ensemble.score_exponents.get(name, 1):g}" for name, weight in ensemble.weights.items()
    ]
    return f"{ensemble.method} {ensemble.iou:g} {ensemble.score_threshold:g}: {', '.join(parts)}"


def table(rows: list[dict[str, Any]], metric: str) -> str:
    """A Markdown table of the test sets: a row a campaign, then a row a dataset, then wins and losses."""
    rows = sorted(rows, key=lambda row: (row["data"], row["seed"]))
    lines = [
        f"\n| {metric} on the test set | seed | {' | '.join(WAYS)} | chosen, held-out | nested |",
        "|" + "---|" * (len(WAYS) + 4),
    ]
    values_of = {(row["data"], row["seed"]): {w: row[metric]["values"][w][1] for w in WAYS} for row in rows}
    for row in rows:
        values = " | ".join(f"{v:.3f}" for v in values_of[row["data"], row["seed"]].values())
        lines.append(
            f"| {row['data']} | {row['seed']} | {values} | {row[metric]['values']['chosen'][0]:.3f} | "
            f"{row[metric]['nested']:.3f} |"
        )
    for data in sorted({data for data, _ in values_of}):
        columns = {w: [values[w] for (of, _), values in values_of.items() if of == data] for w in WAYS}
        spread = [f"{mean(c):.3f}" + (f" ± {stdev(c):.3f}" if len(c) > 1 else "") for c in columns.values()]
        lines.append(f"| {data}, mean ± spread | {len(columns[WAYS[0]])} | {' | '.join(spread)} | | |")
    counts = []
    for way in WAYS:
        gains = [values["chosen"] - values[way] for values in values_of.values()]
        counts.append(f"{sum(g > 0 for g in gains)} : {sum(g < 0 for g in gains)}")
    lines.append(f"| chosen wins : loses | | – | {' | '.join(counts[1:])} | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
