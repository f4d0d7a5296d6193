"""The command fetch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from foldfuse.commands import options
from foldfuse.errors import InputError, shown
from foldfuse.models import CLASSIFIERS, DETECTORS, imagenet_network
from foldfuse.models.detection.composed import PREFIX
from foldfuse.models.pretrained.detection import shipped_weights
from foldfuse.models.pretrained.imagenet import has_wheel
from foldfuse.models.pretrained.published import HUB, PublishedWeights, locate, published
from foldfuse.models.pretrained.timm_source import card, timm_source
from foldfuse.provenance import UNKNOWN, WeightsOrigin, licence_notes
from foldfuse.recipes import CLASSIFIER_RECIPES, RECIPES
from foldfuse.system import printing
from foldfuse.system.offline import is_offline

KINDS = ("coco", "imagenet")


def fetch(
    recipe: options.Names,
    *,
    init: str | None = None,
    offline: options.Offline = False,
) -> None:
    """Download the initial weights of recipes into the cache, and show file, size, licence and place.

    Afterwards these recipes start without a network. A cache in another folder: set HF_HOME and TORCH_HOME, here and there.

    Args:
        recipe: names of recipes or models; timm:NAME for a network of timm.
        init: coco or imagenet, where the recipe starts from other weights.
        offline: only show what is there already.

    Raises:
        InputError: there is no such recipe or model, it has no such weights, or they cannot be downloaded.

    Examples:
        foldfuse fetch lite0_fpn yolov5n
        foldfuse fetch lite0_fpn --init imagenet
    """
    if init is not None and init not in KINDS:
        raise InputError(f"--init is {shown(init)}, expected coco or imagenet.")
    found = [(name, _needed(name, init)) for name in dict.fromkeys(recipe)]
    table = Table("recipe", "weights", "MB", "licence", "trained on", "place", box=SIMPLE_HEAD, pad_edge=False)
    table.columns[2].justify = "right"
    origins: list[WeightsOrigin] = []
    for name, weights in found:
        if isinstance(weights, str):
            table.add_row(name, weights, "-", "-", "-", "-")
            continue
        path = locate(weights, offline=offline or is_offline())
        origin = _origin(weights, offline=offline or is_offline())
        origins.append(origin)
        size = f"{path.stat().st_size / 1e6:.1f}"
        table.add_row(name, f"{weights.file} of {weights.address}", size, origin.licence, origin.data, str(path))
    printing.console().print(table)
    for note in licence_notes(origins):
        printing.write(f"WARNING: {note}", to_stderr=True)


def _needed(name: str, init: str | None) -> PublishedWeights | str:
    """The weights that a recipe or model needs from a network, or a sentence where it needs none."""
    model, start = name, init or "imagenet"
    if name in RECIPES:
        recipe = RECIPES[name]()
        model, start = recipe.detector, init or recipe.init_weights
    elif name in CLASSIFIER_RECIPES:
        classifier = CLASSIFIER_RECIPES[name]()
        model, start = classifier.classifier, init or classifier.init_weights
    elif not (name in DETECTORS or name in CLASSIFIERS or name.startswith((PREFIX, "timm:"))):
        raise InputError(
            f"no recipe or model is called {shown(name)}. 'foldfuse recipes' and 'foldfuse models' list them."
        )
    if start == "none":
        return "starts from random weights"
    if start == "detection":
        return f"{shipped_weights(model).name} comes with the package"
    if start == "coco":
        return published(model, "coco")
    network = imagenet_network(model)
    if network is None:
        return published(model, "imagenet")
    return f"{network} is installed as a package" if has_wheel(network) else timm_source(network)


def _origin(weights: PublishedWeights, *, offline: bool) -> WeightsOrigin:
    """Where the weights come from; what is unknown of them is taken from the card of their repository on the hub."""
    origin = weights.origin
    if UNKNOWN not in (origin.licence, origin.data) or not weights.source.startswith(HUB):
        return origin
    repository = weights.source.removeprefix(HUB)
    if not offline:
        _fetch_card(repository)
    licence, data = card(repository)
    return replace(
        origin,
        licence=licence if origin.licence == UNKNOWN else origin.licence,
        data=data if origin.data == UNKNOWN else origin.data,
    )


def _fetch_card(repository: str) -> Path | None:
    """The card in the cache, downloaded where it is missing; None where there is none."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, "README.md"))
    except Exception:  # a card is a help, not a need
        return None
