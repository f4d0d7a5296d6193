"""The folder that `next` writes: the picked images with the reasons, as a list, a page, and annotations to correct.

next.html            a page to look at the images, with the boxes of the ensemble and of its members (see `browser`)
next.csv             a row for each image: score, expected objects, reason
images.txt           the paths of the images as they were given, one a line
images/              copies of the images
annotations.json     COCO JSON of the copies; its annotations are the ensemble's boxes, each with its score
predictions.parquet  all boxes of the ensemble, whatever their score
next.json            the list for programs: see `storage.next_images`
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.detections import Predictions
from foldfuse.errors import InputError, shown
from foldfuse.formats.coco_results import write_coco_dataset
from foldfuse.formats.formulas import warn_of_formulas
from foldfuse.formats.parquet import write_parquet
from foldfuse.inference.next_images import NextChoice
from foldfuse.reporting.browser import images_folder, write_browser
from foldfuse.reporting.browser_sources import FUSED
from foldfuse.storage.next_images import RECORD, NextImage, NextImages, read_next, write_next
from foldfuse.system.atomic_files import check_target, write_text
from foldfuse.system.progress import Progress, no_progress

PAGE, LIST, PATHS, IMAGES = "next.html", "next.csv", "images.txt", "images"
ANNOTATIONS, PREDICTIONS = "annotations.json", "predictions.parquet"
FILES = (PAGE, images_folder(Path(PAGE)).name, LIST, PATHS, IMAGES, ANNOTATIONS, PREDICTIONS, RECORD)
MAX_EXPECTED = 3  # classes that are named
SHOWN_SCORE = 0.05  # the page has no boxes of lower score


def write_next_folder(
    choice: NextChoice,
    dataset: Dataset,
    out: Path,
    *,
    pre_annotations: Predictions,
    predictors: Sequence[Path],
    title: str,
    progress: Progress = no_progress,
) -> NextImages:
    """Writes the folder, which replaces an earlier one as a whole, and returns what next.json holds.

    Args:
        choice: the picked images.
        dataset: the images that they were picked from, opened.
        out: the folder; see `refuse_labels`.
        pre_annotations: the boxes of the ensemble that are offered as annotations.
        predictors: the campaign or the runs.
        title: the heading of the page.
        progress: gets the share of the page's images that are done.

    Raises:
        InputError: there is no way to write there.
    """
    check_target(out, is_folder=True)
    target = Path(os.path.realpath(out))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".foldfuse-next.", dir=target.parent) as temporary:
        made = Path(temporary) / target.name
        (made / IMAGES).mkdir(parents=True)
        samples = _copies(choice.samples, made)
        picked = replace(dataset, samples=samples, source=out / ANNOTATIONS)
        write_parquet(choice.fused, made / PREDICTIONS, picked)
        write_coco_dataset(pre_annotations, made / ANNOTATIONS, picked)
        images = tuple(
            _image(choice, position, given, copy.file_name)
            for position, (given, copy) in enumerate(zip(choice.samples, samples, strict=True))
        )
        names = tuple(member.name for member in choice.members)
        record = NextImages(str(dataset.source), tuple(map(str, predictors)), images, names, _digest(made))
        write_next(made, record)
        _write_lists(images, made)
        warn_of_formulas(out / LIST, [text for one in images for text in (one.image, one.reason)])
        layers = {FUSED: choice.fused, **choice.layers}
        write_browser(
            picked,
            {name: found.filter(found.scores >= SHOWN_SCORE) for name, found in layers.items()},
            made / PAGE,
            title=title,
            notes=[(f"{rank}. {one.score:.1f} bits", _note(one)) for rank, one in enumerate(images, 1)],
            progress=progress,
        )
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
    return record


def refuse_labels(out: Path) -> None:
    """Raises InputError where the folder of an earlier `next`, to be replaced, holds what a person may have added or changed."""
    if not (out / RECORD).is_file():
        return
    others = sorted({path.name for path in out.iterdir()} - {*FILES})
    if others:
        raise InputError(
            f"{out}: holds {shown(others[0])}, which 'foldfuse next' did not write, and would be lost. Choose another --out, or "
            "move it elsewhere."
        )
    if (out / ANNOTATIONS).is_file() and read_next(out).annotations != _digest(out):
        raise InputError(
            f"{out / ANNOTATIONS}: was changed since 'foldfuse next' wrote it, so somebody's labels would be lost. Choose "
            "another --out, or move it elsewhere."
        )


def expected_words(expected: dict[str, float]) -> str:
    """The expected objects in words, such as "2.3 Plastic, 0.8 Metal"; of the classes with most of them."""
    first = list(expected.items())[:MAX_EXPECTED]
    more = len(expected) - len(first)
    words = ", ".join(f"{number:.1f} {name}" for name, number in first) or "none"
    return f"{words} and {more} more" if more else words


def _note(one: NextImage) -> str:
    return f"expected objects: {expected_words(one.expected)}; {one.reason}"


def _image(choice: NextChoice, position: int, given: Sample, copy: str) -> NextImage:
    reason, members = choice.reason(position)
    score = round(float(choice.scores[position]), 4)
    return NextImage(given.file_name, str(given.path), copy, score, choice.expected(position), reason, members)


def _copies(samples: Sequence[Sample], folder: Path) -> tuple[Sample, ...]:
    """The samples as copies in the folder `images`, under their own names as far as these are safe and distinct."""
    copies, taken = [], set()
    for sample in samples:
        parts = [part for part in re.split(r"[\\/]+", sample.file_name) if part not in ("", ".", "..")]
        name = PurePosixPath(IMAGES, *(re.sub(r'[\x00-\x1f:*?"<>|]', "_", part) for part in parts or ["image"]))
        if name.suffix.lower() != sample.path.suffix.lower():
            name = name.with_name(name.name + sample.path.suffix)
        if str(name).lower() in taken:
            name = name.with_name(f"{name.stem}_{sample.id}{name.suffix}")
        taken.add(str(name).lower())
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sample.path, path)
        copies.append(replace(sample, path=path, file_name=str(name), original_id=None))
    return tuple(copies)


def _write_lists(images: Sequence[NextImage], folder: Path) -> None:
    """Writes the CSV and the list of paths."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["rank", "image", "score", "expected", "reason", "members", "path"])
    for rank, one in enumerate(images, 1):
        expected, members = expected_words(one.expected), " ".join(one.members)
        rows.writerow([rank, one.image, f"{one.score:.4f}", expected, one.reason, members, one.path])
    write_text(folder / LIST, text.getvalue())
    write_text(folder / PATHS, "".join(f"{one.path}\n" for one in images))


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / ANNOTATIONS).read_bytes()).hexdigest()
