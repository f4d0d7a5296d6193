"""The command recipes."""

from __future__ import annotations

from collections.abc import Callable

from rich.box import SIMPLE_HEAD
from rich.table import Table

from foldfuse.recipes import AUTO, AUTO_WORD, CLASSIFIER_RECIPES, RECIPES, ClassifierRecipe, Recipe
from foldfuse.system import printing


def recipes() -> None:
    """List the recipes that --recipe takes, with the purpose of each.

    Examples:
        foldfuse recipes
    """
    table = Table("recipe", "image size", "batch size", "purpose", box=SIMPLE_HEAD, pad_edge=False)
    makers: dict[str, Callable[[], Recipe | ClassifierRecipe]] = {**RECIPES, **CLASSIFIER_RECIPES}
    for name, maker in makers.items():
        recipe = maker()
        purpose = (maker.__doc__ or "").split("\n")[0]
        size = AUTO_WORD if recipe.image_size == AUTO else str(recipe.image_size)
        table.add_row(name, size, str(recipe.batch_size), purpose)
    table.columns[0].no_wrap = True
    printing.console().print(table)
