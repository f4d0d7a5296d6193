"""What the boxes of a sample submission show: the layout of their words, and what the words of classes are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foldfuse.data.dataset import Dataset
from foldfuse.errors import InputError, shown
from foldfuse.formats import prediction_strings
from foldfuse.formats.box_table import image_sizes
from foldfuse.formats.class_keys import CategoryIds, class_table
from foldfuse.formats.csv_text import CsvFile
from foldfuse.formats.prediction_strings import CONTEST, HEADER, LAYOUTS, Layout
from foldfuse.formats.raw_boxes import as_number
from foldfuse.formats.word_grid import make_grid

LABELS: tuple[CategoryIds, ...] = ("id", "name", "from_zero", "from_one")


def is_no_box(words: Sequence[str], dataset: Dataset) -> bool:
    """Whether the words are one box of a single pixel, in a class of its own or in one called no finding or the like."""
    if len(words) != 6 or [as_number(w) for w in words[2:]] != list(prediction_strings.NO_BOX):
        return False
    last = dataset.classes[-1].casefold()
    if any(word in last for word in ("no ", "none", "negative", "normal", "background")):
        return as_number(words[0]) == len(dataset.classes) - 1 or words[0].casefold() == last
    names = {name.casefold() for name in dataset.classes}
    for word in words[:2]:
        number = as_number(word)
        if word.casefold() not in names if number is None else number >= len(dataset.classes) and number != 1:
            return True
    return False


def find_layout(
    path: Path,
    csv_file: CsvFile,
    words: Sequence[Sequence[str]],
    no_box: Sequence[bool],
    image_ids: Any,
    dataset: Dataset,
) -> Layout:
    """The only layout that the sample's boxes allow; the contest's for the contest's header."""
    is_contest = tuple(csv_file.header) == HEADER
    boxes = [list(w) if not is_no else [] for w, is_no in zip(words, no_box, strict=True)]
    used = [w for w in boxes if w]
    possible = []
    for num_words in (5, 6):
        if used and not any(len(w) % num_words for w in used):
            grid = make_grid(boxes, num_words)
            sizes = image_sizes(image_ids[grid.rows], dataset)
            possible += [
                layout
                for layout in LAYOUTS.values()
                if layout.num_words == num_words and prediction_strings.layout_fits(layout, grid, sizes, dataset)
            ]
    if not used:
        standing = next((w for w, is_no in zip(words, no_box, strict=True) if is_no), None)
        possible = [
            layout for layout in LAYOUTS.values() if layout.label_column is not None or len(dataset.classes) == 1
        ]
        if standing is not None:
            first = as_number(standing[0])
            order = "label_score" if first is None or first > 1 else "score_label"
            possible = [layout for layout in possible if layout.before == order and layout.form.box != "cxcywh"]
    if is_contest and CONTEST in possible:
        return CONTEST
    if len(possible) == 1:
        return possible[0]
    found = shown(" ".join(used[0])) if used else "no boxes"
    names = [layout.name for layout in possible or LAYOUTS.values()]
    raise InputError(
        f"{path}: shows {found}, which leaves open what the words of a box are. Add --format "
        f"{' or '.join(names) if len(names) <= 4 else f'with one of {chr(44).join(names)}'}."
    )


def find_labels(
    path: Path,
    words: set[str],
    standing: str | None,
    has_none: bool,
    dataset: Dataset,
    given: CategoryIds | None,
    csv_file: CsvFile,
) -> tuple[CategoryIds, tuple[str, ...]]:
    """What the labels of a sample are, and the word of each class.

    Args:
        path: the sample.
        words: the labels of its boxes.
        standing: the label of the box that stands for no box; None where there is none.
        has_none: whether the sample has no labels.
        dataset: the classes.
        given: what the user says that they are.
        csv_file: the cells of the sample.
    """
    texts: dict[CategoryIds, tuple[str, ...]] = {
        "id": tuple(map(str, dataset.organiser_category_ids)),
        "name": tuple(dataset.classes),
        "from_zero": tuple(str(k) for k in range(len(dataset.classes))),
        "from_one": tuple(str(k) for k in range(1, len(dataset.classes) + 1)),
    }
    if has_none:
        return "from_zero", texts["from_zero"]
    if given is not None:
        return given, texts[given]
    some = words or ({standing} if standing else set())
    if any(as_number(word) is None for word in some):
        known = class_table(dataset, "name")
        unknown = sorted(word for word in words if word not in known and word.casefold() not in known)
        if unknown:
            raise InputError(
                f"{path}: has the class {shown(unknown[0])}, which {dataset.source} lacks (known: "
                f"{', '.join(dataset.classes[:20])})."
            )
        spelled = {known.get(word, known.get(word.casefold())): word for word in words}
        return "name", tuple(spelled.get(label, name) for label, name in enumerate(dataset.classes))
    plain = {word.removesuffix(".0") for word in words}
    possible = [way for way in LABELS if way != "name" and plain <= set(texts[way])]
    if len(possible) > 1 and texts["from_one"] != texts["id"]:  # only what nothing else explains counts from 1
        possible = [way for way in possible if way != "from_one"]
    if standing is not None:
        possible = [way for way in possible if standing.removesuffix(".0") not in texts[way]] or possible
    if not words and tuple(csv_file.header) == HEADER and "from_zero" in possible:
        return "from_zero", texts["from_zero"]
    if possible and len({texts[way] for way in possible}) == 1:
        return possible[0], texts[possible[0]]
    if not possible:
        raise InputError(
            f"{path}: has the class {shown(sorted(plain)[0])}, which is neither a category id nor a position in the classes of "
            f"{dataset.source} (ids: {', '.join(texts['id'][:20])})."
        )
    raise InputError(
        f"{path}: leaves open whether a label is {' or '.join(_WORDS[way] for way in possible)}. Add --labels "
        f"{' or '.join(possible)}, or --labels name."
    )


_WORDS = {
    "id": "a category id of the data",
    "from_zero": "a position in its classes from 0",
    "from_one": "a position in its classes from 1",
}
