"""Class probabilities of images and crops from a trained classifier run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from foldfuse.data.crops import Crops
from foldfuse.detections import Array
from foldfuse.errors import InputError
from foldfuse.inference.crop_encoder import CropEncoder, features, mirrored
from foldfuse.inference.crop_features import torch_encoder
from foldfuse.models import make_classifier
from foldfuse.models.classifiers import ClassifierWithLoss
from foldfuse.models.pretrained.state_dicts import load_exactly
from foldfuse.recipes import ClassifierRecipe
from foldfuse.storage.run import Run
from foldfuse.system.device import choose_device
from foldfuse.system.progress import Progress, no_progress


def new_classifier(recipe: ClassifierRecipe, num_classes: int, *, initialized: bool = False) -> ClassifierWithLoss:
    """A new classifier for a recipe.

    Args:
        recipe: the recipe of the run.
        num_classes: the number of classes in the data.
        initialized: whether to load the ImageNet weights that the recipe may ask for.

    Raises:
        InputError: the network does not take the recipe's image size, or the weights are not available.
    """
    imagenet = initialized and recipe.init_weights == "imagenet"
    net: Any = make_classifier(recipe.classifier, num_classes, pretrained=imagenet)
    fixed = getattr(net, "fixed_size", None) or recipe.image_size
    if recipe.image_size != fixed:
        raise InputError(
            f"image_size is {recipe.image_size}, and {recipe.classifier} takes images of {fixed} px alone."
        )
    if recipe.image_size % net.stride:
        raise InputError(
            f"image_size is {recipe.image_size}, and must be a multiple of {net.stride}, the stride of {recipe.classifier}."
        )
    return ClassifierWithLoss(net, recipe.label_smoothing)


def crop_encoder(run: Run, device: str = "auto") -> CropEncoder:
    """An encoder of crops: the trained classifier of a run, whose features are its logits.

    Raises:
        InputError: the run is not trained, or there is no such device.
    """
    device = choose_device(device)
    recipe, metadata = run.classifier_recipe, run.metadata
    model = new_classifier(recipe, len(metadata.classes))
    load_exactly(model, run.load_weights(), source=f"{run.folder}/weights.safetensors")
    model.to(device).eval()

    context = metadata.crop_context or recipe.crop_context
    return torch_encoder(model, size=recipe.image_size, context=context, device=device)


def classify(
    run: Run,
    crops: Crops,
    *,
    views: Sequence[str] = ("1",),
    device: str = "auto",
    progress: Progress = no_progress,
) -> Array:
    """(n, K) float32 class probabilities of each crop, averaged over `views`: "1" and its mirror image "1+hflip".

    Raises:
        InputError: the run is not trained, there is no such device, or an image cannot be decoded.
    """
    encoder = crop_encoder(run, device=device)
    encoders = [mirrored(encoder) if view == "1+hflip" else encoder for view in views]
    logits = [torch.from_numpy(features(crops, each, progress=progress)) for each in encoders]
    return torch.stack([each.softmax(1) for each in logits]).mean(0).numpy()


def accuracy(probabilities: Array, labels: Array) -> float:
    """Share of the rows whose most probable class is the label; 0 where there is no row."""
    return float((probabilities.argmax(1) == labels).mean()) if len(labels) else 0.0
