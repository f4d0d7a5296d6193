"""The one form of a registry's entry: a function that makes a model, with a one-line summary as its docstring."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

M = TypeVar("M")


def entry(make: partial[M], summary: str) -> partial[M]:
    """`make` with `summary` as its docstring, which `foldfuse models` shows."""
    make.__doc__ = summary
    return make
