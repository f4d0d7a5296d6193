"""Autotuning: measures a few training steps in several compute configurations, and takes the fastest that computes the same.

One setting of the configuration is changed at a time, and steps with and without the change are measured in turns, so that other
work on the machine slows both. A change is kept only where its step takes clearly less time in each turn and the loss equals
the default configuration's to within `TOLERANCE`. Copies of the model make the steps, and the random state is restored, so
that the training itself is not affected. Results are remembered for each machine where the times of full batches were steady:
what a busy machine or a part of a batch shows counts for one training alone; where it shows no gain, for one process.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foldfuse.errors import InputError
from foldfuse.system import host
from foldfuse.system.cache_folder import cache_folder
from foldfuse.system.device import synchronize
from foldfuse.system.records import read_record, write_record
from foldfuse.training.precision import ComputeConfig, default_config

MIN_SPEEDUP = 1 / 0.93  # of a step: below it, a gain may be a busy machine's noise
TOLERANCE = 0.02  # of the loss, relative
ROUNDS = 3  # timed steps with a change, and as many without it; the fastest counts
STEADY = (
    1.15  # the slowest of those steps is at most so many times as slow as the fastest, where results are remembered
)
MAX_SHARE = 0.03  # of the budget, for measuring full batches
MAX_SHARE_SMALL = (
    0.06  # of the budget, for measuring `SMALL_BATCH` images: steps are slow then, and a change gains most
)
SMALL_BATCH = 2  # images

COMPILE_SECONDS = 60.0  # that compiling is expected to take, before it is measured

# {memory: results} that are not written, since steps were not steady, but found no gain: the process does not measure again
_of_this_process: dict[Path, dict[str, AutotuneResult]] = {}
MEMORY_FORMAT = 1
METHOD = "in turns"  # of measuring: results of an earlier one, which a busy machine misled, are not read


@dataclass(frozen=True)
class AutotuneResult:
    """The fastest configuration, and the measurements that chose it.

    Attributes:
        config: the configuration to train with.
        speedup: the speedup of a step, over the default configuration.
        tried: {configuration in words: seconds of a step, or why it was rejected}.
    """

    config: ComputeConfig
    speedup: float
    tried: dict[str, float | str]

    def __str__(self) -> str:
        return f"computing in {self.config}: {self.speedup:.2f} x the default speed"


@dataclass(frozen=True)
class AutotuneMemory:
    """Earlier results of this user's machines, by machine, versions and model."""

    results: dict[str, AutotuneResult] = field(default_factory=dict)


def autotune(
    model: Any,
    batch: tuple[Tensor, Sequence[Any]],
    *,
    frozen_stages: int,
    seconds: float,
    key: str,
    memory: Path | None = None,
) -> AutotuneResult | None:
    """The fastest configuration for training `model`; None where measuring would take too much of the budget.

    Args:
        model: a model with the detector contract; it is not changed.
        batch: the batch of the training.
        frozen_stages: the frozen stages of the recipe.
        seconds: the budget in seconds.
        key: names everything but machine and versions that the result depends on.
        memory: JSON file of earlier results; in the user's cache by default.
    """
    memory = memory or cache_folder() / "autotune.json"
    device = next(model.parameters()).device
    facts = host.describe(str(device))
    key = " | ".join([METHOD, *(str(facts[name]) for name in ("cpu", "cores", "device", "torch", "foldfuse")), key])
    known = _read_memory(memory).results | _of_this_process.get(memory, {})
    if key in known:
        return known[key]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        result, is_steady = _measure(model, batch, frozen_stages, seconds)
    if result is not None and is_steady:
        with suppress(InputError):  # an unwritable cache only means that the next run measures again
            write_record(memory, AutotuneMemory(_read_memory(memory).results | {key: result}), version=MEMORY_FORMAT)
    elif result is not None and result.config == default_config(device):
        _of_this_process.setdefault(memory, {})[key] = result
    return result


def candidates(
    best: ComputeConfig, device: torch.device, *, budget_seconds: float = 0.0
) -> Generator[ComputeConfig, ComputeConfig, None]:
    """Configurations to try; each changes one setting of the best so far, which the caller sends in.

    Compiling is tried on CUDA alone (on CPUs it cost more than it gained), and where the budget pays for the measurement.
    """
    if device.type == "cpu":
        best = yield replace(best, matmul="medium")
        best = yield replace(best, precision="bfloat16")
    best = yield replace(best, channels_last=not best.channels_last)
    if device.type == "cuda" and MAX_SHARE * budget_seconds >= COMPILE_SECONDS:
        best = yield replace(best, compiled=True)
    if device.type == "cpu" and torch.get_num_threads() > 1:
        yield replace(best, threads=torch.get_num_threads() // 2)


def compiling_repays(
    compile_seconds: float, *, step_seconds: float, compiled_seconds: float, budget_seconds: float
) -> bool:
    """Whether compiling for a training saves at least twice the time that it takes.

    Args:
        compile_seconds: seconds that compiling takes.
        step_seconds, compiled_seconds: seconds of a step without and with it.
        budget_seconds: the budget of the training in seconds.
    """
    return (1 - compiled_seconds / step_seconds) * budget_seconds > 2 * compile_seconds


def affordable(step_seconds: float, batch_size: int, budget_seconds: float) -> tuple[int, int] | None:
    """The number of images and of turns for each change that the budget allows; None where the fewest cost too much.

    Args:
        step_seconds: seconds of a step with `SMALL_BATCH` images.
        batch_size: the batch size of the training.
        budget_seconds: the budget of the training in seconds.
    """
    choices = (
        (batch_size, ROUNDS, MAX_SHARE),
        (batch_size, 2, MAX_SHARE),
        (SMALL_BATCH, ROUNDS, MAX_SHARE_SMALL),
        (SMALL_BATCH, 1, MAX_SHARE_SMALL),
    )
    for images, rounds, share in choices:
        steps = 4 + 2 * 3 * rounds  # each configuration's first step is not timed; three changes
        if steps * step_seconds * images / SMALL_BATCH <= share * budget_seconds:
            return images, rounds
    return None


def _measure(
    model: Any, batch: tuple[Tensor, Sequence[Any]], frozen_stages: int, budget_seconds: float
) -> tuple[AutotuneResult | None, bool]:
    """The fastest configuration, and whether it may be remembered."""
    device = next(model.parameters()).device
    best = default_config(device)
    images, targets = batch
    step_seconds = _Steps(model, (images[:SMALL_BATCH], targets[:SMALL_BATCH]), frozen_stages, best)()
    plan = affordable(step_seconds, len(images), budget_seconds)
    if plan is None:
        return None, False
    count, rounds = plan
    batch = images[:count], targets[:count]
    steps = _Steps(model, batch, frozen_stages, best)
    tried: dict[str, float | str] = {str(best): round(steps(), 4)}
    default, default_loss = str(best), steps.loss
    speedup, is_steady = 1.0, rounds == ROUNDS and count == len(images)
    trials = candidates(best, device, budget_seconds=budget_seconds)
    trial = next(trials, None)
    while trial is not None:
        changed = _Steps(model, batch, frozen_stages, trial)
        first_seconds = changed.first()
        if isinstance(first_seconds, str):
            tried[str(trial)] = first_seconds
        elif abs(changed.loss - default_loss) > TOLERANCE * abs(default_loss):
            tried[str(trial)] = f"its loss is {changed.loss:.4g}, not {default_loss:.4g}"
        else:
            turns = [(steps(), changed()) for _ in range(rounds)]
            own, seconds = (min(times) for times in zip(*turns, strict=True))
            is_steady &= all(max(times) <= STEADY * min(times) for times in zip(*turns, strict=True))
            tried[str(trial)] = round(seconds, 4)
            if str(best) == default:
                tried[default] = round(own, 4)
            is_faster = seconds * MIN_SPEEDUP < own and all(after < before for before, after in turns)
            if (
                is_faster
                and trial.compiled
                and not compiling_repays(
                    first_seconds - seconds, step_seconds=own, compiled_seconds=seconds, budget_seconds=budget_seconds
                )
            ):
                tried[str(trial)] = (
                    f"a step takes {seconds:.4f} s, which does not repay {first_seconds:.0f} s of compiling"
                )
            elif is_faster:
                best, steps, speedup = trial, changed, speedup * own / seconds
        try:
            trial = trials.send(best)
        except StopIteration:
            break
    return AutotuneResult(best, round(speedup, 3), tried), is_steady


class _Steps:
    """Steps of a copy of a model in a configuration; each call makes one and returns its seconds.

    Attributes:
        loss: of the last step.
    """

    def __init__(
        self, model: Any, batch: tuple[Tensor, Sequence[Any]], frozen_stages: int, config: ComputeConfig
    ) -> None:
        self._device, self._config = next(model.parameters()).device, config
        self._images, self._targets = config.network_input(batch[0], self._device), batch[1]
        self._model = copy.deepcopy(model).to(memory_format=config.memory_format)
        self._model.freeze(frozen_stages)
        self._network: Any = torch.compile(self._model.forward, dynamic=False) if config.compiled else self._model
        self.loss = math.nan

    def first(self) -> float | str:
        """Seconds of the first step, which compiles; or why there is none: a network may not compile on a machine."""
        try:
            return self()
        except Exception as error:  # the compiler's errors have no common class
            if not self._config.compiled:
                raise
            return f"cannot be compiled here ({type(error).__name__})"

    def __call__(self) -> float:
        with self._config.applied():
            began = time.perf_counter()
            with self._config.autocast(self._device):
                raw = self._network(self._images)
            loss = sum(self._model.loss(raw, self._targets).values())
            loss.backward()
            self.loss = loss.item()
            self._model.zero_grad(set_to_none=True)
            synchronize(str(self._device))
            return time.perf_counter() - began


def _read_memory(path: Path) -> AutotuneMemory:
    """Earlier results; none where the file is missing, broken or of another version."""
    try:
        return read_record(path, AutotuneMemory, version=MEMORY_FORMAT, what="the autotuner's memory")
    except InputError:
        return AutotuneMemory()
