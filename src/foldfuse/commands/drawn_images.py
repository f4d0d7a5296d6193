"""Writes images with their predicted boxes drawn on them, for `predict --draw`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.detections import Predictions
from foldfuse.drawing import draw_boxes
from foldfuse.errors import InputError
from foldfuse.system.atomic_files import atomic, check_target
from foldfuse.system.outputs import refuse_input
from foldfuse.system.progress import Progress, no_progress

DRAWN_SCORE = 0.3  # boxes of lower score are not drawn where no threshold is given
JPEG_QUALITY = 90


def check_folder(folder: Path, overwrite: bool, inputs: Iterable[Path | None]) -> None:
    """Raises InputError unless `folder` is new or empty, or `overwrite` is given and the folder holds no input."""
    check_target(folder, is_folder=True)
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        refuse_input(folder, inputs)
    except InputError:
        raise InputError(f"{folder}: holds the images or the network that are given. Choose another --draw.") from None
    if not overwrite:
        raise InputError(f"{folder}: holds files already. Choose another --draw, or add --overwrite to write into it.")


def refuse_originals(folder: Path, samples: Iterable[Sample]) -> None:
    """Raises InputError where one of the images to predict lies in the folder to draw to: it could be replaced."""
    top = Path(os.path.realpath(folder))
    for sample in samples if top.is_dir() else ():
        if top in Path(os.path.realpath(sample.path)).parents:
            raise InputError(f"{folder}: holds images that are given, such as {sample.path}. Choose another --draw.")


def drawn_names(samples: Iterable[Sample]) -> dict[int, PurePosixPath]:
    """{image id: the name of its drawn image}: that of the image in its folders, with the ending .jpg; no two are the same."""
    names: dict[int, PurePosixPath] = {}
    taken: set[str] = set()
    for sample in samples:
        parts = [part for part in re.split(r"[\\/]+", sample.file_name) if part not in ("", ".", "..")]
        name = PurePosixPath(*(re.sub(r'[\x00-\x1f:*?"<>|]', "_", part) for part in parts or ["image"]))
        stem = name.name.removesuffix(name.suffix)
        choices = [f"{stem}.jpg", f"{name.name}.jpg", f"{name.name}_{sample.id}.jpg"]
        free = [name.with_name(each) for each in choices if str(name.with_name(each)).lower() not in taken]
        names[sample.id] = free[0] if free else PurePosixPath(f"{len(names)}_{sample.id}.jpg")
        taken.add(str(names[sample.id]).lower())
    return names


def draw_images(
    predictions: Predictions,
    dataset: Dataset,
    folder: Path,
    *,
    score_threshold: float | None,
    progress: Progress = no_progress,
) -> None:
    """Writes a JPEG of each predicted image with its boxes, the folders of the images kept.

    Args:
        predictions: of images of `dataset`.
        dataset: opened images.
        folder: the folder to write to.
        score_threshold: boxes of lower score are not drawn; `DRAWN_SCORE` where it is None.
        progress: gets the finished share of the work.

    Raises:
        InputError: an image cannot be decoded, or a file cannot be written.
    """
    threshold = DRAWN_SCORE if score_threshold is None else score_threshold
    names = drawn_names(dataset.samples)
    samples = [sample for sample in dataset.samples if sample.id in predictions]
    for done, sample in enumerate(samples, 1):
        one = predictions[sample.id]
        one = one[one.scores >= np.float64(threshold)]
        drawn = draw_boxes(sample.load(), one.boxes, one.labels, scores=one.scores, classes=predictions.classes)
        path = folder / names[sample.id]
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary, temporary.open("wb") as file:
            drawn.save(file, "JPEG", quality=JPEG_QUALITY)
        progress(done / len(samples))
