"""Defaults of a recipe's fields by the kind of backbone, where a composed detector takes the place of the recipe's own.

A recipe's fields suit its own detector: lite0_fpn starts from detection weights and freezes three stages, which no other
network can begin with, and which keeps a transformer from learning. Networks with layer norms and no batch norms (ViT, Swin,
ConvNeXt) get the rates of `swin_tiny_fpn` and a layer decay, as in Li et al., arXiv:2203.16527, appendix A.2.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import timm
import torch

from foldfuse.models.backbones.factory import TIMM, TRANSFORMERS
from foldfuse.models.detection.composed import PREFIX, parts_of
from foldfuse.recipes import Recipe, swin_tiny_fpn

LAYER_DECAY = 0.8

log = logging.getLogger(__name__)


def with_backbone_defaults(recipe: Recipe, changes: Sequence[str]) -> tuple[str, ...]:
    """The changes to a recipe, after the defaults of the fields that they leave out where they name a composed detector.

    One line of the log names these defaults. Where the detector is the recipe's own or no composed one, the changes stay.

    Raises:
        InputError: the composed detector's name does not give three parts.
    """
    given = {change.partition("=")[0] for change in changes}
    detector = next((each.partition("=")[2] for each in reversed(changes) if each.startswith("detector=")), "")
    if not detector.startswith(PREFIX) or detector == recipe.detector:
        return tuple(changes)
    values: dict[str, object] = {}
    if recipe.init_weights in ("coco", "detection"):
        values["init_weights"] = "imagenet"
    layered = has_layer_norms(parts_of(detector)[0])
    if layered:
        like = swin_tiny_fpn()
        values |= {"frozen_stages": 0, "layer_decay": LAYER_DECAY}
        values |= {key: getattr(like, key) for key in ("lr", "backbone_lr_mult", "weight_decay")}
    added = tuple(
        f"{key}={value}" for key, value in values.items() if key not in given and getattr(recipe, key) != value
    )
    if added:
        kind = "a backbone with layer norms" if layered else "its backbone"
        log.info("%s: defaults for %s are %s. --set changes each.", detector, kind, ", ".join(added))
    return (*added, *changes)


def has_layer_norms(backbone: str) -> bool:
    """Whether a backbone has layer norms and no batch norms; False for a name that is no network's."""
    if not backbone.startswith(TIMM):
        return backbone in TRANSFORMERS
    try:
        with torch.device("meta"):  # no memory, no random values
            net = timm.create_model(backbone.removeprefix(TIMM), pretrained=False)
    except Exception:  # the sentence comes where the detector is made
        return False
    kinds = {type(module).__name__.lower() for module in net.modules()}
    return any("layernorm" in kind or "rmsnorm" in kind for kind in kinds) and not any(
        "batchnorm" in kind for kind in kinds
    )
