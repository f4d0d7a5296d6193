"""`Evaluation`: the score of a run on images that it has not learnt from, kept in the run's folder as evaluation.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foldfuse.evaluation.coco import Score
from foldfuse.system.records import read_record, write_record

EVALUATION = "evaluation.json"
EVALUATION_FORMAT = 1
OOF, VAL = "oof.parquet", "val.parquet"  # in the run's folder: predictions of its fold, and of its --val data


@dataclass(frozen=True)
class Evaluation:
    """What was scored, and the score.

    Attributes:
        held_out: the images in words, such as "fold 0 of folds.json".
        data: the path of the annotated data.
        num_images: images that were scored.
        num_objects: annotated objects on them.
        num_learnt: further images of the data that the run has learnt from, and that were left out.
        steps: the optimizer steps that the run had taken.
        predictions: the name of the file in the run's folder that holds the predictions; None where they were not kept.
        score: COCO's numbers.
    """

    held_out: str
    data: str
    num_images: int
    num_objects: int
    num_learnt: int
    steps: int | None
    predictions: str | None
    score: Score


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Replace evaluation.json in the folder of a run."""
    write_record(folder / EVALUATION, evaluation, version=EVALUATION_FORMAT)


def read_evaluation(folder: Path) -> Evaluation | None:
    """The Evaluation in the folder of a run; None without one.

    Raises:
        InputError: the file is broken.
    """
    path = folder / EVALUATION
    if not path.exists():
        return None
    return read_record(path, Evaluation, version=EVALUATION_FORMAT, what="the evaluation of a run")
