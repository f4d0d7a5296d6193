"""Loads the weights that a recipe names into a new model.

They are those of a run, whose head is matched by class names, of a detector that was pre-trained on boxes, those that others have
published, or effdet's. A detector that starts from published COCO weights has the method `load_coco(path, classes) -> sentence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from foldfuse.errors import InputError, shown
from foldfuse.models.pretrained.class_rows import load_by_class_name
from foldfuse.models.pretrained.detection import has_detection_weights, shipped_weights, start_from_pretrained
from foldfuse.models.pretrained.effdet import load_effdet
from foldfuse.models.pretrained.published import PUBLISHED, file_in, locate, published
from foldfuse.recipes import ClassifierRecipe, Recipe
from foldfuse.storage.run import Run


def load_init_weights(recipe: Recipe | ClassifierRecipe, model: nn.Module, classes: Sequence[str]) -> str | None:
    """Load the weights that the recipe names, and return a sentence on what was taken; None for ImageNet weights and for none.

    Args:
        recipe: the recipe of the new run.
        model: its new model, changed in place.
        classes: names of the model's classes, by label.

    Raises:
        InputError: there are no such weights, they do not fit, or two classes have the same name.
    """
    if recipe.init_weights in ("imagenet", "none"):
        return None
    name = recipe.detector if isinstance(recipe, Recipe) else recipe.classifier
    if recipe.init_weights == "detection":
        return start_from_pretrained(shipped_weights(name), model)
    if recipe.init_weights == "coco":
        return _load_coco(model, locate(published(name, "coco")), classes)
    if "://" in recipe.init_weights:
        raise InputError(
            f"init_weights is {shown(recipe.init_weights)}, a web address. Download the file, and give its path."
        )
    path = Path(recipe.init_weights)
    if isinstance(recipe, Recipe) and not Run(path).exists:
        if has_detection_weights(path):
            return start_from_pretrained(path, model)
        if (name, "coco") in PUBLISHED:
            return _load_coco(model, file_in(path, published(name, "coco")), classes)
        if not path.is_dir():
            return load_effdet(path, model)
    run = Run(path)
    require_same_network(recipe, run)
    known = run.metadata.classes
    return load_by_class_name(model, run.load_weights(), known=known, classes=classes, source=str(path))


def _load_coco(model: Any, path: Path, classes: Sequence[str]) -> str:
    sentence: str = model.load_coco(path, classes)
    return sentence


def require_same_network(recipe: Recipe | ClassifierRecipe, run: Run) -> None:
    """Raise InputError unless `run` has the network that the recipe names, so that its weights can begin a training."""
    wanted = recipe.detector if isinstance(recipe, Recipe) else recipe.classifier
    found = run.classifier_recipe.classifier if run.is_classifier else run.recipe.detector
    if found != wanted or run.is_classifier == isinstance(recipe, Recipe):
        raise InputError(
            f"{run.folder}: is a run of {found}, and {wanted} cannot start from its weights. Give a run of {wanted}."
        )
