"""Planted label errors found by `foldfuse review` and by cleanlab's ObjectLab, from the same predictions.

    python benchmarks/review.py CAMPAIGN... --out review.jsonl

A CAMPAIGN is a finished campaign's folder. Its held-out and its test images, none of which its members have learnt from, get
errors of one kind in 5, 10 and 20 % of the boxes, with three seeds; the fused predictions stay. The members have learnt from
annotations without these errors, which favours every method here. cleanlab (2.9.0, Apache-2.0) is compared where it is
installed:

    python -m venv compare && compare/bin/pip install cleanlab==2.9.0

ObjectLab's threshold of confidence is chosen here by the planted errors themselves, for each data set and kind, which favours
it: its defaults (0.95 and 0.5) are meant for other networks' scores.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from foldfuse.boxes import area, pairwise_iou
from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.coco import read
from foldfuse.detections import Annotations, Array, Predictions
from foldfuse.evaluation.label_errors import KINDS, find_label_errors
from foldfuse.formats.predictions import read_predictions
from rows import add_row, read_rows

RATES = (0.05, 0.1, 0.2)
SEEDS = (0, 1, 2)
HIGH = (0.95, 0.7, 0.5, 0.3)  # thresholds of confidence that ObjectLab is tried with
LOW = (0.5, 0.2, 0.05)
LOWEST = 0.05  # detections with lower scores are not given to it, which saves most of its time
OFFSET = 10**9  # between the ids of the held-out and of the test images

Ranking = list[tuple[float, int]]  # (score, number of the planted error or -1)


def main() -> None:
    """Run what the output file lacks, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=Path("review.jsonl"))
    asked = parser.parse_args()
    rows = read_rows(asked.out)
    for folder in asked.folders:
        dataset, predictions = unseen(folder)
        name = Path(json.loads((folder / "campaign.json").read_text())["data"]).parent.name
        done = {(r["data"], r["kind"], r["rate"], r["seed"]) for r in rows}
        for kind in KINDS:
            for rate in RATES:
                for seed in SEEDS:
                    if (name, kind, rate, seed) in done:
                        continue
                    row = {"data": name, "kind": kind, "rate": rate, "seed": seed}
                    row |= run(dataset, predictions, kind, rate, seed)
                    rows.append(row)
                    add_row(asked.out, row)
    print(table(rows))


def unseen(folder: Path) -> tuple[Dataset, Predictions]:
    """The held-out and the test images of a campaign as one dataset, and its fused predictions of them."""
    facts = json.loads((folder / "campaign.json").read_text())
    train, test = read(facts["data"]), read(facts["test"])
    held_out = read_predictions(folder / "fused_oof.parquet", train)
    of_test = read_predictions(folder / "fused_test.parquet", test)
    assert not held_out.learnt_ids & set(held_out), "only held-out images are evidence"
    samples = [s for s in train.samples if s.id in held_out]
    samples += [replace(s, id=s.id + OFFSET) for s in test.samples if s.id in of_test]
    found = {i: held_out[i] for i in held_out} | {i + OFFSET: of_test[i] for i in of_test}
    return replace(train, samples=tuple(samples)), Predictions.of(found, train.classes)


def run(dataset: Dataset, predictions: Predictions, kind: str, rate: float, seed: int) -> dict[str, Any]:
    """Average precision, and precision among as many suggestions as there are errors, of each method."""
    rng = np.random.default_rng(1000 * seed + 7)
    changed, planted = plant(dataset, kind, rate, rng)
    start = time.process_time()
    suggestions = [s for s in find_label_errors(changed, predictions) if s.kind == kind]
    seconds = time.process_time() - start
    if kind == "missed":
        ranking = hits([(s.score, s.image_id, s.box, s.label) for s in suggestions], planted)
    else:
        numbers = numbers_of(planted)
        ranking = [(s.score, numbers.get((s.image_id, s.annotation), -1)) for s in suggestions]
    result: dict[str, Any] = {"planted": len(planted), "seconds": round(seconds, 2)}
    result["foldfuse"] = measures(ranking, len(planted))
    others = objectlab(changed, predictions, kind, planted)
    result["objectlab"] = {str(at): measures(ranking, len(planted)) for at, ranking in others.items()}
    return result


# Planted errors: drawn otherwise than those that `review` learns from


def plant(dataset: Dataset, kind: str, rate: float, rng: np.random.Generator) -> tuple[Dataset, list[Any]]:
    """The dataset with errors in a share of its boxes, and the errors.

    An error is (image id, box, label) for a missed object; (image id, position) else, with both positions of a duplicate.
    """
    places = [(i, j) for i, s in enumerate(dataset.samples) for j in np.flatnonzero(~s.annotations.crowd).tolist()]
    chosen = defaultdict(list)
    for n in rng.permutation(len(places))[: max(1, round(rate * len(places)))].tolist():
        chosen[places[n][0]].append(places[n][1])
    samples, planted = list(dataset.samples), []
    for i, rows in chosen.items():
        s = samples[i]
        old, size = s.annotations, (s.width, s.height)
        boxes, labels = old.boxes.copy(), old.labels.copy()
        added: list[tuple[Array, int]] = []
        for j in rows:
            if kind == "missed":
                planted.append((s.id, old.boxes[j], int(old.labels[j])))
            elif kind == "class":
                labels[j] = (labels[j] + 1 + rng.integers(len(dataset.classes) - 1)) % len(dataset.classes)
                planted.append((s.id, j))
            elif kind == "place":
                if (moved := moved_edges(boxes[j], size, rng, 0.3, (0.3, 0.7))) is not None:
                    boxes[j] = moved
                    planted.append((s.id, j))
            else:
                new = moved_edges(boxes[j], size, rng, 0.08, (0.6, 0.98)) if kind == "duplicate" else None
                if kind == "spurious":
                    new = empty_place(boxes, size, rng)
                if new is not None:
                    label = int(labels[j]) if kind == "duplicate" else int(rng.integers(len(dataset.classes)))
                    added.append((new, label))
                    # Either of the two boxes of one object may go.
                    planted.append(
                        (s.id, len(boxes) + len(added) - 1, j)
                        if kind == "duplicate"
                        else (s.id, len(boxes) + len(added) - 1)
                    )
        keep = np.ones(len(boxes), bool)
        keep[rows] = kind != "missed"
        new_boxes = np.array([box for box, _ in added]).reshape(-1, 4)
        samples[i] = replace(
            s,
            annotations=Annotations(
                np.concatenate([boxes[keep], new_boxes]),
                np.r_[labels[keep], np.array([label for _, label in added], np.int64)],
                np.r_[old.crowd[keep], np.zeros(len(added), bool)],
                np.concatenate([area(boxes[keep]), area(new_boxes)]),
            ),
        )
    return replace(dataset, samples=tuple(samples)), planted


def moved_edges(box: Array, size: tuple[int, int], rng: Any, spread: float, iou: tuple[float, float]) -> Array | None:
    """A box whose four edges are moved, each by itself; None where no try has an IoU within the range."""
    sides = np.tile(box[2:] - box[:2], 2)
    for _ in range(200):
        moved = box + rng.normal(0, spread, 4) * sides
        moved = np.clip(moved, 0, [*size, *size])
        if (moved[2:] > moved[:2] + 1).all() and iou[0] <= pairwise_iou(box[None], moved[None])[0, 0] <= iou[1]:
            return moved
    return None


def empty_place(boxes: Array, size: tuple[int, int], rng: Any) -> Array | None:
    """A box of any size and shape where nothing is annotated."""
    for _ in range(200):
        sides = np.array(size) * np.exp(rng.uniform(np.log(0.04), np.log(0.4), 2))
        corner = rng.uniform(0, 1, 2) * (np.array(size) - sides)
        box = np.concatenate([corner, corner + sides])
        if not len(boxes) or pairwise_iou(box[None], boxes).max() < 0.1:
            return box
    return None


# cleanlab


def objectlab(dataset: Dataset, predictions: Predictions, kind: str, planted: Sequence[Any]) -> dict[float, Ranking]:
    """{threshold: ObjectLab's ranking}; empty where it has no score for the kind, or cleanlab is not installed."""
    try:
        from cleanlab.object_detection import rank
    except ImportError:
        return {}
    rank._get_overlap_matrix, rank._get_dist_matrix = _overlaps, _nearness  # same numbers, without loops over pairs
    if kind == "duplicate":
        return {}
    samples = dataset.samples
    labels = [{"bboxes": s.annotations.boxes, "labels": s.annotations.labels} for s in samples]
    num_classes = max(4, len(dataset.classes))  # it may take three for another format
    detections = []
    for found in (predictions[s.id] for s in samples):
        kept = found[found.scores >= LOWEST]
        rows = np.c_[kept.boxes.astype(np.float64), kept.scores]
        table = np.empty(num_classes, object)
        table[:] = [rows[kept.labels == k] for k in range(num_classes)]
        detections.append(table)
    # The boxes' similarities, which take most of its time, are the same for all thresholds; 0.9 is its default.
    inputs = rank._get_valid_inputs_for_compute_scores(0.9, labels, detections)
    numbers, rankings = numbers_of(planted) if kind != "missed" else {}, {}
    for threshold in LOW if kind in ("place", "spurious") else HIGH:
        if kind == "missed":
            scores = rank.compute_overlooked_box_scores(high_probability_threshold=threshold, auxiliary_inputs=inputs)
            rankings[threshold] = hits(one_for_each_place(_listed(samples, detections, scores)), planted)
            continue
        if kind == "class":
            scores = rank.compute_swap_box_scores(high_probability_threshold=threshold, auxiliary_inputs=inputs)
        else:  # a badly located box is the nearest that it has to a spurious one
            scores = rank.compute_badloc_box_scores(low_probability_threshold=threshold, auxiliary_inputs=inputs)
        rankings[threshold] = [
            (-float(x), numbers.get((s.id, j), -1))
            for s, own in zip(samples, scores, strict=True)
            for j, x in enumerate(own)
        ]
    return rankings


def _overlaps(boxes: Array, others: Array) -> Array:
    """(n, m) cleanlab's IoU of all pairs."""
    return pairwise_iou(np.reshape(boxes, (-1, 4)), np.reshape(others, (-1, 4)))


def _nearness(boxes: Array, others: Array) -> Array:
    """(n, m) cleanlab's nearness of the centres of all pairs: 1 at one place, falling by e each 10 pixels."""
    a, b = ((each[:, :2] + each[:, 2:]) / 2 for each in (np.reshape(boxes, (-1, 4)), np.reshape(others, (-1, 4))))
    return np.exp(-0.1 * np.linalg.norm(a[:, None] - b[None], axis=-1))


def _listed(samples: Sequence[Any], detections: Sequence[Array], scores: Sequence[Array]) -> list[Any]:
    """(score, image id, box, label) of the detections that have a score."""
    listed = []
    for s, table, own in zip(samples, detections, scores, strict=True):
        rows, classes = np.concatenate(list(table)), np.repeat(np.arange(len(table)), [len(t) for t in table])
        listed += [
            (-float(x), s.id, box[:4], int(k)) for x, box, k in zip(own, rows, classes, strict=True) if np.isfinite(x)
        ]
    return listed


def one_for_each_place(listed: Sequence[tuple[float, int, Array, int]]) -> list[tuple[float, int, Array, int]]:
    """Without boxes that overlap another of a better score, as `review` has it."""
    kept: dict[int, list[tuple[float, int, Array, int]]] = defaultdict(list)
    for one in sorted(listed, key=lambda row: -row[0]):
        boxes = np.array([other[2] for other in kept[one[1]]]).reshape(-1, 4)
        if pairwise_iou(one[2][None], boxes).max(initial=0) < 0.5:
            kept[one[1]].append(one)
    return [one for own in kept.values() for one in own]


# Measures


def numbers_of(planted: Sequence[Any]) -> dict[tuple[int, int], int]:
    """{(image id, position): number of the planted error}; both boxes of a duplicate are of one error."""
    return {(image_id, row): n for n, (image_id, *rows) in enumerate(planted) for row in rows}


def hits(listed: Sequence[tuple[float, int, Array | None, int | None]], planted: Sequence[Any]) -> Ranking:
    """Which removed annotation each suggestion finds: the one of its class with IoU 0.5 or more, each once."""
    by_image = defaultdict(list)
    for n, (image_id, box, label) in enumerate(planted):
        by_image[image_id].append((n, box, label))
    free = set(range(len(planted)))
    ranking: Ranking = []
    for score, image_id, box, label in sorted(listed, key=lambda row: -row[0]):
        fitting = [
            (float(pairwise_iou(box[None], other[None])[0, 0]), n)
            for n, other, k in by_image[image_id]
            if n in free and k == label
        ]
        best = max(fitting, default=(0.0, -1))
        ranking.append((score, best[1] if best[0] >= 0.5 else -1))
        if best[0] >= 0.5:
            free.discard(best[1])
    return ranking


def measures(ranking: Ranking, number: int) -> dict[str, float]:
    """Average precision over the planted errors, and precision among the first `number`; ties count against the method."""
    ordered = sorted(ranking, key=lambda row: (-row[0], row[1] >= 0))
    is_hit = np.array([n >= 0 for _, n in ordered], bool)
    precision = np.cumsum(is_hit) / np.arange(1, len(is_hit) + 1)
    return {
        "ap": round(float(precision[is_hit].sum() / number), 4),
        "precision": round(float(is_hit[:number].sum() / number), 4),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A row for each data set, kind and rate; means over the seeds."""
    lines = [
        "| data | kind | errors | planted | AP | precision at k | ObjectLab AP | ObjectLab precision at k |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups = defaultdict(list)
    for row in rows:
        groups[row["data"], row["kind"], row["rate"]].append(row)
    best: dict[tuple[str, str], str] = {}
    for data, kind in {(r["data"], r["kind"]) for r in rows}:
        own = [r for r in rows if (r["data"], r["kind"]) == (data, kind) and r["objectlab"]]
        if own:
            best[data, kind] = max(own[0]["objectlab"], key=lambda t: sum(r["objectlab"][t]["ap"] for r in own))
    for (data, kind, rate), own in groups.items():
        mean = {m: np.mean([r["foldfuse"][m] for r in own]) for m in ("ap", "precision")}
        cells = [
            data,
            kind,
            f"{rate:.0%}",
            f"{np.mean([r['planted'] for r in own]):.0f}",
            f"{mean['ap']:.3f}",
            f"{mean['precision']:.3f}",
        ]
        if (data, kind) in best:
            at = best[data, kind]
            cells += [f"{np.mean([r['objectlab'][at][m] for r in own]):.3f}" for m in ("ap", "precision")]
        else:
            cells += ["–", "–"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
