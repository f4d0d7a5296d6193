"""Chooses the number of threads that networks compute with on a CPU: where other processes take the cores, fewer are faster.

The threads of an operation wait for one another. On two cores that other processes used too, a small convolution took six times
as long in two threads as in one. So a few convolutions are timed in each number of threads, which takes some tenths of a second.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping

import torch

TIMED = 4  # convolutions in each number of threads, after one that is not timed
MAX_SECONDS = 0.5  # for each number of threads
MIN_SPEEDUP = 1.15  # by which fewer threads must be faster

log = logging.getLogger(__name__)

_measured: tuple[float, int] | None = None  # when, and the number of threads that was fastest


@functools.cache
def most_threads() -> int:
    """The number of threads of torch when this is first asked: its own choice, or that of OMP_NUM_THREADS."""
    return torch.get_num_threads()


def thread_counts(most: int) -> list[int]:
    """The numbers of threads to compare: `most`, and halves of it down to 1."""
    counts = [most]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return counts


def fastest(seconds: Mapping[int, float]) -> int:
    """The number of threads to take, from {number: measured seconds}: the most, unless fewer are clearly faster."""
    best = max(seconds)
    for count in sorted(seconds, reverse=True):
        if seconds[count] * MIN_SPEEDUP < seconds[best]:
            best = count
    return best


def current() -> int:
    """The number of threads of torch now."""
    return torch.get_num_threads()


def choose_threads(*, max_age: float = 0.0) -> tuple[int, int]:
    """Measures numbers of threads, sets the best for torch, and returns the number before and after.

    Args:
        max_age: seconds; where the last measurement is not older, its result is set again.
    """
    global _measured
    before, most = torch.get_num_threads(), most_threads()
    if most == 1:
        return before, before
    if _measured is not None and time.monotonic() - _measured[0] <= max_age:
        torch.set_num_threads(_measured[1])
        return before, _measured[1]
    network = torch.nn.Conv2d(32, 32, 3, padding=1).to(memory_format=torch.channels_last)
    images = torch.ones(8, 32, 32, 32).to(memory_format=torch.channels_last)
    seconds = {}
    with torch.enable_grad():
        for count in thread_counts(most):
            torch.set_num_threads(count)
            seconds[count] = _seconds(network, images)
    after = fastest(seconds)
    torch.set_num_threads(after)
    _measured = time.monotonic(), after
    log.debug("seconds by threads: %s", seconds)
    return before, after


def _seconds(network: torch.nn.Module, images: torch.Tensor) -> float:
    """Mean seconds of a forward and a backward pass."""
    network(images).sum().backward()
    start, done = time.perf_counter(), 0
    while done < TIMED and time.perf_counter() - start < MAX_SECONDS:
        network(images).sum().backward()
        done += 1
    return (time.perf_counter() - start) / done
