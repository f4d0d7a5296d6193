"""The batches of a training: augmented images with annotations, or augmented crops with labels.

A batch is a function of (seed, step) and of whether mosaics have ended; batches have no state. A resumed training thus
sees the same batches that it would have seen without the interruption.

Shapes: B images of a batch, H x W the canvas, S side of a crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from foldfuse.data.augment import (
    Augmentation,
    LabeledImage,
    augment,
    copy_paste,
    random_tile,
    shrink,
    transform_annotations,
)
from foldfuse.data.crops import CropCache
from foldfuse.data.dataset import Sample
from foldfuse.data.images import ImageCache, scale_of
from foldfuse.detections import Annotations, Array
from foldfuse.recipes import ClassifierRecipe, Recipe
from foldfuse.training.targets import longest_side


class BatchSource(Protocol):
    """The batches that the training loop asks for: `Batches` of detectors, `CropBatches` of classifiers."""

    @property
    def samples(self) -> Sequence[Sample]:
        """The image that each position of `indices` comes from."""

    @property
    def mosaic_until(self) -> float:
        """Share of the budget from which on there are no mosaics; 0 where there are none at all."""

    def indices(self, step: int) -> list[int]:
        """Positions in `samples` of a step's batch."""

    def batch(self, step: int, shard: range | None = None, *, mosaic: bool = True) -> tuple[Tensor, list[Any]]:
        """(B, 3, H, W) uint8, and B targets; of the positions in `shard` alone where one is given."""


@dataclass(frozen=True, eq=False)
class Batches:
    """Augmented images with the annotations on them, for detectors.

    Attributes:
        samples: annotated.
        images: the images of the samples.
        recipe: batch size and augmentation.
        canvas: (height, width) of the network's input.
        seed: the seed of all randomness.
    """

    samples: Sequence[Sample]
    images: ImageCache
    recipe: Recipe
    canvas: tuple[int, int]
    seed: int

    @property
    def mosaic_until(self) -> float:
        """The recipe's share of the budget from which on there are no mosaics."""
        return self.recipe.mosaic_until

    def indices(self, step: int) -> list[int]:
        """Positions in `samples` of a step's batch."""
        return _batch_indices(len(self.samples), self.recipe.batch_size, step, self.seed)

    def batch(self, step: int, shard: range | None = None, *, mosaic: bool = True) -> tuple[Tensor, list[Annotations]]:
        """(B, 3, H, W) uint8 in channels-last layout, and B Annotations in its pixels.

        Args:
            step: the step of the training.
            shard: positions of the batch to make; all by default.
            mosaic: whether images may become mosaics.
        """
        labeled = [
            self._augmented(i, np.random.default_rng((self.seed, 2, step, position)), mosaic)
            for position, i in enumerate(self.indices(step))
            if shard is None or position in shard
        ]
        images = torch.from_numpy(np.stack([item.image for item in labeled])).permute(0, 3, 1, 2)
        return images, [item.annotations for item in labeled]

    def labeled_image(self, i: int) -> LabeledImage:
        """Sample `i` with its boxes in pixels of the cached image, which may be smaller; crowd regions are left out."""
        sample, image = self.samples[i], self.images[i]
        assert sample.annotations is not None
        objects = sample.annotations[~sample.annotations.crowd].clipped(sample.width, sample.height)
        height, width = image.shape[:2]
        window = (0, 0, width, height)
        return LabeledImage(image, transform_annotations(objects, scale_of(sample, image), (0.0, 0.0), window))

    def _augmented(self, i: int, rng: np.random.Generator, mosaic: bool) -> LabeledImage:
        recipe = self.recipe
        pool = [self._whole_or_tile(i, rng)]
        if mosaic and rng.random() < recipe.mosaic:
            pool += [self._whole_or_tile(int(j), rng) for j in rng.integers(len(self.samples), size=3)]
        # No random number is drawn for copy-paste and tiles where a recipe has none, so that other augmentations stay as before.
        if recipe.copy_paste and rng.random() < recipe.copy_paste:
            pool[0] = copy_paste(pool[0], self._whole_or_tile(int(rng.integers(len(self.samples))), rng), rng)
        return augment(pool, self.canvas, _augmentation(recipe), rng)

    def _whole_or_tile(self, i: int, rng: np.random.Generator) -> LabeledImage:
        """Sample `i`, or a random tile of it; a recipe without tiles shows all images whole."""
        one = self.labeled_image(i)
        if not self.recipe.tiles:
            return one
        tile = random_tile(one, self.recipe.tile_side, rng) if rng.random() < self.recipe.tiles else None
        if tile is not None:
            return tile
        # the cached image has the pixels that a tile needs: resampling it to a whole image's size would skip some
        factor = round(max(one.image.shape[:2]) / longest_side(self.recipe, whole=True))
        return shrink(one, factor) if factor > 1 else one


@dataclass(frozen=True, eq=False)
class CropBatches:
    """Augmented crops with their labels, for classifiers.

    Attributes:
        samples: the image that each crop is cut from.
        images: the crops.
        labels: (n,).
        recipe: batch size and augmentation.
        seed: the seed of all randomness.
    """

    samples: Sequence[Sample]
    images: CropCache
    labels: Array
    recipe: ClassifierRecipe
    seed: int

    @property
    def mosaic_until(self) -> float:
        """0: crops are never joined to mosaics."""
        return 0.0

    def indices(self, step: int) -> list[int]:
        """Positions of the crops of a step's batch."""
        return _batch_indices(len(self.labels), self.recipe.batch_size, step, self.seed)

    def batch(self, step: int, shard: range | None = None, *, mosaic: bool = False) -> tuple[Tensor, list[int]]:
        """(B, 3, S, S) uint8 in channels-last layout, and B labels; as `Batches.batch`, without mosaics."""
        canvas = (self.recipe.image_size, self.recipe.image_size)
        images, labels = [], []
        for position, i in enumerate(self.indices(step)):
            if shard is None or position in shard:
                rng = np.random.default_rng((self.seed, 2, step, position))
                crop = LabeledImage(self.images[i], Annotations.empty())
                images.append(augment([crop], canvas, _augmentation(self.recipe), rng).image)
                labels.append(int(self.labels[i]))
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), labels


def _batch_indices(length: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Indices into `length` items of a step's batch; each epoch is a new permutation, and batches run on across epochs."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    epochs = {position // length for position in positions}
    orders = {epoch: np.random.default_rng((seed, 1, epoch)).permutation(length) for epoch in epochs}
    return [int(orders[position // length][position % length]) for position in positions]


def _augmentation(recipe: Recipe | ClassifierRecipe) -> Augmentation:
    return Augmentation(recipe.hflip, recipe.vflip, recipe.scale_jitter, recipe.translate, recipe.color_jitter)
