"""ImageNet weights for ViT and Swin: timm's, which load by name, and the ViT paper's `.npz` files.

Of timm's weights, the default ones of the name on the right of `TIMM_NAMES` are used.
"""

from __future__ import annotations

import math
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor, nn

from foldfuse.detections import Array
from foldfuse.errors import InputError
from foldfuse.models.backbones.swin import WINDOW, Swin
from foldfuse.models.backbones.vit import ViT
from foldfuse.models.pretrained.checkpoint import shown
from foldfuse.models.pretrained.imagenet import COMPUTED, timm_weights
from foldfuse.models.pretrained.state_dicts import require_finite, without_wrappers

TIMM_NAMES: Mapping[str, str] = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "vit_large": "vit_large_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
}


def load_imagenet(model: nn.Module, name: str) -> None:
    """Load the ImageNet weights of `name` into `model`, one of our ViTs or Swins, in place; the head keeps its own.

    Raises:
        InputError: there are no such weights, or they are not available.
    """
    if name not in TIMM_NAMES:
        known = ", ".join(TIMM_NAMES)
        raise InputError(f"{name}: no ImageNet weights are known. Train it from scratch, or take one of {known}.")
    state = {key: t for key, t in timm_weights(TIMM_NAMES[name]).items() if not key.startswith("head.")}
    load_matching(model, state, source=TIMM_NAMES[name])


def load_matching(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> list[str]:
    """Load `state` into `model` in place, except a head of other classes, and return sentences for the user on such a head.

    Args:
        model: one of our ViTs or Swins.
        state: the weights, under timm's names.
        source: the source of the weights, for the sentences.

    Raises:
        InputError: more than the head is missing, unknown or of another shape: these are weights of another network.
    """
    own = model.state_dict()
    state = without_wrappers({key: tensor for key, tensor in state.items() if not key.endswith(COMPUTED)}, own)
    require_finite(state, source=source)
    unknown = sorted(state.keys() - own.keys())
    if unknown:
        raise InputError(
            f"{source}: these are weights of another network: it has {shown(unknown[0])}, and the model has not."
        )
    state, sentences = _resampled(model, state, source)
    fits = {key: tensor for key, tensor in state.items() if own[key].shape == tensor.shape}
    missing = sorted(own.keys() - fits.keys())
    wrong = [key for key in missing if not key.startswith("head.")]
    if wrong:
        key = wrong[0]
        found = f"{tuple(state[key].shape)} there" if key in state else "not there at all"
        raise InputError(
            f"{source}: these are weights of another network: {key} is {tuple(own[key].shape)} here and {found}."
        )
    model.load_state_dict(fits, strict=False)
    if not missing:
        return sentences
    known, classes = (next((len(t) for key, t in of.items() if key.startswith("head.")), 0) for of in (state, own))
    return [
        *sentences,
        f"{source}: was trained for {known or 'no'} classes, not {classes}: the head starts from random values.",
    ]


def _resampled(model: nn.Module, state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], list[str]]:
    """`state` with positions for the model's grid of patches and its windows, and a sentence on each kind that was resampled.

    timm's own functions do it: bicubic for a ViT's positions, by distance for a Swin's tables of relative positions.
    """
    resampled, kinds = dict(state), dict[str, str]()
    for key, own in model.state_dict().items():
        theirs = state.get(key)
        if theirs is None or theirs.shape == own.shape or theirs.ndim != own.ndim or theirs.shape[-1] != own.shape[-1]:
            continue
        if isinstance(model, ViT) and key == "pos_embed":
            side = math.isqrt(theirs.shape[1] - 1)
            if theirs.shape[0] == 1 and side > 0 and side**2 == theirs.shape[1] - 1:
                resampled[key] = resample_abs_pos_embed(theirs, list(model.grid))
                kinds["positions"] = f"{side} x {side} patches to {model.grid[0]} x {model.grid[1]}"
        elif isinstance(model, Swin) and key.endswith("relative_position_bias_table"):
            side = math.isqrt(theirs.shape[0])
            if side % 2 and side**2 == theirs.shape[0]:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # torch's, on the speed of a lookup in timm
                    resampled[key] = resize_rel_pos_bias_table(theirs, (WINDOW, WINDOW), tuple(own.shape))
                kinds["relative positions"] = f"windows of {(side + 1) // 2} tokens to windows of {WINDOW}"
    return resampled, [f"{source}: the {kind} were resampled from {change}." for kind, change in kinds.items()]


def read_vit_npz(path: Path) -> dict[str, Tensor]:
    """Our ViT's state dict from one of the paper's checkpoints (github.com/google-research/vision_transformer).

    Raises:
        InputError: the file is missing, broken, or holds something else.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays: dict[str, Array] = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file.") from None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path}: is not an .npz file of arrays ({error}).") from None
    try:
        return _from_jax(arrays)
    except KeyError as error:
        raise InputError(f"{path}: has no array {error}, which every checkpoint of the ViT paper has.") from None


def _from_jax(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """A ViT's state dict. JAX stores a linear layer as (in, out), heads as a separate axis, a convolution as (H, W, in, out)."""
    blocks = "Transformer/encoderblock_"
    state = {
        "cls_token": arrays["cls"],
        "pos_embed": arrays["Transformer/posembed_input/pos_embedding"],
        "patch_embed.proj.weight": arrays["embedding/kernel"].transpose(3, 2, 0, 1),
        "patch_embed.proj.bias": arrays["embedding/bias"],
        "norm.weight": arrays["Transformer/encoder_norm/scale"],
        "norm.bias": arrays["Transformer/encoder_norm/bias"],
    }
    if "head/kernel" in arrays:
        state |= {"head.weight": arrays["head/kernel"].T, "head.bias": arrays["head/bias"]}
    depth = 1 + max((int(n) for key in arrays if (n := re.sub(rf"^{blocks}(\d+)/.*", r"\1", key)) != key), default=-1)
    for i in range(depth):
        there, here = f"{blocks}{i}/", f"blocks.{i}."
        heads = there + "MultiHeadDotProductAttention_1/"
        width = len(arrays[f"{there}LayerNorm_0/scale"])
        qkv = [arrays[f"{heads}{name}/kernel"].reshape(width, width).T for name in ("query", "key", "value")]
        biases = [arrays[f"{heads}{name}/bias"].reshape(width) for name in ("query", "key", "value")]
        state |= {
            f"{here}norm1.weight": arrays[f"{there}LayerNorm_0/scale"],
            f"{here}norm1.bias": arrays[f"{there}LayerNorm_0/bias"],
            f"{here}attn.qkv.weight": np.concatenate(qkv),
            f"{here}attn.qkv.bias": np.concatenate(biases),
            f"{here}attn.proj.weight": arrays[f"{heads}out/kernel"].reshape(width, width).T,
            f"{here}attn.proj.bias": arrays[f"{heads}out/bias"],
            f"{here}norm2.weight": arrays[f"{there}LayerNorm_2/scale"],
            f"{here}norm2.bias": arrays[f"{there}LayerNorm_2/bias"],
        }
        for layer, dense in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            state[f"{here}mlp.{layer}.weight"] = arrays[f"{there}MlpBlock_3/{dense}/kernel"].T
            state[f"{here}mlp.{layer}.bias"] = arrays[f"{there}MlpBlock_3/{dense}/bias"]
    return {key: torch.from_numpy(np.array(array, np.float32, order="C")) for key, array in state.items()}
