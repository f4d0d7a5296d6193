"""Which detections are right, and pictures that show it: matching, precision and recall, and the pictures themselves.

A detection is right where it overlaps a box of its own class, taken by no better detection, with an IoU of at least
0.5; what mostly covers a crowd region counts neither way. This is the matching of COCO's AP50 but for its limit of 100
detections a picture.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image

from foldfuse.boxes import Array, area, pairwise_iou
from foldfuse.data import Dataset, Sample
from foldfuse.detections import Annotations, Detections, Predictions
from foldfuse.images import load_image

MATCH_IOU = 0.5
_LONGEST_SIDE = 480  # pixels of an inlined picture
_JPEG_QUALITY = 72
_NAMED_BOXES = 12  # a picture with more boxes shows no names, which would hide it


@dataclass(frozen=True, eq=False)
class Match:
    """How the detections of one picture meet what people drew on it.

    Attributes:
        right: (n,) bool; each detection: it found a box of its class.
        counted: (n,) bool; False for those on a crowd region, which are neither right nor wrong.
        finder: (m,) int64; for each annotation the detection that found it, -1 where none did.
    """

    right: Array
    counted: Array
    finder: Array


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision at 101 recalls (0, 0.01 .. 1) of one class, by COCO's rule of the best precision still to come."""

    name: str
    boxes: int
    precision: Array


@dataclass(frozen=True)
class Picture:
    """One picture as the page shows it: the markup, what is said below it."""

    markup: Markup
    title: str
    caption: str


def match(found: Detections, drawn: Annotations) -> Match:
    """The Match of one picture, in which the highest score chooses first."""
    finder = np.full(len(drawn), -1, np.int64)
    right, counted = np.zeros(len(found), bool), np.ones(len(found), bool)
    if not len(found) or not len(drawn):
        return Match(right, counted, finder)
    same = found.labels[:, None] == drawn.labels[None, :]  # (n, m)
    iou = np.where(same & ~drawn.crowd[None, :], pairwise_iou(found.boxes.astype(np.float64), drawn.boxes), 0)
    candidates = np.flatnonzero(iou.max(1) >= MATCH_IOU)
    for i in candidates[np.argsort(-found.scores[candidates], kind="stable")]:
        free = np.where(finder < 0, iou[i], 0)
        best = int(free.argmax())
        if free[best] >= MATCH_IOU:
            finder[best], right[i] = i, True
    if drawn.crowd.any():
        covered = _share_inside(found.boxes, drawn.boxes[drawn.crowd])
        on_crowd = (covered >= MATCH_IOU) & same[:, drawn.crowd]
        counted = right | ~on_crowd.any(1)
    return Match(right, counted, finder)


def matches(dataset: Dataset, predictions: Predictions) -> dict[int, Match]:
    """{image id: Match} of the labelled pictures that were predicted."""
    return {
        s.id: match(predictions[s.id], s.annotations)
        for s in dataset.samples
        if s.annotations is not None and s.id in predictions
    }


def precision_recall(dataset: Dataset, predictions: Predictions, matched: Mapping[int, Match]) -> list[Curve]:
    """One Curve for each class that is drawn on a matched picture, in the order of classes."""
    if not matched:
        return []
    drawn = [s.annotations for s in dataset.samples if s.id in matched and s.annotations is not None]
    truth = np.concatenate([a.labels[~a.crowd] for a in drawn])
    known = [(predictions[i], m) for i, m in matched.items()]
    scores = np.concatenate([d.scores[m.counted] for d, m in known])
    labels = np.concatenate([d.labels[m.counted] for d, m in known])
    right = np.concatenate([m.right[m.counted] for _, m in known])
    curves = []
    for label, name in enumerate(dataset.classes):
        boxes = int((truth == label).sum())
        if not boxes:
            continue
        own = labels == label
        hits = right[own][np.argsort(-scores[own], kind="stable")].cumsum()
        precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
        at = np.searchsorted(hits / boxes, np.linspace(0, 1, 101))
        curves.append(Curve(name, boxes, np.append(precision, 0.0)[np.minimum(at, len(hits))]))
    return curves


def best_threshold(dataset: Dataset, predictions: Predictions, matched: Mapping[int, Match]) -> float:
    """The score at which cutting gives the best F1 over all matched pictures; 0 where nothing is right at any."""
    drawn = sum(
        int((~s.annotations.crowd).sum()) for s in dataset.samples if s.id in matched and s.annotations is not None
    )
    known = [(predictions[i], m) for i, m in matched.items()]
    scores = np.concatenate([np.zeros(0), *(d.scores[m.counted] for d, m in known)])
    right = np.concatenate([np.zeros(0, bool), *(m.right[m.counted] for _, m in known)])
    if not right.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    f1 = 2 * right[order].cumsum() / (np.arange(1, len(order) + 1) + drawn)
    last_of_its_score = np.append(np.diff(scores[order]) != 0, True)  # equal scores are cut together
    return float(scores[order][np.where(last_of_its_score, f1, -1).argmax()])


def f1_of(found: Detections, drawn: Annotations) -> float:
    """F1 of one picture's detections; 1 where nothing is drawn and nothing was found."""
    result = match(found, drawn)
    whole = int(result.counted.sum()) + int((~drawn.crowd).sum())
    return 2 * int(result.right.sum()) / whole if whole else 1.0


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
    missed = (result.finder < 0) & ~drawn.crowd
    named = len(found) + int(missed.sum()) <= _NAMED_BOXES
    boxes = [
        _rect(sample, box, "truth", f"drawn: {classes[k]}")
        for box, k in zip(drawn.boxes[~missed], drawn.labels[~missed])
    ]
    boxes += [
        _rect(sample, box, "missed", f"missed: {classes[k]}", name=classes[k] if named else "")
        for box, k in zip(drawn.boxes[missed], drawn.labels[missed])
    ]
    for box, k, score, right in zip(found.boxes, found.labels, found.scores, result.right):
        what = "right" if right else "wrong"
        text = f"{classes[k]} {score:.2f}"
        boxes.append(
            _rect(sample, box, what, f"{'found' if right else 'false alarm'}: {text}", name=text if named else "")
        )
    hits, alarms = int(result.right.sum()), int((result.counted & ~result.right).sum())
    false = f"{alarms or 'no'} false alarm{'s' * (alarms != 1)}"
    return Picture(
        _overlaid(sample, boxes, f"{sample.file_name}: {hits} found, {false}, {missed.sum()} missed"),
        title=f"{kind.capitalize()}, F1 {f1_of(found, drawn):.2f}",
        caption=f"{sample.file_name}: {hits} of {(~drawn.crowd).sum()} found, {false}",
    )


def predicted(sample: Sample, found: Detections, classes: Sequence[str]) -> Picture:
    """A picture with what was found in it. InputError where it cannot be read."""
    named = len(found) <= _NAMED_BOXES
    boxes = []
    for box, k, score in zip(found.boxes, found.labels, found.scores):
        text = f"{classes[k]} {score:.2f}"
        boxes.append(_rect(sample, box, "right", text, name=text if named else ""))
    number = f"{len(found)} box{'es' * (len(found) != 1)}"
    return Picture(_overlaid(sample, boxes, f"{sample.file_name}: {number}"), number, sample.file_name)


def data_uri(path: Path) -> str:
    """The picture as a small JPEG in a data: address. Raises InputError where it cannot be read."""
    memory = io.BytesIO()
    Image.fromarray(load_image(path, longest=_LONGEST_SIDE)).save(memory, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(memory.getvalue()).decode("ascii")


def _share_inside(boxes: Array, regions: Array) -> Array:
    """(n, 4), (m, 4) -> (n, m): the share of each box that lies in each region."""
    top_left = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    return area(np.concatenate([top_left, bottom_right], -1)) / np.maximum(area(boxes)[:, None], 1e-9)


def _rect(sample: Sample, box: Array, kind: str, title: str, *, name: str = "") -> Markup:
    """One box, with a dark rim that keeps it visible on any picture; its name is inside the box's upper edge."""
    x1, y1, x2, y2 = (round(float(v), 1) for v in box)
    shape = Markup('x="{:g}" y="{:g}" width="{:g}" height="{:g}"').format(x1, y1, max(x2 - x1, 0), max(y2 - y1, 0))
    rim = Markup("") if kind == "truth" else Markup('<rect class="halo" {}/>').format(shape)
    text = Markup("")
    if name:
        at_the_right = x1 > 0.8 * sample.width  # where the name would run out of the picture
        text = Markup('<text class="{}" x="{:g}" y="{:g}" dx="{}" dy="0.95em" text-anchor="{}">{}</text>').format(
            kind,
            min(x2, sample.width) if at_the_right else max(x1, 0.0),
            max(y1, 0.0),
            "-0.15em" if at_the_right else "0.15em",
            "end" if at_the_right else "start",
            name,
        )
    return Markup('{0}<rect class="{1}" {2}><title>{3}</title></rect>{4}').format(rim, kind, shape, title, text)


def _overlaid(sample: Sample, boxes: Sequence[Markup], label: str) -> Markup:
    """The picture with vector boxes over it, in the picture's own pixels, so that they stay sharp at any size."""
    return Markup(
        '<svg class="picture" role="img" aria-label="{}" viewBox="0 0 {} {}" font-size="{:.1f}">'
        '<image href="{}" width="{}" height="{}" preserveAspectRatio="none"/>{}</svg>'
    ).format(
        label,
        sample.width,
        sample.height,
        max(sample.width, sample.height) / 28,
        data_uri(sample.path),
        sample.width,
        sample.height,
        Markup("").join(boxes),
    )
