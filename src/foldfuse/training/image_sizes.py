"""Chooses the image size of a detector's training from the objects' sizes, the images' sizes and the budget.

At an image size of S pixels the longest side of an image measures S, so an object measures its share of that side times S. The
size is the smallest at which most objects are large enough to be learnt: a larger size costs time in proportion to the pixels.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from foldfuse.boxes import area
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.tiles import tile_shares
from foldfuse.detections import Array
from foldfuse.errors import counted
from foldfuse.recipes import AUTO, BATCH_IMAGE_SIZE, Recipe
from foldfuse.training.targets import have_targets, size_advice

STRIDE = 32  # pixels: image sizes are multiples of it, as the detectors' strides need
OBJECT_QUANTILE = 0.25  # of the objects may be smaller than OBJECT_PX
OBJECT_PX = 28.0  # pixels: side of an object that is large enough; some cells of the finest level, whose stride is 8
MIN_AUTO = 320  # pixels: large objects gain nothing above it in short trainings
MAX_AUTO = 640  # pixels: above, steps on a CPU take too long
LEAST_AUTO = 256  # pixels, where time is too short for MIN_AUTO: more steps on smaller images then learn more
MIN_STEPS = 100  # that the budget must give at the size: with half as many, larger sizes were worse
ADVISED_SHARE = 0.03  # of the objects too small to be taught, above which larger sizes or tiles are advised

Bound = Literal["objects", "images", "budget", "smallest", "largest", "default"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSizeChoice:
    """An image size chosen from the data.

    Attributes:
        size: pixels, a multiple of 32.
        bound: what decided it: the size that the objects need, the images' own size, the budget, the smallest or the largest
            size of the rule; "default" where there are no objects to go by.
        object_px: side in pixels, at `size`, that three quarters of the objects reach; None without objects.
        too_small: share of the objects that never get a target at `size`, 0..1.
        reason: all this as a sentence or two.
    """

    size: int
    bound: Bound
    object_px: float | None
    too_small: float
    reason: str


def choose_image_size(
    dataset: Dataset,
    recipe: Recipe,
    *,
    seconds: float = math.inf,
    step_seconds: float | None = None,
    smallest: int = MIN_AUTO,
    largest: int = MAX_AUTO,
) -> ImageSizeChoice:
    """The image size for a training of `recipe` on annotated images.

    Args:
        dataset: the images to train on.
        recipe: the recipe; its image size does not count.
        seconds: of training.
        step_seconds: of a training step at MIN_AUTO pixels on this machine; None where it is not known, and time is no bound.
        smallest, largest: pixels: bounds of the choice, where time suffices.
    """
    sizes = relative_sizes(dataset.samples)
    if not len(sizes):
        reason = f"The image size is {BATCH_IMAGE_SIZE} px: there are no objects to choose it by."
        return ImageSizeChoice(BATCH_IMAGE_SIZE, "default", None, 0.0, reason)
    quartile = float(np.quantile(sizes, OBJECT_QUANTILE))
    longest = float(np.median([max(sample.width, sample.height) for sample in dataset.samples]))
    limits: dict[Bound, float] = {
        "objects": math.ceil(OBJECT_PX / quartile / STRIDE) * STRIDE,
        "images": math.ceil(longest / STRIDE) * STRIDE,
        "largest": largest,
    }
    bound = min(limits, key=lambda name: limits[name])
    size = int(limits[bound])
    if size < smallest:
        size, bound = smallest, "smallest"
    if step_seconds is not None and seconds < math.inf:
        affordable = MIN_AUTO * math.sqrt(seconds / (MIN_STEPS * step_seconds))  # a step's time grows with the pixels
        if affordable < size:
            size, bound = max(LEAST_AUTO, int(affordable // STRIDE) * STRIDE), "budget"
    found = have_targets(dataset.samples, replace(recipe, image_size=size), stride=STRIDE)
    too_small = 1 - float(found.mean())
    why = {
        "objects": f"the smallest at which three quarters of the objects measure {OBJECT_PX:g} px or more",
        "images": "half of the images are not larger, and enlarging them shows nothing new",
        "budget": f"at a larger size the time would be too short for {counted(MIN_STEPS, 'step')}",
        "smallest": "the smallest that is chosen where time suffices",
        "largest": "the largest that is chosen; --image-size gives a larger one",
    }[bound]
    reason = f"The image size is {size} px: {why}."
    if bound != "objects":
        reason += f" Three quarters of the objects then measure {quartile * size:.0f} px or more."
    if too_small > 0:
        share = f"{too_small:.0%}" if too_small >= 0.005 else "under 1%"
        reason += f" {share} of the {counted(len(found), 'object')} stay too small to be learnt."
    if too_small > ADVISED_SHARE:
        reason += f" {size_advice(dataset.samples, replace(recipe, image_size=size), STRIDE)}"
    return ImageSizeChoice(size, bound, quartile * size, too_small, reason)


def relative_sizes(samples: Sequence[Sample]) -> Array:
    """(N,) sizes of the objects: the square root of the box's area, as a share of the image's longest side.

    Boxes are clipped to their images; crowd regions and boxes outside of their image are left out.
    """
    sizes = [np.zeros(0)]
    for sample in samples:
        assert sample.annotations is not None
        objects = sample.annotations[~sample.annotations.crowd].clipped(sample.width, sample.height)
        sizes.append(np.sqrt(area(objects.boxes)) / max(sample.width, sample.height))
    found = np.concatenate(sizes)
    return found[found > 0]


def tiles_show_more(dataset: Dataset, image_size: int) -> bool:
    """Whether 2 x 2 tiles show more of small objects than whole images do at an image size in pixels.

    Half of the images must have the pixels that tiles show, and a quarter of the objects must be no larger than OBJECT_PX
    even in tiles.
    """
    sizes = relative_sizes(dataset.samples)
    if not len(sizes):
        return False
    longest = float(np.median([max(sample.width, sample.height) for sample in dataset.samples]))
    in_tiles = image_size * tile_shares(2)
    return longest >= in_tiles and float(np.quantile(sizes, OBJECT_QUANTILE)) * in_tiles <= OBJECT_PX


def measured_choice(
    dataset: Dataset,
    recipe: Recipe,
    *,
    seconds: float,
    device: str,
    smallest: int = MIN_AUTO,
    largest: int = MAX_AUTO,
) -> ImageSizeChoice:
    """The image size for a training of so many seconds; a budget of time bounds it, so a step is timed on this machine."""
    choice = choose_image_size(dataset, recipe, smallest=smallest, largest=largest)
    if seconds == math.inf:
        return choice
    from foldfuse.training.step_cost import measure_step  # loads torch

    step_seconds = measure_step(replace(recipe, image_size=MIN_AUTO), dataset, device=device).step_seconds
    return choose_image_size(
        dataset, recipe, seconds=seconds, step_seconds=step_seconds, smallest=smallest, largest=largest
    )


def with_image_size(
    recipe: Recipe, dataset: Dataset, *, seconds: float = math.inf, device: str = "auto"
) -> tuple[Recipe, str | None]:
    """The recipe with an image size in pixels, and the reason for it; None where the recipe had one already.

    Args:
        recipe: the recipe, perhaps with AUTO.
        dataset: annotated images to train on.
        seconds: of training; infinite where time shall not count, so that several processes choose alike.
        device: the device of the training.
    """
    if recipe.image_size != AUTO:
        return recipe, None
    choice = measured_choice(dataset, recipe, seconds=seconds, device=device)
    log.info(choice.reason)
    return replace(recipe, image_size=choice.size), choice.reason
