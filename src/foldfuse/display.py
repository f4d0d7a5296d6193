"""HTML that a notebook shows for a value: small tables and images, each of bounded size. Every text is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

LONGEST_SIDE = 800  # pixels of an embedded image
MAX_ROWS = 20  # of a table
_JPEG_QUALITY = 80
_LONGEST_TEXT = 80  # letters of a cell
_CELL = "padding:2px 10px;text-align:{}"


def image_html(image: Image.Image, *, longest: int = LONGEST_SIDE, title: str = "") -> str:
    """An image as an embedded JPEG, shrunk so that no side is longer than `longest` pixels."""
    if max(image.size) > longest:
        image = image.copy()
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    memory = io.BytesIO()
    image.save(memory, "JPEG", quality=_JPEG_QUALITY)
    data = base64.b64encode(memory.getvalue()).decode("ascii")
    text = escape(short(title), quote=True)
    return f'<img src="data:image/jpeg;base64,{data}" alt="{text}" title="{text}" style="max-width:100%;margin:2px">'


def table_html(heads: Sequence[str], rows: Iterable[Sequence[object]], *, more: int = 0) -> str:
    """A table; numbers stand at the right.

    Args:
        heads: the heads of the columns.
        rows: the cells of each row; a float is shown with four digits, None as a dash.
        more: number of further rows that are not shown.
    """
    body = [[("left" if isinstance(cell, str) else "right", _cell(cell)) for cell in row] for row in rows]
    sides = [side for side, _ in body[0]] if body else ["left"] * len(heads)
    parts = [f'<th style="{_CELL.format(side)}">{escape(head)}</th>' for side, head in zip(sides, heads, strict=True)]
    lines = [f"<tr>{''.join(parts)}</tr>"]
    for row in body:
        cells = (f'<td style="{_CELL.format(side)}">{text}</td>' for side, text in row)
        lines.append(f"<tr>{''.join(cells)}</tr>")
    rest = f"<div>… and {more:,} more</div>" if more > 0 else ""
    return f"<table>{''.join(lines)}</table>{rest}"


def value_html(title: str, *parts: str) -> str:
    """A value: its title, which is its short text, and parts that are HTML already."""
    return f"<div><p><b>{escape(short(title, 300))}</b></p>{''.join(parts)}</div>"


def note_html(text: str) -> str:
    """A sentence, such as the reason why an image is not shown."""
    return f"<div>{escape(short(text, 400))}</div>"


def short(text: str, limit: int = _LONGEST_TEXT) -> str:
    """A text in one line of at most `limit` letters, without letters that cannot be seen."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text[: 4 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else escape(short(str(value)))
