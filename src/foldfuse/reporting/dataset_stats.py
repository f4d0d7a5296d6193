"""Statistics of annotated images: classes, box sizes, boxes per image, and the balance of the folds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foldfuse.boxes import Array
from foldfuse.data.dataset import Dataset
from foldfuse.detections import Annotations
from foldfuse.reporting.axes import power_of_two_axis, whole_number_axis
from foldfuse.reporting.charts import Bar, Chart, bar_chart, histogram

_MAX_CLASSES = 12  # bars and columns for the most frequent classes; the caption sums up the others
_MAX_SIZES = 5
_MAX_BINS = 30


@dataclass(frozen=True)
class FoldStats:
    """One fold; `shares` is its share of the boxes of each shown class, 0..1."""

    name: str
    num_images: int
    num_boxes: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class DatasetStats:
    """Statistics of the annotated images.

    Attributes:
        num_empty: images without boxes.
        sizes: ("640 × 480", images), the most frequent first; `more_sizes` is the number of other sizes.
        fold_classes: the classes that the shares of the folds are of.
    """

    num_images: int
    num_boxes: int
    num_empty: int
    sizes: tuple[tuple[str, int], ...]
    more_sizes: int
    charts: tuple[Chart, ...]
    fold_classes: tuple[str, ...]
    folds: tuple[FoldStats, ...]


def dataset_stats(dataset: Dataset, folds: Mapping[int, int]) -> DatasetStats:
    """The DatasetStats of an annotated dataset.

    Args:
        dataset: annotated.
        folds: {image id: fold}; empty where the folds are not known.
    """
    annotated = [(s.id, s.annotations) for s in dataset.samples if s.annotations is not None]
    annotations = [a for _, a in annotated]
    per_class = _boxes_per_class(annotations, len(dataset.classes))
    order = np.argsort(-per_class, kind="stable")
    sizes = Counter(f"{s.width} × {s.height}" for s in dataset.samples).most_common()

    rows = []
    for fold, num_images in sorted(Counter(folds.values()).items()):
        in_fold = _boxes_per_class([a for i, a in annotated if folds.get(i) == fold], len(dataset.classes))
        shares = tuple(float(in_fold[k] / max(per_class[k], 1)) for k in order[:_MAX_CLASSES])
        rows.append(FoldStats(str(fold), num_images, int(in_fold.sum()), shares))
    return DatasetStats(
        num_images=len(dataset),
        num_boxes=int(per_class.sum()),
        num_empty=sum(len(a) == 0 for a in annotations),
        sizes=tuple(sizes[:_MAX_SIZES]),
        more_sizes=max(len(sizes) - _MAX_SIZES, 0),
        charts=(_class_chart(dataset.classes, per_class, order), *_size_chart(annotations), *_count_chart(annotations)),
        fold_classes=tuple(dataset.classes[k] for k in order[:_MAX_CLASSES]),
        folds=tuple(rows),
    )


def _boxes_per_class(annotations: Sequence[Annotations], num_classes: int) -> Array:
    """(K,) counts."""
    return np.bincount(np.concatenate([np.zeros(0, np.int64), *(a.labels for a in annotations)]), minlength=num_classes)


def _class_chart(classes: Sequence[str], per_class: Array, order: Array) -> Chart:
    """Bars of the boxes per class, the most frequent class first."""
    total = int(per_class.sum())
    bars = [
        Bar(classes[k], float(per_class[k]), f"{per_class[k]:,} ({per_class[k] / max(total, 1):.0%})")
        for k in order[:_MAX_CLASSES]
    ]
    rest = order[_MAX_CLASSES:]
    more = f" {len(rest)} rarer classes have {per_class[rest].sum():,} of them." if len(rest) else ""
    words = ", ".join(f"{b.label} {b.text}" for b in bars)
    svg = bar_chart(bars, label=f"Boxes per class: {words}.")
    return Chart("Boxes per class", svg, f"{total:,} boxes of {len(order)} classes.{more}")


def _size_chart(annotations: Sequence[Annotations]) -> tuple[Chart, ...]:
    """A histogram of box sizes on a logarithmic axis; empty without boxes."""
    sides = np.sqrt(np.concatenate([np.zeros(0), *(a.area for a in annotations)]))
    sides = sides[sides > 0]
    if not len(sides):
        return ()
    low, high = int(np.floor(np.log2(sides.min()))), int(np.ceil(np.log2(sides.max()) + 1e-9))
    edges = 2 ** np.arange(low, high + 0.25, 0.5)
    axis = power_of_two_axis(low, high)
    counts = np.histogram(sides, edges)[0].tolist()
    small, large = float((sides < 32).mean()), float((sides >= 96).mean())
    svg = histogram(counts, edges.tolist(), axis, titles=("side in pixels", "boxes"), label="Histogram of box sizes.")
    return (
        Chart(
            "Box size",
            svg,
            f"The side is the square root of the area; its median is {np.median(sides):.0f} px. "
            f"{small:.0%} are small as COCO defines it (under 32 px), {large:.0%} large (96 px and more).",
        ),
    )


def _count_chart(annotations: Sequence[Annotations]) -> tuple[Chart, ...]:
    """A histogram of the number of boxes per image, with bars centred on whole numbers; empty without boxes."""
    numbers = np.array([len(a) for a in annotations])
    if not numbers.any():
        return ()
    step = max(1, int(np.ceil((numbers.max() + 1) / _MAX_BINS)))
    edges = np.arange(0, numbers.max() + step + 1, step) - 0.5
    counts = np.histogram(numbers, edges)[0].tolist()
    axis = whole_number_axis(float(edges[0]), float(edges[-1]))
    svg = histogram(
        counts, edges.tolist(), axis, titles=("boxes per image", "images"), label="Histogram of boxes per image."
    )
    return (Chart("Boxes per image", svg, f"Mean {numbers.mean():.1f}, maximum {numbers.max()}."),)
