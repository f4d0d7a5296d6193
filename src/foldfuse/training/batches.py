"""What each training step sees: pictures on a canvas with their annotations, as a function of (seed, step) alone.

Nothing here has a state, so a run that was stopped goes on with the very batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foldfuse.data.augment import Augmentation, LabeledImage, augment, copy_paste, transform_annotations
from foldfuse.data.crops import CropCache
from foldfuse.data.dataset import Sample
from foldfuse.data.images import ImageCache, scale_of
from foldfuse.detections import Annotations, Array
from foldfuse.recipes import ClassifierRecipe, Recipe


@dataclass(frozen=True, eq=False)
class Batches:
    """What each step sees: pictures on a canvas, augmented. A function of (seed, step), without state.

    Attributes:
        samples: annotated.
        images: of the samples.
        recipe: batch size and augmentation.
        canvas: (height, width) of the network's input.
        seed: of all randomness.
    """

    samples: Sequence[Sample]
    images: ImageCache
    recipe: Recipe
    canvas: tuple[int, int]
    seed: int

    def indices(self, step: int) -> list[int]:
        """Positions in `samples` that step `step` sees: each epoch is a new permutation."""
        n, size = len(self.samples), self.recipe.batch_size
        places = range(step * size, (step + 1) * size)
        orders = {
            epoch: np.random.default_rng((self.seed, 1, epoch)).permutation(n) for epoch in {p // n for p in places}
        }
        return [int(orders[p // n][p % n]) for p in places]

    def labelled(self, i: int) -> LabeledImage:
        """Sample `i`, its boxes in the pixels of its perhaps shrunk picture; crowd regions are left out."""
        sample, picture = self.samples[i], self.images[i]
        assert sample.annotations is not None
        drawn = sample.annotations[~sample.annotations.crowd]
        height, width = picture.shape[:2]
        return LabeledImage(
            picture, transform_annotations(drawn, scale_of(sample, picture), (0.0, 0.0), (0, 0, width, height))
        )

    def batch(self, step: int, spent: float, part: range | None = None) -> tuple[Tensor, list[Annotations]]:
        """(B, 3, H, W) uint8 in channels-last layout, and B Annotations in its pixels.

        Args:
            step: of the run.
            spent: share of the budget.
            part: places in the batch that are wanted; all by default.
        """
        made = [
            self._one(i, np.random.default_rng((self.seed, 2, step, place)), spent)
            for place, i in enumerate(self.indices(step))
            if part is None or place in part
        ]
        images = torch.from_numpy(np.stack([m.image for m in made])).permute(0, 3, 1, 2)
        return images, [m.annotations for m in made]

    def _one(self, i: int, rng: np.random.Generator, spent: float) -> LabeledImage:
        """Sample `i` as a step sees it."""
        recipe = self.recipe
        how = Augmentation(recipe.hflip, recipe.vflip, recipe.scale_jitter, recipe.translate, recipe.color_jitter)
        pool = [self.labelled(i)]
        if spent < recipe.mosaic_until and rng.random() < recipe.mosaic:
            pool += [self.labelled(int(j)) for j in rng.integers(len(self.samples), size=3)]
        # Nothing is drawn for what a recipe does not do, so that what it does stays as it was.
        if recipe.copy_paste and rng.random() < recipe.copy_paste:
            pool[0] = copy_paste(pool[0], self.labelled(int(rng.integers(len(self.samples)))), rng)
        return augment(pool, self.canvas, how, rng)


@dataclass(frozen=True, eq=False)
class CropBatches:
    """What each step sees: crops, augmented. A function of (seed, step), without state.

    Attributes:
        samples: of each crop, the picture that it is cut out of.
        images: the crops.
        labels: (n,).
        recipe: batch size and augmentation.
        seed: of all randomness.
    """

    samples: Sequence[Sample]
    images: CropCache
    labels: Array
    recipe: ClassifierRecipe
    seed: int

    def indices(self, step: int) -> list[int]:
        """Positions of the crops that a step sees: each epoch is a new permutation."""
        n, size = len(self.labels), self.recipe.batch_size
        places = range(step * size, (step + 1) * size)
        orders = {e: np.random.default_rng((self.seed, 1, e)).permutation(n) for e in {p // n for p in places}}
        return [int(orders[p // n][p % n]) for p in places]

    def batch(self, step: int, spent: float, part: range | None = None) -> tuple[Tensor, list[int]]:
        """(B, 3, S, S) uint8 in channels-last layout, and B labels; see `Batches.batch`."""
        recipe = self.recipe
        how = Augmentation(recipe.hflip, recipe.vflip, recipe.scale_jitter, recipe.translate, recipe.color_jitter)
        canvas = (recipe.image_size, recipe.image_size)
        made, labels = [], []
        for place, i in enumerate(self.indices(step)):
            if part is None or place in part:
                rng = np.random.default_rng((self.seed, 2, step, place))
                one = LabeledImage(self.images[i], Annotations.empty())
                made.append(augment([one], canvas, how, rng).image)
                labels.append(int(self.labels[i]))
        return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2), labels
