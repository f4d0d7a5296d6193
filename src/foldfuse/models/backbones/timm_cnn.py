"""Any timm network that is a stack of convolutional stages as a backbone that gives the levels P3, P4 and P5.

The other networks of timm are in `timm_features`.
"""

from __future__ import annotations

import difflib
import logging
from typing import Any

import timm
import torch
from timm.models import FeatureListNet
from torch import Tensor, nn

from foldfuse.errors import InputError
from foldfuse.models.cpu.fast_layers import use_fast_cpu_layers
from foldfuse.models.cpu.fold_batch_norm import Unregistered, fold_batch_norms
from foldfuse.models.pretrained.imagenet import load_backbone, load_renamed, timm_weights
from foldfuse.models.pretrained.timm_source import timm_config

log = logging.getLogger(__name__)

LEVEL_STRIDES = (8, 16, 32)
# Keywords of timm with which a network takes any image size; each network knows some of them.
_ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True, "strict_img_size": False},
    {"dynamic_img_size": True},
    {"strict_img_size": False},
    {},
)


class NotInParts(InputError):
    """A network is no stack of convolutional stages that run one after the other."""


class TimmBackbone(nn.Module):
    """A timm network of convolutional stages: (B, 3, H, W) in 0..1 -> [(B, C_i, H / s, W / s)] for s in 8, 16, 32.

    Args:
        name: timm's.
        pretrained: begin with ImageNet weights.
        cut: stages left out at the end; the last stage that stays must have stride 32.

    Raises:
        InputError: timm has no such network, it has no such levels, or its weights are not available.
    """

    mean: Tensor
    std: Tensor
    stride = 32

    def __init__(self, name: str, *, pretrained: bool, cut: int = 0) -> None:
        super().__init__()
        net, _ = create_features(name)
        found = None
        if isinstance(net, FeatureListNet) or hasattr(net, "conv_stem"):
            use_fast_cpu_layers(net)
            found = _cut(net, cut)
        if found is None or not set(LEVEL_STRIDES) <= {stride for stride, _ in found[1].values()}:
            raise NotInParts(f"timm:{name}: is no stack of convolutional stages with features of stride 8, 16 and 32.")
        if pretrained and not isinstance(net, FeatureListNet):
            load_backbone(net, name)
        elif pretrained:
            load_renamed(net, timm_weights(name), source=f"the ImageNet weights of {name}")
        self.parts, channels = found
        self.ends = {i: stride for i, (stride, _) in channels.items()}  # index of a part: stride of its output
        self.channels = tuple(next(c for s, c in channels.values() if s == level) for level in LEVEL_STRIDES)
        mean, std = normalization(name)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self._frozen: Unregistered | None = None
        self._num_frozen = 0

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in 0..1 -> levels P3, P4, P5."""
        x, levels = (images - self.mean) / self.std, []
        if self._frozen is not None:
            with torch.no_grad():
                x = self._frozen(x)
        for i, part in enumerate(self.parts):
            if i >= self._num_frozen:
                x = part(x)
            if self.ends.get(i) in LEVEL_STRIDES and i >= self._num_frozen - 1:
                levels.append(x)
        return levels

    def freeze(self, stages: int) -> None:
        """Training mode, except that the parts up to stride 2^stages (0..3) are frozen and run as one folded copy."""
        self.train().requires_grad_(True)
        within = [i for i, stride in self.ends.items() if stages and stride <= 2**stages]
        self._frozen, self._num_frozen = None, 1 + max(within, default=-1)
        if not within:
            return
        frozen = self.parts[: self._num_frozen]
        frozen.eval().requires_grad_(False)
        self._frozen = Unregistered(fold_batch_norms(nn.Sequential(*frozen)))


def _cut(net: nn.Module, cut: int) -> tuple[nn.ModuleList, dict[int, tuple[int, int]]] | None:
    """The parts of a timm network in order, and {index: (stride, channels)} of the last part of each stride.

    None where the parts do not run one after the other on maps (B, C, H, W).

    Args:
        net: a network made with features_only.
        cut: parts left out at the end.
    """
    parts = dict(net.named_children())
    if "blocks" in parts:
        blocks = parts.pop("blocks")
        assert isinstance(blocks, nn.Sequential)
        parts |= {f"blocks.{i}": block for i, block in enumerate(blocks)}
    kept = list(parts)[: len(parts) - cut]
    ends: dict[int, tuple[int, int]] = {}
    stride, x = 0, torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        net.eval()
        for i, name in enumerate(kept):
            try:
                x = parts[name](x)
            except Exception:  # whatever the cause, this network runs in another way
                return None
            if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[-2] != x.shape[-1]:
                return None
            if i and 64 // x.shape[-1] == stride:
                ends.pop(i - 1)
            stride = 64 // x.shape[-1]
            ends[i] = (stride, x.shape[1])
    return nn.ModuleList(parts[name] for name in kept), ends


def create_features(name: str, *, any_size: bool = False, **options: Any) -> tuple[Any, dict[str, Any]]:
    """timm's feature extractor of the network `name`, and the keywords that it was made with.

    Args:
        name: timm's, perhaps with a tag of weights.
        any_size: make it for images of any size, where timm can.
        options: keywords of timm.

    Raises:
        InputError: timm has no such network, or the network gives no features.
    """
    require_timm_model(name)
    timm_config(name)  # an unknown tag shows here
    for keywords in _ANY_SIZE if any_size else ({},):
        try:
            net = timm.create_model(name, features_only=True, **keywords, **options)
        except TypeError as error:  # a keyword that the network does not know
            log.debug("timm:%s: %s", name, error)
            continue
        except Exception as error:  # each network has its own way to say that it gives no features
            log.debug("timm:%s: %s", name, error)
            break
        if not hasattr(net, "feature_info"):
            break
        return net, keywords | options
    raise InputError(
        f"timm:{name}: timm gives no features of its stages, which a detector needs. Take another network, such as a ResNet, a "
        "ConvNeXt, a Swin or a plain ViT."
    )


def normalization(name: str) -> tuple[Tensor, Tensor]:
    """(1, 3, 1, 1) mean and standard deviation of the images that the timm network `name` takes, of channels in 0..1."""
    config = timm_config(name)
    return torch.tensor(config.mean).view(1, 3, 1, 1), torch.tensor(config.std).view(1, 3, 1, 1)


def require_timm_model(name: str) -> None:
    """Raise InputError if timm has no network called `name`."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else " timm.list_models() names all."
        raise InputError(f"timm has no network called {name!r}.{hint}")
