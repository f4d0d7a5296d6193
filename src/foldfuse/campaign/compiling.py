"""Compiles the loops that a campaign needs, before it plans: the first call of each takes seconds where no machine code is kept.

The time counts against the deadline like any other, but a plan is made of what is left, and no training or search is cut short by
it. Where machine code is kept, from an earlier campaign, this takes a fraction of a second.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.kernels import change_colors, place
from foldfuse.detections import Annotations, Detections, Predictions
from foldfuse.ensemble import trials
from foldfuse.ensemble.search import METHODS
from foldfuse.evaluation.custom_metric import is_custom
from foldfuse.evaluation.diagnosis import diagnose
from foldfuse.evaluation.matching import f1_score, ground_truth
from foldfuse.evaluation.metrics import Metric, get_metric, measure
from foldfuse.fusion.methods import fuse
from foldfuse.models.cpu.depthwise import SameConv


def compile_loops(metric: str) -> None:
    """Compiles the loops of training, fusion, scoring and the ensemble search by `metric`, by calling each once."""
    compile_training_loops()
    dataset, members = _dataset(), [_predictions(0), _predictions(1)]
    chosen = get_metric("ap50" if is_custom(metric) else metric)  # the fast search proposes by AP50
    assert isinstance(chosen, Metric)
    bench = trials.make_bench(members, ground_truth(dataset), chosen)
    for method in METHODS:
        fuse(members, method=method)
        trials.fuse_and_match(
            bench,
            (0, 1),
            method=method,
            iou=0.5,
            score_threshold=0.0,
            weights=[1.0, 1.0],
            score_exponents=[1.0, 2.0],
            threads=1,
        )
    for name in {"ap50" if is_custom(metric) else metric, "ap", "ap50"}:
        measure(members[0], dataset, metric=name)
    diagnose(members[0], dataset)
    f1_score(members[0][1], dataset.samples[0].annotations or Annotations.empty())


def compile_training_loops() -> None:
    """Compiles the loops of a training step alone."""
    change_colors(canvas := np.zeros((8, 8, 3), np.uint8), 1.0, 1.0, 1.0)
    place(canvas, canvas.copy(), (0, 0, 8, 8), (1.0, 1.0), (0.0, 0.0), 0)
    layer = SameConv(4, 4, 3, groups=4, bias=False)
    layer(torch.zeros(2, 4, 8, 8)).sum().backward()


def _dataset() -> Dataset:
    box = np.array([[8.0, 8.0, 40.0, 40.0]])
    annotations = Annotations(box, np.zeros(1, np.int64), np.zeros(1, bool), np.array([1024.0]))
    samples = tuple(Sample(i, Path("none"), str(i), 64, 64, annotations) for i in (1, 2))
    return Dataset(samples, ("a", "b"), (1, 2), Path("none"))


def _predictions(seed: int) -> Predictions:
    rng = np.random.default_rng(seed)
    found = {}
    for i in (1, 2):
        corners = rng.uniform(0, 20, (3, 2))
        boxes = np.concatenate([corners, corners + 20], 1).astype(np.float32)
        found[i] = Detections(boxes, rng.random(3).astype(np.float32), np.array([0, 0, 1]))
    return Predictions.of(found, ("a", "b"))
