"""Notices when a training has become slower or faster than it was, such as when another process takes the cores."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median, median_high

WINDOW_SECONDS = 6.0  # of the last steps that are compared with the steps before
MIN_STEPS = 3  # in that window; twice as many before it
MAX_STEPS = 200  # before it, that are remembered
SLOWER, FASTER = 1.4, 0.7  # of the median before: a change that is noticed


@dataclass
class Throughput:
    """The times of a training's steps, compared with the run's own median.

    Attributes:
        reference: seconds of a step at first; None until they are known.
        level: seconds of a step at the last change that was noticed; `reference` before the first.
    """

    reference: float | None = None
    level: float | None = None
    _before: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_STEPS))
    _recent: deque[float] = field(default_factory=deque)

    def add(self, seconds: float) -> bool:
        """Adds a step, and returns whether the last steps are much slower or faster than the steps before."""
        self._recent.append(seconds)
        while len(self._recent) > MIN_STEPS and sum(self._recent) - self._recent[0] >= WINDOW_SECONDS:
            self._before.append(self._recent.popleft())
        usual = median(self._before) if len(self._before) >= 2 * MIN_STEPS else self.level
        if usual is None:
            return False
        if self.reference is None:
            self.reference = self.level = usual
        now = median_high(self._recent)  # the time of a step, not a mean of two
        if len(self._recent) < MIN_STEPS or FASTER * usual <= now <= SLOWER * usual:
            return False
        self.level = now
        self._before.clear()
        while not FASTER * now <= self._recent[0] <= SLOWER * now:  # of before the change
            self._recent.popleft()
        return True

    def restart(self) -> None:
        """Forgets the last steps, since something changed that makes their times say nothing of the next ones."""
        self._before.clear()
        self._recent.clear()

    @property
    def slowdown(self) -> float:
        """How many times as long a step takes as the first steps did; 1 where that is not known yet."""
        return self.level / self.reference if self.level is not None and self.reference else 1.0
