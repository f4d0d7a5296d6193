"""Where the initial weights of a training come from, through the runs that it started from."""

from __future__ import annotations

from pathlib import Path

from foldfuse.errors import InputError
from foldfuse.models import imagenet_network
from foldfuse.models.pretrained.detection import has_detection_weights
from foldfuse.models.pretrained.imagenet import imagenet_origin
from foldfuse.models.pretrained.published import PUBLISHED
from foldfuse.provenance import UNKNOWN, WeightsOrigin
from foldfuse.recipes import INIT_WORDS, ClassifierRecipe, Recipe
from foldfuse.storage.run import Run

_SHIPPED_DATA = "boxes of 61 public datasets, which the package's NOTICE names"


def origins_of(recipe: Recipe | ClassifierRecipe) -> tuple[WeightsOrigin, ...]:
    """The initial weights that a recipe names, and those that they started from themselves; none for random weights.

    What is not known is called unknown; no sentence stops a training here.
    """
    name = recipe.detector if isinstance(recipe, Recipe) else recipe.classifier
    start = recipe.init_weights
    if start == "none":
        return ()
    if start == "imagenet":
        return _imagenet(name)
    if start == "detection":
        shipped = WeightsOrigin(name, "this package", "Apache-2.0", _SHIPPED_DATA)
        return (shipped, *_imagenet(name))
    if start == "coco":
        return (_of_published(name, start),)
    path = Path(start)
    if Run(path).exists:
        return _of_run(Run(path), followed=())
    try:
        own = path.is_file() and has_detection_weights(path)
    except InputError:
        own = False
    return (WeightsOrigin(name, f"file {path.name}", data="boxes of a pre-training by the user" if own else UNKNOWN),)


def _of_published(name: str, kind: str) -> WeightsOrigin:
    """The published weights of a network, trained on `kind`: "coco" or "imagenet"."""
    found = PUBLISHED.get((name, kind))
    return WeightsOrigin(name, UNKNOWN) if found is None else found.origin


def _imagenet(name: str) -> tuple[WeightsOrigin, ...]:
    network = imagenet_network(name)
    if network is None:
        return (_of_published(name, "imagenet"),)
    try:
        return (imagenet_origin(network),)
    except InputError:  # the sentence comes where the weights are loaded
        return (WeightsOrigin(network, UNKNOWN),)


def _of_run(run: Run, followed: tuple[Path, ...]) -> tuple[WeightsOrigin, ...]:
    """The run itself, and the weights that it started from; of a run of an earlier version, as its recipe names them."""
    try:
        metadata = run.metadata
        recipe: Recipe | ClassifierRecipe = run.classifier_recipe if run.is_classifier else run.recipe
    except InputError:
        return (WeightsOrigin(run.folder.name, f"run {run.folder}"),)
    licence = (metadata.origin or {}).get("licence", UNKNOWN).partition(";")[0]
    itself = WeightsOrigin(run.folder.name, f"run {run.folder}", licence, metadata.data or UNKNOWN)
    if metadata.weights is not None:
        return (itself, *metadata.weights)
    if metadata.origin is not None or run.folder in followed:
        return (itself,)
    start = Path(recipe.init_weights)
    if recipe.init_weights not in INIT_WORDS and Run(start).exists:
        return (itself, *_of_run(Run(start), (*followed, run.folder)))
    return (itself, *origins_of(recipe))
