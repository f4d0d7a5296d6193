"""How fast candidate ensembles are tried: fused, matched, and measured by AP50 on all images and without each fold.

    python benchmarks/ensemble.py [--images 1000] [--candidates 200] [--threads 2]

The made-up members are as crowded as those of a contest: five detectors, 200 boxes an image each, most of low score.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.detections import Annotations, Predictions
from foldfuse.ensemble import trials
from foldfuse.ensemble.search import ALL, IOUS, METHODS, SCORE_THRESHOLDS, Candidate, SearchSpace
from foldfuse.evaluation.coco import score_predictions
from foldfuse.evaluation.matching import ground_truth
from foldfuse.evaluation.metrics import METRICS
from foldfuse.fusion.methods import fuse

MEMBERS, BOXES, CLASSES, SIDE = 5, 200, 10, 1024


def make(images: int, rng: np.random.Generator) -> tuple[list[Predictions], Dataset]:
    """Members that find boxes at 60 places an image, of which 8 are objects, and the dataset of the objects."""
    places, objects = 60, 8
    centre, side = rng.uniform(0, SIDE, (images, places, 2)), rng.uniform(20, 200, (images, places, 2))
    boxes = np.concatenate([centre - side / 2, centre + side / 2], -1)
    labels = rng.integers(0, CLASSES, (images, places))
    names = tuple(f"class {k}" for k in range(CLASSES))
    samples = tuple(
        Sample(
            i,
            Path("none"),
            "none",
            SIDE,
            SIDE,
            Annotations(boxes[i, :objects], labels[i, :objects], np.zeros(objects, bool), side[i, :objects].prod(-1)),
        )
        for i in range(images)
    )
    members = []
    for _ in range(MEMBERS):
        place = rng.integers(0, places, (images, BOXES))
        row = np.arange(images)[:, None]
        found = boxes[row, place] + rng.normal(0, 8, (images, BOXES, 4))
        found[..., 2:] = np.maximum(found[..., 2:], found[..., :2] + 1)
        scores = np.where(place < objects, rng.beta(2, 2, place.shape), rng.beta(0.5, 4, place.shape))
        members.append(
            Predictions(
                np.arange(images),
                np.arange(images + 1) * BOXES,
                found.reshape(-1, 4).astype(np.float32),
                scores.reshape(-1).astype(np.float32),
                labels[row, place].reshape(-1),
                names,
            )
        )
    return members, Dataset(samples, names, tuple(range(1, CLASSES + 1)), Path("made-up"))


def candidates(rng: np.random.Generator) -> Iterator[Candidate]:
    """Candidates such as the search makes: each setting is a random one that the search tries."""
    while True:
        weights = rng.choice([0.0, 1.0, 1.0, 2.0, 3.0], MEMBERS)
        if (weights > 0).sum() > 1:
            powers = np.where(weights > 0, rng.choice([0.5, 1.0, 1.0, 2.0], MEMBERS), 1.0)
            yield Candidate(
                tuple(weights.tolist()),
                tuple(powers.tolist()),
                METHODS[rng.integers(len(METHODS))],
                float(rng.choice(IOUS)),
                float(rng.choice(SCORE_THRESHOLDS)),
            )


def measured(space: SearchSpace, candidate: Candidate) -> float:
    """The score of a candidate that is tried anew."""
    space.cache.clear()
    return space.score(candidate)


def timed(name: str, work: Callable[[], object], times: int) -> None:
    """Print wall and processor milliseconds of one of `times` calls."""
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(times):
        work()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    print(f"| {name} | {times} | {1e3 * wall / times:.1f} | {1e3 * processor / times:.1f} | {1e3 * wall / times:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    members, dataset = make(options.images, rng)
    bench = trials.make_bench(members, ground_truth(dataset), METRICS["ap50"])
    fold_of = rng.permutation(options.images) % 5
    stream = candidates(rng)
    for method in METHODS:  # compile
        SearchSpace(bench, fold_of, options.threads, time.monotonic).score(
            Candidate((1.0,) * MEMBERS, (1.0,) * MEMBERS, method)
        )
    full = Candidate((1.0,) * MEMBERS, (1.0,) * MEMBERS)
    fused = fuse(members)
    difference = SearchSpace(bench, fold_of, options.threads, time.monotonic).score(full, ALL) - (
        score_predictions(fused, dataset).ap50 or 0.0
    )

    load = os.getloadavg()[0]
    print(f"{options.images} images, {MEMBERS} members, {BOXES} boxes an image, {options.threads} threads")
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load before the start {load:.1f}")
    print(f"AP50 of WBF of all: differs from the official score by {difference:.1e}\n")
    print("| candidate | times | ms each | processor ms each | seconds for 1,000 |\n|---|---|---|---|---|")
    space = SearchSpace(bench, fold_of, options.threads, time.monotonic)
    timed("as the search draws them", lambda: space.score(next(stream)), options.candidates)
    timed("WBF of all boxes of all members", lambda: measured(space, full), options.candidates // 4)
    timed(
        "the same by `fuse` and `score_predictions`",
        lambda: score_predictions(fuse(members, threads=options.threads), dataset),
        max(1, options.candidates // 40),
    )


if __name__ == "__main__":
    main()
