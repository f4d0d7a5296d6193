"""Annotated sets of the same classes become one: the data of a first campaign, and the images that were labelled after it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from foldfuse.data.dataset import Dataset, Sample, require_annotations
from foldfuse.detections import Annotations
from foldfuse.errors import InputError, counted


def join(datasets: Sequence[Dataset], *, folder: Path) -> tuple[Dataset, list[str]]:
    """One dataset with the images of all, numbered anew, and sentences on what to look at.

    Classes are matched by name and have the order and the ids of the first dataset.

    Args:
        datasets: annotated; the image files lie in `folder` or deeper.
        folder: the folder of the file that is to hold the joined dataset. File names are relative to it.

    Raises:
        InputError: there are fewer than two datasets; one has no annotations, or a class that the first lacks; two hold the same
            image file; or an image lies outside `folder`.
    """
    if len(datasets) < 2:
        raise InputError(f"one dataset ({datasets[0].source if datasets else '-'}): name two or more to join.")
    first = datasets[0]
    samples: list[Sample] = []
    place: dict[Path, Path] = {}
    sentences: list[str] = []
    for dataset in map(require_annotations, datasets):
        unknown = [name for name in dataset.classes if name not in first.classes]
        if unknown:
            raise InputError(
                f"{dataset.source}: has the {'class' if len(unknown) == 1 else 'classes'} {', '.join(map(repr, unknown))}, which "
                f"{first.source} lacks (it has {', '.join(map(repr, first.classes))}). Its images are not annotated for them: "
                "name the classes alike, or annotate what is missing."
            )
        missing = [name for name in first.classes if name not in dataset.classes]
        if missing:
            sentences.append(
                f"{dataset.source}: lists no {', '.join(map(repr, missing))}, so its {counted(len(dataset), 'image')} are taken "
                "as images without such objects."
            )
        label_of = np.array([first.classes.index(name) for name in dataset.classes], np.int64)
        for sample in dataset:
            path = sample.path.resolve()
            if path in place:
                raise InputError(
                    f"{path}: is an image of {place[path]} and of {dataset.source}. An image may be in one of them only: leave "
                    "it out of the other."
                )
            place[path] = dataset.source
            samples.append(_moved(sample, len(samples), label_of))
    root = folder.resolve()
    if stray := next((path for path in place if not path.is_relative_to(root)), None):
        common = os.path.commonpath([*map(str, place), str(root)])
        raise InputError(
            f"{stray}: lies outside {root}, the folder of the joined file, where no command would find it. Write to a folder "
            f"that holds all images, such as {Path(common) / 'joined.json'}."
        )
    named = [replace(s, file_name=s.path.resolve().relative_to(root).as_posix()) for s in samples]
    joined = replace(first, samples=tuple(named), source=folder / "joined.json", original_category_ids=())
    return joined, sentences


def _moved(sample: Sample, image_id: int, label_of: np.ndarray) -> Sample:
    """The sample under another id, with the labels of the joined dataset."""
    own = sample.annotations or Annotations.empty()
    return replace(sample, id=image_id, original_id=None, annotations=replace(own, labels=label_of[own.labels]))
