"""Picks images that score high and differ from one another: greedy, by score times distance to the nearest image picked before.

The distance alone would be k-centre greedy, as core-set selection uses it (Sener and Savarese, arXiv:1708.00489); the score alone
would pick the frames of one video. The product needs no weight between the two, whatever their units.

Shapes: n images, D features.
"""

from __future__ import annotations

import numpy as np

from foldfuse.detections import Array

FLOOR = (
    0.05  # added to each score, in means of all scores: an image where nothing is found can be picked for its distance
)


def pick(scores: Array, features: Array, number: int) -> Array:
    """(min(n, number),) int64: the positions of the picked images, in the order in which they are picked.

    The same input gives the same images; of equal ones the first is picked.

    Args:
        scores: (n,) of 0 or more.
        features: (n, D); distances are 1 - the cosine of the features without their mean.
        number: how many to pick.
    """
    centred = features.astype(np.float64) - features.mean(0)
    units = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    mean = float(scores.mean())
    gains = scores + (FLOOR * mean if mean > 0 else 1.0)
    distances = np.ones(len(scores))
    picked: list[int] = []
    for _ in range(min(number, len(scores))):
        values = gains * distances
        values[picked] = -1.0
        best = int(values.argmax())
        picked.append(best)
        distances = np.minimum(distances, np.maximum(1 - units @ units[best], 0.0))
    return np.array(picked, np.int64)
