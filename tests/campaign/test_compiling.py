"""After `compile_loops`, no loop of a campaign is compiled any more."""

from __future__ import annotations

import numba
import pytest
import torch

from foldfuse.campaign.compiling import compile_loops
from foldfuse.detections import Predictions
from foldfuse.ensemble import logistic, stack
from foldfuse.ensemble.build import build_ensemble
from foldfuse.ensemble.ensemble import apply_ensemble
from foldfuse.ensemble.search import METHODS
from foldfuse.evaluation import kernels as scoring
from foldfuse.evaluation.diagnosis import diagnose
from foldfuse.formats.predictions import read_predictions, write_predictions
from foldfuse.fusion import islands, soft_nms_kernels
from foldfuse.fusion import kernels as fusion
from foldfuse.fusion.methods import fuse
from foldfuse.models.cpu import depthwise
from score_samples import noisy, random_dataset

LOOPS = [
    loop
    for module in (scoring, fusion, soft_nms_kernels, islands, stack, logistic, depthwise)
    for loop in vars(module).values()
    if isinstance(loop, numba.core.registry.CPUDispatcher)
]


def compiled():
    return {loop.__name__: len(loop.signatures) for loop in LOOPS}


@pytest.mark.parametrize("metric", ["ap50", "f2"])
def test_nothing_is_left_to_compile(tmp_path, metric):
    compile_loops(metric)
    before = compiled()
    assert {name: before[name] for name in ("match", "greedy", "soft_nms", "_weight_gradient")} == {
        "match": 1,
        "greedy": 1,
        "soft_nms": 1,
        "_weight_gradient": 1,
    }
    truth = random_dataset(1)
    members = {str(seed): noisy(truth, seed) for seed in range(2)}
    for name, member in members.items():
        write_predictions(member, tmp_path / f"{name}.parquet", truth)
        members[name] = read_predictions(tmp_path / f"{name}.parquet", truth)
    for method in METHODS:
        fuse(list(members.values()), method=method)
    report = build_ensemble(members, truth, metric=metric, seconds=0.2)
    fused = apply_ensemble(report.ensemble, members)
    diagnose(Predictions.of(dict(fused), fused.classes), truth)
    layer = depthwise.SameConv(8, 8, 5, stride=2, groups=8, bias=False)
    layer(torch.zeros(3, 8, 16, 16).to(memory_format=torch.channels_last)).sum().backward()
    assert compiled() == before
