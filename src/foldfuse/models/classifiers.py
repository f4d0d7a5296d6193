"""ViT and Swin by name, with ImageNet weights where timm's hub can be reached or has been.

Which weights: those that timm takes by default for the name on the right of `TIMM_NAMES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from foldfuse.errors import InputError
from foldfuse.models import swin, vit
from foldfuse.models.transformer_weights import SWIN, VIT, Table, from_timm, load_matching
from foldfuse.models.weights import hub_weights

TIMM_NAMES: Mapping[str, str] = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "vit_large": "vit_large_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
}


def load_imagenet(model: nn.Module, name: str, table: Table) -> None:
    """Give `model`, one of ours called `name`, its ImageNet weights, all but the head's.

    Raises:
        InputError: there are none, or they are not at hand.
    """
    if name not in TIMM_NAMES:
        known = ", ".join(TIMM_NAMES)
        raise InputError(f"{name}: no ImageNet weights are known. Train it from scratch, or take one of {known}.")
    state = from_timm(hub_weights(TIMM_NAMES[name]), table)
    load_matching(model, {key: t for key, t in state.items() if not key.startswith("head.")}, source=TIMM_NAMES[name])


def _maker(name: str, make: Callable[[str, int], nn.Module], table: Table, what: str) -> Callable[..., nn.Module]:
    """The registry's maker of one network."""

    def maker(num_classes: int, *, pretrained: bool = True) -> nn.Module:
        model = make(name, num_classes)
        if pretrained:
            load_imagenet(model, name, table)
        return model

    maker.__name__ = maker.__qualname__ = name
    maker.__doc__ = what
    return maker


FAMILY: Mapping[str, Callable[..., nn.Module]] = {
    **{
        name: _maker(name, vit.vit, VIT, f"ViT: {depth} layers of width {width}, {heads} heads, patches of {patch} px.")
        for name, (width, depth, heads, patch) in vit.SIZES.items()
    },
    **{
        name: _maker(
            name, swin.swin, SWIN, f"Swin: stages of {'-'.join(map(str, depths))} blocks from width {channels}."
        )
        for name, (channels, depths, _) in swin.SIZES.items()
    },
}
