"""Images with their annotations and detections drawn on them, and the choice of images to show."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image

from foldfuse.boxes import Array, pairwise_iou
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.images import load_sample
from foldfuse.detections import Annotations, Detections, Predictions
from foldfuse.evaluation.matching import f1_score, match_image

_LONGEST_SIDE = 960  # pixels of an embedded image, which can be enlarged on the page
_JPEG_QUALITY = 72
_MAX_LABELLED = 12  # an image with more boxes shows no labels, which would cover it
_DRAWING_ORDER = ("annotation", "tp", "fn", "fp")  # errors on top


@dataclass(frozen=True)
class Figure:
    """An image with boxes as SVG, its title and its caption, and its size in pixels."""

    markup: Markup
    title: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class _DrawnBox:
    """A box to draw.

    Attributes:
        box: (4,) xyxy pixels of the original image.
        kind: "tp" (true positive), "fp" (false positive), "fn" (annotation that no detection matches) or "annotation".
        title: shown when the pointer rests on the box.
        label: written inside the box, where there is room.
    """

    box: Array
    kind: str
    title: str
    label: str


def pick_examples(
    dataset: Dataset, predictions: Predictions, threshold: float, *, each: int = 2
) -> list[tuple[str, Sample]]:
    """("best" | "typical" | "worst", sample), at most `each` of a kind, ranked by F1, then by number of annotations.

    Typical images come from the middle of the ranking. No image is taken twice.
    """
    ranked = []
    for order, sample in enumerate(dataset.samples):
        if sample.annotations is not None and sample.id in predictions:
            detections = predictions[sample.id]
            f1 = f1_score(detections[detections.scores >= threshold], sample.annotations)
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


def evenly_spaced(samples: Sequence[Sample], number: int) -> list[Sample]:
    """At most `number` samples, at even steps through the sequence."""
    indices = np.unique(np.linspace(0, len(samples) - 1, min(number, len(samples))).round().astype(int))
    return [samples[i] for i in indices]


def draw_comparison(sample: Sample, detections: Detections, classes: Sequence[str], *, kind: str) -> Figure:
    """An image with its annotations and detections, and which of them match.

    Args:
        sample: an annotated image.
        detections: the detections in the image, already cut at a score threshold.
        classes: names by label.
        kind: first word of the title, such as "worst".

    Raises:
        InputError: the image cannot be read.
    """
    annotations = sample.annotations or Annotations.empty()
    result = match_image(detections, annotations)
    drawn = []
    for box, label, detection, crowd in zip(
        annotations.clipped(sample.width, sample.height).boxes,
        annotations.labels,
        result.matched_detection,
        annotations.crowd,
    ):
        name = classes[label]
        if detection < 0 and not crowd:
            drawn.append(_DrawnBox(box, "fn", f"missed: {name}", name))
        else:
            drawn.append(_DrawnBox(box, "annotation", f"annotation: {name}", ""))
    for box, label, score, is_tp, counts in zip(
        detections.boxes, detections.labels, detections.scores, result.is_tp, result.not_ignored
    ):
        text = f"{classes[label]} {score:.2f}"
        if is_tp:
            drawn.append(_DrawnBox(box, "tp", f"true positive: {text}", text))
        elif counts:
            drawn.append(_DrawnBox(box, "fp", f"false positive: {text}", text))
        else:
            drawn.append(_DrawnBox(box, "annotation", f"in a crowd: {text}", text))
    hits, false = int(result.is_tp.sum()), int((result.not_ignored & ~result.is_tp).sum())
    boxes = int((~annotations.crowd).sum())
    caption = f"{sample.file_name}: {hits} of {boxes} found, {false or 'no'} false positive{'s' * (false != 1)}"
    title = f"{kind.capitalize()}, F1 {f1_score(detections, annotations):.2f}"
    return Figure(_draw(sample, drawn, caption), title, caption, sample.width, sample.height)


def draw_predictions(sample: Sample, detections: Detections, classes: Sequence[str]) -> Figure:
    """An image with its detections. Raises InputError for an image that cannot be read."""
    texts = [f"{classes[label]} {score:.2f}" for label, score in zip(detections.labels, detections.scores)]
    drawn = [_DrawnBox(box, "tp", text, text) for box, text in zip(detections.boxes, texts)]
    title = f"{len(detections)} box{'es' * (len(detections) != 1)}"
    markup = _draw(sample, drawn, f"{sample.file_name}: {title}")
    return Figure(markup, title, sample.file_name, sample.width, sample.height)


def data_uri(sample: Sample) -> str:
    """The sample's image as a small JPEG in a data: address. Raises InputError for an image that cannot be read."""
    memory = io.BytesIO()
    Image.fromarray(load_sample(sample, longest=_LONGEST_SIDE)).save(
        memory, "JPEG", quality=_JPEG_QUALITY, optimize=True
    )
    return "data:image/jpeg;base64," + base64.b64encode(memory.getvalue()).decode("ascii")


def _draw(sample: Sample, boxes: Sequence[_DrawnBox], words: str) -> Markup:
    """The image below vector boxes in its own pixels, which stay sharp at any size."""
    font_size = max(sample.width, sample.height) / 28
    boxes = sorted(boxes, key=lambda box: _DRAWING_ORDER.index(box.kind))
    parts = [Markup('<image href="{}" {}/>').format(data_uri(sample), _shape(0, 0, sample.width, sample.height))]
    parts += [_rect(box) for box in boxes]
    if sum(bool(box.label) for box in boxes) <= _MAX_LABELLED:
        parts += _labels(sample, boxes[::-1], font_size)
    return Markup(
        '<svg class="image" role="img" aria-label="{}" viewBox="0 0 {} {}" font-size="{:.1f}">{}</svg>'
    ).format(words, sample.width, sample.height, font_size, Markup("").join(parts))


def _shape(x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('x="{:g}" y="{:g}" width="{:g}" height="{:g}"').format(x1, y1, max(x2 - x1, 0), max(y2 - y1, 0))


def _rect(box: _DrawnBox) -> Markup:
    """One box, with a dark rim that keeps it visible on any image."""
    shape = _shape(*(round(float(v), 1) for v in box.box))
    rim = Markup("") if box.kind == "annotation" else Markup('<rect class="halo" {}/>').format(shape)
    return Markup('{}<rect class="{}" {}><title>{}</title></rect>').format(rim, box.kind, shape, box.title)


def _labels(sample: Sample, boxes: Sequence[_DrawnBox], font_size: float) -> list[Markup]:
    """Labels inside the upper edges of their boxes; a label that would cover another is left out."""
    texts: list[Markup] = []
    taken = np.zeros((0, 4))
    for box in boxes:
        width = 0.62 * font_size * len(box.label)  # of bold letters, about
        x = min(max(float(box.box[0]), 0.0), max(sample.width - width, 0.0)) + 0.15 * font_size
        y = min(max(float(box.box[1]), 0.0), sample.height - 1.2 * font_size) + 0.95 * font_size
        area = np.array([[x, y - font_size, x + width, y + 0.2 * font_size]])
        if box.label and not pairwise_iou(area, taken).any():
            taken = np.concatenate([taken, area])
            texts.append(Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(box.kind, x, y, box.label))
    return texts
