"""The gain of crop rescoring in finished campaigns: fitted on their held-out images, measured on their test sets.

    taskset -c 0 python benchmarks/rescore.py FOLDER... --out rescore.jsonl

A FOLDER is a campaign's. Its campaign.json names the data and the test set, whose annotations are read only here, to measure.
A campaign that is in the output file already is not run again.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from foldfuse.system import host

host.tune_malloc()

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from foldfuse.campaign.task import predictions_path
from foldfuse.data.folds import read_folds
from foldfuse.data.readers.coco import read
from foldfuse.evaluation.bootstrap import bootstrap_difference
from foldfuse.evaluation.metrics import measure
from foldfuse.formats.predictions import read_predictions
from foldfuse.inference import rescoring as rescore
from foldfuse.inference.crop_features import imagenet_encoder
from foldfuse.inference.rescorer import apply_rescorer


def main() -> None:
    """Run the campaigns that the output file lacks, and print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=Path("rescore.jsonl"))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--most", type=int, default=30)
    parser.add_argument("--members", action="store_true", help="rescore each chosen member's plain view as well")
    asked = parser.parse_args()
    rows = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    done = {(row["data"], row["seed"], row["of"], row["size"], row["most"]) for row in rows}
    for folder in asked.folders:
        facts = json.loads((folder / "campaign.json").read_text())
        for of in ("fused", *(members(folder) if asked.members else ())):
            key = (Path(facts["data"]).parent.name, facts["seed"], of, asked.size, asked.most)
            if key not in done:
                row = dict(zip(("data", "seed", "of", "size", "most"), key, strict=True)) | run(
                    folder, facts, of, asked
                )
                rows.append(row)
                with asked.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)
    print(table(rows))


def members(folder: Path) -> list[str]:
    """The members with predictions of both image sets in the plain view."""
    runs = sorted(path for path in (folder / "members").iterdir() if path.is_dir())
    return [run.name for run in runs if all(predictions_path(run, split, "1").exists() for split in ("val", "test"))]


def run(folder: Path, facts: Mapping[str, Any], of: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Fit on the held-out images, apply to the test set, and measure there."""
    train, test = read(Path(facts["data"])), read(Path(facts["test"]))
    paths = folder / "fused_oof.parquet", folder / "fused_test.parquet"
    if of != "fused":
        run_folder = folder / "members" / of
        paths = predictions_path(run_folder, "val", "1"), predictions_path(run_folder, "test", "1")
    held, target = (read_predictions(path, dataset) for path, dataset in zip(paths, (train, test), strict=True))
    began = time.process_time()
    fitted = rescore.fit_rescorer(
        held,
        train,
        folds=read_folds(folder / "folds.json"),
        encoder=imagenet_encoder(size=asked.size),
        max_detections=asked.most,
    )
    seconds_fit = time.process_time() - began
    after = apply_rescorer(fitted.rescorer, target, test.samples)
    seconds = time.process_time() - began
    gain = {metric: bootstrap_difference(after, target, test, metric) for metric in ("ap50", "ap")}
    always = replace(fitted.rescorer, blend=fitted.best)  # the gain whatever is expected
    forced = after if fitted.accepted else apply_rescorer(always, target, test.samples)
    return {
        "fitted": fitted.to_dict(),
        "test": {m: [measure(target, test, metric=m), measure(after, test, metric=m)] for m in ("ap50", "ap")},
        "test_gain": {m: asdict(g) for m, g in gain.items()},
        "forced": measure(forced, test) - measure(target, test),
        "seconds_fit": round(seconds_fit, 1),
        "seconds": round(seconds, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table, a row a campaign."""
    lines = [
        "| data | seed | of | px, boxes | accuracy | alpha | expected (95 %) | test AP50 | gain (95 %) | always | test AP | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: (r["data"], r["of"], r["size"], r["most"], r["seed"])):
        fitted, (before, after), ap = row["fitted"], row["test"]["ap50"], row["test"]["ap"]
        share = (
            f"{fitted['alpha']:g}{'' if fitted['background'] else ' given object'}"
            if fitted["accepted"]
            else "not accepted"
        )
        expected, gained = (
            f"{g['value']:+.3f} ({g['low']:+.3f} to {g['high']:+.3f})"
            for g in (fitted["gain"], row["test_gain"]["ap50"])
        )
        lines.append(
            f"| {row['data']} | {row['seed']} | {row['of']} | {row['size']}, {row['most']} | {fitted['accuracy']:.0%} | "
            f"{share} | {expected} | {before:.3f} -> {after:.3f} | {gained} | {row['forced']:+.3f} | "
            f"{ap[0]:.3f} -> {ap[1]:.3f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
