"""Whether what campaigns say about themselves holds on images that they never read.

    python benchmarks/campaign_honesty.py --data bccd aquatrash playing_cards --seeds 0 1 2 3 4 5 6 7 8 9 --out honesty
    python benchmarks/campaign_honesty.py runs/campaign-* --out honesty

The first form runs campaigns. For each seed the images of a DATA folder (train.json, val.json, images; looked for in
$FOLDFUSE_SHARED/data or ../shared/data) are divided anew: 80 % for the campaign, 20 % unseen. The second form measures finished
campaigns, whose test images have annotations. The annotations of the unseen images are read only here. Rows are kept in
honesty.jsonl beside the page, so that it goes on after any machine: a campaign that is there is neither run nor measured
again, and a stopped one is resumed; the page is written after each. Seeds are the outermost loop, so that what is there after
any time can be compared.

Measured are the statements of the report: the gain (nested cross-validation score minus the best single member's) with its 95 %
interval, and the scores of the fusion. The unseen gain is that of the submitted fusion over the same single member. Crop
rescoring comes after these statements, so that the fusion is measured without it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from campaign import ROOT, campaign
from ensemble_study import test_predictions
from foldfuse.data.folds import make_folds
from foldfuse.data.readers.coco import read
from foldfuse.ensemble.member_views import MemberView
from foldfuse.evaluation.bootstrap import bootstrap_difference
from foldfuse.evaluation.metrics import measure
from foldfuse.formats.predictions import read_predictions
from foldfuse.system.durations import duration_option, parse_duration
from rows import add_row, read_rows

PARTS = 5  # one of them is unseen
Z = 1.96  # of a 95 % interval
PAGE = Path(__file__).parent / "honesty.md"
TEXT = """# Do campaigns' own statements hold?

By `python benchmarks/campaign_honesty.py`. Each campaign states a gain over its best single member with a 95 % interval, from
the held-out images. The *unseen gain* is that of the same fusion over the same member on images that the campaign never read.
Earlier versions stated the gain over the score that the best member has on the images which chose it, an *optimistic baseline*;
now that member is chosen without each fold too, a *nested baseline*.

An unseen gain is measured on few images too, so that it lies in an honest interval less often than 95 %: in 83 % of campaigns
where both sets of images have the same noise. *The two gains agree* where they differ by no more than the chance of both sets
allows, as is to be expected in 95 %. Campaigns on one dataset share images, so that they are not independent.
Of the two campaigns on playing cards with each of the seeds 15 to 18, the second could spend only a tenth of its time on crop
rescoring, the first 15 %.
"""


def main() -> None:
    """Runs and measures what is missing, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="finished campaigns")
    parser.add_argument("--data", nargs="*", default=[], metavar="NAME", help="datasets to run campaigns on")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--deadline", default="3m")
    parser.add_argument("--out", type=Path, default=Path("honesty"))
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    record = asked.page.with_suffix(".jsonl")
    rows = read_rows(record)

    def add(folder: Path, data: str, name: str) -> None:
        if name not in {row["campaign"] for row in rows}:
            rows.append({"campaign": name, "data": data, **measured(folder, asked.out / "views")})
            add_row(record, rows[-1])
        asked.page.write_text(page(rows), encoding="utf-8")
        print(summary(rows), flush=True)

    for folder in asked.folders:
        facts = json.loads((folder / "campaign.json").read_text(encoding="utf-8"))
        data = Path(facts["data"]).parent.name
        add(folder, data, f"{data}, begun {facts['started']}")
    deadline = parse_duration(asked.deadline)
    for seed in asked.seeds:
        for name in asked.data:
            divided_name = f"{name}-{seed}-{duration_option(deadline)}"
            if divided_name in {row["campaign"] for row in rows}:
                continue
            train, unseen = divided(name, seed, asked.out / "data" / f"{name}-{seed}")
            folder = asked.out / divided_name
            images = ["--images", str(ROOT / name / "images")]
            campaign(train, unseen, seed=seed, deadline=deadline, folder=folder, options=images)
            add(folder, name, divided_name)


def divided(name: str, seed: int, folder: Path) -> tuple[Path, Path]:
    """The annotations of a dataset in two files: 80 % of its images, and the unseen others, by the seed."""
    paths = folder / "train.json", folder / "unseen.json"
    if all(path.is_file() for path in paths):
        return paths
    whole: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
    for part in ("train", "val"):
        document = json.loads((ROOT / name / f"{part}.json").read_text(encoding="utf-8"))
        number = {image["id"]: len(whole["images"]) + i for i, image in enumerate(document["images"], start=1)}
        whole["images"] += [{**image, "id": number[image["id"]]} for image in document["images"]]
        for row in document["annotations"]:
            new = {"id": len(whole["annotations"]) + 1, "image_id": number[row["image_id"]]}
            whole["annotations"].append({**row, **new})
        whole["categories"] = document["categories"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "whole.json"
    path.write_text(json.dumps(whole))
    folds = make_folds(read(path, images=ROOT / name / "images"), num_folds=PARTS, seed=seed)
    for target, ids in zip(paths, (set(folds.train_ids(0)), set(folds.val_ids(0))), strict=True):
        kept = {
            "images": [image for image in whole["images"] if image["id"] in ids],
            "annotations": [row for row in whole["annotations"] if row["image_id"] in ids],
            "categories": whole["categories"],
        }
        target.write_text(json.dumps(kept))
    return paths


def measured(folder: Path, views: Path) -> dict[str, Any]:
    """The statements of a campaign, and what is true on its test images.

    Args:
        folder: of the campaign.
        views: folder for predictions that the campaign did not need and that are made here.
    """
    facts = json.loads((folder / "campaign.json").read_text(encoding="utf-8"))
    fused, metric = facts["fused"], facts["fused"]["metric"]
    images = None if facts["images"] is None else Path(facts["images"])
    unseen, held_out = read(Path(facts["test"]), images=images), read(Path(facts["data"]), images=images)
    rescored = bool(facts.get("rescoring"))
    number = facts["submissions"] - rescored  # the submission before crop rescoring is that of the fusion alone
    fusion = folder / "submissions" / str(number)
    on_unseen = read_predictions(fusion / "fused_test.parquet", unseen)
    on_held_out = read_predictions(fusion / "fused_oof.parquet", held_out)
    baselines = [
        test_predictions(folder, key, views / folder.resolve().name, unseen)
        for key in parts_of(fused["best_single"][0], facts)
    ]
    differences = [bootstrap_difference(on_unseen, single, unseen, metric) for single in baselines]
    interval, nested_single = fused["interval"], fused.get("nested_single")
    row: dict[str, Any] = {
        "seed": facts["seed"],
        "seconds": facts["deadline_seconds"],
        "metric": metric,
        "folds": len(facts.get("folds") or [0]),
        "images": [len(on_held_out), len(unseen)],
        "fusion": measure(on_held_out, held_out.subset(on_held_out.image_ids), metric=metric),
        "nested": fused["nested"],
        "single": fused["best_single"][1] if nested_single is None else nested_single,
        "baseline": "optimistic" if nested_single is None else "nested",
        "interval": interval,
        "unseen": measure(on_unseen, unseen, metric=metric),
        "unseen_gain": mean(d.value for d in differences),
        "unseen_interval": [mean(d.low for d in differences), mean(d.high for d in differences)],
        "submitted": [
            fused["value"],
            measure(read_predictions(folder / "fused_test.parquet", unseen), unseen, metric=metric),
        ],
        "rescored": rescored,
    }
    return row


def parts_of(name: str, facts: dict[str, Any]) -> list[MemberView]:
    """The segments, one for each fold, of a member in a view that is called "member@view"."""
    key = MemberView.parse(name)
    assert key is not None, f"a campaign names its members member@view; got {name}"
    done = [s for s in facts["segments"] if s["state"] == "done" and s["fold"] in (facts.get("folds") or [0])]
    own = [s["name"] for s in done if s["name"].removesuffix(f"-fold{s['fold']}") == key.member]
    return [MemberView(name, key.view) for name in own]


def wilson(hits: int, number: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share."""
    share, spread = hits / number, Z**2 / number
    middle = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / number + spread / (4 * number))
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)


def gain(row: dict[str, Any]) -> float:
    """The reported gain."""
    return float(row["nested"] - row["single"])


def holds(row: dict[str, Any]) -> bool:
    """Whether the unseen gain lies in the reported interval."""
    return bool(row["interval"][0] <= row["unseen_gain"] <= row["interval"][1])


def agrees(row: dict[str, Any]) -> bool:
    """Whether reported and unseen gain differ by no more than the chance of both sets of images."""
    halves = [(high - low) / 2 for low, high in (row["interval"], row["unseen_interval"])]
    return abs(row["unseen_gain"] - gain(row)) <= math.hypot(*halves)


def share_text(hits: int, number: int) -> str:
    """Such as "27 of 30 (90 %, 95 % interval 74 to 97 %)"."""
    low, high = wilson(hits, number)
    return f"{hits} of {number} ({hits / number:.0%}, 95 % interval {100 * low:.0f} to {100 * high:.0f} %)"


def mean_text(values: Sequence[float]) -> str:
    """The mean with its 95 % interval by the normal distribution."""
    half = f" ± {Z * stdev(values) / math.sqrt(len(values)):.3f}" if len(values) > 1 else ""
    return f"{mean(values):+.3f}{half}"


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """The table of what holds: a line for each deadline and baseline, one for each baseline, and one for all."""
    heads = "campaigns", "unseen gain in the reported interval", "the two gains agree", "fusion: out-of-fold - unseen"
    lines = [row_text((*heads, "nested - unseen", "submission: out-of-fold - unseen")), "|---|---|---|---|---|---|"]
    groups = {
        f"of {duration_option(seconds)}, {baseline} baseline": [
            row for row in rows if (row["seconds"], baseline_of(row)) == (seconds, baseline)
        ]
        for seconds, baseline in sorted({(row["seconds"], baseline_of(row)) for row in rows})
    }
    baselines = sorted({baseline_of(row) for row in rows})
    groups |= {f"all, {name} baseline": [row for row in rows if baseline_of(row) == name] for name in baselines}
    if len(baselines) > 1:
        groups["all"] = list(rows)
    for name, some in groups.items():
        told = [row for row in some if row["interval"] is not None]
        cells = [share_text(sum(map(check, told)), len(told)) if told else "–" for check in (holds, agrees)]
        nested = [row["nested"] - row["unseen"] for row in some if row["nested"] is not None]
        cells += [mean_text([row["fusion"] - row["unseen"] for row in some]), mean_text(nested) if nested else "–"]
        cells.append(mean_text([row["submitted"][0] - row["submitted"][1] for row in some]))
        lines.append(row_text((f"{name} ({len(some)})", *cells)))
    return "\n".join(lines)


def row_text(cells: Sequence[object]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def baseline_of(row: dict[str, Any]) -> str:
    """Whether the stated gain is over a "nested" or an "optimistic" baseline."""
    return str(row.get("baseline", "optimistic"))


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The page of all campaigns."""
    silent = sum(row["interval"] is None for row in rows)
    left_out = f"{silent} of the campaigns state no gain, since views had to leave the ensemble for lack of time."
    heads = (
        "data",
        "seed",
        "deadline",
        "folds",
        "held-out, unseen images",
        "metric",
        "baseline",
        "reported gain",
        "unseen gain",
        "holds",
    )
    scores = "fusion out-of-fold", "nested", "fusion unseen", "submission out-of-fold", "submission unseen"
    lines = [TEXT, summary(rows), "", *([left_out, ""] if silent else []), "## Campaigns", ""]
    lines += [row_text((*heads, *scores)), f"|{'---|' * 15}"]
    for row in sorted(rows, key=lambda row: (row["seconds"], row["data"], row["seed"])):
        told = row["interval"] is not None
        cells = [
            row["data"],
            row["seed"],
            duration_option(row["seconds"]),
            row["folds"],
            f"{row['images'][0]}, {row['images'][1]}",
            row["metric"],
            baseline_of(row),
            f"{gain(row):+.3f} ({row['interval'][0]:+.3f} to {row['interval'][1]:+.3f})" if told else "–",
            f"{row['unseen_gain']:+.3f}",
            ("yes" if holds(row) else "no") if told else "–",
            f"{row['fusion']:.3f}",
            "–" if row["nested"] is None else f"{row['nested']:.3f}",
            f"{row['unseen']:.3f}",
            f"{row['submitted'][0]:.3f}{' (rescored)' if row['rescored'] else ''}",
            f"{row['submitted'][1]:.3f}",
        ]
        lines.append(row_text(cells))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
