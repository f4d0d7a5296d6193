"""Tells whether images look like those that detection weights have learnt from, so that scores on them are too good.

The images of a pre-training are usually smaller and compressed anew, so that a user's copies have other bytes. They are compared
by their difference hashes (`data.near_duplicates`), of which the file of weights holds one for each image. Two copies of an image
at other sizes and qualities differ in more bits than near-duplicates in a dataset; so more may differ here, and instead images
without features of their own, such as small things on plain ground, are left out of the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.near_duplicates import difference_hashes, nearest_hashes
from foldfuse.detections import Array
from foldfuse.models.pretrained.detection import (
    FOLDER,
    PretrainingImages,
    has_detection_weights,
    pretraining_images,
)
from foldfuse.recipes import ClassifierRecipe, Recipe
from foldfuse.storage.run import Run

SAME_BITS = 32  # of 256: images whose hashes differ in at most so many bits are taken to be the same
OTHER_BITS = 45  # an image that comes so close to an image of another dataset is left out of the file
MIN_SHARE = 0.01  # of the images; fewer hardly change a score, and may be chance
MAX_COMPARED = 500  # images that are compared, so that it takes seconds
_NAMED = 3  # datasets in a sentence


def hash_images(datasets: Mapping[str, Sequence[Sample]]) -> PretrainingImages:
    """What a file of detection weights keeps of the images of a pre-training, by the name of the dataset.

    Images that are flat, or that look much like one of another dataset without being the same, are left out.
    """
    hashes: list[Array] = []  # (32,) uint8 each
    owner: list[str] = []
    for name, samples in datasets.items():
        found = difference_hashes([s.path for s in samples], [s.orientation for s in samples])
        of_dataset = [bits for bits in found if bits is not None]
        hashes += of_dataset
        owner += [name] * len(of_dataset)
    owners = np.array(owner)
    kept = np.ones(len(hashes), bool)
    for name in dict.fromkeys(owner):
        own = np.flatnonzero(owners == name)
        others = [hashes[i] for i in np.flatnonzero(owners != name)]
        if others:
            _, bits = nearest_hashes([hashes[i] for i in own], others)
            kept[own] = (bits <= SAME_BITS) | (bits > OTHER_BITS)
    counts = {name: int((owners[kept] == name).sum()) for name in datasets}
    return PretrainingImages(np.array(hashes, np.uint8).reshape(-1, 32)[kept], counts)


def likeness_warnings(
    recipes: Mapping[str, Recipe | ClassifierRecipe], dataset: Dataset, *, what: str = "held-out images"
) -> list[str]:
    """A sentence for each recipe whose detection weights have learnt from images that look like some of `dataset`.

    A likeness is no proof. No image is read where no recipe starts from weights that tell of their images.

    Args:
        recipes: {what the sentence begins with: recipe}.
        dataset: the images on which scores are to be fair; at most `MAX_COMPARED` of them are compared, evenly chosen.
        what: what they are, for the sentence.

    Raises:
        InputError: a file of weights is damaged.
    """
    behind = {where: images for where, recipe in recipes.items() if (images := _images_behind(recipe)) is not None}
    if not behind:
        return []
    samples = dataset.samples[:: -(-len(dataset) // MAX_COMPARED) or 1]
    found = difference_hashes([s.path for s in samples], [s.orientation for s in samples])
    hashes = [bits for bits in found if bits is not None]
    sentences = []
    for where, images in behind.items():
        if not len(images.hashes):
            continue
        positions, bits = nearest_hashes(hashes, images.hashes)
        owners = np.repeat(list(images.counts), list(images.counts.values()))[positions[bits <= SAME_BITS]]
        if len(owners) < max(1.0, MIN_SHARE * len(samples)):
            continue
        number = f"{len(owners)} of {'the ' if len(samples) == len(dataset) else ''}{len(samples)} {what}"
        most = [str(name) for name, _ in Counter(owners.tolist()).most_common()]
        verb = "looks" if len(owners) == 1 else "look"
        names = ", ".join(most[:_NAMED]) + (" and others" if len(most) > _NAMED else "")
        sentences.append(
            f"{where}: {number} {verb} like images that the detection weights have learnt from ({names}), so scores on such "
            "images are too good. Train with --set init_weights=imagenet for a fair score."
        )
    return sentences


def _images_behind(recipe: Recipe | ClassifierRecipe) -> PretrainingImages | None:
    """The images that the detection weights behind a recipe have learnt from, also through runs; None where none are known."""
    followed = set[Path]()
    while isinstance(recipe, Recipe) and recipe.init_weights not in ("coco", "imagenet", "none"):
        shipped = FOLDER / f"{recipe.detector}.safetensors"
        path = shipped if recipe.init_weights == "detection" else Path(recipe.init_weights)
        if not path.is_dir():
            return pretraining_images(path) if has_detection_weights(path) else None
        run = Run(path)
        if run.folder in followed or run.is_classifier:
            return None
        followed.add(run.folder)
        recipe = run.recipe
    return None
