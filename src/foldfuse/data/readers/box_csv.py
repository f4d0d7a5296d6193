"""Reads CSV files of annotations, as contests and scripts write them: one row a box, or all boxes of an image in one cell.

Columns are known by their usual names, whatever their case, blanks and underscores: see `csv_columns`. A column
with four numbers in a cell ("[x, y, w, h]") may hold corners or sizes: what all of its boxes fit is taken, and where both fit,
the file is refused until the column is called bbox_xywh or bbox_xyxy. A row without numbers is an image without objects.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from foldfuse.data.findings import Finding
from foldfuse.data.readers.csv_columns import (
    CELLS,
    CLASS,
    CROWD,
    IMAGE,
    SCORES,
    STRINGS,
    WHAT,
    class_columns,
    four_columns,
    listed,
    number_of,
    plain,
    split_rows,
)
from foldfuse.data.readers.image_names import ImageFiles
from foldfuse.data.readers.image_rows import Row, coco_document, image_ids, size_of
from foldfuse.data.readers.loaded import Loaded
from foldfuse.errors import InputError, shown
from foldfuse.system.files import read_text

ONE_CLASS = "object"  # the class of a file that names none
MAX_SHARE = 1.5  # shares of the sides may be a little above 1; pixels of all boxes are never so few

NO_OBJECT = re.compile(r"(no[ _]?(finding|box|object|label)s?|none|nan|null|)$", re.IGNORECASE)

PREDICTION_STRING = re.compile(r"(\S+(\s+[-+.\deE]+){5}\s*)+")  # label score and four numbers, once or more

Four = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class CsvBox:
    """A box as a row states it: the sentence's beginning, the image, the class, four numbers, and whether it is a crowd."""

    where: str
    image: str
    name: str
    numbers: Four
    is_crowd: bool = False


@dataclass(eq=False)
class CsvTable:
    """The rows of a file, read.

    Attributes:
        images: {name of an image: (width, height) where the file states it}.
        boxes: the boxes.
        form: what the four numbers are: xyxy, xywh or cxcywh; None where the columns leave it open.
        numbers_of: {class name: number} where the file states both.
        findings: broken rows, and notes.
    """

    images: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    boxes: list[CsvBox] = field(default_factory=list)
    form: str | None = None
    numbers_of: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def read_box_csv(
    path: Path, *, images: Path | None = None, annotated: bool = True, ignore_orientation: bool = False
) -> Loaded:
    """The dataset in a CSV file.

    Args:
        path: the file.
        images: the folder of `--images`; by default images lie beside the file or in folders below.
        annotated: False to read the names of images alone.
        ignore_orientation: whether sizes from image files are those of the pixels as stored.

    Raises:
        InputError: the file has no column of images, or of boxes where `annotated`; or what its boxes are is not certain.
    """
    table = _read_table(path, annotated=annotated)
    files = ImageFiles(path, images)
    ids = image_ids([Path(name) for name in table.images])
    rows: dict[str, Row] = {}
    known: dict[str, Path] = {}
    for name, stated in table.images.items():
        match = files.find(name)
        if not match.found and (other := files.find(_file_of_id(name))).found:
            match = other
            known[name] = other.path
        size = stated
        if size is None and not match.found:
            error = f"{path}: {files.where(name)}"
            table.findings.append(Finding("the image is missing", name, error))
            continue
        try:
            size = size or size_of(match.path, ignore_orientation=ignore_orientation)
        except InputError as error:
            table.findings.append(Finding("the image cannot be decoded", name, str(error)))
            continue
        rows[name] = {"id": ids[Path(name)], "file_name": name, "width": size[0], "height": size[1]}
    boxes = [box for box in table.boxes if box.image in rows]
    form, is_share = _form(boxes, rows, table, path)
    labels = _labels(table)
    annotations = [_annotation(box, rows[box.image], form, labels, is_share=is_share) for box in boxes]
    document = coco_document(rows.values(), {number: name for name, number in labels.items()}, annotations)
    return Loaded(document, path, tuple(table.findings), replace(files, known=known), ignore_orientation)


def _read_table(path: Path, *, annotated: bool) -> CsvTable:
    text = read_text(path, what=WHAT, hint="Give the CSV of the annotations.")
    try:
        header, rows = split_rows(text)
    except csv.Error as problem:
        raise InputError(f"{path}: is no CSV ({problem}).") from None
    if not rows and not header:
        raise InputError(f"{path}: is empty, expected {WHAT}.")
    columns = {plain(name): i for i, name in reversed(list(enumerate(header)))}
    image = next((columns[name] for name in IMAGE if name in columns), None)
    if image is None:
        raise InputError(
            f"{path}: has the columns {listed(header)}, and none of them names images. Call one 'image_id'."
        )
    table = CsvTable()
    strings = _string_columns(columns, rows, image)
    sides = [columns.get(name) for name in ("width", "height")]
    cell = next((name for name in CELLS if name in columns), None)
    string = next((name for name in (*strings, *STRINGS) if name in columns and columns[name] != image), None)
    four, form = four_columns(columns)
    if strings:
        four, cell = [], None
    has_sizes = None not in sides and not set(sides) & set(four)
    table.form = form if four else CELLS.get(cell or "")
    if annotated and not (four or cell or string):
        raise InputError(
            f"{path}: has the columns {listed(header)}, and no boxes. Expected columns such as xmin, ymin, xmax, ymax, or "
            "left, top, width, height, or bbox."
        )
    named, numbered = class_columns(columns, exclude={image, *four, *(columns[name] for name in strings)})
    if annotated and named is None and not string:
        where = f"no column of {listed(header)} names classes"
        kind = f"all boxes are of one class, called {ONE_CLASS}"
        table.findings.append(Finding(kind, where, fix="", is_fault=False, is_logged=True))
    table.findings += _score_column(header, rows)
    crowd = next((columns[name] for name in CROWD if name in columns), None)
    for line, row in rows:
        where = f"{path}: line {line}"
        if len(row) != len(header):
            error = f"{where}: has {len(row)} cells, expected {len(header)}."
            table.findings.append(_broken(path, error))
            continue
        name = row[image].strip()
        if not name:
            error = f"{where}: names no image."
            table.findings.append(_broken(path, error))
            continue
        size = _size([row[i] for i in sides if i is not None]) if has_sizes else None
        if table.images.setdefault(name, size) != size:
            error = f"{where}: {name} is {size[0]} x {size[1]} pixels here, and another size above." if size else ""
            table.findings.append(
                Finding("an image has two sizes", f"line {line}", error, fix="the first size is kept")
            )
        if not annotated:
            continue
        class_name = ONE_CLASS if named is None else row[named].strip()
        try:
            if four or cell:
                texts = [row[i] for i in four] if four else _numbers_in(row[columns[cell or ""]])
                numbers = _four(texts, where)
                if numbers is None or not any(numbers):  # "NEG,1.0,0,0,0,0": an image without objects
                    continue
                if NO_OBJECT.match(class_name):
                    raise InputError(f"{where}: has a box, but no class.")
                table.boxes.append(CsvBox(where, name, class_name, numbers, _is_crowd(row, crowd)))
            else:
                _read_string(
                    row[columns[string or ""]], where, name, class_name, table, is_pairs=string == "boxesstring"
                )
        except InputError as error:
            table.findings.append(_broken(path, str(error)))
            continue
        if numbered is not None and re.fullmatch(r"\d{1,9}", row[numbered].strip()):
            table.numbers_of.setdefault(class_name, int(row[numbered]))
    return table


def _broken(path: Path, error: str) -> Finding:
    return Finding("the row of the CSV is broken", error.removeprefix(f"{path}: "), error)


def _file_of_id(name: str) -> str:
    """The name of the file that a contest's id stands for: `ID_image`, or `VIDEO-FRAME` of video_VIDEO/FRAME.jpg."""
    if found := re.fullmatch(r"(\d+)-(\d+)", name):
        return f"video_{found[1]}/{found[2]}.jpg"
    return name.removesuffix("_image")


def _score_column(header: Sequence[str], rows: Sequence[tuple[int, list[str]]]) -> list[Finding]:
    """A finding about a column of scores; it is a fault unless all are 1, as organisers give them with annotations."""
    column = next((i for i, name in enumerate(header) if plain(name) in SCORES), None)
    if column is None:
        return []
    cells = {row[column].strip() for _, row in rows if len(row) == len(header)} - {""}
    if {number_of(cell) for cell in cells} <= {1.0}:
        return [Finding("a column of scores is ignored, as all are 1", header[column], fix="left out", is_fault=False)]
    kind = "a column of scores is ignored; these may be predictions and no annotations"
    return [Finding(kind, header[column], fix="left out", is_logged=True)]


def _is_crowd(row: Sequence[str], column: int | None) -> bool:
    """Whether a row is marked as a group of objects."""
    return column is not None and (row[column].strip().lower() == "true" or number_of(row[column]) == 1)


def _string_columns(columns: Mapping[str, int], rows: Sequence[tuple[int, list[str]]], image: int) -> list[str]:
    """The columns named like classes that hold prediction strings, "opacity 1 10 20 30 40 ..."."""
    found = []
    for name in CLASS:
        column = columns.get(name, image)
        cells = [row[column] for _, row in rows if column < len(row) and len(row[column].split()) >= 6]
        if column != image and cells and all(PREDICTION_STRING.fullmatch(cell.strip()) for cell in cells):
            found.append(name)
    return found


def _size(cells: Sequence[str]) -> tuple[int, int] | None:
    numbers = [number_of(cell) for cell in cells]
    whole = [int(n) for n in numbers if n is not None and 0 < n < 1e6 and n == int(n)]
    return (whole[0], whole[1]) if len(whole) == 2 else None


def _numbers_in(cell: str) -> list[str]:
    """The numbers in a cell such as "[1, 2, 3, 4]", "(1 2 3 4)" or "{'x': 1, 'y': 2, 'width': 3, 'height': 4}"."""
    text = re.sub(r"['\"]?[A-Za-z_]+['\"]?\s*[:=]", " ", cell)
    return [word for word in re.split(r"[\s,;\[\](){}]+", text) if word]


def _four(texts: Sequence[str], where: str) -> Four | None:
    """The numbers of a box; None where the row has none."""
    if all(NO_OBJECT.match(text.strip()) for text in texts):
        return None
    numbers = [number_of(text) for text in texts]
    if len(numbers) != 4 or None in numbers:
        raise InputError(f"{where}: the box is {shown(' '.join(texts))}, expected four numbers.")
    a, b, c, d = (number for number in numbers if number is not None)
    return a, b, c, d


def _read_string(cell: str, where: str, image: str, class_name: str, table: CsvTable, *, is_pairs: bool) -> None:
    """Adds the boxes of one cell: "x1 y1 x2 y2;...", dictionaries, or a prediction string `label score x1 y1 x2 y2 ...`."""
    text = cell.strip()
    if NO_OBJECT.match(text) or text == "[]":
        return
    if "{" in text or is_pairs:
        table.form = "xyxy" if is_pairs else "xywh"
        for part in re.findall(r"\{[^{}]*\}", text) if "{" in text else text.split(";"):
            numbers = _four(_numbers_in(part), where)
            if numbers is not None:
                table.boxes.append(CsvBox(where, image, class_name, numbers))
        return
    words = text.split()
    if len(words) % 6:
        raise InputError(
            f"{where}: has {shown(text)}, expected groups of six, label score xmin ymin xmax ymax, in a cell of annotations."
        )
    table.form = "xyxy"
    for i in range(0, len(words), 6):
        numbers = _four(words[i + 2 : i + 6], where)
        if numbers is None or (list(numbers) == [0, 0, 1, 1] and number_of(words[i + 1]) == 1):
            continue  # "14 1 0 0 1 1" and "none 1 0 0 1 1": an image without objects
        table.boxes.append(CsvBox(where, image, words[i], numbers))


def _form(boxes: Sequence[CsvBox], rows: Mapping[str, Row], table: CsvTable, path: Path) -> tuple[str, bool]:
    """What the four numbers of all boxes are (xyxy, xywh, cxcywh), and whether they are shares of the sides."""
    if not boxes:
        return "xywh", False
    is_share = max(max(box.numbers) for box in boxes) <= MAX_SHARE
    if is_share:
        kind = f"the boxes are read as shares of the image's sides, as no number is above {MAX_SHARE:g}"
        table.findings.append(Finding(kind, f"{len(boxes)} boxes", fix="", is_fault=False, is_logged=True))
    sizes = [(1, 1) if is_share else (rows[box.image]["width"], rows[box.image]["height"]) for box in boxes]
    fits = {form: _fit(boxes, sizes, form) for form in ("xyxy", "xywh", "cxcywh")}
    if table.form is not None:
        better = [form for form, fit in fits.items() if fit > 0.98]
        if fits[table.form] < 0.95 and better:
            raise InputError(
                f"{path}: by the names of its columns its boxes are {table.form}, but they look like "
                f"{better[0]}: {boxes[0].where} has {' '.join(f'{n:g}' for n in boxes[0].numbers)}. Rename the columns: xmin, "
                "ymin, xmax, ymax; left, top, width, height; or cx, cy, w, h."
            )
        return table.form, is_share
    usual = [form for form in ("xyxy", "xywh") if fits[form] > 0.98]
    if usual == ["xywh"]:
        return "xywh", is_share
    if usual == ["xyxy"]:
        return "xyxy", is_share
    found = "may be corners or sizes" if usual else "fit neither as corners nor as sizes"
    raise InputError(
        f"{path}: its boxes {found}: {boxes[0].where} has {' '.join(f'{n:g}' for n in boxes[0].numbers)}. Call the column "
        "bbox_xywh or bbox_xyxy; or give columns xmin, ymin, xmax, ymax; left, top, width, height; or cx, cy, w, h."
    )


def _fit(boxes: Sequence[CsvBox], sizes: Sequence[tuple[int, int]], form: str) -> float:
    """The share of boxes that have a size and lie in their image, give or take 2 % of its sides, if they are of this form."""
    good = 0
    for box, (width, height) in zip(boxes, sizes, strict=True):
        x, y, w, h = _xywh(box.numbers, form)
        across, down = 0.02 * width, 0.02 * height
        good += w > 0 and h > 0 and x >= -across and y >= -down and x + w <= width + across and y + h <= height + down
    return good / len(boxes)


def _xywh(numbers: Four, form: str) -> Four:
    a, b, c, d = numbers
    if form == "xyxy":
        return a, b, c - a, d - b
    return (a, b, c, d) if form == "xywh" else (a - c / 2, b - d / 2, c, d)


def _labels(table: CsvTable) -> dict[str, int]:
    """{class name: category id}: the numbers that the file states; else 1, 2, ... by name, or names that are numbers."""
    names = sorted({box.name for box in table.boxes})
    stated = {name: table.numbers_of[name] for name in names if name in table.numbers_of}
    if names and len(set(stated.values())) == len(names):
        return stated
    numbers = {name: int(number) for name in names if (number := number_of(name)) is not None and number == int(number)}
    if names and len(numbers) == len(names) == len(set(numbers.values())) and min(numbers.values()) >= 0:
        return numbers
    return {name: i for i, name in enumerate(names or [ONE_CLASS], 1)}


def _annotation(box: CsvBox, image: Row, form: str, labels: Mapping[str, int], *, is_share: bool) -> Row:
    x, y, w, h = _xywh(box.numbers, form)
    across, down = (image["width"], image["height"]) if is_share else (1, 1)
    bbox = [x * across, y * down, w * across, h * down]
    return {"image_id": image["id"], "category_id": labels[box.name], "bbox": bbox, "iscrowd": int(box.is_crowd)}
