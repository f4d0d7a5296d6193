"""What is drawn on the training pictures, in numbers and charts: classes, sizes, boxes on a picture, folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from foldfuse.boxes import Array
from foldfuse.data.dataset import Dataset
from foldfuse.reporting.charts import Axis, Bar, Chart, bar_chart, histogram, linear_axis

_CLASSES_SHOWN = 12  # bars and columns for the most frequent classes; the rest is summed up
_SIZES_SHOWN = 5


@dataclass(frozen=True)
class FoldRow:
    """What one fold holds; `shares` are of all boxes of the shown classes, 0..1."""

    name: str
    pictures: int
    boxes: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class DataFacts:
    """What is drawn on the training pictures."""

    pictures: int
    boxes: int
    empty: int
    sizes: tuple[tuple[str, int], ...]  # "640 × 480", pictures; the most frequent
    more_sizes: int
    charts: tuple[Chart, ...]
    fold_classes: tuple[str, ...]
    folds: tuple[FoldRow, ...]


def data_facts(dataset: Dataset, folds: Mapping[int, int]) -> DataFacts:
    """The DataFacts of a labelled dataset. `folds` gives each image id its fold; empty where that is not known."""
    drawn = [s.annotations for s in dataset.samples if s.annotations is not None]
    labels = np.concatenate([np.zeros(0, np.int64), *(a.labels for a in drawn)])
    per_class = np.bincount(labels, minlength=len(dataset.classes))
    order = np.argsort(-per_class, kind="stable")[:_CLASSES_SHOWN]
    sizes: dict[str, int] = {}
    for s in dataset.samples:
        size = f"{s.width} × {s.height}"
        sizes[size] = sizes.get(size, 0) + 1

    rows = []
    for fold in sorted(set(folds.values())):
        own = [s.annotations for s in dataset.samples if folds.get(s.id) == fold and s.annotations is not None]
        inside = np.bincount(
            np.concatenate([np.zeros(0, np.int64), *(a.labels for a in own)]), minlength=len(per_class)
        )
        shares = tuple(float(inside[k] / max(per_class[k], 1)) for k in order)
        rows.append(FoldRow(str(fold), sum(f == fold for f in folds.values()), int(inside.sum()), shares))
    return DataFacts(
        pictures=len(dataset),
        boxes=len(labels),
        empty=sum(len(a) == 0 for a in drawn),
        sizes=tuple(sorted(sizes.items(), key=lambda item: -item[1])[:_SIZES_SHOWN]),
        more_sizes=max(len(sizes) - _SIZES_SHOWN, 0),
        charts=(_class_chart(dataset, per_class), *_shape_charts(dataset)),
        fold_classes=tuple(dataset.classes[k] for k in order),
        folds=tuple(rows),
    )


def _class_chart(dataset: Dataset, per_class: Array) -> Chart:
    total = int(per_class.sum())
    order = np.argsort(-per_class, kind="stable")
    bars = [
        Bar(dataset.classes[k], float(per_class[k]), f"{per_class[k]:,} ({per_class[k] / max(total, 1):.0%})")
        for k in order[:_CLASSES_SHOWN]
    ]
    rest = order[_CLASSES_SHOWN:]
    more = f" {len(rest)} rarer classes share {per_class[rest].sum():,} more." if len(rest) else ""
    words = ", ".join(f"{b.label} {b.text}" for b in bars)
    svg = bar_chart(bars, label=f"Boxes of each class: {words}.")
    return Chart("Boxes of each class", svg, f"{total:,} boxes of {len(order)} classes.{more}")


def _shape_charts(dataset: Dataset) -> tuple[Chart, ...]:
    """Histograms of how large boxes are, and of how many are on a picture."""
    boxes = [s.annotations for s in dataset.samples if s.annotations is not None]
    sides = np.sqrt(np.concatenate([np.zeros(0), *(a.area for a in boxes)]))
    sides = sides[sides > 0]
    if not len(sides):
        return ()
    low, high = np.floor(np.log2(sides.min())), np.ceil(np.log2(sides.max()) + 1e-9)
    edges = 2 ** np.arange(low, high + 0.25, 0.5)
    axis = Axis(edges[0], edges[-1], tuple((float(2**p), f"{2.0**p:g}") for p in np.arange(low, high + 1)), log=True)
    counts = np.histogram(sides, edges)[0].tolist()
    small, large = float((sides < 32).mean()), float((sides >= 96).mean())
    size = Chart(
        "Size of the boxes",
        histogram(counts, edges.tolist(), axis, titles=("side in pixels", "boxes"), label="How large the boxes are."),
        f"The side is the square root of the area. Half are under {np.median(sides):.0f} px; "
        f"{small:.0%} are small by COCO's measure (under 32 px), {large:.0%} large (96 px and more).",
    )
    numbers = np.array([len(a) for a in boxes])
    step = max(1, int(np.ceil((numbers.max() + 1) / 30)))
    edges = np.arange(0, numbers.max() + step + 1, step)
    counts = np.histogram(numbers, edges - 0.5)[0].tolist()
    many = Chart(
        "Boxes on a picture",
        histogram(
            counts,
            (edges - 0.5).tolist(),
            _whole_axis(edges),
            titles=("boxes on a picture", "pictures"),
            label="Boxes per picture.",
        ),
        f"{numbers.mean():.1f} on average, at most {numbers.max()}.",
    )
    return size, many


def _whole_axis(edges: Array) -> Axis:
    """The axis of a histogram of whole numbers, whose bars stand on their numbers."""
    ticks = tuple((v, t) for v, t in linear_axis(0, float(edges[-1])).ticks if v <= edges[-1] - 0.5 and v == int(v))
    return Axis(float(edges[0]) - 0.5, float(edges[-1]) - 0.5, ticks)
