"""The budget of a training, and the schedule that follows it: pure functions of the share that is spent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Clock = Callable[[], float]


@dataclass
class Budget:
    """How much training is paid for. Whichever limit is met first ends the run.

    Attributes:
        seconds: wall clock, counted from the first call of `spent`.
        steps: optimizer steps. Give only this one for a run that can be repeated bit by bit.
        used: seconds that earlier parts of the run have taken already.
        clock: seconds, from any start; tests pass their own.
    """

    seconds: float = math.inf
    steps: float = math.inf
    used: float = 0.0
    clock: Clock = time.monotonic
    _start: float | None = field(default=None, repr=False)

    def elapsed(self) -> float:
        """Seconds used so far, those of earlier parts included."""
        if self._start is None:
            self._start = self.clock()
        return self.clock() - self._start + self.used

    def spent(self, step: int) -> float:
        """Share of the budget used up before `step`: 0 at the start, 1 or more when it is gone."""
        return max(self.elapsed() / self.seconds, step / self.steps)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done within it is not paid for."""
        used = self.elapsed()
        yield
        self._start = self.clock() - used + self.used


def lr_scale(spent: float, warmup_fraction: float, lr_decay_start: float) -> float:
    """Share of the base learning rate: linear warmup, constant until `lr_decay_start`, then half a cosine down to 0.

    With `lr_decay_start` = 1 a run stays at its peak, and others can branch off from its end.
    """
    if spent < warmup_fraction:
        return spent / warmup_fraction
    lr_decay_start = max(warmup_fraction, lr_decay_start)
    if spent <= lr_decay_start:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (spent - lr_decay_start) / (1 - lr_decay_start))))
