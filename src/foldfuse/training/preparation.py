"""Looks at the network, its initial weights and the objects, or at a checkpoint, before a training changes anything on disk."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from foldfuse.data.dataset import Dataset
from foldfuse.data.images import canvas_for
from foldfuse.inference.classifier import new_classifier
from foldfuse.recipes import ClassifierRecipe, Recipe
from foldfuse.storage.run_tensors import Check
from foldfuse.training.detector import new_detector, object_sizes
from foldfuse.training.init_weights import load_init_weights
from foldfuse.training.optimizers import make_classifier_optimizer, make_detector_optimizer
from foldfuse.training.state import check_state
from foldfuse.training.targets import check_objects


def check_new_model(recipe: Recipe | ClassifierRecipe, dataset: Dataset) -> None:
    """Make the model with its initial weights and look at the objects that it will learn from.

    Raises:
        InputError: there is no such network, its weights are missing or do not fit, or no object gets a target.
    """
    if isinstance(recipe, ClassifierRecipe):
        load_init_weights(recipe, new_classifier(recipe, len(dataset.classes), initialized=True), dataset.classes)
        return
    model = new_detector(recipe, len(dataset.classes))
    canvas = canvas_for(dataset.samples, image_size=recipe.image_size, stride=model.stride)
    if hasattr(model, "fit_anchors"):
        model.fit_anchors(object_sizes(dataset.samples, canvas, tile_zoom=recipe.tile_zoom))
    load_init_weights(recipe, model, dataset.classes)
    check_objects(model, dataset, recipe)


def state_check(recipe: Recipe | ClassifierRecipe, num_classes: int) -> Check:
    """A function that raises InputError for a checkpoint that does not fit a run of this recipe."""

    @cache
    def model_and_optimizer() -> tuple[Any, Any]:
        if isinstance(recipe, ClassifierRecipe):
            model: Any = new_classifier(recipe, num_classes)
        else:
            model = new_detector(recipe, num_classes, initialized=False)
        model.freeze(recipe.frozen_stages)
        make = make_classifier_optimizer if isinstance(recipe, ClassifierRecipe) else make_detector_optimizer
        return model, make(model, recipe)  # type: ignore[arg-type]

    def check(state: Mapping[str, Any]) -> None:
        check_state(state, *model_and_optimizer())

    return check
