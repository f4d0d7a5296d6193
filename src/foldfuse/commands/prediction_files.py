"""Reads the prediction files of a command and prints on standard error how each file was read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.errors import InputError
from foldfuse.evaluation.coco import score_predictions
from foldfuse.formats.box_table import to_predictions
from foldfuse.formats.predictions import PredictionFile, read_prediction_file
from foldfuse.formats.raw_boxes import ReadAs
from foldfuse.system import printing

DOUBTFUL_AP50 = 0.5  # other readings are tried below this
MUCH_BETTER = 0.1  # more AP50 with another reading


def read_file(path: Path, dataset: Dataset, read_as: ReadAs) -> Predictions:
    """The predictions in a file; prints how the file was read, and what may be wrong with it."""
    return read_and_report(path, dataset, read_as).predictions


def read_and_report(path: Path, dataset: Dataset, read_as: ReadAs) -> PredictionFile:
    """A prediction file; prints how the file was read, and what may be wrong with it."""
    file = read_prediction_file(path, dataset, read_as)
    for note in file.notes():
        printing.write(f"{path}: {note}", to_stderr=True)
    return file


def warn_of_better_reading(path: Path, file: PredictionFile, dataset: Dataset) -> None:
    """Warns where the annotations say that another possible reading of the file is the right one."""
    if not file.alternatives or not dataset.num_boxes:
        return
    as_read = score_predictions(file.predictions, dataset).ap50 or 0.0
    for option, make in file.alternatives.items() if as_read < DOUBTFUL_AP50 else ():
        try:
            other = score_predictions(to_predictions(make(), dataset), dataset).ap50 or 0.0
        except InputError:  # some boxes are broken in this reading
            continue
        if other > max(2 * as_read, as_read + MUCH_BETTER):
            printing.write(
                f"WARNING: {path}: has AP50 {as_read:.4f} as it was read, and {other:.4f} with {option}. If that is how it is "
                "meant, add the option.",
                to_stderr=True,
            )


def read_members(
    paths: Sequence[Path], dataset: Dataset, read_as: ReadAs, *, names: Iterable[str] = ()
) -> dict[str, Predictions]:
    """{name: predictions} of the members of an ensemble.

    Args:
        paths: their files.
        dataset: the images that they predict.
        read_as: how the files are to be read.
        names: the names that the members must have, where an ensemble gives them; by default those of `member_names`.

    Raises:
        InputError: a file is given twice or cannot be used, or a name fits several files.
    """
    return {name: read_file(path, dataset, read_as) for name, path in named_files(paths, names).items()}


def named_files(paths: Sequence[Path], names: Iterable[str] = ()) -> dict[str, Path]:
    """{name: file} of the members of an ensemble; see `read_members`.

    Raises:
        InputError: a file is given twice, or a name fits several files.
    """
    if len(set(map(Path.resolve, paths))) < len(paths):
        twice = next(path for i, path in enumerate(paths) if path.resolve() in {p.resolve() for p in paths[:i]})
        raise InputError(f"{twice}: is given twice. Give each member once.")
    named = dict(zip(member_names(paths), paths, strict=True))
    for name in names:
        fitting = [path for path in paths if ends_in(path, name)]
        if len(fitting) > 1:
            raise InputError(
                f"the ensemble's member {name!r} may be {fitting[0]} or {fitting[1]}. Give one of the two files alone, or "
                "rename one."
            )
        if fitting:
            named = {name if path == fitting[0] else other: path for other, path in named.items()}
    return named


def member_names(paths: Sequence[Path]) -> list[str]:
    """The name of each file without its ending; with the folders before it, such as "a/oof", where files have the same name."""
    names = []
    for path in paths:
        parts = path.resolve().with_suffix("").parts
        length = 1
        while length < len(parts) and sum(ends_in(other, "/".join(parts[-length:])) for other in paths) > 1:
            length += 1
        names.append("/".join(parts[-length:]))
    return names


def ends_in(path: Path, name: str) -> bool:
    """Whether the path of a file without its ending ends in the folders and the file of `name`."""
    parts, wanted = path.resolve().with_suffix("").parts, tuple(name.split("/"))
    return parts[-len(wanted) :] == wanted
