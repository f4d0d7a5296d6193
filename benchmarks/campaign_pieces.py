"""Ablation of finished campaigns: the test score without one of their parts, on annotations that they never read.

    python benchmarks/campaign_pieces.py runs/campaign-*

A FOLDER is a campaign's; its campaign.json names the data and the test set, whose annotations are read only here.
Ensembles are chosen on the held-out images, as the campaign does. Nothing is trained or predicted: a campaign whose last
ensemble did not need all views of all members is measured with the views that it has.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from foldfuse.campaign.task import TEST, VAL, predictions_path
from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.ensemble.build import build_ensemble
from foldfuse.ensemble.ensemble import apply_ensemble
from foldfuse.ensemble.member_views import MemberView
from foldfuse.evaluation.metrics import measure
from foldfuse.formats.predictions import read_predictions

WAYS = ("as submitted", "no rescoring", "no views", "no fusion", "no cooldown runs")
METRICS = ("ap50", "ap")
Pairs = dict[MemberView, tuple[Predictions, Predictions]]  # of the held-out and of the test images


def main() -> None:
    """Prints a row for each campaign, then the mean change without each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=7.0, help="of each search of an ensemble")
    arguments = parser.parse_args()
    print(f"| data | seed | {' | '.join(WAYS)} |\n{'|---' * (2 + len(WAYS))}|")
    changes: dict[str, list[list[float]]] = {way: [] for way in WAYS[1:]}
    for folder in arguments.folders:
        facts = json.loads((folder / "campaign.json").read_text(encoding="utf-8"))
        scores = pieces(folder, arguments.seconds)
        cells = (f"{ap50:.3f} ({ap:.3f})" for ap50, ap in scores.values())
        print(f"| {Path(facts['data']).parent.name} | {facts['seed']} | {' | '.join(cells)} |", flush=True)
        for way, deltas in changes.items():
            deltas.append([without - whole for without, whole in zip(scores[way], scores[WAYS[0]], strict=True)])
    means = (f"{mean(d[0] for d in deltas):+.3f} ({mean(d[1] for d in deltas):+.3f})" for deltas in changes.values())
    print(f"| mean change | | | {' | '.join(means)} |")


def pieces(folder: Path, seconds: float) -> dict[str, tuple[float, ...]]:
    """{ablation: AP50 and AP on the test set} of one campaign."""
    facts = json.loads((folder / "campaign.json").read_text(encoding="utf-8"))
    val = read(facts["data"]).subset(read_predictions(folder / "fused_oof.parquet", read(facts["data"])).image_ids)
    test = read(facts["test"])
    members = predictions_of(folder, facts["segments"], val, test)
    plain = {key: pair for key, pair in members.items() if key.view == "1"}
    bases = {segment["name"] for segment in facts["segments"] if segment["role"] == "base"}

    def score(predictions: Predictions) -> tuple[float, ...]:
        return tuple(measure(predictions, test, metric=metric) for metric in METRICS)

    def chosen(some: Pairs) -> tuple[float, ...]:
        val_predictions = {str(key): pair[0] for key, pair in some.items()}
        report = build_ensemble(val_predictions, val, metric="ap50", seconds=seconds, seed=facts["seed"])
        return score(apply_ensemble(report.ensemble, {str(key): pair[1] for key, pair in some.items()}))

    best = max(plain, key=lambda key: measure(plain[key][0], val, metric="ap50"))
    return {
        "as submitted": score(read_predictions(folder / "fused_test.parquet", test)),
        "no rescoring": chosen(members),
        "no views": chosen(plain),
        "no fusion": score(plain[best][1]),
        "no cooldown runs": chosen({key: pair for key, pair in plain.items() if key.member in bases}),
    }


def predictions_of(folder: Path, segments: Sequence[Mapping[str, Any]], val: Dataset, test: Dataset) -> Pairs:
    """The predictions of all members and views that have predicted both sets."""
    pairs: Pairs = {}
    for segment in segments:
        for view in segment["result"].get("predicted_views", ()):
            own = folder / "members" / segment["name"]
            paths = predictions_path(own, VAL, view), predictions_path(own, TEST, view)
            if all(path.exists() for path in paths):
                found = read_predictions(paths[0], val), read_predictions(paths[1], test)
                pairs[MemberView(segment["name"], view)] = found
    return pairs


if __name__ == "__main__":
    main()
