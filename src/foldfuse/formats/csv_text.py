"""CSV files as rows of cells, whatever their separator, and the meaning of their columns by name."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from foldfuse.data.readers.csv_columns import CLASS, FORMS, IMAGE, SCORES, plain
from foldfuse.errors import InputError, shown
from foldfuse.system.files import read_text

SEPARATORS = (",", ";", "\t", "|")
STRING_COLUMNS = {"predictionstring", "predictionstrings", "predictions", "prediction", "predstring", "annotations"}
IMAGE_COLUMNS = frozenset(IMAGE)
CLASS_COLUMNS = frozenset(CLASS) - {"name"}  # which names the image in files of predictions
SCORE_COLUMNS = frozenset(SCORES)
BOX_COLUMNS = {  # form: names of its four columns
    form: tuple(tuple(names.split()) for names, kind in FORMS if kind == form) for form in ("xyxy", "xywh", "cxcywh")
}
LIST_COLUMNS = {"bbox", "box", "boundingbox"}  # one column with all four numbers


@dataclass(frozen=True)
class CsvFile:
    """A CSV file.

    Attributes:
        header: the names of the columns, as the file has them.
        rows: the cells of each row, as many as the header has.
        lines: the number of the line where each row ends.
        separator: the character between cells.
        is_all_quoted: whether every cell is in quotes.
        newline: the end of a line: "\\n" or "\\r\\n".
        ends_with_newline: whether the last row ends with one.
    """

    header: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]
    separator: str
    is_all_quoted: bool
    newline: str
    ends_with_newline: bool

    @property
    def names(self) -> list[str]:
        """The names of the columns as they are compared: lower case letters and digits alone."""
        return [plain(name) for name in self.header]

    def column(self, known: Collection[str]) -> int | None:
        """The index of the only column with a name in `known`; None where none or several have one."""
        found = [i for i, name in enumerate(self.names) if name in known]
        return found[0] if len(found) == 1 else None


def is_csv_header(line: str) -> bool:
    """Whether a line has at least two cells by one of SEPARATORS."""
    return any(separator in line for separator in SEPARATORS)


def read_csv(path: Path, *, what: str) -> CsvFile:
    """The cells of a CSV file; the separator is the one that divides the header into most cells.

    Raises:
        InputError: the file is no text or no CSV, or a row has more or fewer cells than the header.
    """
    text = read_text(path, what=what)
    first = text.lstrip("\r\n").partition("\n")[0]
    separator = max(SEPARATORS, key=first.count)
    csv.field_size_limit(2**31 - 1)
    rows, lines = [], []
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
        header: tuple[str, ...] = ()
        for row in reader:
            if not row:
                continue
            if not header:
                header = tuple(row)
                continue
            if len(row) != len(header):
                found = shown(separator.join(header))
                raise InputError(
                    f"{path}: line {reader.line_num} has {len(row)} columns, expected {len(header)}: {found}."
                )
            rows.append(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise InputError(f"{path}: is not a CSV ({error}).") from None
    cells = text.rstrip("\r\n").splitlines()
    return CsvFile(
        header=header,
        rows=rows,
        lines=lines,
        separator=separator,
        is_all_quoted=bool(cells)
        and all(f'"{separator}"' in line and line[0] == line[-1] == '"' for line in cells[:50]),
        newline="\r\n" if "\r\n" in text[:100_000] else "\n",
        ends_with_newline=text.endswith("\n"),
    )
