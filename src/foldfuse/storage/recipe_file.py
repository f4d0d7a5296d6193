"""recipe.json: the file of a run folder that holds the recipe of its training."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from foldfuse.errors import InputError
from foldfuse.recipes import AUTO, ClassifierRecipe, Recipe
from foldfuse.system.files import read_json
from foldfuse.system.records import VERSION_KEY, from_plain, write_record

RECIPE_FORMAT = 2  # 1 had no numerics, whose value was 1
R = TypeVar("R", Recipe, ClassifierRecipe)


def write_recipe(recipe: Recipe | ClassifierRecipe, path: Path) -> None:
    """Write `recipe` as JSON, with an image size in pixels."""
    assert recipe.image_size != AUTO, "a size is chosen before a run folder is written"
    write_record(path, recipe, version=RECIPE_FORMAT)


def read_recipe(path: Path) -> Recipe:
    """The detector recipe in a JSON file that `write_recipe` wrote.

    Raises:
        InputError: the file is missing, broken, or no recipe.
    """
    recipe = _read(Recipe, path)
    if recipe.image_size == AUTO:
        raise InputError(f"{path}: image_size is 0, and must be a positive multiple of 32. Restore the file.")
    return recipe


def read_classifier_recipe(path: Path) -> ClassifierRecipe:
    """The classifier recipe in a JSON file that `write_recipe` wrote; errors as for `read_recipe`."""
    return _read(ClassifierRecipe, path)


def _read(kind: type[R], path: Path) -> R:
    what = "a recipe"
    value = read_json(path, what=what, hint=f"Is {path.parent} the folder of a run?", allow_nan=False)
    if kind is Recipe and isinstance(value, dict) and value.get(VERSION_KEY, 1) == 1:
        value = {"numerics": 1, **value}
    return from_plain(value, kind, where=str(path), what=what, version=RECIPE_FORMAT)
