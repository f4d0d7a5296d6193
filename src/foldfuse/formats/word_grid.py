"""The words of the boxes in prediction strings, as text and as numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foldfuse.detections import Array
from foldfuse.errors import InputError, shown
from foldfuse.formats.raw_boxes import as_number


@dataclass(frozen=True, eq=False)
class Grid:
    """The words of all boxes.

    Attributes:
        words: all words, box after box.
        numbers: (n, words per box) float64; NaN for a word that is no number.
        rows: (n,) the row of each box.
    """

    words: Sequence[str]
    numbers: Array
    rows: Array

    def keys(self, column: int) -> list[Any]:
        """The words of a column: whole numbers as int, others as text."""
        whole = self.is_whole(column)
        keys: list[Any] = np.where(whole, self.numbers[:, column], 0).astype(np.int64).tolist()
        for i in np.flatnonzero(~whole).tolist():
            keys[i] = self.word(i, column)
        return keys

    def is_whole(self, column: int) -> Array:
        """(n,) bool: whether each word of a column is a whole number."""
        with np.errstate(invalid="ignore"):
            return (self.numbers[:, column] % 1 == 0) & (np.abs(self.numbers[:, column]) < 2**53)

    def word(self, box: int, column: int) -> str:
        """A word of a box."""
        return self.words[box * self.numbers.shape[1] + column]

    def finite(self, column: int, where: Callable[[int], str]) -> Array:
        """(n,) float64, the numbers of a column. Raises InputError at the first word that is no finite number."""
        numbers: Array = self.numbers[:, column]
        if not np.isfinite(numbers).all():
            i = int(np.argmin(np.isfinite(numbers)))
            raise InputError(f"{where(i)} has the word {shown(self.word(i, column))}, expected a finite number.")
        return numbers


def make_grid(rows: Sequence[Sequence[str]], num_words: int) -> Grid:
    """The words of all boxes of `num_words` words, from the words of each row; every row must hold whole boxes."""
    flat = [word for words in rows for word in words]
    try:
        numbers = np.array(flat, np.float64)
    except ValueError:
        numbers = np.array([np.nan if (n := as_number(word)) is None else n for word in flat], np.float64)
    counts = [len(words) // num_words for words in rows]
    return Grid(flat, numbers.reshape(-1, num_words), np.repeat(np.arange(len(counts)), counts))
