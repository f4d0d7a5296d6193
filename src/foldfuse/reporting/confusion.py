"""The confusion matrix of a diagnosis as the pages show it: rows are annotated classes, columns predicted ones.

`templates/confusion.html` draws it as a table with shaded cells, which stays readable to some thirty classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foldfuse.errors import counted
from foldfuse.evaluation.diagnosis import Diagnosis

MAX_CLASSES = 30  # rows of the matrix; the other classes are summed up
BACKGROUND = "background"
OTHERS = "other classes"
_TURNED_FROM = 7  # columns: from here on the headings stand upright, so that the columns stay narrow
_DENSE_FROM = 16  # columns: from here on the cells are small
_LONG_HEADS = 60  # characters of all headings together that stay horizontal


@dataclass(frozen=True)
class ConfusionCell:
    """One cell.

    Attributes:
        count: the number of boxes.
        share: share of the row's boxes, 0 to 1, which the shade shows.
        kind: "correct", "confused" (another class), "missed" (the column of the background), "false" (its row) or "none" (the
            background's own cell, which counts nothing).
        meaning: the count in words, shown when the pointer rests on the cell.
    """

    count: int
    share: float
    kind: str
    meaning: str


@dataclass(frozen=True)
class ConfusionMatrix:
    """Numbers of boxes by annotated class (rows) and predicted class (columns).

    Attributes:
        names: names of the rows and columns. The last one is the background: its row counts false positives, its column misses.
        counts: (n, n).
    """

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> tuple[tuple[str, tuple[ConfusionCell, ...]], ...]:
        """The name and the cells of each row."""
        last = len(self.names) - 1
        return tuple(
            (name, tuple(self._cell(i, j, sum(counts)) for j in range(last + 1)))
            for i, (name, counts) in enumerate(zip(self.names, self.counts, strict=True))
        )

    @property
    def is_wide(self) -> bool:
        """Whether the headings of the columns should stand upright, for lack of room."""
        return len(self.names) >= _TURNED_FROM or sum(map(len, self.names)) > _LONG_HEADS

    @property
    def is_dense(self) -> bool:
        """Whether the columns should be as narrow as they can be."""
        return len(self.names) >= _DENSE_FROM

    def _cell(self, row: int, column: int, total: int) -> ConfusionCell:
        count, background = self.counts[row][column], len(self.names) - 1
        annotated, predicted = self.names[row], self.names[column]
        share = count / total if total else 0.0
        if row == background == column:
            return ConfusionCell(count, 0.0, "none", "")
        if row == background:
            return ConfusionCell(
                count, share, "false", f"{counted(count, 'detection')} of {predicted} where nothing is"
            )
        of = f"{count:,} of {counted(total, 'object')} annotated as {annotated}"
        if column == background:
            return ConfusionCell(count, share, "missed", f"{of}: missed")
        if row == column:
            return ConfusionCell(count, share, "correct", f"{of}: found")
        return ConfusionCell(count, share, "confused", f"{of}: predicted as {predicted}")


def confusion_matrix(diagnosis: Diagnosis) -> ConfusionMatrix:
    """The confusion of the most frequent annotated classes; one row and column sum up the others."""
    background = len(diagnosis.classes)
    order = np.argsort(-diagnosis.confusion[:-1].sum(1), kind="stable")
    groups = [[int(k)] for k in order[:MAX_CLASSES]]
    names = [diagnosis.classes[k] for k in order[:MAX_CLASSES]]
    if len(order) > MAX_CLASSES:
        groups.append(order[MAX_CLASSES:].tolist())
        names.append(OTHERS)
    groups.append([background])
    counts = tuple(tuple(int(diagnosis.confusion[np.ix_(row, column)].sum()) for column in groups) for row in groups)
    return ConfusionMatrix((*names, BACKGROUND), counts)
