"""What a walk through a dataset yields: usable rows, and findings about rows and files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault of a dataset, or a note about it.

    Attributes:
        kind: the type of the fault in words, the same for all findings of this type.
        where: the row or the image.
        error: the sentence of the InputError with which reading refuses the document; "" where reading accepts the row.
        fix: the change in the fixed copy; "" where the copy keeps the row as it is.
        is_fault: True for a fault, which reading refuses or which misleads training; False for a note.
        is_logged: True for a finding that the user must hear of outside `check` too: reading logs it.
        option: the option of `check` that settles what the document leaves open; without it no fixed copy is written.
    """

    kind: str
    where: str
    error: str = ""
    fix: str = "left out"
    is_fault: bool = True
    is_logged: bool = False
    option: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class ImageRow:
    """A usable image: its fields, and the fixed COCO row.

    Attributes:
        missing: why `path` is no image file, as a sentence; "" where it is one.
        orientation: EXIF orientation that loading applies to the pixels, where the file was looked at.
        original_id: the id as it is written, where it is not the whole number `id`; else None.
    """

    id: int
    path: Path
    file_name: str
    width: int
    height: int
    row: Row
    missing: str = ""
    orientation: int = 1
    original_id: str | int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class CategoryRow:
    """A usable category: its fields, and the fixed COCO row.

    Attributes:
        original_id: the id as it is written, where it is not the whole number `id`; else None.
    """

    id: int
    name: str
    row: Row
    original_id: str | int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class AnnotationRow:
    """A usable annotation: its fields, and the fixed COCO row.

    Attributes:
        box: xyxy as annotated; it may stick out of the image.
        is_repeat: True for the same box, class and image as an earlier annotation. Reading keeps it, a fixed copy does not.
    """

    image_id: int
    category_id: int
    box: tuple[float, float, float, float]
    crowd: bool
    area: float
    is_repeat: bool
    row: Row


Item = Finding | ImageRow | CategoryRow | AnnotationRow


def fixed_row(row: Row, **fields: Any) -> Row:
    """A copy of the row with `fields` set; the row itself where it already has equal values of the same types."""
    same = all(key in row and row[key] == value and type(row[key]) is type(value) for key, value in fields.items())
    return row if same else row | fields
