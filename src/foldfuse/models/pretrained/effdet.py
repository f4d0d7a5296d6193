"""Weights of effdet's checkpoints, loaded into EfficientDet by a table of names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from foldfuse.errors import InputError


def load_effdet(path: Path, model: nn.Module) -> str:
    """A sentence on what `model`, an EfficientDet, was given from a checkpoint of effdet's model of the same name.

    The checkpoint may know other classes: then the last layer of the class head keeps the start that it has.

    Args:
        path: what effdet publishes or its training leaves (.pth, .tar), or a .safetensors of the state dict.
        model: is changed in place.

    Raises:
        InputError: the file is missing, broken, unsafe, or of another model.
    """
    state = from_effdet(_effdet_state(path))
    ours = model.state_dict()
    new = [key for key, t in ours.items() if key.startswith(_CLASSES) and key in state and state[key].shape != t.shape]
    wrong = [key for key in ours.keys() | state.keys() if key not in new and not _alike(ours.get(key), state.get(key))]
    if wrong:
        raise InputError(
            f"{path}: is of another model: {len(wrong)} of its tensors do not fit, such as {min(wrong)!r}. Expected what "
            "effdet's tf_efficientdet of the same name and with the same anchors holds."
        )
    model.load_state_dict(state | {key: ours[key] for key in new})
    if not new:
        return f"{path}: all weights were taken."
    per_class = ours[f"{_CLASSES}bias"].numel() // int(model.num_classes)  # type: ignore[arg-type]
    known = state[f"{_CLASSES}bias"].numel() // per_class
    return (
        f"{path}: all weights were taken but the class head's last layer, which begins anew: the checkpoint knows {known} "
        f"classes, this model {model.num_classes}."
    )


_CLASSES = "class_head.predict.pointwise."


def _alike(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape


def _effdet_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of effdet's, with the averaged weights where it has both."""
    try:
        held: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file.") from None
    except Exception as error:  # a damaged or unsafe file can fail in any of torch's, zip's or pickle's ways
        raise InputError(
            f"{path}: cannot be read as weights alone ({type(error).__name__}). It is damaged, or holds more than tensors; "
            "then save the bare state dict with torch.save(model.state_dict(), ...) where it was made."
        ) from None
    for key in ("state_dict_ema", "state_dict"):
        if isinstance(held, Mapping) and key in held:
            held = held[key]
            break
    if not isinstance(held, Mapping) or not all(isinstance(t, Tensor) for t in held.values()):
        raise InputError(f"{path}: holds no state dict. Expected a checkpoint of effdet's.")
    bare = {re.sub(r"^(module\.)?(model\.)?", "", key): t for key, t in held.items()}  # as its training benches save it
    return {key: t for key, t in bare.items() if key != "anchors.boxes"}


def from_effdet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of our EfficientDet from that of effdet 0.4.1's `tf_efficientdet` of the same name.

    Raises:
        InputError: a name in it is none of effdet's.
    """
    return {_our_name(name): tensor for name, tensor in state.items()}


_CONVS = (("conv_dw", "depthwise"), ("conv_pw", "pointwise"))  # effdet's name, ours
_NODES = 4  # of each pass over five levels: effdet numbers those of the top-down and then of the bottom-up pass
# The projection before a node: effdet numbers it by the level that it takes, and repeats it for each pass.
_PROJECTIONS = {(1, 2): "down_project.2", (2, 1): "down_project.1", (3, 0): "down_project.0"}


def _our_name(name: str) -> str:
    """Our name of the tensor that effdet calls `name`."""
    if name.startswith("backbone."):
        return name
    for theirs, ours in _CONVS:
        name = name.replace(theirs, ours)
    if match := re.fullmatch(r"fpn\.resample\.3\.conv\.(conv|bn)\.(\w+)", name):
        return f"neck.extra.{_part(match[1])}.{match[2]}"
    if match := re.fullmatch(r"fpn\.cell\.(\d)\.fnode\.(\d)\.(.+)", name):
        layer, node, rest = f"neck.layers.{match[1]}", int(match[2]), match[3]
        own = f"{layer}.down.{node}" if node < _NODES else f"{layer}.up.{node - _NODES}"
        if inner := re.fullmatch(r"combine\.resample\.(\d)\.conv\.(conv|bn)\.(\w+)", rest):
            return f"{layer}.{_PROJECTIONS[node, int(inner[1])]}.{_part(inner[2])}.{inner[3]}"
        if rest == "combine.edge_weights":
            return f"{own}.sum.weight"
        if inner := re.fullmatch(r"after_combine\.conv\.bn\.(\w+)", rest):
            return f"{own}.norm.{inner[1]}"
        if inner := re.fullmatch(r"after_combine\.conv\.((?:depthwise|pointwise)\.\w+)", rest):
            return f"{own}.conv.{inner[1]}"
    if match := re.fullmatch(r"(class|box)_net\.(?:conv_rep\.(\d)|predict)\.(\w+\.\w+)", name):
        return f"{match[1]}_head.{f'convs.{match[2]}' if match[2] else 'predict'}.{match[3]}"
    if match := re.fullmatch(r"(class|box)_net\.bn_rep\.(\d)\.(\d)\.bn\.(\w+)", name):
        return f"{match[1]}_head.norms.{match[2]}.{match[3]}.{match[4]}"
    raise InputError(
        f"{name!r} is no tensor of effdet's EfficientDet with five levels; expected a state dict of effdet 0.4.1."
    )


def _part(theirs: str) -> int:
    """The place, in one of our projections, of what effdet calls "conv" or "bn"."""
    return {"conv": 0, "bn": 1}[theirs]
