"""Logistic regression with a ridge: what calibration and stacking fit. The targets may be fractions.

The model is p = sigmoid(offset + X b), fitted by Newton's method. The ridge pulls b to 0, that is p to sigmoid(offset): with few
images a fit stays near what was there before.

Shapes: N rows, F columns.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import math

import numpy as np

from foldfuse.detections import Array
from foldfuse.system.compiled import compiled

STEPS, TOLERANCE = 30, 1e-8  # of Newton's method
LEAST = 1e-6  # a score is taken to lie in LEAST..1 - LEAST


def logit(scores: Array) -> Array:
    """log(s / (1 - s)) of scores, which are clipped to 1e-6..1 - 1e-6."""
    clipped = np.clip(scores, LEAST, 1 - LEAST)
    return np.log(clipped / (1 - clipped))


def sigmoid(values: Array) -> Array:
    """1 / (1 + exp(-x)), in (0, 1)."""
    return np.clip(1 / (1 + np.exp(-np.clip(values, -30, 30))), 1e-12, 1.0)


def fit_logistic(columns: Array, targets: Array, weights: Array, offsets: Array, ridge: Array) -> Array:
    """(F,) the coefficients b that fit `targets` best.

    Args:
        columns: (N, F).
        targets, weights: (N,) in [0, 1] and of 0 or more; rows of weight 0 play no part.
        offsets: (N,) logits that b = 0 stands for.
        ridge: (F,) above 0: the penalty of each coefficient's square, as so many rows of weight 1 would count.
    """
    used = weights > 0
    columns, targets, weights, offsets = (a[used].astype(np.float64) for a in (columns, targets, weights, offsets))
    found = np.zeros(len(ridge))
    for _ in range(STEPS):
        gradient, curvature = _derivatives(np.ascontiguousarray(columns), targets, weights, offsets, found)
        step = np.linalg.solve(curvature + np.diag(ridge), gradient - ridge * found)
        found = found + step / max(1.0, np.abs(step).max() / 2)  # far from the best fit a full step can be too long
        if np.abs(step).max() < TOLERANCE:
            break
    return found


@compiled(error_model="numpy")
def _derivatives(columns, targets, weights, offsets, coefficients):
    """(F,) gradient and (F, F) negated second derivatives of the log-likelihood."""
    n, f = columns.shape
    gradient, curvature = np.zeros(f), np.zeros((f, f))
    for i in range(n):
        z = offsets[i]
        for c in range(f):
            z += columns[i, c] * coefficients[c]
        p = 1 / (1 + math.exp(-min(max(z, -30.0), 30.0)))
        rest, weight = weights[i] * (targets[i] - p), weights[i] * p * (1 - p)
        for c in range(f):
            gradient[c] += rest * columns[i, c]
            scaled = weight * columns[i, c]
            for d in range(c + 1):
                curvature[c, d] += scaled * columns[i, d]
    for c in range(f):
        for d in range(c):
            curvature[d, c] = curvature[c, d]
    return gradient, curvature
