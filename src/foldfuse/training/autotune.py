"""Autotuning: measures a few training steps in several compute configurations, and takes the fastest that computes the same.

One setting of the configuration is changed at a time. A change is kept only where a step takes clearly less time and the
loss equals the default configuration's to within `TOLERANCE`. A copy of the model makes the steps, and the random state
is restored, so that the training itself is not affected. Results are remembered for each machine.
"""

from __future__ import annotations

import copy
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
ROUNDS = 3  # timed steps of each configuration, after one that is not timed; the fastest counts
MAX_SHARE = 0.03  # of the budget, for measuring full batches
MAX_SHARE_SMALL = (
    0.06  # of the budget, for measuring `SMALL_BATCH` images: steps are slow then, and a change gains most
)
SMALL_BATCH = 2  # images

COMPILE_SECONDS = 60.0  # that compiling is expected to take, before it is measured

MEMORY_FORMAT = 1


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
    key = " | ".join([*(str(facts[name]) for name in ("cpu", "cores", "device", "torch", "foldfuse")), key])
    known = _read_memory(memory).results
    if key in known:
        return known[key]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        result = _measure(model, batch, frozen_stages, seconds)
    if result is not None:
        with suppress(InputError):  # an unwritable cache only means that the next run measures again
            write_record(memory, AutotuneMemory(_read_memory(memory).results | {key: result}), version=MEMORY_FORMAT)
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
    """The number of images and of timed steps per configuration that the budget allows; None where the fewest cost too much.

    Args:
        step_seconds: seconds of a step with `SMALL_BATCH` images.
        batch_size: the batch size of the training.
        budget_seconds: the budget of the training in seconds.
    """
    choices = ((batch_size, ROUNDS, MAX_SHARE), (batch_size, 1, MAX_SHARE), (SMALL_BATCH, 1, MAX_SHARE_SMALL))
    for images, rounds, share in choices:
        if 4 * (1 + rounds) * step_seconds * images / SMALL_BATCH <= share * budget_seconds:
            return images, rounds
    return None


def _measure(
    model: Any, batch: tuple[Tensor, Sequence[Any]], frozen_stages: int, budget_seconds: float
) -> AutotuneResult | None:
    device = next(model.parameters()).device
    best = default_config(device)
    images, targets = batch
    small = images[:SMALL_BATCH], targets[:SMALL_BATCH]
    step_seconds = _time_step(model, small, frozen_stages, best, rounds=0).seconds
    plan = affordable(step_seconds, len(images), budget_seconds)
    if plan is None:
        return None
    count, rounds = plan
    batch = images[:count], targets[:count]
    default = _time_step(model, batch, frozen_stages, best, rounds=rounds)
    tried: dict[str, float | str] = {str(best): round(default.seconds, 4)}
    best_seconds = default.seconds
    trials = candidates(best, device, budget_seconds=budget_seconds)
    trial = next(trials, None)
    while trial is not None:
        found = _try_step(model, batch, frozen_stages, trial, rounds=rounds)
        if isinstance(found, str):
            tried[str(trial)] = found
        elif abs(found.loss - default.loss) > TOLERANCE * abs(default.loss):
            tried[str(trial)] = f"its loss is {found.loss:.4g}, not {default.loss:.4g}"
        elif trial.compiled and not compiling_repays(
            found.first_seconds - found.seconds,
            step_seconds=best_seconds,
            compiled_seconds=found.seconds,
            budget_seconds=budget_seconds,
        ):
            tried[str(trial)] = (
                f"a step takes {found.seconds:.4f} s, which does not repay {found.first_seconds:.0f} s of compiling"
            )
        else:
            tried[str(trial)] = round(found.seconds, 4)
            if found.seconds * MIN_SPEEDUP < best_seconds:
                best, best_seconds = trial, found.seconds
        try:
            trial = trials.send(best)
        except StopIteration:
            break
    return AutotuneResult(best, round(default.seconds / best_seconds, 3), tried)


@dataclass(frozen=True)
class _StepTime:
    """A measured step.

    Attributes:
        seconds: of the fastest step; the first does not count, unless it is the only one.
        first_seconds: of the first step, which compiles.
        loss: of the first step.
    """

    seconds: float
    first_seconds: float
    loss: float


def _try_step(
    model: Any, batch: tuple[Tensor, Sequence[Any]], frozen_stages: int, config: ComputeConfig, *, rounds: int
) -> _StepTime | str:
    """A measured step of a copy of `model`, or why there is none: a network may not compile on a machine."""
    try:
        return _time_step(model, batch, frozen_stages, config, rounds=rounds)
    except Exception as error:  # the compiler's errors have no common class
        if not config.compiled:
            raise
        return f"cannot be compiled here ({type(error).__name__})"


def _time_step(
    model: Any, batch: tuple[Tensor, Sequence[Any]], frozen_stages: int, config: ComputeConfig, *, rounds: int
) -> _StepTime:
    """A measured step of a copy of `model`."""
    device = next(model.parameters()).device
    images, targets = config.network_input(batch[0], device), batch[1]
    trained = copy.deepcopy(model).to(memory_format=config.memory_format)
    trained.freeze(frozen_stages)
    network: Any = torch.compile(trained.forward, dynamic=False) if config.compiled else trained
    times, losses = [], []
    with config.applied():
        for _ in range(1 + rounds):
            began = time.perf_counter()
            with config.autocast(device):
                raw = network(images)
            loss = sum(trained.loss(raw, targets).values())
            loss.backward()
            losses.append(loss.item())
            trained.zero_grad(set_to_none=True)
            synchronize(str(device))
            times.append(time.perf_counter() - began)
    return _StepTime(min(times[1:] or times), times[0], losses[0])


def _read_memory(path: Path) -> AutotuneMemory:
    """Earlier results; none where the file is missing, broken or of another version."""
    try:
        return read_record(path, AutotuneMemory, version=MEMORY_FORMAT, what="the autotuner's memory")
    except InputError:
        return AutotuneMemory()
