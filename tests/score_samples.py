"""Small datasets and their predictions, for tests of scoring and of ensembles."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.detections import Annotations, Detections, Predictions

CLASSES = ("cat", "dog", "eel")
SIDE = 640.0


def dataset(*images, ids=None, classes=CLASSES):
    """A Dataset of images given as rows of [x1, y1, x2, y2, label] or [.., label, crowd]."""
    samples = []
    for image_id, rows in zip(ids or range(len(images)), images, strict=True):
        table = np.array([[*row, 0][:6] for row in rows], np.float64).reshape(-1, 6)
        sides = table[:, 2:4] - table[:, :2]
        annotations = Annotations(table[:, :4], table[:, 4].astype(np.int64), table[:, 5] > 0, sides.prod(1))
        samples.append(Sample(image_id, Path("none.jpg"), f"{image_id}.jpg", int(SIDE), int(SIDE), annotations))
    return Dataset(tuple(samples), classes, tuple(range(1, len(classes) + 1)), Path("made-up.json"))


def predictions(*images, ids=None, classes=CLASSES):
    """Predictions of images given as rows of [x1, y1, x2, y2, score, label]."""
    tables = [np.array(rows, np.float64).reshape(-1, 6) for rows in images]
    found = [Detections(t[:, :4], t[:, 4], t[:, 5].astype(np.int64)) for t in tables]
    return Predictions.of(dict(zip(ids or range(len(found)), found, strict=True)), classes)


def random_dataset(seed, *, images=12, boxes=6, crowds=0.15):
    """Boxes of all of COCO's sizes, some of them crowd regions; areas are those of masks, so less than width x height."""
    rng = np.random.default_rng(seed)
    samples = []
    for image_id in rng.permutation(10 * images)[:images].tolist():
        n = int(rng.integers(0, boxes + 1))
        corner, side = rng.uniform(0, SIDE / 2, (n, 2)), 2 ** rng.uniform(3, 8, (n, 2))
        annotations = Annotations(
            np.concatenate([corner, corner + side], 1),
            rng.integers(0, len(CLASSES), n),
            rng.random(n) < crowds,
            side.prod(1) * rng.uniform(0.5, 1, n),
        )
        samples.append(Sample(image_id, Path("none.jpg"), f"{image_id}.jpg", int(SIDE), int(SIDE), annotations))
    return Dataset(tuple(samples), CLASSES, (3, 5, 9), Path("made-up.json"))


def noisy(truth, seed, *, keep=0.8, extra=4, jitter=0.1, wrong=0.1, digits=None):
    """Predictions of a fair detector: most objects with jitter, some twice or with a wrong class, and some noise.

    `digits` rounds the scores and so makes ties.
    """
    rng = np.random.default_rng(seed)
    found = {}
    for sample in truth.samples:
        annotations = sample.annotations
        picked = np.flatnonzero(
            np.concatenate([rng.random(len(annotations)) < keep, rng.random(len(annotations)) < keep / 4])
        )
        picked = picked % max(1, len(annotations))
        sides = np.tile(annotations.boxes[picked, 2:] - annotations.boxes[picked, :2], 2)
        near = annotations.boxes[picked] + rng.normal(0, jitter, sides.shape) * sides
        corner = rng.uniform(0, sample.width / 2, (extra, 2))
        boxes = np.concatenate([near, np.concatenate([corner, corner + rng.uniform(5, 200, (extra, 2))], 1)])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = np.concatenate([annotations.labels[picked], rng.integers(0, len(truth.classes), extra)])
        labels = np.where(rng.random(len(labels)) < wrong, rng.integers(0, len(truth.classes), len(labels)), labels)
        scores = np.concatenate([rng.beta(3, 2, len(near)), rng.beta(2, 4, extra)])
        scores = scores if digits is None else scores.round(digits)
        found[sample.id] = Detections(boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int64))
    return Predictions.of(found, truth.classes)
