"""The budget of a training, and the learning rate as a pure function of the share of the budget that is spent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Clock = Callable[[], float]


@dataclass
class Budget:
    """Limits of a training; the limit that is reached first ends the training.

    Attributes:
        seconds: seconds of wall-clock time, counted from the first call of `elapsed` or `spent`.
        steps: optimizer steps. A budget of steps alone makes a training repeatable bit by bit.
        elapsed_before: seconds that earlier parts of a resumed training took.
        clock: seconds from any origin; tests pass their own.
    """

    seconds: float = math.inf
    steps: float = math.inf
    elapsed_before: float = 0.0
    clock: Clock = time.monotonic
    _start: float | None = field(default=None, repr=False)

    def elapsed(self) -> float:
        """Seconds used so far, including earlier sessions."""
        if self._start is None:
            self._start = self.clock()
        return self.clock() - self._start + self.elapsed_before

    def spent(self, step: int) -> float:
        """Share of the budget that is spent before `step`: 0 at the start, 1 or more at the end."""
        return max(self.elapsed() / self.seconds, step / self.steps)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count."""
        elapsed = self.elapsed()
        yield
        self._start = self.clock() - elapsed + self.elapsed_before


def lr_scale(spent: float, warmup_fraction: float, lr_decay_start: float) -> float:
    """Share of the base learning rate: linear warmup, constant until `lr_decay_start`, then half a cosine down to 0.

    With `lr_decay_start` = 1 the rate stays constant after the warmup, and cooldown runs can start from the end.
    """
    if spent < warmup_fraction:
        return spent / warmup_fraction
    lr_decay_start = max(warmup_fraction, lr_decay_start)
    if spent <= lr_decay_start:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (spent - lr_decay_start) / (1 - lr_decay_start))))
