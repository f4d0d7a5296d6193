"""The image size of a campaign's recipes that leave it open: chosen once, from the data and the clock, and kept in the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from foldfuse.campaign import constants as c
from foldfuse.campaign.planning.measuring import choose_size_by_clock
from foldfuse.data.dataset import Dataset
from foldfuse.recipes import AUTO, BATCH_IMAGE_SIZE, Recipe
from foldfuse.storage.ledger import NAME, Ledger
from foldfuse.system.device import card_names
from foldfuse.system.records import from_plain, to_plain
from foldfuse.training.image_sizes import ImageSizeChoice


def chosen_image_size(
    recipes: Mapping[str, Recipe],
    train: Dataset,
    ledger: Ledger,
    *,
    allowed: Sequence[int],
    num_images: int,
    device: str,
) -> ImageSizeChoice | None:
    """The image size of the recipes that leave it open; None where every recipe has a number.

    It is chosen once, and recorded with the cost of a prediction that is measured for it.

    Args:
        recipes: {name: recipe} of the candidates.
        train: the images to train on.
        ledger: remembers the choice.
        allowed: image sizes in pixels that the user allows; empty for all.
        num_images: images that a member predicts together.
        device: as `--device` takes it.
    """
    left_open = [recipe for recipe in recipes.values() if recipe.image_size == AUTO]
    if not left_open:
        return None
    stored = ledger.get("image_size_choice")
    if stored is not None:
        return from_plain(stored, ImageSizeChoice, where=str(ledger.folder / NAME), what="the choice of an image size")
    if ledger.segments():
        reason = f"The image size is {BATCH_IMAGE_SIZE} px, as the version that began the campaign had it."
        return ImageSizeChoice(BATCH_IMAGE_SIZE, "default", None, 0.0, reason)
    smaller = c.IMAGE_SCALES[0] ** 2  # a base run's pixels, as a share of those at the chosen size
    seconds = c.SINGLE_BASE_SHARE * c.TRAINING_SHARE * ledger.deadline / smaller
    choice, pixel_seconds = choose_size_by_clock(
        left_open[0],
        train,
        seconds=seconds,
        deadline=ledger.deadline,
        elapsed=ledger.elapsed,
        num_images=num_images,
        device=device,
        bounds=auto_bounds(device),
    )
    if allowed:
        sizes = ", ".join(f"{size} px" for size in allowed)
        reason = f"Image sizes are limited to {sizes}, as --image-size says; the data ask for {choice.size} px."
        choice = replace(choice, reason=reason)
    ledger.set(image_size_choice=to_plain(choice), pixel_seconds=pixel_seconds)
    ledger.log(choice.reason)
    return choice


def auto_bounds(device: str) -> dict[str, int]:
    """The smallest and the largest image size that are chosen from the data: larger ones on a card."""
    return {"smallest": c.CARD_MIN_AUTO, "largest": c.CARD_MAX_AUTO} if card_names(device) else {}
