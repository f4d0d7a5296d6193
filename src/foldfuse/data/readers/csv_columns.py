"""The columns of CSV files of annotations and predictions: what they are called, and what their four numbers are."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from foldfuse.errors import InputError, shown
from foldfuse.system.files import read_start

WHAT = "a CSV of annotations"
MAX_FIELD = 2**27  # characters of one cell

IMAGE = [
    "imageid",
    "image",
    "filename",
    "imagename",
    "imagefile",
    "imagepath",
    "path",
    "file",
    "name",
    "img",
    "imgid",
    "imgname",
    "imgpath",
    "photo",
    "patientid",
    "videoframe",
    "id",
]
CLASS = [
    "class",
    "classname",
    "label",
    "labelname",
    "category",
    "categoryname",
    "classid",
    "categoryid",
    "labelid",
    "species",
    "cls",
    "objectname",
    "objectclass",
    "name",
]
BOX_STRINGS = ("boxesstring", "boxes", "annotations", "bboxes")  # which no sample submission has beside images
STRINGS = ["predictionstring", *BOX_STRINGS, "labels"]
CELLS = {"bbox": None, "box": None, "boundingbox": None, "bboxxywh": "xywh", "bboxxyxy": "xyxy", "bboxcxcywh": "cxcywh"}
CELLS |= {"xywh": "xywh", "xyxy": "xyxy"}
FORMS = (  # (columns, what they hold)
    ("xmin ymin xmax ymax", "xyxy"),
    ("x1 y1 x2 y2", "xyxy"),
    ("x0 y0 x1 y1", "xyxy"),
    ("xtl ytl xbr ybr", "xyxy"),
    ("left top right bottom", "xyxy"),
    ("bboxx1 bboxy1 bboxx2 bboxy2", "xyxy"),
    ("bboxxmin bboxymin bboxxmax bboxymax", "xyxy"),
    ("xmin ymin width height", "xywh"),
    ("xmin ymin w h", "xywh"),
    ("left top width height", "xywh"),
    ("bboxx bboxy bboxwidth bboxheight", "xywh"),
    ("bboxx bboxy bboxw bboxh", "xywh"),
    ("bboxleft bboxtop bboxwidth bboxheight", "xywh"),
    ("xcenter ycenter width height", "cxcywh"),
    ("xcenter ycenter w h", "cxcywh"),
    ("xcentre ycentre width height", "cxcywh"),
    ("centerx centery width height", "cxcywh"),
    ("cx cy w h", "cxcywh"),
    ("cx cy width height", "cxcywh"),
    ("xc yc w h", "cxcywh"),
    ("x y w h", "xywh"),
    ("x y width height", "xywh"),
)
CROWD = ("iscrowd", "isgroupof", "crowd", "groupof")
SCORES = ("score", "scores", "confidence", "conf", "confidencescore", "probability", "prob")


def is_box_csv(path: Path) -> bool:
    """Whether the header of a CSV file names images and boxes."""
    try:
        start = read_start(path, what=WHAT).decode("utf-8", "replace")
    except InputError:
        return False
    try:
        header, _ = split_rows(start.split("\n", 1)[0])
    except csv.Error:
        return False
    columns = {plain(name): i for i, name in enumerate(header)}
    has_boxes = bool(four_columns(columns)[0]) or any(name in columns for name in (*CELLS, *BOX_STRINGS))
    return has_boxes and any(name in columns for name in IMAGE)


def split_rows(text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and (line, cells) of each row; a file without a header has the columns of keras-retinanet."""
    text = re.sub(r"\A\s*\"?sep=.\"?[ \t]*\r?\n", "", text)  # as Excel begins a file, to name its separator
    first = text.lstrip("\n").split("\n", 1)[0]
    delimiter = max(",;\t|", key=first.count)
    csv.field_size_limit(MAX_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    if not rows:
        return [], []
    if delimiter == ";":
        rows = [(line, [re.sub(r"^(-?\d+),(\d+)$", r"\1.\2", cell.strip()) for cell in row]) for line, row in rows]
    head = rows[0][1]
    if len(head) == 6 and all(number_of(cell) is not None or not cell.strip() for cell in head[1:5]):
        return ["path", "x1", "y1", "x2", "y2", "class"], rows
    return [cell.strip() for cell in head], rows[1:]


def plain(name: str) -> str:
    """The name of a column as it is compared: lower case letters and digits alone."""
    return re.sub(r"[\W_]+", "", name.lower())


def listed(header: Sequence[str]) -> str:
    """The names of the columns as a message shows them."""
    return shown(", ".join(header))


def four_columns(columns: Mapping[str, int]) -> tuple[list[int], str | None]:
    """The columns of the four numbers, and what they hold."""
    for names, form in FORMS:
        if all(name in columns for name in names.split()):
            return [columns[name] for name in names.split()], form
    return [], None


def class_columns(columns: Mapping[str, int], exclude: set[int]) -> tuple[int | None, int | None]:
    """The column of class names, and that of class numbers beside it."""
    found = [columns[name] for name in CLASS if name in columns and columns[name] not in exclude]
    numbers = [columns[name] for name in ("classid", "categoryid", "labelid") if name in columns]
    words = [i for i in found if i not in numbers]
    named = words[0] if words else found[0] if found else None
    return named, next((i for i in numbers if i != named), None)


def number_of(text: str) -> float | None:
    """The finite number in a cell; None where there is none."""
    try:
        value = float(text.strip())
    except ValueError:
        return None
    return value if math.isfinite(value) else None
