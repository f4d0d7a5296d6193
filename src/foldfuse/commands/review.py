"""The review command: likely label errors, found by out-of-fold predictions, as a table, a page and a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from rich.table import Table

from foldfuse.commands import options
from foldfuse.commands.browse import read_source, title_of
from foldfuse.commands.prediction_files import member_names
from foldfuse.commands.tables import text_table
from foldfuse.data.dataset import Dataset, require_annotations
from foldfuse.data.pixels import open_usable_images
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.errors import InputError, counted
from foldfuse.evaluation.label_errors import KINDS, Suggestion, find_label_errors
from foldfuse.evaluation.out_of_fold import join_out_of_fold
from foldfuse.formats.parquet import is_parquet
from foldfuse.formats.raw_boxes import ReadAs
from foldfuse.reporting.browser_sources import PredictionSource, find_sources
from foldfuse.reporting.review_data import NAMES, Item, make_items
from foldfuse.reporting.review_page import write_review, write_suggestions
from foldfuse.system import printing
from foldfuse.system.progress import progress_bar

TABLE_ROWS = 10  # of the most probable errors, on the terminal
PROBABILITIES = (0.9, 0.5, 0.1)  # that the table counts suggestions at


def review(
    data: Path,
    predictions: Annotated[tuple[Path, ...], Parameter(metavar="CAMPAIGN|PREDICTIONS")],
    *,
    out: options.Out = Path("review.html"),
    top: options.Count = 200,
    input_format: options.InputFormat = None,
    image_ids: options.ImageIds = None,
    category_ids: options.CategoryIds = None,
    images: options.Images = None,
    ignore_orientation: options.IgnoreOrientation = False,
    overwrite: options.Overwrite = False,
) -> Path:
    """Rank likely label errors by out-of-fold predictions, and write a page to accept or reject corrections.

    Likely errors are objects without an annotation, annotations of another class, boxes that are off, annotations where no
    object is, and objects that are annotated twice. Each has a probability. The page shows each with its image, and downloads the
    accepted corrections as a file, which `foldfuse check DATA --fix --corrections FILE --out COPY` applies to a copy of
    the annotations.

    Images that a network has learnt from are left out, since its predictions there repeat the annotations.

    Args:
        data: the annotated images, in any layout.
        predictions: the folder of a campaign (its fused predictions) or of a run, or files of out-of-fold predictions, such as
            one of each fold: Parquet, COCO results JSON, a CSV or a YOLO folder. An image in several has their boxes fused.
        out: HTML page to write; or .json for the suggestions as a file.
        top: write the N most probable suggestions.

    Raises:
        InputError: a file cannot be used, no image has out-of-fold predictions, or `out` exists.

    Examples:
        foldfuse review data/train.json campaign
        foldfuse review data/train.json a_oof.parquet b_oof.parquet --out review2.html --top 50
    """
    options.check_ending(out, ".html", ".htm", ".json")
    sources = _sources(predictions)
    inputs = [data, images, *predictions, *(source.path for source in sources)]
    options.refuse_overwrite(out, overwrite, is_file=True, inputs=inputs)
    dataset = require_annotations(read(data, images=images, ignore_orientation=ignore_orientation))
    files = _read(sources, dataset, ReadAs(input_format, image_ids, category_ids))
    joined = join_out_of_fold(files, dataset)
    if str(joined):
        printing.write(joined, to_stderr=True)
    suggestions = find_label_errors(dataset, joined.predictions)
    items = make_items(suggestions[:top], dataset)
    console = printing.console()
    console.print(_kinds_table(suggestions))
    if items:
        console.print(_items_table(items))
    if out.suffix == ".json":
        write_suggestions(items, dataset, out)
    else:
        note, title = str(joined), title_of(data)
        _write_page(items, dataset, out, note=note, title=title, ignore_orientation=ignore_orientation)
    return out


def _sources(words: Sequence[Path]) -> list[PredictionSource]:
    """The fused predictions of campaigns, the predictions of runs, and files, each once.

    Raises:
        InputError: one is given twice, or a campaign or a run has no predictions.
    """
    sources: list[PredictionSource] = []
    for word, name in zip(words, member_names(words), strict=True):
        if any(word.resolve() == other.resolve() for other in words[: len(sources)]):
            raise InputError(f"{word}: is given twice. Give each set of predictions once.")
        sources.append(find_sources(word, name, is_prefixed=True)[0])  # of a campaign, the fused ones
    return sources


def _read(sources: Sequence[PredictionSource], dataset: Dataset, read_as: ReadAs) -> dict[str, Predictions]:
    """{path: predictions}; says which files do not tell what their network has learnt from."""
    files = {}
    for source in sources:
        found = files[str(source.path)] = read_source(source, dataset, read_as)
        if not found.learnt_ids and not is_parquet(source.path):
            text = f"{source.path}: does not tell which images its network has learnt from; all are taken as held-out."
            printing.write(text, to_stderr=True)
    return files


def _write_page(
    items: Sequence[Item], dataset: Dataset, out: Path, *, note: str, title: str, ignore_orientation: bool
) -> None:
    """Writes the page; only the images with suggestions are opened."""
    shown = dataset.subset(item.sample.id for item in items)
    opened = open_usable_images(shown, ignore_orientation=ignore_orientation) if items else shown
    items = [replace(item, sample=opened[item.sample.id]) for item in items]
    with progress_bar(f"cutting {counted(len(items), 'suggestion')} out of {counted(len(shown), 'image')}") as progress:
        write_review(items, dataset, out, title=title, note=note, progress=progress)


def _kinds_table(suggestions: Sequence[Suggestion]) -> Table:
    """The number of suggestions of each kind, and how many of them are more likely errors than not."""
    rows = []
    for kind in KINDS:
        scores = np.array([s.score for s in suggestions if s.kind == kind])
        rows.append([NAMES[kind], *(str(int((scores >= p).sum())) for p in PROBABILITIES), f"{scores.sum():.1f}"])
    heads = ["kind", *(f"≥ {p:.0%}" for p in PROBABILITIES), "expected errors"]
    return text_table("Likely label errors, by probability", heads, rows)


def _items_table(items: Sequence[Item]) -> Table:
    """The most probable errors."""
    rows = [
        [f"{item.suggestion.score:.2f}", NAMES[item.suggestion.kind], item.sample.file_name, item.correction.reason]
        for item in items[:TABLE_ROWS]
    ]
    return text_table(
        "The most probable ones", ["probability", "kind", "image", "reason"], rows, words=["kind", "image", "reason"]
    )
