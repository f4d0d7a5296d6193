"""Judges a dataset by all of its annotations together: what one row does not show, and training would not survive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from foldfuse.data.annotation_rows import TINY_PX
from foldfuse.data.findings import AnnotationRow, CategoryRow, Finding, ImageRow
from foldfuse.errors import shown

FEWEST = 10  # boxes or images from which their majority says something
MANY = 30  # boxes from which a regularity among all of them is no accident
MANY_EMPTY = 0.9  # share of images without annotations beyond which these are likely lost; rare objects leave fewer
REACH = 0.6  # share of the images' sides beyond which boxes usually reach somewhere
SLIP_PX = 1.0  # by which a box may stick out without being counted
FAR = 0.1  # share of an image's side by which a sound box does not stick out: none does in 83 public datasets
CROWD_ADVICE = (
    "CVAT and other tools export masks as crowd regions. If these are single objects, 'foldfuse check --fix --ignore-crowd "
    "--out FILE' writes a copy that says so."
)


def judge(
    images: Sequence[ImageRow], categories: Sequence[CategoryRow], annotations: Sequence[AnnotationRow]
) -> Iterator[Finding]:
    """Findings about a dataset as a whole; none of them makes reading refuse it."""
    yield from _crowds(categories, annotations)
    yield from _classes(categories, annotations)
    annotated = {a.image_id for a in annotations}
    num_empty = sum(image.id not in annotated for image in images)
    if len(images) >= FEWEST and num_empty > len(images) / 2:
        kind, where = "most images have no annotations", f"{num_empty} of {len(images)} images"
        is_fault = num_empty > MANY_EMPTY * len(images)
        yield Finding(kind, where, fix="", is_fault=is_fault, is_logged=True)
    if annotations:
        yield from _boxes(images, annotations)


def _boxes(images: Sequence[ImageRow], annotations: Sequence[AnnotationRow]) -> Iterator[Finding]:
    """Findings about the shapes of all boxes."""
    size_of = {image.id: (image.width, image.height) for image in images}
    boxes = np.array([a.box for a in annotations])
    sizes = np.array([size_of[a.image_id] for a in annotations], np.float64)
    n = len(boxes)
    sides = boxes[:, 2:] - boxes[:, :2]
    sticks_out = (boxes[:, :2] < -SLIP_PX).any(1) | (boxes[:, 2:] > sizes + SLIP_PX).any(1)
    if n >= FEWEST and sticks_out.sum() > n / 2:
        yield _fault("most boxes stick out of their images", _of(sticks_out))
    is_far = (boxes[:, :2] < -FAR * sizes).any(1) | (boxes[:, 2:] > (1 + FAR) * sizes).any(1)
    if n >= FEWEST and n / 10 < is_far.sum() and sticks_out.sum() <= n / 2:
        kind = "many boxes stick far out of their images; are their numbers [left, top, width, height] in pixels?"
        yield _fault(kind, _of(is_far))
    is_tiny = (sides < TINY_PX).any(1)
    if n >= FEWEST and is_tiny.sum() > n / 2:
        yield _fault(f"most boxes have a side below {TINY_PX:g} px", _of(is_tiny))
    is_whole = (sides >= 0.99 * sizes).all(1)
    if n >= FEWEST and is_whole.sum() > n / 2:
        yield _fault("most boxes are the whole image", _of(is_whole))
    elif n >= MANY:
        _, index, counts = np.unique(sides.round(1), axis=0, return_inverse=True, return_counts=True)
        if counts.max() >= 0.95 * n:
            width, height = sides[index == counts.argmax()][0]
            where = f"{counts.max()} of {n} are {width:g} x {height:g} px"  # sound where boxes were put around points
            yield Finding("the boxes are all of one size", where, fix="", is_fault=False, is_logged=True)
    reach = (boxes[:, 2:] / sizes).max(0)
    if n >= MANY and len(images) >= FEWEST and (reach < REACH).all():
        kind = "no box reaches the right or the lower part of its image; were they drawn on smaller images?"
        yield Finding(
            kind, f"the furthest of {n} ends at {reach[0]:.0%} of the width", fix="", is_fault=False, is_logged=True
        )


def _crowds(categories: Sequence[CategoryRow], annotations: Sequence[AnnotationRow]) -> Iterator[Finding]:
    """Findings about crowd regions: how many, of which classes, and whether any objects are left."""
    crowds = Counter(a.category_id for a in annotations if a.crowd)
    if not crowds:
        return
    boxes = Counter(a.category_id for a in annotations)
    counts = [f"{shown(c.name)} {crowds[c.id]} of {boxes[c.id]}" for c in categories if crowds[c.id]]
    some = ", ".join(counts[:8]) + (", ..." if len(counts) > 8 else "")
    where = f"{crowds.total()} of {len(annotations)} boxes are crowd regions ({some})"
    if crowds.total() == len(annotations):
        kind = "all boxes are crowd regions, which training and scoring ignore"
        yield _fault(kind, f"{where}. {CROWD_ADVICE}")
        return
    kind = "crowd regions, or objects marked difficult: training and scoring ignore them"
    yield Finding(kind, where, fix="", is_fault=False, is_logged=True)
    for category in categories:
        if crowds[category.id] and crowds[category.id] == boxes[category.id]:
            kind = "all boxes of the class are crowd regions, so it is neither trained nor scored"
            yield _fault(kind, f"{category.name}: {boxes[category.id]} boxes")


def _classes(categories: Sequence[CategoryRow], annotations: Sequence[AnnotationRow]) -> Iterator[Finding]:
    """Notes about classes: more than there are boxes, and the class 0 that Roboflow adds."""
    used = {a.category_id for a in annotations}
    if len(categories) > max(20, len(annotations)):
        where = f"{len(categories)} classes, {len(annotations)} boxes"
        yield Finding("there are more classes than boxes", where, fix="", is_fault=False)
    for category in categories:
        if is_project_class(category, categories, used):
            kind = "class 0 has no boxes and names the project, as Roboflow adds it"
            yield Finding(kind, category.name, is_fault=False)


def is_project_class(category: CategoryRow, categories: Sequence[CategoryRow], used: set[int]) -> bool:
    """Whether a category is the class 0 that Roboflow adds: without boxes, and the supercategory of all others."""
    others = [c for c in categories if c is not category]
    return (
        category.id == 0
        and 0 not in used
        and bool(others)
        and {c.row.get("supercategory") for c in others} == {category.name}
    )


def _fault(kind: str, where: str) -> Finding:
    return Finding(kind, where, fix="", is_logged=True)


def _of(mask: Any) -> str:
    return f"{int(mask.sum())} of {len(mask)} boxes"
