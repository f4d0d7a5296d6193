"""What each piece of finished campaigns was worth on pictures whose answers they never read: take it away, measure again.

    python benchmarks/campaign_pieces.py runs/campaign-*

A FOLDER is a campaign's; its campaign.json names the data and the test set, whose annotations are read here alone. Whatever
is chosen is chosen on the held-back pictures, as the campaign does it. Nothing is trained or predicted: a campaign whose last
choice did not ask all members for all views is measured with those that it did ask for.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.ensemble.ensemble import apply_ensemble, build_ensemble
from foldfuse.evaluation.metrics import measure
from foldfuse.formats.predictions import read_predictions

WAYS = ("as submitted", "no second opinion", "no views", "no fusion", "no branches")
METRICS = ("ap50", "ap")


def main() -> None:
    """Print a row for each campaign, then the mean change by taking each piece away."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=7.0, help="of each choice")
    asked = parser.parse_args()
    print(f"| data | seed | {' | '.join(WAYS)} |\n{'|---' * (2 + len(WAYS))}|")
    changes: dict[str, list[list[float]]] = {way: [] for way in WAYS[1:]}
    for folder in asked.folders:
        facts = json.loads((folder / "campaign.json").read_text(encoding="utf-8"))
        scores = pieces(folder, asked.seconds)
        cells = (f"{ap50:.3f} ({ap:.3f})" for ap50, ap in scores.values())
        print(f"| {Path(facts['data']).parent.name} | {facts['seed']} | {' | '.join(cells)} |", flush=True)
        for way, found in changes.items():
            found.append([mine - whole for mine, whole in zip(scores[way], scores[WAYS[0]], strict=True)])
    told = (f"{mean(c[0] for c in found):+.3f} ({mean(c[1] for c in found):+.3f})" for found in changes.values())
    print(f"| mean change | | | {' | '.join(told)} |")


def pieces(folder: Path, seconds: float) -> dict[str, tuple[float, ...]]:
    """{way: AP50 and AP on the test set} of one campaign."""
    facts = json.loads((folder / "campaign.json").read_text(encoding="utf-8"))
    held = read(facts["data"]).subset(read_predictions(folder / "fused_oof.parquet", read(facts["data"])).image_ids)
    test = read(facts["test"])
    members = views_of(folder, held, test)
    plain = {name: pair for name, pair in members.items() if name.endswith("@1")}
    trunks = {name: pair for name, pair in plain.items() if name.startswith("trunk")}

    def score(found: Predictions) -> tuple[float, ...]:
        return tuple(measure(found, test, metric=metric) for metric in METRICS)

    def chosen(some: dict[str, tuple[Predictions, Predictions]]) -> tuple[float, ...]:
        built = build_ensemble(
            {n: p[0] for n, p in some.items()}, held, metric="ap50", seconds=seconds, seed=facts["seed"]
        )
        return score(apply_ensemble(built.ensemble, {n: p[1] for n, p in some.items()}))

    best = max(plain, key=lambda name: measure(plain[name][0], held, metric="ap50"))
    return {
        "as submitted": score(read_predictions(folder / "fused_test.parquet", test)),
        "no second opinion": chosen(members),
        "no views": chosen(plain),
        "no fusion": score(plain[best][1]),
        "no branches": chosen(trunks),
    }


def views_of(folder: Path, held: Dataset, test: Dataset) -> dict[str, tuple[Predictions, Predictions]]:
    """{"member@view": its predictions of the held-back and of the test pictures}, where it has both."""
    found = {}
    for path in sorted((folder / "members").glob("*/test@*.parquet")):
        name = f"{path.parent.name}@{path.stem.split('@')[1]}"
        own = path.with_name(path.name.replace("target", "held"))
        found[name] = read_predictions(own, held), read_predictions(path, test)
    return found


if __name__ == "__main__":
    main()
