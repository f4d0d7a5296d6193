"""Compiles the loops that a campaign needs: the first call of each takes seconds where no machine code is kept.

Two processes compile them (`CompilingProcesses`) while this one reads the data. Before it measures and plans, the campaign waits
for the rest, up to a share of its deadline; a short campaign goes on to train meanwhile. Where machine code is kept, from an
earlier campaign, there is nothing to do.
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
from foldfuse.fusion import islands, soft_nms_kernels
from foldfuse.fusion import kernels as fusion
from foldfuse.fusion.methods import fuse
from foldfuse.system.compiled import has_kept, keeps_code

COMPILE_SECONDS = 30.0  # that compiling takes on a slow core
CLOSE_SECONDS = 5.0  # for the process to end, once it is asked to
_LOOPS = (
    scoring.match,
    scoring.rank,
    scoring.average_precision,
    fusion.greedy,
    soft_nms_kernels.soft_nms,
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
    """Compiles the loops of fusion, scoring and the ensemble search by `metric`."""
    compile_fusion()
    compile_search(metric)


def compile_fusion() -> None:
    """Compiles the loops that fuse members for a submission."""
    members = [_predictions(0), _predictions(1)]
    for method in METHODS:
        fuse(members, method=method)


def compile_search(metric: str) -> None:
    """Compiles the loops of scoring and the ensemble search by `metric`; those that a first member needs come first."""
    dataset, members = tiny_dataset(), [_predictions(0), _predictions(1)]
    metric = "ap50" if is_custom(metric) else metric  # the fast search proposes by AP50
    chosen = get_metric(metric)
    assert isinstance(chosen, Metric)
    for name in {metric, "ap", "ap50"}:
        measure(members[0], dataset, metric=name)
    bench = trials.make_bench(members, ground_truth(dataset), chosen)
    diagnose(members[0], dataset)
    f1_score(members[0][1], dataset.samples[0].annotations or Annotations.empty())
    for method in METHODS:
        candidate = trials.Fusion((0, 1), method, 0.5, 0.0, weights=[1.0, 1.0], score_exponents=[1.0, 2.0])
        trials.fuse_and_match(bench, candidate, threads=1)
    fitter = CrossFitter(bench, np.arange(2), threads=1)
    fitter.add_calibration(0)
    fitter.stacked(candidate, 0)


def are_compiled() -> bool:
    """Whether the loops of scoring and fusion run at once: they are compiled here, or their machine code is kept."""
    return all(loop.signatures or has_kept(loop) for loop in _LOOPS)


def compile_by_clock(metric: str, beside: CompilingProcesses | None, *, deadline: float, elapsed: float) -> bool:
    """Compiles the loops as far as the clock allows before a training, and returns whether all are compiled.

    Args:
        metric: the campaign's.
        beside: the processes that compile besides this one; None where there is none.
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


class CompilingProcesses:
    """Compiles the loops of scoring and fusion in two processes of their own, where their machine code is not kept yet.

    Args:
        metric: the campaign's.

    Attributes:
        is_over: whether there is nothing to wait for: the code is kept, or the processes have ended.
    """

    def __init__(self, metric: str) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        if all(map(has_kept, _LOOPS)) or not all(map(keeps_code, _LOOPS)):
            return
        for words in (("fusion",), ("search", "ap50" if is_custom(metric) else metric)):
            with suppress(OSError):  # no process can be started: the loops are compiled at their first call
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "foldfuse.campaign.compiling", *words],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                    )
                )

    @property
    def is_over(self) -> bool:
        return all(process.poll() is not None for process in self._processes)

    def wait(self, seconds: float) -> bool:
        """Waits up to `seconds` for the end of the processes, and returns whether they have ended."""
        end = time.monotonic() + seconds
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
        return self.is_over

    def close(self) -> None:
        """Ends the processes; what they have compiled is kept."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        if not self.wait(CLOSE_SECONDS):
            for process in self._processes:
                process.kill()
                process.wait()


def tiny_dataset() -> Dataset:
    """Two images, which are no files, with an object each."""
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
    """Compiles the loops of fusion, or those of a search, as `CompilingProcesses` starts it: with less priority."""
    with suppress(AttributeError, OSError):  # Windows has no such call
        os.nice(19)
    what, *metric = sys.argv[1:]
    if what == "fusion":
        compile_fusion()
    else:
        compile_search(*metric)


if __name__ == "__main__":
    main()
