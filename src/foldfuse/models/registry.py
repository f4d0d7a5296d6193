"""Makes the entries of the model registries: functions that make a model, each with a one-line summary as its docstring."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

M = TypeVar("M")


def entry(make: partial[M], summary: str) -> partial[M]:
    """`make` with `summary` as its docstring, which `foldfuse models` shows."""
    make.__doc__ = summary
    return make
