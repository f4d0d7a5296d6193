"""The gain of crop rescoring in finished campaigns: fitted on their held-out images, measured on their test sets.

    taskset -c 0 python benchmarks/rescore.py FOLDER... --out rescore.jsonl

A FOLDER is a campaign's, whose test images have annotations; they are read only here, to measure. The predictions are those of
the fusion, before the campaign's own crop rescoring. As in a campaign, four boxes for each object of an image get crops. What
the output file has already is not run again.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from foldfuse.system import host

host.tune_malloc()

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from foldfuse.campaign.planning.allocation import crops_per_image
from foldfuse.data.readers.coco import read
from foldfuse.evaluation.bootstrap import bootstrap_difference
from foldfuse.evaluation.metrics import measure
from foldfuse.formats.predictions import read_predictions
from foldfuse.inference.crop_encoder import DEFAULT_NETWORK, NETWORKS
from foldfuse.inference.crop_features import imagenet_encoder
from foldfuse.inference.rescorer import apply_rescorer
from foldfuse.inference.rescoring import fit_rescorer
from foldfuse.system.durations import duration_option
from rows import add_row, read_rows


def main() -> None:
    """Rescores the campaigns that the output file lacks, and prints the tables of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=Path("rescore.jsonl"))
    parser.add_argument("--networks", nargs="+", default=[DEFAULT_NETWORK], choices=NETWORKS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[128])
    asked = parser.parse_args()
    rows = read_rows(asked.out)
    done = {(row["campaign"], row["network"], row["size"]) for row in rows}
    for network, size, folder in product(asked.networks, asked.sizes, asked.folders):
        facts = json.loads((folder / "campaign.json").read_text(encoding="utf-8"))
        name = (
            f"{dataset_name(Path(facts['data']))}, {duration_option(facts['deadline_seconds'])}, seed {facts['seed']}"
        )
        name += f", begun {facts['started']}"
        if (name, network, size) in done:
            continue
        rows.append({"campaign": name, "network": network, "size": size, **rescored(folder, facts, network, size)})
        add_row(asked.out, rows[-1])
        print(rows[-1], flush=True)
    print(tables(rows))


def dataset_name(path: Path) -> str:
    """The name of the dataset of an annotation file: that of its folder, without the seed of a division."""
    name, _, seed = path.parent.name.rpartition("-")
    return name if name and seed.isdecimal() else path.parent.name


def rescored(folder: Path, facts: Mapping[str, Any], network: str, size: int) -> dict[str, Any]:
    """Fits on the held-out images, applies to the test set, and measures there, by the campaign's metric and AP50."""
    images = None if facts["images"] is None else Path(facts["images"])
    train, test = (read(Path(facts[name]), images=images) for name in ("data", "test"))
    fusion = folder / "submissions" / str(facts["submissions"] - bool(facts.get("rescoring")))
    held_out = read_predictions(fusion / "fused_oof.parquet", train)
    before = read_predictions(fusion / "fused_test.parquet", test)
    began, metric = time.process_time(), facts["fused"]["metric"]
    fitted = fit_rescorer(
        held_out,
        train,
        encoder=imagenet_encoder(network, size=size),
        metric=metric,
        max_detections=crops_per_image(train.num_boxes, len(train)),
    )
    always = apply_rescorer(replace(fitted.rescorer, blend=fitted.best), before, test.samples)  # whatever is expected
    seconds = time.process_time() - began
    return {
        "metric": metric,
        "fitted": fitted.to_dict(),
        "before": {m: measure(before, test, metric=m) for m in ("ap50", "ap")},
        "always": {m: measure(always, test, metric=m) for m in ("ap50", "ap")},
        "gain": asdict(bootstrap_difference(always, before, test, metric)),
        "seconds": round(seconds, 1),
    }


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row a campaign, and the means of each network and size over the campaigns that all of them have."""
    lines = [
        "| campaign | by | network, px | right | alpha | expected (95 %) | AP50 | AP | gain in the metric (95 %) | s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: (r["campaign"], r["size"], r["network"])):
        fitted, gain = row["fitted"], row["gain"]
        share = f"{fitted['alpha']:g}{'' if fitted['background'] else ' given object'}"
        scores = (f"{row['before'][m]:.3f} -> {row['always'][m]:.3f}" for m in ("ap50", "ap"))
        expected = fitted["gain"]
        lines.append(
            f"| {row['campaign'].rpartition(', begun')[0]} | {row['metric']} | {row['network'][-5:]}, {row['size']} | "
            f"{fitted['accuracy']:.0%} | {share if fitted['accepted'] else 'not accepted'} | "
            f"{expected['value']:+.3f} ({expected['low']:+.3f} to {expected['high']:+.3f}) | {' | '.join(scores)} | "
            f"{gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f}) | {row['seconds']:.0f} |"
        )
    lines += ["", "| data | network, px | campaigns | accepted | AP50 | AP | s |", "|---|---|---|---|---|---|---|"]
    for data in sorted({data_of(row) for row in rows}):
        own = [row for row in rows if data_of(row) == data]
        settings = sorted({(row["size"], row["network"]) for row in own})
        common = set.intersection(*({r["campaign"] for r in own if (r["size"], r["network"]) == s} for s in settings))
        for size, network in settings:
            these = [r for r in own if (r["size"], r["network"]) == (size, network) and r["campaign"] in common]
            lines.append(
                f"| {data} | {network[-5:]}, {size} | {len(these)} | {sum(r['fitted']['accepted'] for r in these)} | "
                f"{applied_gain(these, 'ap50'):+.4f} | {applied_gain(these, 'ap'):+.4f} | "
                f"{mean(r['seconds'] for r in these):.0f} |"
            )
    return "\n".join(lines)


def data_of(row: Mapping[str, Any]) -> str:
    """The name of a row's dataset."""
    return str(row["campaign"].partition(",")[0])


def applied_gain(rows: Sequence[Mapping[str, Any]], metric: str) -> float:
    """The mean gain on the test sets; 0 in a campaign that does not expect one, since nothing is rescored there."""
    return mean((r["always"][metric] - r["before"][metric]) * r["fitted"]["accepted"] for r in rows)


if __name__ == "__main__":
    main()
