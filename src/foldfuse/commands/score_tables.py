"""Tables of scores on the terminal, as `score`, `train` and `evaluate` print them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from foldfuse.commands.tables import score_text, text_table
from foldfuse.evaluation.coco import Score
from foldfuse.evaluation.diagnosis import Diagnosis

BACKGROUND = "background"
MATRIX_CLASSES = 8  # a confusion matrix of more classes does not fit 80 columns
TOP_CONFUSIONS = 15


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


def threshold_table(diagnosis: Diagnosis, of: str) -> Table:
    """Precision and recall at the score threshold with the best F1, of all classes and of each annotated class."""
    best = [("all classes", diagnosis.best), *zip(diagnosis.classes, diagnosis.best_by_class, strict=True)]
    rows = [
        [name, *(score_text(value) for value in (b.score, b.f1, b.precision, b.recall))]
        for name, b in best
        if b is not None
    ]
    return text_table(
        f"Score threshold with the best F1{of}, IoU 0.50", ["class", "threshold", "F1", "precision", "recall"], rows
    )


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
