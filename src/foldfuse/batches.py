"""What each training step sees: pictures on a canvas with their annotations, as a function of (seed, step) alone.

Nothing here has a state, so a run that was stopped goes on with the very batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from foldfuse.augment import Augmentation, Labelled, augmented, mixed, moved, pasted
from foldfuse.data import Sample
from foldfuse.detections import Annotations, Array
from foldfuse.images import Pictures, scale_of
from foldfuse.recipes import Recipe

GROWN = 0.7  # share of the budget at which a growing canvas has its full size
SHY = 0.5  # strength of the augmentation on the smallest canvas, as a share of that on the full one


@dataclass(frozen=True, eq=False)
class Batches:
    """What each step sees: pictures on a canvas, augmented. A function of (seed, step), without state.

    Attributes:
        samples: annotated.
        pictures: of the samples.
        recipe: batch size and augmentation.
        canvas: (height, width) of the network's input.
        seed: of all randomness.
        stride: canvases of other sizes are multiples of it.
    """

    samples: Sequence[Sample]
    pictures: Pictures
    recipe: Recipe
    canvas: tuple[int, int]
    seed: int
    stride: int = 32

    @cached_property
    def _shows(self) -> Array:
        """(n,) running total of how often an epoch shows each sample: once, or more where it holds a rare class.

        By repeat factors (Gupta et al., LVIS, arXiv:1908.03195, section 4.1): sqrt(t / f) for a class in a share f < t
        of the pictures; a picture takes the largest of its classes.
        """
        shows = np.ones(len(self.samples))
        if self.recipe.repeat_below:
            seen = [np.unique(s.annotations.labels) if s.annotations else np.empty(0, int) for s in self.samples]
            counts = np.bincount(np.concatenate(seen).astype(int))
            factor = np.sqrt(self.recipe.repeat_below * len(self.samples) / np.maximum(counts, 1)).clip(min=1)
            shows = np.array([factor[labels].max(initial=1) for labels in seen])
        return np.cumsum(shows)

    def _epoch(self, epoch: int) -> Array:
        """Positions in `samples` in the order of an epoch: a permutation, some shown more than once."""
        rng = np.random.default_rng((self.seed, 1, epoch))
        shows = self._shows
        length = round(shows[-1])
        if length == len(self.samples):
            return rng.permutation(length)
        places = (np.arange(length) + rng.random()) * shows[-1] / length
        return rng.permutation(np.searchsorted(shows, places, side="right"))

    def indices(self, step: int) -> list[int]:
        """Positions in `samples` that step `step` sees: each epoch is a new permutation."""
        n, size = round(self._shows[-1]), self.recipe.batch_size
        places = range(step * size, (step + 1) * size)
        orders = {epoch: self._epoch(epoch) for epoch in {p // n for p in places}}
        return [int(orders[p // n][p % n]) for p in places]

    def growth(self, step: int, spent: float) -> float:
        """How far the canvas has grown, `recipe.grow_from` to 1. The first step sees the full size, so that what does
        not fit into memory fails at once."""
        begin = self.recipe.grow_from
        return 1.0 if step == 0 else min(1.0, begin + (1 - begin) * spent / GROWN)

    def canvas_at(self, step: int, spent: float) -> tuple[int, int]:
        """(height, width) of the canvas of a step."""
        share, reach = self.growth(step, spent), self.recipe.multi_scale
        if reach and step:
            share *= 1 + np.random.default_rng((self.seed, 3, step)).uniform(-reach, reach)
        elif reach:
            share *= 1 + reach
        height, width = (max(1, round(side * share / self.stride)) * self.stride for side in self.canvas)
        return height, width

    def labelled(self, i: int) -> Labelled:
        """Sample `i`, its boxes in the pixels of its perhaps shrunk picture; crowd regions are left out."""
        sample, picture = self.samples[i], self.pictures[i]
        assert sample.annotations is not None
        drawn = sample.annotations[~sample.annotations.crowd]
        height, width = picture.shape[:2]
        return Labelled(picture, moved(drawn, scale_of(sample, picture), (0.0, 0.0), (0, 0, width, height)))

    def batch(self, step: int, spent: float, part: range | None = None) -> tuple[Tensor, list[Annotations]]:
        """(B, 3, H, W) uint8 in channels-last layout, and B Annotations in its pixels.

        Args:
            step: of the run.
            spent: share of the budget.
            part: places in the batch that are wanted; all by default.
        """
        canvas, how = self.canvas_at(step, spent), self._how(step, spent)
        made = [
            self._one(i, np.random.default_rng((self.seed, 2, step, place)), spent, canvas, how)
            for place, i in enumerate(self.indices(step))
            if part is None or place in part
        ]
        images = torch.from_numpy(np.stack([m.picture for m in made])).permute(0, 3, 1, 2)
        return images, [m.annotations for m in made]

    def _how(self, step: int, spent: float) -> Augmentation:
        """Augmentation that grows with the canvas (Tan & Le, EfficientNetV2, arXiv:2104.00298, section 4)."""
        recipe, strength = self.recipe, 1.0
        if recipe.grow_from < 1:
            done = (self.growth(step, spent) - recipe.grow_from) / (1 - recipe.grow_from)
            strength = SHY + (1 - SHY) * done
        jitter, shift, colour = (strength * v for v in (recipe.scale_jitter, recipe.shift, recipe.colour))
        return Augmentation(recipe.hflip, recipe.vflip, jitter, shift, colour)

    def _one(
        self, i: int, rng: np.random.Generator, spent: float, canvas: tuple[int, int], how: Augmentation
    ) -> Labelled:
        """Sample `i` as a step sees it."""
        recipe = self.recipe
        pool = [self.labelled(i)]
        if spent < recipe.mosaic_until and rng.random() < recipe.mosaic:
            pool += [self.labelled(int(j)) for j in rng.integers(len(self.samples), size=3)]
        # Nothing is drawn for what a recipe does not do, so that what it does stays as it was.
        if recipe.copy_paste and rng.random() < recipe.copy_paste:
            pool[0] = pasted(pool[0], self._another(rng), rng)
        made = augmented(pool, canvas, how, rng)
        if recipe.mixup and rng.random() < recipe.mixup:
            made = mixed(made, augmented([self._another(rng)], canvas, how, rng), rng)
        return made

    def _another(self, rng: np.random.Generator) -> Labelled:
        return self.labelled(int(rng.integers(len(self.samples))))
