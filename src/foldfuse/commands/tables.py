"""Tables on the terminal, as several commands print them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from foldfuse.system.printing import clean


def text_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, words: Sequence[str] = ()) -> Table:
    """A table of plain text, without markup.

    Args:
        title: above the table.
        heads: the headings of the columns.
        rows: a cell for each column.
        words: heads of columns to align left, as the first one is; the others hold numbers and are aligned right.
    """
    table = Table(title=Text(clean(title)), title_justify="left")
    for i, head in enumerate(heads):
        table.add_column(Text(clean(head)), justify="left" if i == 0 or head in words else "right")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    return table


def score_text(value: float | None) -> str:
    """A score with four digits; "–" for one that is not defined."""
    return "–" if value is None else f"{value:.4f}"
