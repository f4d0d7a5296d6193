"""Suggestions of `review` in words, as corrections, and cut out of their images."""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from foldfuse.boxes import clip, pairwise_iou, xyxy_to_xywh_of_file
from foldfuse.data.corrections import Box, Correction
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.detections import Array
from foldfuse.errors import InputError
from foldfuse.evaluation.label_errors import Kind, Suggestion
from foldfuse.reporting.browser_images import encode_jpeg, without_path
from foldfuse.system.progress import Progress
from foldfuse.system.records import to_plain

CUT_SIDE = 512  # pixels of the longest side of a cut
CONTEXT = 2.4  # sides of a cut in sides of what it shows
ASPECT = 0.75  # height of a cut in widths
LEAST_SIDE = 64  # pixels of the image that a cut shows at least
EXACT_INTEGER = 2**53  # of a browser; larger ids are written as text
_QUALITY = 82
NAMES: dict[Kind, str] = {
    "missed": "missed object",
    "class": "wrong class",
    "place": "badly placed",
    "spurious": "spurious",
    "duplicate": "duplicate",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Item:
    """A suggestion as a page, a table or a file shows it.

    Attributes:
        suggestion: the suggestion.
        sample: its image.
        correction: what accepting it does.
        present: xyxy of the annotation as it is; None for a missed object.
        proposed: xyxy of the annotation as it shall be; None where it is to be removed.
        kept: xyxy of the annotation that stays, for a duplicate.
    """

    suggestion: Suggestion
    sample: Sample
    correction: Correction
    present: Array | None
    proposed: Array | None
    kept: Array | None


def make_items(suggestions: Sequence[Suggestion], dataset: Dataset) -> list[Item]:
    """The items of suggestions for the annotations of a dataset."""
    return [_item(one, dataset[one.image_id], dataset.classes) for one in suggestions]


def _item(one: Suggestion, sample: Sample, classes: Sequence[str]) -> Item:
    annotations = sample.annotations
    assert annotations is not None
    new_class = None if one.label is None else classes[one.label]
    box = None if one.box is None else _rounded(one.box, sample)
    base = Correction("add", sample.file_name, sample.organiser_id, score=round(one.score, 4))
    if one.annotation is None:
        assert box is not None
        reason = f"{new_class} found with score {one.found:.2f}, and not annotated"
        added = replace(base, new_class=new_class, new_box=_sides(box), reason=reason)
        return Item(one, sample, added, None, box, None)
    present = annotations.boxes[one.annotation]
    label = classes[annotations.labels[one.annotation]]
    named = replace(base, action="change", annotation_class=label, annotation_box=_sides(present))
    if one.kind == "class":
        reason = f"annotated as {label}, and looks like {new_class} (score {one.found:.2f})"
        return Item(one, sample, replace(named, new_class=new_class, reason=reason), present, present, None)
    if one.kind == "place":
        assert box is not None
        iou = pairwise_iou(present[None], box[None])[0, 0]
        reason = f"{label} found at another place (score {one.found:.2f}): IoU {iou:.2f} with the annotated box"
        return Item(one, sample, replace(named, new_box=_sides(box), reason=reason), present, box, None)
    kept = None
    reason = f"{label} annotated, and next to nothing found there (score {one.found:.2f})"
    if one.other is not None:
        kept, also = annotations.boxes[one.other], classes[annotations.labels[one.other]]
        iou = pairwise_iou(present[None], kept[None])[0, 0]
        reason = f"{label} annotated twice: IoU {iou:.2f} with another {also}"
    return Item(one, sample, replace(named, action="remove", reason=reason), present, None, kept)


def _rounded(box: Array, sample: Sample) -> Array:
    """The box within the image, to a tenth of a pixel."""
    inside: Array = clip(np.asarray(box, np.float64), width=sample.width, height=sample.height).round(1)
    return inside


def _sides(box: Array) -> Box:
    left, top, width, height = xyxy_to_xywh_of_file(box[None])[0].tolist()
    return left, top, width, height


def plain_item(item: Item) -> dict[str, Any]:
    """A suggestion as JSON values: its kind, and the fields of its correction."""
    plain = {"kind": item.suggestion.kind, **to_plain(item.correction)}
    image_id = plain["image_id"]
    if isinstance(image_id, int) and abs(image_id) >= EXACT_INTEGER:
        plain["image_id"] = str(image_id)
    return {key: value for key, value in plain.items() if value is not None}


@dataclass(frozen=True)
class Cut:
    """The part of an image around a suggestion.

    Attributes:
        window: (left, top, width, height) of the part, in pixels of the image.
        jpeg: base64; "" where the image cannot be read, for the reason `broken`.
    """

    window: Box
    jpeg: str = ""
    broken: str = ""


def cut_images(items: Sequence[Item], progress: Progress) -> list[Cut]:
    """The cut of each item; each image is decoded once.

    Args:
        items: their samples must be opened (see `data.pixels`).
        progress: called with the share done.
    """
    groups: dict[int, list[int]] = {}
    for number, item in enumerate(items):
        groups.setdefault(item.sample.id, []).append(number)
    cuts: dict[int, Cut] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            made = pool.map(lambda numbers: _cut([items[n] for n in numbers]), groups.values())
            for numbers, own in zip(groups.values(), made, strict=True):
                cuts |= dict(zip(numbers, own, strict=True))
                progress(len(cuts) / len(items))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for thousands of images
            raise
    return [cuts[number] for number in range(len(items))]


def _cut(items: Sequence[Item]) -> list[Cut]:
    """The cuts of the items of one image."""
    sample, windows = items[0].sample, [_window(item) for item in items]
    try:
        if sample.missing:
            raise InputError(sample.missing)
        image = sample.load()
    except InputError as error:
        log.warning("%s Its suggestions are shown without pixels.", error)
        return [Cut(window, broken=without_path(str(error), sample.path)) for window in windows]
    return [Cut(window, jpeg=_jpeg_of(image, window)) for window in windows]


def _window(item: Item) -> Box:
    """A part of the image around all boxes of a suggestion, whole pixels."""
    boxes = np.array([box for box in (item.present, item.proposed, item.kept) if box is not None])
    size = np.array([item.sample.width, item.sample.height], np.float64)
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    width, height = (high - low).tolist()
    side = max(CONTEXT * max(width, height / ASPECT), LEAST_SIDE)
    sides = np.minimum(np.array([side, side * ASPECT]), size).round()
    left_top = np.clip((low + high - sides) / 2, 0, size - sides).round()
    left, top = left_top.tolist()
    width, height = sides.tolist()
    return left, top, width, height


def others_within(item: Item, window: Box) -> Array:
    """(n, 4) xyxy of the other annotations of the image that reach into a window."""
    annotations = item.sample.annotations
    assert annotations is not None
    own = (item.suggestion.annotation, item.suggestion.other)
    boxes = annotations.boxes[[row not in own for row in range(len(annotations))]]
    left, top, width, height = window
    is_within = (boxes[:, :2] < [left + width, top + height]).all(1) & (boxes[:, 2:] > [left, top]).all(1)
    return boxes[is_within]


def _jpeg_of(image: Image.Image, window: Box) -> str:
    left, top, width, height = window
    cut = image.crop((int(left), int(top), int(left + width), int(top + height)))
    cut.thumbnail((CUT_SIDE, CUT_SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return base64.b64encode(encode_jpeg(cut, _QUALITY)).decode("ascii")
