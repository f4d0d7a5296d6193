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


def crop_encoder(run: Run, device: str = "auto") -> CropEncoder:
    """The trained classifier of a run as a crop encoder: its features are the logits.

    Raises:
        InputError: the run is not trained.
    """
    device = best_device() if device == "auto" else device
    model = load_learner(run)
    model.load_state_dict(run.load_weights())
    model.to(device).eval()

    def encode(images: Tensor) -> Tensor:
        logits: Tensor = model(images)
        return logits

    recipe = run.classifier_recipe
    return CropEncoder(encode, recipe.image_size, run.metadata.crop_context or recipe.crop_context, device)


def classify(run: Run, crops: Crops, *, views: Sequence[str] = ("1",), progress: Progress = no_progress) -> Array:
    """(n, K) float32 probabilities of the classes of each crop, the mean of its `views`: "1" and its mirror image "1+hflip".

    Raises:
        InputError: the run is not trained, or a picture cannot be decoded.
    """
    encoder = crop_encoder(run)
    encoders = [mirrored(encoder) if view == "1+hflip" else encoder for view in views]
    parts = [torch.from_numpy(features(crops, each, progress=progress)).softmax(1) for each in encoders]
    return torch.stack(parts).mean(0).numpy()


def accuracy(probabilities: Array, labels: Array) -> float:
    """Share of the rows whose most probable class is the label; 0 where there is no row."""
    return float((probabilities.argmax(1) == labels).mean()) if len(labels) else 0.0
