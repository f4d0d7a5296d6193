"""Pictures that show which detections are right: which of them tell most, and the pictures themselves."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image

from foldfuse.boxes import Array, pairwise_iou
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.images import load_image
from foldfuse.detections import Annotations, Detections, Predictions
from foldfuse.evaluation.matching import f1_of, match

_LONGEST_SIDE = 480  # pixels of an inlined picture
_JPEG_QUALITY = 72
_NAMED_BOXES = 12  # a picture with more boxes shows no names, which would hide it


@dataclass(frozen=True)
class Picture:
    """One picture as the page shows it: the markup, what is said below it."""

    markup: Markup
    title: str
    caption: str


@dataclass(frozen=True, eq=False)
class _Mark:
    """A box on a picture: `kind` is right, wrong, missed or truth; `name` is written on it, if there is room."""

    box: Array
    kind: str
    title: str
    name: str


def telling(dataset: Dataset, predictions: Predictions, threshold: float, *, each: int = 2) -> list[tuple[str, Sample]]:
    """("best" | "typical" | "worst", sample), at most `each` of a kind: by F1, then by boxes drawn, then by order.

    Typical pictures are those in the middle of the ranking. Where there are few pictures none is taken twice.
    """
    ranked = []
    for order, sample in enumerate(dataset.samples):
        if sample.annotations is not None and sample.id in predictions:
            found = predictions[sample.id]
            f1 = f1_of(found[found.scores >= threshold], sample.annotations)
            boxes = len(sample.annotations)
            ranked.append(((f1, boxes if f1 >= 0.5 else -boxes, -order), sample))
    ranked.sort(key=lambda pair: pair[0], reverse=True)
    samples = [sample for _, sample in ranked]
    middle = max((len(samples) - each) // 2, 0)
    chosen: dict[int, tuple[str, Sample]] = {}
    for kind, some in (
        ("best", samples[:each]),
        ("worst", samples[::-1][:each]),
        ("typical", samples[middle : middle + each]),
    ):
        for sample in some:
            chosen.setdefault(sample.id, (kind, sample))
    return sorted(chosen.values(), key=lambda pair: ("best", "typical", "worst").index(pair[0]))


def spread(samples: Sequence[Sample], number: int) -> list[Sample]:
    """At most `number` of `samples`, evenly spaced over them."""
    places = np.unique(np.linspace(0, len(samples) - 1, min(number, len(samples))).round().astype(int))
    return [samples[i] for i in places]


def compared(sample: Sample, found: Detections, classes: Sequence[str], *, kind: str) -> Picture:
    """A picture with what people drew, what was found and what was missed. InputError where it cannot be read."""
    drawn = sample.annotations or Annotations.empty()
    result = match(found, drawn)
    marks = []
    for box, label, finder, crowd in zip(drawn.boxes, drawn.labels, result.finder, drawn.crowd):
        if finder < 0 and not crowd:
            marks.append(_Mark(box, "missed", f"missed: {classes[label]}", classes[label]))
        else:
            marks.append(_Mark(box, "truth", f"drawn: {classes[label]}", ""))
    for box, label, score, right, counted in zip(found.boxes, found.labels, found.scores, result.right, result.counted):
        mark, what = ("right", "found") if right else ("wrong", "false alarm") if counted else ("truth", "on a crowd")
        text = f"{classes[label]} {score:.2f}"
        marks.append(_Mark(box, mark, f"{what}: {text}", text))
    hits, alarms = int(result.right.sum()), int((result.counted & ~result.right).sum())
    boxes = int((~drawn.crowd).sum())
    words = f"{sample.file_name}: {hits} of {boxes} found, {alarms or 'no'} false alarm{'s' * (alarms != 1)}"
    return Picture(_overlaid(sample, marks, words), f"{kind.capitalize()}, F1 {f1_of(found, drawn):.2f}", words)


def predicted(sample: Sample, found: Detections, classes: Sequence[str]) -> Picture:
    """A picture with what was found in it. InputError where it cannot be read."""
    texts = [f"{classes[label]} {score:.2f}" for label, score in zip(found.labels, found.scores)]
    marks = [_Mark(box, "right", text, text) for box, text in zip(found.boxes, texts)]
    number = f"{len(found)} box{'es' * (len(found) != 1)}"
    return Picture(_overlaid(sample, marks, f"{sample.file_name}: {number}"), number, sample.file_name)


def data_uri(path: Path) -> str:
    """The picture as a small JPEG in a data: address. Raises InputError where it cannot be read."""
    memory = io.BytesIO()
    Image.fromarray(load_image(path, longest=_LONGEST_SIDE)).save(memory, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(memory.getvalue()).decode("ascii")


def _overlaid(sample: Sample, marks: Sequence[_Mark], label: str) -> Markup:
    """The picture with vector boxes over it, in the picture's own pixels, so that they stay sharp at any size."""
    size = max(sample.width, sample.height) / 28  # of the letters
    marks = sorted(marks, key=lambda mark: ("truth", "right", "missed", "wrong").index(mark.kind))  # mistakes on top
    inside = [Markup('<image href="{}" {}/>').format(data_uri(sample.path), _shape(0, 0, sample.width, sample.height))]
    inside += [_rect(mark) for mark in marks]
    if sum(bool(mark.name) for mark in marks) <= _NAMED_BOXES:
        inside += _names(sample, marks[::-1], size)
    return Markup(
        '<svg class="picture" role="img" aria-label="{}" viewBox="0 0 {} {}" font-size="{:.1f}">{}</svg>'
    ).format(label, sample.width, sample.height, size, Markup("").join(inside))


def _shape(x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('x="{:g}" y="{:g}" width="{:g}" height="{:g}"').format(x1, y1, max(x2 - x1, 0), max(y2 - y1, 0))


def _rect(mark: _Mark) -> Markup:
    """One box, with a dark rim that keeps it visible on any picture."""
    shape = _shape(*(round(float(v), 1) for v in mark.box))
    rim = Markup("") if mark.kind == "truth" else Markup('<rect class="halo" {}/>').format(shape)
    return Markup('{}<rect class="{}" {}><title>{}</title></rect>').format(rim, mark.kind, shape, mark.title)


def _names(sample: Sample, marks: Sequence[_Mark], size: float) -> list[Markup]:
    """Names inside the upper edges of their boxes; one that would lie on another is left out."""
    texts: list[Markup] = []
    places = np.zeros((0, 4))
    for mark in marks:
        width = 0.62 * size * len(mark.name)  # of bold letters, about
        x = min(max(float(mark.box[0]), 0.0), max(sample.width - width, 0.0)) + 0.15 * size
        y = min(max(float(mark.box[1]), 0.0), sample.height - 1.2 * size) + 0.95 * size
        place = np.array([[x, y - size, x + width, y + 0.2 * size]])
        if mark.name and not pairwise_iou(place, places).any():
            places = np.concatenate([places, place])
            texts.append(Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(mark.kind, x, y, mark.name))
    return texts
