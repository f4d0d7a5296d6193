"""Tables of scores on the terminal, as `score`, `train` and `evaluate` print them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from foldfuse.commands.tables import score_text, text_table
from foldfuse.errors import counted
from foldfuse.evaluation.coco import Score
from foldfuse.evaluation.diagnosis import Diagnosis
from foldfuse.evaluation.thresholds import BEST, BEST_BY_CLASS, MIN_OBJECTS, Choice, Thresholds

BACKGROUND = "background"
MATRIX_CLASSES = 8  # a confusion matrix of more classes does not fit 80 columns
TOP_CONFUSIONS = 15
MAX_SHOWN = 20  # classes of a sentence


def scores_table(title: str, heads: Sequence[str], rows: Sequence[tuple[str | float | None, ...]]) -> Table:
    """A row of scores for each name, with a column for each set of predictions."""
    cells = [[str(name), *(score_text(value) for value in values)] for name, *values in rows]  # type: ignore[arg-type]
    return text_table(title, heads, cells)


def class_table(scores: Sequence[Score], names: Sequence[str]) -> Table:
    """AP and AP50 of each class, for each of `names` its own columns."""
    heads = [head if len(names) == 1 else f"{head} {name}" for name in names for head in ("AP", "AP50")]
    rows = [
        [of[0].name, str(of[0].boxes), *(score_text(value) for each in of for value in (each.ap, each.ap50))]
        for of in zip(*(each.per_class for each in scores), strict=True)
    ]
    return text_table("By class", ["class", "boxes", *heads], rows)


def threshold_table(thresholds: Thresholds, of: str) -> Table:
    """The score threshold with the best F, of all classes and of each annotated class, with precision and recall there."""
    rows = [
        [
            f"{one.name} *" if not one.is_own else one.name,
            f"{one.score:.3g}",
            f"{one.low:.3g} to {one.high:.3g}",
            *(score_text(value) for value in (one.f, one.precision, one.recall)),
        ]
        for one in (thresholds.best, *thresholds.by_class)
        if one.objects
    ]
    heads = ["class", "threshold", "95 % interval", thresholds.f_name, "precision", "recall"]
    return text_table(f"Score threshold with the best {thresholds.f_name}{of}, IoU 0.50", heads, rows)


def f_table(thresholds: Thresholds, of: str) -> Table:
    """F at one threshold and at the thresholds of the classes, on the images that chose them and cross-validated."""
    rows = []
    for choice, found, cv in (
        (BEST, thresholds.one, thresholds.one_cv),
        (BEST_BY_CLASS, thresholds.each, thresholds.each_cv),
    ):
        rows.append([f"{choice}, all boxes", score_text(found.all_boxes), score_text(cv.all_boxes if cv else None)])
        means = found.class_mean, cv.class_mean if cv else None
        rows.append([f"{choice}, mean of classes", *map(score_text, means)])
    heads = ["threshold", "in-sample", "cross-validated"]
    return text_table(f"{thresholds.f_name} at the thresholds{of}", heads, rows)


def print_thresholds(console: Console, thresholds: Thresholds, of: str = "") -> None:
    """Prints the thresholds, and F at them."""
    console.print(threshold_table(thresholds, of))
    for line in follower_lines(thresholds):
        console.print(line)
    console.print(f_table(thresholds, of))


def threshold_sentence(thresholds: Thresholds, choice: Choice) -> str:
    """Which thresholds are applied, and their cross-validated F."""
    cv, scores = thresholds.one_cv, f"{thresholds.best.score:.3g}"
    if choice == BEST_BY_CLASS:
        cv, shown = thresholds.each_cv, [f"{one.name} {one.score:.3g}" for one in thresholds.by_class[:MAX_SHOWN]]
        scores = ", ".join(shown) + (", ..." if len(thresholds.by_class) > MAX_SHOWN else "")
    value = "" if cv is None else f", {thresholds.f_name} {cv.all_boxes:.3f} cross-validated"
    return f"boxes are kept from these scores on: {scores} ({counted(thresholds.num_images, 'held-out image')}{value})."


def follower_lines(thresholds: Thresholds) -> list[str]:
    """A sentence on the classes with too few objects for a threshold of their own; none where all have enough."""
    if not thresholds.followers:
        return []
    return [f"* fewer than {MIN_OBJECTS} objects: the threshold of all classes."]


def confusion_table(diagnosis: Diagnosis, of: str) -> Table:
    """The confusion matrix; of many classes its largest entries off the diagonal."""
    names = [*diagnosis.classes, BACKGROUND]
    at = f"{of} at score {diagnosis.best.score:.4f}, IoU 0.50"
    if len(diagnosis.classes) > MATRIX_CLASSES:
        rows = [[names[i], names[j], str(count)] for i, j, count in diagnosis.top_confusions(TOP_CONFUSIONS)]
        return text_table(
            f"Most frequent confusions{at}", ["annotated", "predicted", "boxes"], rows, words=["predicted"]
        )
    keys = [*(str(k) for k in range(1, len(names))), "bg"]
    rows = [
        [f"{key} {name}" if name != BACKGROUND else name, *map(str, counts)]
        for key, name, counts in zip(keys, names, diagnosis.confusion.tolist(), strict=True)
    ]
    return text_table(f"Confusion matrix{at}", ["annotated \\ predicted", *keys], rows)


def error_table(diagnosis: Diagnosis, of: str) -> Table:
    """The AP50 gained if all errors of one type were fixed, and the number of such errors above the best threshold."""
    rows = [[cost.name, f"{cost.ap50:.3f}", str(cost.count), cost.meaning] for cost in diagnosis.error_costs]
    title = f"Errors by type{of} (TIDE), counted at score {diagnosis.best.score:.2f} or more"
    return text_table(title, ["error type", "AP50 gained", "number", "meaning"], rows, words=["meaning"])
