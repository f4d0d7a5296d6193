"""Candidates: the recipes and image sizes that a campaign may choose from."""

from __future__ import annotations

from dataclasses import replace

from foldfuse.errors import InputError, unknown_name
from foldfuse.recipes import RECIPES, Recipe, load_recipe

EXPLORED = ("lite0_fpn", "lite1_fpn", "yolov5n")  # of different backbones, and cheap


def candidates(
    recipe: tuple[str, ...] = (), forbid: tuple[str, ...] = (), change: tuple[str, ...] = ()
) -> dict[str, Recipe]:
    """{name: recipe} of those allowed, in the order asked for, else `EXPLORED`; each with `change` applied.

    Raises:
        InputError: a name is not known, or is allowed and forbidden, or none is left.
    """
    for name in (*recipe, *forbid):
        if name not in RECIPES:
            raise unknown_name("recipe", name, RECIPES)
    both = [name for name in recipe if name in forbid]
    if both:
        raise InputError(f"the recipe {both[0]} is both asked for and forbidden. Take one of the two away.")
    names = [name for name in dict.fromkeys(recipe or EXPLORED) if name not in forbid]
    if not names:
        raise InputError(
            f"every recipe that a campaign tries by itself ({', '.join(EXPLORED)}) is forbidden. Name one that it may take with "
            "--recipe; 'foldfuse recipes' lists them."
        )
    return {name: load_recipe(name, change) for name in names}


def check_sizes(sizes: tuple[int, ...], recipe: Recipe) -> None:
    """Raise InputError unless the recipe can be trained at each of these sizes."""
    for size in sizes:
        replace(recipe, image_size=size)
