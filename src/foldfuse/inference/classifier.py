"""Class probabilities of images and crops from a trained classifier run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foldfuse.data.crops import Crops
from foldfuse.detections import Array
from foldfuse.errors import InputError
from foldfuse.inference.crop_features import CropEncoder, features, mirrored
from foldfuse.models import make_classifier
from foldfuse.models.classifiers import ClassifierWithLoss
from foldfuse.recipes import ClassifierRecipe
from foldfuse.storage.run import Run
from foldfuse.system.device import best_device
from foldfuse.system.progress import Progress, no_progress


def load_learner(run: Run, *, pretrained: bool = False) -> ClassifierWithLoss:
    """The untrained model of a classifier's run.

    Raises:
        InputError: the recipe's image size is none that its network takes, or weights to begin with are not at hand.
    """
    return _learner(run.classifier_recipe, len(run.metadata.classes), pretrained=pretrained)


def _learner(recipe: ClassifierRecipe, num_classes: int, *, pretrained: bool) -> ClassifierWithLoss:
    net: Any = make_classifier(recipe.classifier, num_classes, pretrained=pretrained)
    fixed = getattr(net, "fixed_size", None) or recipe.image_size
    if recipe.image_size != fixed:
        raise InputError(
            f"image_size is {recipe.image_size}, and {recipe.classifier} takes pictures of {fixed} px alone."
        )
    if recipe.image_size % net.stride:
        raise InputError(
            f"image_size is {recipe.image_size}, and must be a multiple of {net.stride}, the stride of {recipe.classifier}."
        )
    return ClassifierWithLoss(net, recipe.label_smoothing)


def crop_encoder(run: Run) -> CropEncoder:
    """The trained classifier of a run as a look at crops: their logits.

    Raises:
        InputError: the run is not trained.
    """
    device = best_device()
    model = load_learner(run)
    model.load_state_dict(run.load_weights())
    model.to(device).eval()

    def look(images: Tensor) -> Tensor:
        logits: Tensor = model(images.to(device)).cpu()
        return logits

    return CropEncoder(
        look, run.classifier_recipe.image_size, run.metadata.crop_context or run.classifier_recipe.crop_context
    )


def classify(run: Run, crops: Crops, *, views: Sequence[str] = ("1",), progress: Progress = no_progress) -> Array:
    """(n, K) float32 probabilities of the classes of each crop, the mean of its `views`: "1" and its mirror image "1+hflip".

    Raises:
        InputError: the run is not trained, or a picture cannot be decoded.
    """
    look = crop_encoder(run)
    looks = [mirrored(look) if view == "1+hflip" else look for view in views]
    parts = [torch.from_numpy(features(crops, each, progress=progress)).softmax(1) for each in looks]
    return torch.stack(parts).mean(0).numpy()


def accuracy(probabilities: Array, labels: Array) -> float:
    """Share of the rows whose most probable class is the label; 0 where there is no row."""
    return float((probabilities.argmax(1) == labels).mean()) if len(labels) else 0.0
