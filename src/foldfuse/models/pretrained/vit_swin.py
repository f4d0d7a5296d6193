"""Weights of ViT and Swin from elsewhere and back: timm's by explicit tables, the ViT paper's `.npz` files.

The names on the left of a table are ours, those on the right timm's (1.0); what a table does not name is called the same.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from foldfuse.detections import Array
from foldfuse.errors import InputError
from foldfuse.models.pretrained.imagenet import hub_weights

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


Table = Sequence[tuple[str, str]]

VIT: Table = (
    ("class_token", "cls_token"),
    ("positions.table", "pos_embed"),
    ("patches.", "patch_embed.proj."),
    (".attention.qkv.", ".attn.qkv."),
    (".attention.out.", ".attn.proj."),
    (".mlp.0.", ".mlp.fc1."),
    (".mlp.2.", ".mlp.fc2."),
)
SWIN: Table = (
    ("patches.", "patch_embed.proj."),
    ("patch_norm.", "patch_embed.norm."),
    ("stages.", "layers."),
    (".merge.norm.", ".downsample.norm."),
    (".merge.reduce.", ".downsample.reduction."),
    (".attention.bias_table", ".attn.relative_position_bias_table"),
    (".attention.qkv.", ".attn.qkv."),
    (".attention.out.", ".attn.proj."),
    (".mlp.0.", ".mlp.fc1."),
    (".mlp.2.", ".mlp.fc2."),
    ("head.", "head.fc."),
)


def from_timm(state: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Our state dict from timm's of the same network; buffers that timm can recompute are left out."""
    passed_over = ("relative_position_index", "attn_mask")
    return {
        _renamed(key, [(theirs, ours) for ours, theirs in table]): tensor
        for key, tensor in state.items()
        if not key.endswith(passed_over)
    }


def to_timm(state: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """timm's state dict from ours of the same network."""
    return {_renamed(key, table): tensor for key, tensor in state.items()}


def _renamed(key: str, table: Table) -> str:
    for old, new in table:
        if old.startswith("."):
            key = key.replace(old, new)
        elif key.startswith(old):
            key = new + key.removeprefix(old)
    return key


def load_matching(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> list[str]:
    """Load `state` into `model`; what does not fit is left as it was. Sentences on that come back, for the user to read.

    Args:
        model: gets the weights, in place.
        state: under the model's own names.
        source: where the weights come from, for the sentences.

    Raises:
        InputError: more than the head is missing or has another shape: these are weights of another network.
    """
    own = model.state_dict()
    fits = {key: tensor for key, tensor in state.items() if key in own and own[key].shape == tensor.shape}
    missing = sorted(own.keys() - fits.keys())
    foreign = [key for key in missing if not key.startswith("head.")]
    if foreign:
        key = foreign[0]
        found = f"{tuple(state[key].shape)} there" if key in state else "not there at all"
        raise InputError(
            f"{source}: these are weights of another network: {key} is {tuple(own[key].shape)} here and {found}."
        )
    model.load_state_dict(fits, strict=False)
    if not missing:
        return []
    classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    return [
        f"{source}: was trained for {classes or 'no'} classes, not {own['head.weight'].shape[0]}: the head starts anew."
    ]


def read_npz(path: Path) -> dict[str, Tensor]:
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
    """JAX keeps a linear layer as (in, out), heads as an axis of their own, and a convolution as (H, W, in, out)."""
    blocks = "Transformer/encoderblock_"
    found = {
        "class_token": arrays["cls"],
        "positions.table": arrays["Transformer/posembed_input/pos_embedding"],
        "patches.weight": arrays["embedding/kernel"].transpose(3, 2, 0, 1),
        "patches.bias": arrays["embedding/bias"],
        "norm.weight": arrays["Transformer/encoder_norm/scale"],
        "norm.bias": arrays["Transformer/encoder_norm/bias"],
    }
    if "head/kernel" in arrays:
        found |= {"head.weight": arrays["head/kernel"].T, "head.bias": arrays["head/bias"]}
    depth = 1 + max((int(n) for key in arrays if (n := re.sub(rf"^{blocks}(\d+)/.*", r"\1", key)) != key), default=-1)
    for i in range(depth):
        there, here = f"{blocks}{i}/", f"blocks.{i}."
        heads = there + "MultiHeadDotProductAttention_1/"
        width = len(arrays[f"{there}LayerNorm_0/scale"])
        qkv = [arrays[f"{heads}{name}/kernel"].reshape(width, width).T for name in ("query", "key", "value")]
        biases = [arrays[f"{heads}{name}/bias"].reshape(width) for name in ("query", "key", "value")]
        found |= {
            f"{here}norm1.weight": arrays[f"{there}LayerNorm_0/scale"],
            f"{here}norm1.bias": arrays[f"{there}LayerNorm_0/bias"],
            f"{here}attention.qkv.weight": np.concatenate(qkv),
            f"{here}attention.qkv.bias": np.concatenate(biases),
            f"{here}attention.out.weight": arrays[f"{heads}out/kernel"].reshape(width, width).T,
            f"{here}attention.out.bias": arrays[f"{heads}out/bias"],
            f"{here}norm2.weight": arrays[f"{there}LayerNorm_2/scale"],
            f"{here}norm2.bias": arrays[f"{there}LayerNorm_2/bias"],
        }
        for j, dense in ((0, "Dense_0"), (2, "Dense_1")):
            found[f"{here}mlp.{j}.weight"] = arrays[f"{there}MlpBlock_3/{dense}/kernel"].T
            found[f"{here}mlp.{j}.bias"] = arrays[f"{there}MlpBlock_3/{dense}/bias"]
    return {key: torch.from_numpy(np.array(array, np.float32, order="C")) for key, array in found.items()}
