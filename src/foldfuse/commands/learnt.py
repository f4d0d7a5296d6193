"""Leaves out the images that a network has learnt from, and says so."""

from __future__ import annotations

from pathlib import Path

from foldfuse.data.dataset import Dataset
from foldfuse.errors import InputError
from foldfuse.system import printing


def unlearnt(
    source: Path, learnt: frozenset[int], dataset: Dataset, *, all_: bool, is_printed: bool = True
) -> tuple[Dataset, frozenset[int]]:
    """The images to predict, and the ids of the learnt ones; prints how many these are.

    Args:
        source: the run, ensemble or campaign.
        learnt: ids of the images of `dataset` that it has learnt from.
        dataset: the images.
        all_: whether these are predicted too.
        is_printed: whether to print.

    Raises:
        InputError: it has learnt from all images, and --all is not given.
    """
    if not learnt:
        return dataset, learnt
    number = f"{len(learnt)} of the {len(dataset)} images of {dataset.source}"
    if all_:
        sentence = f"{source}: has learnt from {number}; they are predicted as well, as --all says."
    elif len(learnt) < len(dataset):
        sentence = (
            f"{source}: has learnt from {number}. The {len(dataset) - len(learnt)} others are predicted; add --all to "
            "predict every image."
        )
    else:
        raise InputError(
            f"{source}: has learnt from all {len(dataset)} images of {dataset.source}, so its predictions there say nothing "
            "about new images. Give other images, train with --folds to hold some out, or add --all to predict these."
        )
    if is_printed:
        printing.write(sentence, to_stderr=True)
    return (dataset if all_ else dataset.subset(set(dataset.image_ids) - learnt)), learnt
