"""Reads the label files of YOLO datasets.

Each line is `class cx cy width height`, `class x1 y1 x2 y2 ...` of a polygon, or `class cx cy width height` and keypoints where
the YAML has `kpt_shape`; all numbers are shares of the image's width and height. What a line's numbers mean is decided on
the whole dataset: see `judge_lines`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from foldfuse.data.findings import Finding
from foldfuse.errors import InputError, shown
from foldfuse.system.files import read_text

MANY = 3  # lines from which on their form is judged
MAX_SHARE = 2.0  # a number above this is no share of a side, but pixels
MAX_LABEL_BYTES = 2**26

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class LabelFormat:
    """What the description of a dataset says about its label files.

    Attributes:
        names: {class number: class name}.
        kpt_shape: (keypoints, numbers of each) of a pose dataset; None for boxes and polygons.
        is_oriented: whether the dataset says that it holds oriented boxes.
        is_segmented: whether it says that it holds polygons, so that their form is not judged.
        box_format: what the four numbers of a box are, where it says so: cxcywh, xyxy or xywh; None for cxcywh, judged.
    """

    names: Mapping[int, str]
    kpt_shape: tuple[int, int] | None = None
    is_oriented: bool = False
    is_segmented: bool = False
    box_format: str | None = None


@dataclass(frozen=True, slots=True)
class LabelLine:
    """A line of a label file: the file, the line's number, the class number, and the numbers after it."""

    path: Path
    number: int
    label: int
    values: tuple[float, ...]

    @property
    def where(self) -> str:
        """The beginning of a sentence on the line."""
        return f"{self.path}: line {self.number}"


def read_lines(path: Path, form: LabelFormat) -> tuple[list[LabelLine], list[Finding]]:
    """The lines of one label file, and findings about those that cannot be read.

    Raises:
        InputError: the file cannot be read.
    """
    text = read_text(path, what="a YOLO label file", limit=MAX_LABEL_BYTES)
    by_name = _labels_by_name(form.names)
    lines: list[LabelLine] = []
    findings: list[Finding] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        if (box := _plain_box(words, form)) is not None:
            lines.append(LabelLine(path, number, *box))
            continue
        try:
            lines.append(LabelLine(path, number, *_parse(words, f"{path}: line {number}", form, by_name)))
        except InputError as error:
            findings.append(
                Finding("the line of a label file is broken", str(error).replace(str(path), path.name, 1), str(error))
            )
    return lines, findings


def classes_in(path: Path) -> set[int]:
    """The whole numbers with which lines of a label file begin. Raises InputError where the file cannot be read."""
    text = read_text(path, what="a YOLO label file", limit=MAX_LABEL_BYTES)
    return {int(found) for found in re.findall(r"^[ \t]*(\d{1,9})(?:\.0*)?[ \t,;]", text, re.MULTILINE)}


def _labels_by_name(names: Mapping[int, str]) -> dict[str, int]:
    times = Counter(names.values())
    return {name: label for label, name in names.items() if times[name] == 1}


def _plain_box(line: str, form: LabelFormat) -> tuple[int, tuple[float, ...]] | None:
    """(class, four numbers) of a line without any peculiarity; None for a line that needs a closer look."""
    words = line.split()
    if len(words) != 5 or not words[0].isdecimal():
        return None
    try:
        label, cx, cy, w, h = int(words[0]), float(words[1]), float(words[2]), float(words[3]), float(words[4])
    except ValueError:
        return None
    is_plain = label in form.names and 0 <= cx <= 1 and 0 <= cy <= 1 and 0 < w <= 1 and 0 < h <= 1 and "_" not in line
    return (label, (cx, cy, w, h)) if is_plain else None


def _parse(line: str, where: str, form: LabelFormat, by_name: Mapping[str, int]) -> tuple[int, tuple[float, ...]]:
    """(class, numbers after it) of a line. Raises InputError where it is no line of a label file."""
    words = _words(line)
    start = 1
    while start < len(words) and _number(words[start]) is None:  # a class name of several words
        start += 1
    name, values = " ".join(words[:start]), [_number(word) for word in words[start:]]
    if None in values or start == len(words) or (start > 1 and name not in by_name):
        if len(words) in (9, 10) and all(_number(word) is not None for word in words[:8]):
            raise InputError(
                f"{where}: is {shown(line)}: four corners, then the class. Oriented boxes (DOTA) are not supported; export "
                "upright boxes."
            )
        raise InputError(f"{where}: is {shown(line)}, expected numbers: class cx cy width height.")
    label = _label(name, where, form, by_name)
    numbers = tuple(value for value in values if value is not None)
    _check_count(numbers, where, form)
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{where}: is {shown(line)}, expected finite numbers.")
    if max(map(abs, numbers[: 4 if form.kpt_shape else None])) > MAX_SHARE:
        raise InputError(
            f"{where}: holds {max(numbers, key=abs):g}, expected shares of the image's width and height from 0 to 1. These look "
            "like pixels: divide them by the size of the image."
        )
    if len(numbers) in (4, 5) and min(numbers[2:4]) <= 0:
        raise InputError(f"{where}: the box has the size {numbers[2]:g} x {numbers[3]:g}, expected more than 0.")
    return label, numbers


def _words(line: str) -> list[str]:
    """The words of a line; commas and semicolons separate them too, unless they are decimal commas."""
    words = line.split()
    if len(words) >= 5 and all(re.fullmatch(r"-?\d+(,\d+)?", word) for word in words[1:]) and "," in line:
        return [words[0], *(word.replace(",", ".") for word in words[1:])]
    return [word for word in re.split(r"[\s,;]+", line) if word]


def _number(word: str) -> float | None:
    try:
        return float(word) if "_" not in word else None
    except ValueError:
        return None


def _label(word: str, where: str, form: LabelFormat, by_name: Mapping[str, int]) -> int:
    value = _number(word)
    known = ", ".join(map(str, sorted(form.names)[:10])) + ", ..." * (len(form.names) > 10)
    if value is None or not math.isfinite(value):
        if word in by_name:
            return by_name[word]
        raise InputError(
            f"{where}: is of the class {shown(word)}, expected numbers: a class of 'names' ({known}) first."
        )
    if not value.is_integer() or int(value) not in form.names:
        raise InputError(f"{where}: the class is {word[:20]}, but 'names' has {known}.")
    return int(value)


def _check_count(values: Sequence[float], where: str, form: LabelFormat) -> None:
    """Raises InputError where a line has a number of numbers that no form has."""
    count = len(values)
    if form.kpt_shape is not None:
        expected = 4 + form.kpt_shape[0] * form.kpt_shape[1]
        if count not in (4, expected, expected + 1):
            keypoints, numbers = form.kpt_shape
            raise InputError(
                f"{where}: has {count} numbers after the class, expected {expected}: a box and the {keypoints} x {numbers} of "
                "'kpt_shape'."
            )
        return
    if count < 4:
        raise InputError(f"{where}: has {count + 1} numbers, expected 5: class cx cy width height.")
    if count > 5 and count % 2:
        hint = "Write 'kpt_shape: [keypoints, 3]' in the YAML if they are keypoints." if (count - 4) % 3 == 0 else ""
        raise InputError(
            f"{where}: has {count + 1} numbers, expected 5 (class cx cy width height) or a class and "
            f"pairs of a polygon. {hint}".rstrip()
        )


def box_of(values: Sequence[float], form: LabelFormat) -> Box:
    """(left, top, width, height) of the numbers after the class, as shares of the sides."""
    if form.kpt_shape is not None or len(values) <= 5:
        a, b, c, d = values[:4]
        if form.box_format == "xyxy":
            return a, b, c - a, d - b
        return (a, b, c, d) if form.box_format == "xywh" else (a - c / 2, b - d / 2, c, d)
    xs, ys = values[0::2], values[1::2]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def judge_lines(
    lines: Sequence[tuple[LabelLine, tuple[int, int]]], form: LabelFormat, source: Path
) -> Iterator[Finding]:
    """Findings about what the numbers of a whole dataset seem to mean.

    Args:
        lines: every line, with the (width, height) of its image.
        form: what the description of the dataset says.
        source: the description, named in sentences.
    """
    if form.kpt_shape is not None:
        return
    polygons = [(line, size) for line, size in lines if len(line.values) > 5]
    if form.is_oriented or (_are_oriented(polygons) and not form.is_segmented):
        error = (
            f"{source}: its labels are oriented boxes (four corners a line, such as {polygons[0][0].where}), "
            if polygons
            else f"{source}: says that its labels are oriented boxes, "
        )
        error += (
            "which are not supported. Export upright boxes; 'foldfuse check --fix' writes the upright box around each."
        )
        yield Finding("the boxes are oriented", str(source), error, fix="upright box around each")
    elif not form.is_segmented and (kpt_shape := _pose_shape([line.values for line, _ in polygons])) is not None:
        error = (
            f"{polygons[0][0].where}: a box and keypoints seem to follow the class, as the first four numbers are a box around "
            f"all others. Write 'kpt_shape: [{kpt_shape[0]}, {kpt_shape[1]}]' in {source} if so; if these are polygons, write "
            "'task: segment' in it."
        )
        option = f"'kpt_shape: [{kpt_shape[0]}, {kpt_shape[1]}]' or 'task: segment' to the YAML"
        yield Finding("the numbers seem to be keypoints", polygons[0][0].where, error, fix="", option=option)
    extra = [line for line, _ in lines if len(line.values) == 5]
    if extra:
        yield Finding(
            "the sixth number of a label line (a confidence or a track id) is ignored",
            f"{extra[0].where} and {len(extra) - 1} more" if len(extra) > 1 else extra[0].where,
            fix="left out",
            is_fault=False,
            is_logged=True,
        )
    if form.box_format is None:
        yield from _judge_boxes([line for line, _ in lines if len(line.values) in (4, 5)])


def _judge_boxes(lines: Sequence[LabelLine]) -> Iterator[Finding]:
    """A finding where most boxes make sense only as corners, or only with their left top corner first."""
    if len(lines) < MANY:
        return
    outside = [line for line in lines if _outside(box_of(line.values[:4], LabelFormat({})))]
    if len(outside) < max(2, 0.3 * len(lines)):
        return
    boxes = [line.values[:4] for line in lines]
    if all(x2 > x1 and y2 > y1 and max(x2, y2) <= 1.01 for x1, y1, x2, y2 in boxes):
        meaning, name = "x1 y1 x2 y2", "xyxy"
    elif not any(_outside((x, y, w, h)) for x, y, w, h in boxes):
        meaning, name = "left top width height", "xywh"
    else:
        return
    error = (
        f"{outside[0].where}: its box leaves the image, as {len(outside)} of {len(lines)} do; the numbers look like "
        f"{meaning}, expected cx cy width height. Write 'box_format: {name}' in a data.yaml if so, else 'box_format: cxcywh'."
    )
    option = f"'box_format: {name}' or 'box_format: cxcywh' to the YAML"
    yield Finding(f"the boxes look like {meaning}", outside[0].where, error, fix="", option=option)


def _outside(box: Box) -> bool:
    x, y, w, h = box
    return min(x, y) < -0.02 or max(x + w, y + h) > 1.02


def _are_oriented(polygons: Sequence[tuple[LabelLine, tuple[int, int]]]) -> bool:
    """Whether all polygons are rectangles of four corners, and some of them are turned."""
    if len(polygons) < MANY or any(len(line.values) != 8 for line, _ in polygons):
        return False
    turned = 0
    for line, (width, height) in polygons:
        points = [(x * width, y * height) for x, y in zip(line.values[0::2], line.values[1::2], strict=True)]
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = points
        first, last = (bx - ax, by - ay), (dx - ax, dy - ay)
        lengths = math.hypot(*first), math.hypot(*last)
        slack = 2.0 + 0.02 * max(lengths)
        if math.hypot(ax + cx - bx - dx, ay + cy - by - dy) > slack:
            return False  # no parallelogram
        if min(lengths) > 0 and abs(first[0] * last[0] + first[1] * last[1]) / max(lengths) > slack:
            return False  # no right angle
        turned += min(abs(first[0]), abs(first[1])) > slack
    return turned > 0


def _pose_shape(lines: Sequence[Sequence[float]]) -> tuple[int, int] | None:
    """(keypoints, numbers of each) where the numbers of all lines fit a box around keypoints; None for polygons."""
    counts = {len(values) for values in lines}
    if len(lines) < MANY or len(counts) != 1:
        return None
    count = counts.pop() - 4
    for numbers in (2, 3):
        if count % numbers == 0 and count and all(_is_pose(values, numbers) for values in lines):
            return count // numbers, numbers
    return None


def _is_pose(values: Sequence[float], numbers: int) -> bool:
    """Whether the first four numbers are a box that holds the keypoints after them."""
    cx, cy, w, h = values[:4]
    points = [tuple(values[i : i + numbers]) for i in range(4, len(values), numbers)]
    if numbers == 3 and not all(point[2] in (0, 1, 2) for point in points):
        return False
    seen = [point for point in points if any(point)]
    near = 0.01
    return w > 0 and h > 0 and all(abs(x - cx) <= w / 2 + near and abs(y - cy) <= h / 2 + near for x, y, *_ in seen)
