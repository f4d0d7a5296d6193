"""Candidates: the recipes and image sizes that a campaign may choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from foldfuse.errors import InputError, unknown_name
from foldfuse.recipes import RECIPES, Recipe, changed, check_image_size, load_recipe


def candidate_recipes(
    names: Sequence[str] = (),
    *,
    forbidden: Sequence[str] = (),
    changes: Sequence[str] = (),
    defaults: Mapping[str, Recipe],
) -> dict[str, Recipe]:
    """{name: recipe} of the allowed recipes in the order of `names`, else of `defaults`, each with `changes` applied.

    Raises:
        InputError: a name is unknown, or is both allowed and forbidden, or no recipe is left.
    """
    for name in (*names, *forbidden):
        if name not in RECIPES:
            raise unknown_name("recipe", name, RECIPES)
    both = [name for name in names if name in forbidden]
    if both:
        raise InputError(f"the recipe {both[0]} is given to both --recipe and --forbid. Take it away from one.")
    allowed = [name for name in dict.fromkeys(names or defaults) if name not in forbidden]
    if not allowed:
        raise InputError(
            f"every default recipe of a campaign ({', '.join(defaults)}) is forbidden. Allow another one with --recipe; "
            "'foldfuse recipes' lists them."
        )
    recipes = {name: load_recipe(name) if names else defaults[name] for name in allowed}
    of_each = {name: tuple(changes) if names else _changes_for(recipe, changes) for name, recipe in recipes.items()}
    if any(change.startswith("detector=") for change in changes):
        from foldfuse.training.backbone_defaults import with_backbone_defaults  # loads torch

        of_each = {name: with_backbone_defaults(recipe, of_each[name]) for name, recipe in recipes.items()}
    return {name: changed(recipe, of_each[name]) for name, recipe in recipes.items()}


def _changes_for(recipe: Recipe, changes: Sequence[str]) -> tuple[str, ...]:
    """The changes to a default recipe: one that starts from random weights has no others in the package, and goes on so."""
    random = recipe.init_weights == "none"
    return tuple(
        change
        for change in changes
        if not (random and change in ("init_weights=coco", "init_weights=detection", "init_weights=imagenet"))
    )


def check_start(recipe: Recipe, *, download: bool = True) -> None:
    """Raise InputError where this machine has not, and cannot get, the initial weights that the recipe names.

    Args:
        recipe: the recipe of a candidate.
        download: whether missing weights are downloaded; else only whether such weights are known is checked.
    """
    from foldfuse.models.pretrained.detection import shipped_weights  # loads torch
    from foldfuse.models.pretrained.published import locate, published
    from foldfuse.training.detector import new_detector

    if recipe.init_weights == "detection":
        shipped_weights(recipe.detector)
    elif recipe.init_weights == "imagenet":
        new_detector(recipe, 1, initialized=download)
    elif recipe.init_weights == "coco":
        new_detector(recipe, 1)
        weights = published(recipe.detector, "coco")
        if download:
            locate(weights)


def check_image_sizes(image_sizes: Sequence[int], recipe: Recipe) -> None:
    """Raises InputError unless the recipe can be trained at each of these image sizes."""
    for image_size in image_sizes:
        check_image_size(image_size)
        replace(recipe, image_size=image_size)
