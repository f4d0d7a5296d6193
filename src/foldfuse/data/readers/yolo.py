"""Reads YOLO datasets: images, and a label file for each.

What describes the dataset is read by `yolo_sources`, label files are found by `label_files` and read by `yolo_lines`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from foldfuse.data.findings import Finding
from foldfuse.data.readers.image_names import ImageFiles
from foldfuse.data.readers.image_rows import Row, coco_document, image_table
from foldfuse.data.readers.label_files import pair_labels
from foldfuse.data.readers.loaded import Loaded
from foldfuse.data.readers.yolo_lines import Box, LabelFormat, LabelLine, box_of, classes_in, judge_lines, read_lines
from foldfuse.data.readers.yolo_sources import read_source
from foldfuse.errors import InputError

ROUNDING = 2e-6  # of a share that is written with six decimals


def read_yolo(
    source: Path,
    *,
    folder: Path | None = None,
    images: Path | None = None,
    annotated: bool = True,
    ignore_orientation: bool = False,
) -> Loaded:
    """A YOLO dataset.

    Args:
        source: a YAML, an obj.data, a text file that lists images, or a folder with a classes.txt.
        folder: the folder of images to read instead of those that the YAML calls `train`.
        images: the folder of `--images`.
        annotated: False to read no label file.
        ignore_orientation: whether sizes are those of the pixels as stored.

    Raises:
        InputError: the description is broken, or names no image.
    """
    described = read_source(source, folder=folder, images=images, annotated=annotated)
    root = source if source.is_dir() else source.parent
    table = image_table(described.images, root, ignore_orientation=ignore_orientation)
    findings = [*described.findings, *table.findings]
    rows, annotations = list(table.rows), list[Row]()
    if annotated:
        pairs = pair_labels(described.images, source=folder or source, images=images)
        findings += pairs.findings
        unclear = set(pairs.unclear)
        labeled = [
            (row, path, pairs.label_of[path])
            for path, row in zip(table.paths, table.rows, strict=True)
            if path in pairs.label_of
        ]
        lines, unread, broken = _all_lines(labeled, described.form)
        if broken and (form := _as_counted([label for _, _, label in labeled], described.form)) != described.form:
            lines, unread, broken = _all_lines(labeled, form)
        findings += broken
        unclear |= unread
        rows = [row for path, row in zip(table.paths, table.rows, strict=True) if path not in unclear]
        findings += judge_lines([(line, (row["width"], row["height"])) for row, line in lines], described.form, source)
        annotations = [_annotation(line, row, described.form) for row, line in lines]
    document = coco_document(rows, described.form.names, annotations)
    given = folder or source
    return Loaded(document, given, tuple(findings), ImageFiles(root, images, table.known), ignore_orientation)


def _all_lines(
    labeled: Iterable[tuple[Row, Path, Path]], form: LabelFormat
) -> tuple[list[tuple[Row, LabelLine]], set[Path], list[Finding]]:
    """The lines of (image, its path, its label file), the images whose file cannot be read, and findings about both."""
    lines: list[tuple[Row, LabelLine]] = []
    unread: set[Path] = set()
    findings: list[Finding] = []
    for row, path, label in labeled:
        found = _lines(label, form, findings)
        lines += [(row, line) for line in found or ()]
        unread |= {path} if found is None else set()
    return lines, unread, findings


def _as_counted(paths: Iterable[Path], form: LabelFormat) -> LabelFormat:
    """The form that also takes the class after the last, where label files seem to count the classes of `names` from one more.

    They do where that class occurs, the first never does, and no other number is unknown. Annotations then keep the unknown
    class, and the dataset is refused as counting its classes differently.
    """
    used: set[int] = set()
    for path in paths:
        with suppress(InputError):
            used |= classes_in(path)
    first, after = min(form.names), max(form.names) + 1
    is_shifted = (
        after in used and first not in used and used <= {*form.names, after} and len(form.names) == after - first
    )
    return replace(form, names={**form.names, after: ""}) if is_shifted else form


def _lines(path: Path, form: LabelFormat, findings: list[Finding]) -> list[LabelLine] | None:
    """The lines of a label file, None for one that cannot be read; adds to `findings`."""
    try:
        lines, broken = read_lines(path, form)
    except InputError as error:
        findings.append(
            Finding(
                "the label file cannot be read",
                str(error).replace(str(path), path.name, 1),
                str(error),
                fix="image left out",
            )
        )
        return None
    findings += broken
    return lines


def _snapped(box: Box) -> Box:
    """A box whose edges lie on the image's where they differ by the rounding of a label file alone."""
    x, y, w, h = box
    x1, y1, x2, y2 = (
        0.0 if abs(edge) < ROUNDING else 1.0 if abs(edge - 1) < ROUNDING else edge for edge in (x, y, x + w, y + h)
    )
    return x1, y1, x2 - x1, y2 - y1


def _annotation(line: LabelLine, image: Row, form: LabelFormat) -> Row:
    x, y, w, h = _snapped(box_of(line.values, form))
    width, height = image["width"], image["height"]
    bbox = [x * width, y * height, w * width, h * height]
    return {"image_id": image["id"], "category_id": line.label, "bbox": bbox, "iscrowd": 0}
