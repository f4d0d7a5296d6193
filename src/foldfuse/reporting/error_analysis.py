"""Error analysis of predictions: precision and recall, errors by type, confusion of classes, and example images.

The numbers agree with `foldfuse score`: both come from `evaluation.diagnosis`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.pixels import open_image
from foldfuse.detections import Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.evaluation.diagnosis import ERROR_NAMES, Curve, Diagnosis, ErrorCost, count_errors, diagnose
from foldfuse.reporting.axes import linear_axis
from foldfuse.reporting.charts import Chart, Line, line_chart
from foldfuse.reporting.confusion import ConfusionMatrix, confusion_matrix
from foldfuse.reporting.images import Figure, draw_comparison, draw_predictions, evenly_spaced, pick_examples

ALL_CLASSES = "all classes"
_MAX_CURVES = 8
_TEST_IMAGES = 6


@dataclass(frozen=True)
class Examples:
    """Images with the boxes that score at least `threshold`."""

    figures: tuple[Figure, ...]
    threshold: float


@dataclass(frozen=True)
class ErrorAnalysis:
    """The error analysis of held-out predictions.

    Attributes:
        precision: precision-recall curves; None, as `confusion`, for images without annotated objects.
        costs: the costs of the types of error, in falling order.
        confusion: the confusion matrix of the boxes that score at least the threshold of the examples.
        examples: the best, typical and worst images.
        diagnosis: what these come from; None for images without annotated objects.
    """

    precision: Chart | None
    costs: tuple[ErrorCost, ...]
    confusion: ConfusionMatrix | None
    examples: Examples
    diagnosis: Diagnosis | None = None


def analyse_errors(
    dataset: Dataset,
    predictions: Predictions,
    warnings: list[str],
    *,
    ignore_orientation: bool = False,
    diagnosis: Diagnosis | None = None,
) -> ErrorAnalysis:
    """The ErrorAnalysis of predictions of some annotated images of `dataset`.

    Args:
        dataset: annotated.
        predictions: predictions of some images of `dataset`.
        warnings: a sentence is added for each image that cannot be shown.
        ignore_orientation: whether images are shown as their pixels are stored, whatever an EXIF tag says.
        diagnosis: of just these images, where it is known; made by default.
    """
    annotated = dataset.subset([s.id for s in dataset.samples if s.annotations is not None and s.id in predictions])
    predictions = predictions.select_images(annotated.image_ids)
    if diagnosis is None and _num_objects(annotated.samples):
        diagnosis = diagnose(predictions, annotated)
    threshold = diagnosis.best.score if diagnosis else 0.0

    def draw(kind: str, sample: Sample) -> Figure:
        detections = _above(predictions[sample.id], threshold)
        sample = open_image(sample, ignore_orientation=ignore_orientation)
        figure = draw_comparison(sample, detections, dataset.classes, kind=kind)
        error = dominant_error(annotated, predictions, sample, threshold) if kind == "worst" else ""
        return replace(figure, caption=f"{figure.caption}; {error}") if error else figure

    return ErrorAnalysis(
        precision_chart(diagnosis.curves) if diagnosis else None,
        diagnosis.error_costs if diagnosis else (),
        confusion_matrix(diagnosis) if diagnosis else None,
        Examples(_figures(draw, pick_examples(annotated, predictions, threshold), warnings), threshold),
        diagnosis,
    )


def submission_examples(
    test: Dataset,
    predictions: Predictions,
    threshold: float,
    warnings: list[str],
    *,
    ignore_orientation: bool = False,
) -> Examples:
    """Test images at even steps through the test set, with their detections."""
    samples = evenly_spaced([s for s in test.samples if s.id in predictions], _TEST_IMAGES)

    def draw(sample: Sample) -> Figure:
        sample = open_image(sample, ignore_orientation=ignore_orientation)
        return draw_predictions(sample, _above(predictions[sample.id], threshold), test.classes)

    return Examples(_figures(draw, [(sample,) for sample in samples], warnings), threshold)


def _figures(
    draw: Callable[..., Figure], examples: Iterable[tuple[object, ...]], warnings: list[str]
) -> tuple[Figure, ...]:
    """A figure for each example; a sentence in `warnings` for an image that cannot be read."""
    figures = []
    for example in examples:
        try:
            figures.append(draw(*example))
        except InputError as error:
            warnings.append(str(error))
    return tuple(figures)


def precision_chart(curves: Sequence[Curve]) -> Chart | None:
    """Precision-recall curves of the classes with most boxes, and the mean over all classes of two or more."""
    shown = sorted(curves, key=lambda c: -c.boxes)[:_MAX_CURVES]
    if not shown:
        return None
    recall = np.linspace(0, 1, 101)
    unit = linear_axis(0, 1)
    lines = [Line(c.name, recall[c.precision > 0], c.precision[c.precision > 0], i) for i, c in enumerate(shown)]
    words = [f"{c.name} has a mean precision of {c.precision.mean():.2f}" for c in shown]
    if len(curves) > 1:
        mean = np.mean([c.precision for c in curves], 0)
        lines.insert(0, Line(ALL_CLASSES, recall[mean > 0], mean[mean > 0], 0, strong=True))
        words.insert(0, f"{ALL_CLASSES} together {mean.mean():.2f}")
    svg = line_chart(
        lines,
        unit,
        unit,
        titles=("recall", "precision"),
        label="Precision against recall at IoU 0.50: " + ", ".join(words),
    )
    caption = "On held-out images, at IoU 0.50."
    if len(curves) > 1:
        caption += " The strong line is the mean over all classes."
    if len(curves) > len(shown):
        caption += f" The {len(shown)} classes with most boxes, of {len(curves)}."
    legend = tuple(c.name for c in shown)
    return Chart("Precision and recall", svg, caption, legend, ALL_CLASSES if len(curves) > 1 else None)


def dominant_error(dataset: Dataset, predictions: Predictions, sample: Sample, threshold: float) -> str:
    """The most frequent type of error on one image: "mostly localisation (3 of 4 errors)"; "" without errors.

    Of types that are equally frequent: "as often localisation as missed (1 each of 2 errors)".
    """
    selected = _select(predictions, [sample], threshold)
    background = {"Bkg": len(selected.scores)}  # every detection on an image without objects is one
    counts = count_errors(selected, dataset.subset([sample.id])) if _num_objects([sample]) else background
    most, number = max(counts.values()), sum(counts.values())
    if not number:
        return ""
    frequent = [ERROR_NAMES[kind] for kind, count in counts.items() if count == most]
    of = f"of {number} error{'s' * (number != 1)}"
    if len(frequent) > 1:
        return f"as often {' as '.join(frequent)} ({most} each {of})"
    return f"mostly {frequent[0]} ({most} {of})"


def _num_objects(samples: Sequence[Sample]) -> int:
    """The number of annotated boxes other than crowd regions."""
    return sum(int((~s.annotations.crowd).sum()) for s in samples if s.annotations is not None)


def _select(predictions: Predictions, samples: Sequence[Sample], threshold: float) -> Predictions:
    """The predictions of these images with a score of at least `threshold`."""
    return Predictions.of({s.id: _above(predictions[s.id], threshold) for s in samples}, predictions.classes)


def _above(detections: Detections, threshold: float) -> Detections:
    return detections[detections.scores >= threshold]
