"""What the fused predictions get right and wrong: precision and recall, what each kind of error costs, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.detections import Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.evaluation.coco import ERRORS, mended
from foldfuse.evaluation.matching import Curve, best_threshold, matches, precision_recall
from foldfuse.reporting.charts import Chart, Line, line_chart, linear_axis
from foldfuse.reporting.images import Picture, compared, predicted, spread, telling

ALL_CLASSES = "all classes"
NAMES = {  # of the ERRORS, written out
    "Cls": "classification",
    "Loc": "localisation",
    "Both": "class and localisation",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}
_CURVES_SHOWN = 8
_TEST_PICTURES = 6


@dataclass(frozen=True)
class Examples:
    """Pictures with boxes, drawn where the score is at least `threshold`."""

    pictures: tuple[Picture, ...]
    threshold: float


@dataclass(frozen=True)
class Cost:
    """A kind of error: the AP50 that mending all of its kind would bring, and how many are drawn at the threshold."""

    name: str
    meaning: str
    ap50: float
    count: int


@dataclass(frozen=True)
class Mistakes:
    """All that the held-back pictures show; the costs come dearest first."""

    precision: Chart | None
    costs: tuple[Cost, ...]
    examples: Examples


def mistakes(dataset: Dataset, held: Predictions, gaps: list[str]) -> Mistakes:
    """The Mistakes of predictions of annotated pictures, some of those of `dataset`; what cannot be shown is a gap."""
    matched = matches(dataset, held)
    threshold = best_threshold(dataset, held, matched)
    return Mistakes(
        precision_chart(precision_recall(dataset, held, matched)),
        costs(dataset.subset([s.id for s in dataset.samples if s.id in matched]), held, threshold),
        _examples(dataset, held, threshold, gaps),
    )


def precision_chart(curves: Sequence[Curve]) -> Chart | None:
    """Curves of the classes with most boxes, and above them the mean over all classes where there are several."""
    shown = sorted(curves, key=lambda c: -c.boxes)[:_CURVES_SHOWN]
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
        label="Precision against recall at IoU 0.5: " + ", ".join(words),
    )
    rest = f" The {len(shown)} classes with most boxes, of {len(curves)}." if len(curves) > len(shown) else ""
    over = " The strong line is the mean over all classes." if len(curves) > 1 else ""
    return Chart(
        "Precision and recall",
        svg,
        f"Of what was found in held-back pictures, at IoU 0.50.{over}{rest}",
        tuple(c.name for c in shown),
        ALL_CLASSES if len(curves) > 1 else None,
    )


def costs(held: Dataset, predictions: Predictions, threshold: float) -> tuple[Cost, ...]:
    """What each kind of error costs, dearest first; empty where no object is drawn."""
    if not _objects(held.samples):
        return ()
    brings, _ = mended(_cut(predictions, held.samples, 0.0), held)
    _, counts = mended(_cut(predictions, held.samples, threshold), held)
    return tuple(sorted((Cost(NAMES[k], ERRORS[k], brings[k], counts[k]) for k in ERRORS), key=lambda cost: -cost.ap50))


def mostly(dataset: Dataset, predictions: Predictions, sample: Sample, threshold: float) -> str:
    """Which kind of error dominates on one picture: "mostly localisation (3 of 4 mistakes)"; "" where there is none.

    Where several kinds are equally many: "as often localisation as missed (1 each of 2 mistakes)".
    """
    found = _cut(predictions, [sample], threshold)
    counts = mended(found, dataset.subset([sample.id]))[1] if _objects([sample]) else {"Bkg": len(found.scores)}
    most, number = max(counts.values()), sum(counts.values())
    if not number:
        return ""
    worst = [NAMES[kind] for kind, count in counts.items() if count == most]
    of = f"of {number} mistake{'s' * (number != 1)}"
    if len(worst) > 1:
        return f"as often {' as '.join(worst)} ({most} each {of})"
    return f"mostly {worst[0]} ({most} {of})"


def sent_examples(test: Dataset, sent: Predictions, threshold: float, gaps: list[str]) -> Examples:
    """Pictures to submit, evenly spaced, with what was found in them."""
    pictures = []
    for sample in spread([s for s in test.samples if s.id in sent], _TEST_PICTURES):
        try:
            pictures.append(predicted(sample, _above(sent[sample.id], threshold), test.classes))
        except InputError as error:
            gaps.append(str(error))
    return Examples(tuple(pictures), threshold)


def _examples(dataset: Dataset, held: Predictions, threshold: float, gaps: list[str]) -> Examples:
    pictures = []
    for kind, sample in telling(dataset, held, threshold):
        try:
            picture = compared(sample, _above(held[sample.id], threshold), dataset.classes, kind=kind)
        except InputError as error:
            gaps.append(str(error))
            continue
        why = mostly(dataset, held, sample, threshold) if kind == "worst" else ""
        pictures.append(replace(picture, caption=f"{picture.caption}; {why}" if why else picture.caption))
    return Examples(tuple(pictures), threshold)


def _objects(samples: Sequence[Sample]) -> int:
    """How many boxes are drawn that are no crowd regions."""
    return sum(int((~s.annotations.crowd).sum()) for s in samples if s.annotations is not None)


def _cut(predictions: Predictions, samples: Sequence[Sample], threshold: float) -> Predictions:
    """Those of these pictures with a score of at least `threshold`."""
    return Predictions.of({s.id: _above(predictions[s.id], threshold) for s in samples}, predictions.classes)


def _above(found: Detections, threshold: float) -> Detections:
    return found[found.scores >= threshold]
