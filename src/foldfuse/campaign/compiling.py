"""Compiles the loops that a campaign needs: the first call of each takes seconds where no machine code is kept.

A second process compiles them (`CompilingProcess`) while this one reads the data. Before it plans, the campaign waits for
the rest, up to a share of its deadline; a short campaign goes on to train meanwhile. Where machine code is kept, from an earlier
campaign, there is nothing to do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from foldfuse.campaign import constants as c
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.kernels import change_colors, place
from foldfuse.detections import Annotations, Detections, Predictions
from foldfuse.ensemble import stack, trials
from foldfuse.ensemble.cross_fitting import CrossFitter
from foldfuse.ensemble.search import METHODS
from foldfuse.evaluation import kernels as scoring
from foldfuse.evaluation.custom_metric import is_custom
from foldfuse.evaluation.diagnosis import diagnose
from foldfuse.evaluation.matching import f1_score, ground_truth
from foldfuse.evaluation.metrics import Metric, get_metric, measure
from foldfuse.fusion import islands
from foldfuse.fusion import kernels as fusion
from foldfuse.fusion.methods import fuse
from foldfuse.system.compiled import has_kept, keeps_code

COMPILE_SECONDS = 30.0  # that compiling takes on a slow core
CLOSE_SECONDS = 5.0  # for the process to end, once it is told to
_LOOPS = (
    scoring.match,
    scoring.rank,
    fusion.greedy,
    fusion.soft_nms,
    islands.fuse_islands,
    stack._fill,
)  # the slow ones to compile


def compile_loops(metric: str) -> None:
    """Compiles the loops of training, fusion, scoring and the ensemble search by `metric`, by calling each once."""
    compile_training_loops()
    compile_scoring_loops(metric)


def compile_training_loops() -> None:
    """Compiles the loops of a training step alone."""
    import torch

    from foldfuse.models.cpu.depthwise import SameConv

    change_colors(canvas := np.zeros((8, 8, 3), np.uint8), 1.0, 1.0, 1.0)
    place(canvas, canvas.copy(), (0, 0, 8, 8), (1.0, 1.0), (0.0, 0.0), 0)
    layer = SameConv(4, 4, 3, groups=4, bias=False)
    layer(torch.zeros(2, 4, 8, 8)).sum().backward()


def compile_scoring_loops(metric: str) -> None:
    """Compiles the loops of scoring, fusion and the ensemble search by `metric`; those that a first member needs come first."""
    dataset, members = _dataset(), [_predictions(0), _predictions(1)]
    metric = "ap50" if is_custom(metric) else metric  # the fast search proposes by AP50
    chosen = get_metric(metric)
    assert isinstance(chosen, Metric)
    bench = trials.make_bench(members, ground_truth(dataset), chosen)
    for name in {metric, "ap", "ap50"}:
        measure(members[0], dataset, metric=name)
    diagnose(members[0], dataset)
    f1_score(members[0][1], dataset.samples[0].annotations or Annotations.empty())
    for method in METHODS:
        fuse(members, method=method)
        candidate = trials.Fusion((0, 1), method, 0.5, 0.0, weights=[1.0, 1.0], score_exponents=[1.0, 2.0])
        trials.fuse_and_match(bench, candidate, threads=1)
    fitter = CrossFitter(bench, np.arange(2), threads=1)
    fitter.add_calibration(0)
    fitter.stacked(candidate, 0)


def are_compiled() -> bool:
    """Whether the loops of scoring and fusion run at once: they are compiled here, or their machine code is kept."""
    return all(loop.signatures or has_kept(loop) for loop in _LOOPS)


def compile_by_clock(metric: str, beside: CompilingProcess | None, *, deadline: float, elapsed: float) -> bool:
    """Compiles the loops as far as the clock allows before a training, and returns whether all are compiled.

    Args:
        metric: the campaign's.
        beside: the process that compiles besides this one; None where there is none.
        deadline, elapsed: of the campaign, in seconds.
    """
    start = time.monotonic()
    compile_training_loops()
    limit = c.COMPILE_WAIT_SHARE * deadline - elapsed
    if beside is not None:
        beside.wait(limit - (time.monotonic() - start))
    in_time = beside is None or (beside.is_over and limit >= COMPILE_SECONDS)
    if not in_time and not are_compiled():
        return False
    compile_scoring_loops(metric)
    return True


class CompilingProcess:
    """Compiles the loops of scoring and fusion in a process of its own, where their machine code is not kept yet.

    Args:
        metric: the campaign's.

    Attributes:
        is_over: whether there is nothing to wait for: the code is kept, or the process has ended.
    """

    def __init__(self, metric: str) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if all(map(has_kept, _LOOPS)) or not all(map(keeps_code, _LOOPS)):
            return
        with suppress(OSError):  # no process can be started: the loops are compiled at their first call
            self._process = subprocess.Popen(
                [sys.executable, "-m", "foldfuse.campaign.compiling", "ap50" if is_custom(metric) else metric],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    @property
    def is_over(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def wait(self, seconds: float) -> bool:
        """Waits up to `seconds` for the end of the process, and returns whether it has ended."""
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.0, seconds))
        return self.is_over

    def close(self) -> None:
        """Ends the process; what it has compiled is kept."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            if not self.wait(CLOSE_SECONDS):
                self._process.kill()
                self._process.wait()


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


def main() -> None:
    """Compiles the loops of scoring and fusion, as `CompilingProcess` starts it: with less priority than the campaign."""
    with suppress(AttributeError, OSError):  # Windows has no such call
        os.nice(19)
    compile_scoring_loops(sys.argv[1])


if __name__ == "__main__":
    main()
