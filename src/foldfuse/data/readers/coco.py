"""Reads and writes datasets in COCO JSON. Pixels are not decoded here.

Source: the COCO data format, https://cocodataset.org/#format-data. The organiser's conventions (category ids of any
numbering, xywh boxes) end in this file: inside, labels are 0..K-1 in the order of category ids, and boxes are xyxy.

A box that sticks out of its image is read as annotated, and scored so; training and crops clip it (`Annotations.clipped`). A box
wholly outside, or without a size, is an error: `foldfuse check` names every such box, and `foldfuse check --fix` writes a copy
without them.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from foldfuse.boxes import xyxy_to_xywh_of_file
from foldfuse.data.annotation_rows import NO_USABLE_IMAGE
from foldfuse.data.checks import walk
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.findings import AnnotationRow, CategoryRow, Finding, ImageRow, Item
from foldfuse.data.judgement import is_project_class
from foldfuse.data.readers.foreign_json import foreign_json
from foldfuse.data.readers.image_names import ImageFiles
from foldfuse.data.readers.image_rows import image_files
from foldfuse.data.readers.label_studio import is_label_studio, read_label_studio
from foldfuse.data.readers.layouts import Layout, find_layout, folders_with_layouts, images_hint, read_layout
from foldfuse.data.readers.loaded import Loaded
from foldfuse.detections import Annotations
from foldfuse.errors import InputError, shown
from foldfuse.system.atomic_files import write_text
from foldfuse.system.files import read_json

_UNUSABLE_IMAGE = ("the image is missing", "the image cannot be decoded")  # kinds of findings

logger = logging.getLogger(__name__)


def read(
    path: Path | str, *, annotated: bool = True, images: Path | str | None = None, ignore_orientation: bool = False
) -> Dataset:
    """The dataset in a COCO JSON file, in `train.json` of a folder, or in any other layout (see `layouts`).

    Images are looked for as `image_names` says. Where the annotations state the sizes of their images, the images need not
    exist: a command that reads pixels calls `pixels.open_images` on the dataset.

    Args:
        path: a COCO JSON; a folder with a dataset of any layout, or with images alone where `annotated` is False; the YAML, list
            or image folder of a YOLO dataset; an ImageSets list of a VOC dataset; the XML of CVAT.
        annotated: False for a test set: annotations are ignored, even where the file has some.
        images: the folder of the images, where they are not found beside the annotations.
        ignore_orientation: whether a size that the annotations do not state is that of the pixels as stored, whatever an EXIF
            tag says.

    Raises:
        InputError: the file is missing or not COCO; an entry is broken (it is named); an image whose size is not stated does
            not exist.
    """
    loaded = load(
        Path(path), None if images is None else Path(images), annotated=annotated, ignore_orientation=ignore_orientation
    )
    return parse(loaded, annotated=annotated)


def load(path: Path, images: Path | None = None, *, annotated: bool = True, ignore_orientation: bool = False) -> Loaded:
    """Any dataset that `read` takes, as a COCO document; its rows are not checked yet.

    Args:
        path, images, ignore_orientation: see `read`.
        annotated: False to leave annotations unread where they are in files of their own.

    Raises:
        InputError: the file is missing or broken, `images` is no folder, or `annotated` and there are only images.
    """
    if images is not None and not images.is_dir():
        raise InputError(f"--images {images}: there is no such folder.")
    layout = require_layout(path)
    if layout.kind == "images" and annotated:
        hint = _inner_datasets(path) or images_hint(path) or "Give the file of the annotations, or its folder."
        raise InputError(f"{path}: holds images, but no annotations. {hint}")
    if layout.kind in ("coco", "cvat", "csv"):
        return _with_name_findings(_load_named(layout, images, annotated, ignore_orientation))
    return read_layout(layout, images=images, annotated=annotated, ignore_orientation=ignore_orientation)


def _load_named(layout: Layout, images: Path | None, annotated: bool, ignore_orientation: bool) -> Loaded:
    """A dataset whose annotations name its images."""
    if layout.kind != "coco":
        return read_layout(layout, images=images, annotated=annotated, ignore_orientation=ignore_orientation)
    document = read_json(layout.path, what="COCO JSON", hint="Give a COCO JSON, or a folder with a dataset.")
    if is_label_studio(document):
        return read_label_studio(
            layout.path, document, annotated=annotated, images=images, ignore_orientation=ignore_orientation
        )
    if foreign := foreign_json(document):
        raise InputError(f"{layout.path}: {foreign}.")
    return Loaded(document, layout.path, (), ImageFiles(layout.path, images), ignore_orientation)


def require_layout(path: Path) -> Layout:
    """The layout of the dataset at `path`. Raises InputError for a folder without a dataset."""
    layout = find_layout(path)
    if layout is not None:
        return layout
    hint = _inner_datasets(path)
    raise InputError(
        f"{path}: holds no dataset: no COCO JSON, no YAML of a YOLO dataset and no XML files of a VOC one, and no images."
        + f" {hint}" * bool(hint)
    )


def _inner_datasets(path: Path) -> str:
    """A sentence on the datasets in the folders of `path`; "" where there are none."""
    folders = folders_with_layouts(path) if path.is_dir() else []
    return f"Its folders {', '.join(p.name for p in folders[:6])} hold datasets: give one of them." if folders else ""


def _with_name_findings(loaded: Loaded) -> Loaded:
    """The same with findings about images that are found under other names than the document gives them.

    Two names that seem to be one file have no file any more, so that boxes of two images never come together.
    """
    document, files = loaded.document, loaded.files
    rows = document.get("images") if isinstance(document, dict) else None
    rows = rows if isinstance(rows, list) else []
    names = {name for row in rows if isinstance(row, dict) and isinstance(name := row.get("file_name"), str)}
    matches = {name: match for name in sorted(names) if (match := files.find(name)).found}
    names_of: dict[Path, list[str]] = defaultdict(list)
    for name, match in matches.items():
        names_of[match.path].append(name)
    findings: list[Finding] = []
    unclear: dict[str, str] = {}
    for name, match in matches.items():
        rivals = [other for other in names_of[match.path] if other != name]
        if match.how and rivals:
            unclear[name] = f"and {shown(rivals[0])} both seem to be the image {match.path}. Give --images DIR"
            error = (
                f"{files.source}: {shown(name)} and {shown(rivals[0])} both seem to be the image {match.path}. "
                "Give the folder of the images as --images DIR, or correct 'file_name'."
            )
            findings.append(Finding("two images of the list seem to be one file", name, error))
        elif match.how:
            findings.append(Finding(match.how, f"{name} as {match.path}", fix="", is_fault=False, is_logged=True))
    unlisted = [p for folder in sorted({p.parent for p in names_of}) for p in image_files(folder) if p not in names_of]
    if unlisted:
        kind = "image files beside the listed ones are not in the list, so they are not read"
        where = f"{len(unlisted)} files, such as {unlisted[0].name}"
        findings.append(Finding(kind, where, fix="", is_fault=False))
    return replace(
        loaded, findings=(*loaded.findings, *findings), files=replace(files, unclear=unclear) if unclear else files
    )


def locate(data: Path) -> tuple[Path, Path | None]:
    """The path of the training data of `data`, and the test JSON beside it where `data` is a folder with a train.json."""
    if data.is_dir() and (data / "train.json").is_file():
        test = data / "test.json"
        return data / "train.json", test if test.is_file() else None
    return data, None


def parse(loaded: Loaded, *, annotated: bool = True) -> Dataset:
    """The Dataset in a COCO document. Logs the findings that users must hear of, one line for each kind.

    Raises:
        InputError: see `read`.
    """
    _raise_first(loaded.findings)
    items = _items(loaded, annotated=annotated)
    findings = [item for item in items if isinstance(item, Finding)]
    _raise_first(findings)
    log_findings(findings, loaded.source)
    return dataset_of(items, loaded.source, annotated=annotated)


def parse_usable(loaded: Loaded, *, annotated: bool = True) -> tuple[Dataset, list[Finding]]:
    """The Dataset of the images whose size is known, and the findings on the others, which are left out with their boxes.

    Raises:
        InputError: see `read`, but for images that are missing or cannot be decoded; or no image is left.
    """
    items = _items(loaded, annotated=annotated)
    findings = [item for item in items if isinstance(item, Finding)]
    left_out = [item for item in findings if item.error and item.kind in _UNUSABLE_IMAGE]
    others = [item for item in findings if not (left_out and item.kind in (*_UNUSABLE_IMAGE, NO_USABLE_IMAGE))]
    _raise_first(others)
    log_findings(others, loaded.source)
    dataset = dataset_of(items, loaded.source, annotated=annotated)
    if not len(dataset):
        _raise_first(left_out)
    return dataset, left_out


def _items(loaded: Loaded, *, annotated: bool) -> list[Item]:
    """What the readers and the walk say of a document: its usable rows and all findings."""
    walked = walk(
        loaded.document,
        loaded.source,
        files=loaded.files,
        annotated=annotated,
        ignore_orientation=loaded.ignore_orientation,
    )
    return [*loaded.findings, *walked]


def _raise_first(findings: Sequence[Finding]) -> None:
    """Raises InputError with the first error among the findings, and the number of others of its kind."""
    for first in findings:
        if first.error:
            more = sum(bool(other.error) and other.kind == first.kind for other in findings) - 1
            hint = (
                f" There {'is' if more == 1 else 'are'} {more} more of this kind: 'foldfuse check' lists all."
                if more
                else ""
            )
            raise InputError(first.error + hint)


def log_findings(findings: Iterable[Finding], source: Path) -> None:
    """Logs the findings that users must hear of: one line for each kind, with its count and an example."""
    kinds: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        if finding.is_logged:
            kinds[finding.kind].append(finding)
    for kind, found in kinds.items():
        times = f"{len(found)} times, such as " if len(found) > 1 else ""
        logger.warning(f"{source}: {kind}: {times}{found[0].where.removesuffix('.')}.")


def dataset_of(items: Iterable[Item], source: Path, *, annotated: bool = True) -> Dataset:
    """The Dataset of the usable rows among the items of a walk."""
    images: list[ImageRow] = []
    categories: list[CategoryRow] = []
    annotations: dict[int, list[AnnotationRow]] = defaultdict(list)
    for item in items:
        if isinstance(item, ImageRow):
            images.append(item)
        elif isinstance(item, CategoryRow):
            categories.append(item)
        elif isinstance(item, AnnotationRow):
            annotations[item.image_id].append(item)
    categories.sort(key=lambda category: category.id)
    label_of = {category.id: label for label, category in enumerate(categories)}
    used = {row.category_id for rows in annotations.values() for row in rows}
    samples = tuple(
        Sample(
            id=image.id,
            path=image.path,
            file_name=image.file_name,
            width=image.width,
            height=image.height,
            annotations=_annotations(annotations[image.id], label_of) if annotated else None,
            missing=image.missing,
            original_id=image.original_id,
        )
        for image in images
    )
    original_ids = tuple(c.id if c.original_id is None else c.original_id for c in categories)
    return Dataset(
        samples,
        tuple(c.name for c in categories),
        tuple(label_of),
        source,
        () if original_ids == tuple(label_of) else original_ids,
        has_project_class=any(is_project_class(c, categories, used) for c in categories[:1]),
    )


def _annotations(rows: Sequence[AnnotationRow], label_of: Mapping[int, int]) -> Annotations:
    if not rows:
        return Annotations.empty()
    return Annotations(
        np.array([row.box for row in rows], np.float64),
        np.array([label_of[row.category_id] for row in rows], np.int64),
        np.array([row.crowd for row in rows]),
        np.array([row.area for row in rows], np.float64),
    )


def write(dataset: Dataset, path: Path) -> Path:
    """Write `dataset` as COCO JSON, to be kept beside the images, and return `path`."""
    annotations: list[dict[str, Any]] = []
    for sample in dataset.samples:
        sample_annotations = sample.annotations or Annotations.empty()
        for box, label, crowd, area in zip(
            xyxy_to_xywh_of_file(sample_annotations.boxes).tolist(),
            sample_annotations.labels.tolist(),
            sample_annotations.crowd.tolist(),
            sample_annotations.area.tolist(),
            strict=True,
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": sample.id,
                    "category_id": dataset.category_ids[label],
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
    document: dict[str, Any] = {
        "images": [
            {"id": s.id, "file_name": s.file_name, "width": s.width, "height": s.height} for s in dataset.samples
        ],
        "categories": [{"id": i, "name": n} for i, n in zip(dataset.category_ids, dataset.classes, strict=True)],
    }
    if dataset.is_labeled:
        document["annotations"] = annotations
    write_text(path, json.dumps(document))
    return path
