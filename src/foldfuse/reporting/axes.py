"""Axes of charts: a range of values with labelled ticks at round numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

_TIME_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)  # seconds


@dataclass(frozen=True)
class Axis:
    """A range of values, and (value, label) of each tick."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def position(self, value: float) -> float:
        """The position of `value`, from 0 at the low end to 1 at the high end; values outside are clipped."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, 1e-300))
        return min(max((value - low) / (high - low), 0.0), 1.0)


def linear_axis(low: float, high: float, *, count: int = 5) -> Axis:
    """An axis over at least low..high, with about `count` ticks at round numbers."""
    width = high - low if high > low else max(abs(high), 1.0)
    power = 10.0 ** math.floor(math.log10(width / count))
    step = next(power * m for m in (1, 2, 5, 10) if power * m * count >= width * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil((low + width) / step - 1e-9)
    ticks = tuple((i * step, f"{i * step:.6g}") for i in range(first, last + 1))
    return Axis(first * step, last * step, ticks)


def log_axis(low: float, high: float) -> Axis:
    """A logarithmic axis over low..high (both above 0), with ticks at 1, 2 and 5 times powers of ten."""
    low, high = low / 1.05, high * 1.05
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    if len(ticks) > 7:
        ticks = [t for t in ticks if math.isclose(math.log10(t) % 1, 0, abs_tol=1e-9)]
    if len(ticks) < 2:  # the whole range lies between two ticks
        ticks = [low, math.sqrt(low * high), high]
    return Axis(low, high, tuple((t, f"{t:.3g}") for t in ticks), log=True)


def time_axis(high: float) -> Axis:
    """An axis over 0..high seconds, with at most seven ticks at round seconds, minutes or hours."""
    high = max(high, 1.0)
    step = next((s for s in _TIME_STEPS if high / s <= 6), 86400 * math.ceil(high / 86400 / 6))
    unit, name = (1, "s") if step < 60 else (60, "min") if step < 3600 else (3600, "h")
    ticks = tuple((i * step, f"{i * step // unit} {name}") for i in range(int(high // step) + 1))
    return Axis(0.0, high, ticks)


def power_of_two_axis(low: int, high: int) -> Axis:
    """A logarithmic axis over 2**low..2**high, with a tick at every power of two."""
    ticks = tuple((2.0**p, f"{2.0**p:g}") for p in range(low, high + 1))
    return Axis(2.0**low, 2.0**high, ticks, log=True)


def whole_number_axis(low: float, high: float) -> Axis:
    """An axis over low..high (such as -0.5..9.5), with ticks at round whole numbers from 0 on."""
    ticks = linear_axis(0, high + 0.5).ticks
    return Axis(low, high, tuple((value, text) for value, text in ticks if value <= high and value == int(value)))
