"""Print how much faster fusion is here than in ensemble-boxes and torchvision, measured in turns in one process.

    python benchmarks/fusion.py [--quick]

Each image holds about 200 boxes a member in 10 classes: 150 objects that every member sees with its own jitter and a
chance of 0.9, and 65 boxes of its own. Times are the CPU time of the process where one thread works, else the clock's;
of several turns the median, then the least. Both sides get their arrays ready-made; compilation is not counted.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from statistics import median

import ensemble_boxes
import numpy as np
import torch
from torchvision.ops import batched_nms

from foldfuse.detections import Array, Detections, Predictions
from foldfuse.fusion import ensemble_boxes as drop_in
from foldfuse.fusion import methods as fuse

CLASSES = tuple("abcdefghij")
SIDE = 1000.0  # pixels, of every image


def scene(rng: np.random.Generator, *, members: int, boxes: int = 200, classes: int = 10) -> list[Detections]:
    """What each member found in one image of SIDE x SIDE pixels: about `boxes` boxes."""
    objects, own = round(boxes * 0.75), round(boxes * 0.325)

    def random_boxes(n: int) -> tuple[Array, Array, Array]:
        sides = np.exp(rng.uniform(np.log(20), np.log(250), (n, 2)))
        return rng.uniform(0, SIDE, (n, 2)), sides, rng.integers(0, classes, n)

    truth = random_boxes(objects)
    found = []
    for _ in range(members):
        seen = rng.random(objects) < 0.9
        centres, sides, labels = (
            np.concatenate(c) for c in zip([t[seen] for t in truth], random_boxes(own), strict=True)
        )
        centres = centres + rng.normal(0, 0.04, centres.shape) * sides
        sides = sides * np.exp(rng.normal(0, 0.06, sides.shape))
        corners = np.concatenate([centres - sides / 2, centres + sides / 2], 1).clip(0, SIDE)
        solid = (corners[:, 2:] > corners[:, :2]).all(1)
        scores = np.concatenate([rng.beta(4, 2, seen.sum()), rng.beta(1, 6, own)]).clip(0.001, 1)
        found.append(Detections(corners[solid].astype(np.float32), scores[solid].astype(np.float32), labels[solid]))
    return found


def timed(functions: dict[str, Callable[[], object]], turns: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each function in each turn; they take turns, so that a busy neighbour slows all alike."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(turns):
        for name, function in functions.items():
            start = clock()
            function()
            seconds[name].append(clock() - start)
    return seconds


def lists(images: list[list[Detections]], *, size: float) -> list[tuple[list[Array], list[Array], list[Array]]]:
    """The images in the form that the reference takes."""
    return [([d.boxes / size for d in p], [d.scores for d in p], [d.labels for d in p]) for p in images]


def columnar(images: list[list[Detections]]) -> list[Predictions]:
    """The images as one Predictions a member."""
    return [Predictions.of(dict(enumerate(found)), CLASSES) for found in zip(*images, strict=True)]


def row(name: str, theirs: list[float], ours: list[float], images: int) -> None:
    """Print one line of the table, in milliseconds an image."""
    a, b = [s * 1e3 / images for s in theirs], [s * 1e3 / images for s in ours]
    ratio, best = median(a) / median(b), min(a) / min(b)
    print(f"| {name} | {median(a):.3g} | {median(b):.3g} | {ratio:.0f} | {best:.0f} |", flush=True)


def compare(members: int, *, images: int, turns: int) -> None:
    """Print the table's lines for this many members."""
    rng = np.random.default_rng(members)
    scenes = [scene(rng, members=members) for _ in range(images)]
    given, unit = columnar(scenes), lists(scenes, size=SIDE)
    joined = [Detections.cat(found) for found in scenes]
    tensors = [tuple(map(torch.from_numpy, (d.boxes, d.scores, d.labels))) for d in joined]
    few = slice(0, max(2, images // 8))

    def each(function: Callable[..., object], part: slice = slice(None), **options: object) -> Callable[[], object]:
        return lambda: [function(list(b), list(s), list(k), **options) for b, s, k in unit[part]]

    one = timed({"theirs": each(ensemble_boxes.weighted_boxes_fusion, few), "ours": lambda: fuse.wbf(given, threads=1),
                 "drop-in": each(drop_in.weighted_boxes_fusion)}, turns, time.process_time)  # fmt: skip
    scale = images / len(unit[few])
    row(f"WBF, {members} members, 1 thread", [s * scale for s in one["theirs"]], one["ours"], images)
    row(f"WBF, {members} members, drop-in", [s * scale for s in one["theirs"]], one["drop-in"], images)
    two = timed({"theirs": each(ensemble_boxes.weighted_boxes_fusion, few), "ours": lambda: fuse.wbf(given, threads=2)},
                turns, time.perf_counter)  # fmt: skip
    row(f"WBF, {members} members, 2 threads", [s * scale for s in two["theirs"]], two["ours"], images)

    for name, theirs, ours, repeats in [
        ("NMW", each(ensemble_boxes.non_maximum_weighted, few), lambda: fuse.nmw(given, threads=1), scale),
        ("Soft-NMS", each(ensemble_boxes.soft_nms, few), lambda: fuse.soft_nms(given, threads=1), scale),
        ("NMS, against torchvision", lambda: [batched_nms(b, s, k, 0.55) for b, s, k in tensors],
         lambda: fuse.nms(given, threads=1), 1),
    ]:  # fmt: skip
        got = timed({"theirs": theirs, "ours": ours}, turns, time.process_time)
        row(f"{name}, {members} members", [s * repeats for s in got["theirs"]], got["ours"], images)


def grow(boxes: int, *, classes: int, turns: int) -> None:
    """Print the table's line for one image with this many boxes of two members."""
    rng = np.random.default_rng(boxes)
    image = scene(rng, members=2, boxes=boxes // 2, classes=classes)
    given = columnar([image])
    (b, s, k) = lists([image], size=SIDE)[0]
    got = timed(
        {"theirs": lambda: ensemble_boxes.weighted_boxes_fusion(b, s, k), "ours": lambda: fuse.wbf(given, threads=1)},
        turns,
        time.process_time,
    )
    row(f"WBF, one image, {boxes} boxes, {classes} class{'es' * (classes > 1)}", got["theirs"], got["ours"], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer images and turns")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| what | theirs, ms | ours, ms | times faster | least against least |")
    print("|---|---|---|---|---|")
    for members in (2, 5, 10, 20):
        compare(members, images=16 if quick else 48, turns=3 if quick else 9)
    for boxes in (300, 1200, 4900, 19600):
        grow(boxes, classes=1, turns=1 if quick else 3)


if __name__ == "__main__":
    main()
