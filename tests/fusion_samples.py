"""Predictions of made-up members, for tests of fusion."""

from __future__ import annotations

import numpy as np

from foldfuse.detections import Detections, Predictions

CLASSES = ("cat", "dog", "eel")


def predictions(*images, ids=None):
    """Predictions of images given as rows of [x1, y1, x2, y2, score, label]."""
    tables = [np.array(rows, np.float64).reshape(-1, 6) for rows in images]
    found = [Detections(t[:, :4], t[:, 4], t[:, 5].astype(np.int64)) for t in tables]
    return Predictions.of(dict(zip(ids or range(len(found)), found, strict=True)), CLASSES)


def random_members(seed, *, members=3, images=4, boxes=30, digits=None, size=100.0, classes=3):
    """Members that find the same objects, each with its own jitter; `digits` rounds boxes and scores to make ties."""
    rng = np.random.default_rng(seed)
    centres, sides = rng.uniform(0, size, (images, boxes, 2)), rng.uniform(5, 40, (images, boxes, 2))
    labels = rng.integers(0, classes, (images, boxes))
    made = []
    for _ in range(members):
        corners = np.concatenate([centres - sides / 2, centres + sides / 2], -1)
        corners += rng.normal(0, 2, corners.shape)
        corners[..., 2:] = np.maximum(corners[..., 2:], corners[..., :2])
        scores = rng.uniform(0, 1, (images, boxes))
        if digits is not None:
            corners, scores = corners.round(digits - 1), scores.round(digits)
        rows = np.concatenate([corners, scores[..., None], labels[..., None]], -1)
        made.append(predictions(*(image[rng.random(boxes) < 0.8] for image in rows)))
    return made
