"""Any convolutional timm network as a backbone that gives the levels P3, P4 and P5."""

from __future__ import annotations

import difflib

import timm
import torch
from timm.models import FeatureListNet
from torch import Tensor, nn

from foldfuse.errors import InputError
from foldfuse.models.cpu.fast_layers import use_fast_cpu_layers
from foldfuse.models.cpu.fold_batch_norm import Unregistered, fold_batch_norms
from foldfuse.models.pretrained.imagenet import hub_weights, load_backbone
from foldfuse.models.pretrained.state_dicts import require_finite

LEVEL_STRIDES = (8, 16, 32)


class TimmBackbone(nn.Module):
    """Any convolutional timm network: (B, 3, H, W) in 0..1 -> [(B, C_i, H / s, W / s)] for s in 8, 16, 32.

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
        require_timm_model(name)
        try:
            net = timm.create_model(name, features_only=True)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise InputError(f"timm:{name}: gives no features of its stages ({error}). Take another.") from None
        if not isinstance(net, FeatureListNet) and not hasattr(net, "conv_stem"):
            raise InputError(
                f"timm:{name}: is no stack of convolutional stages. Take another, or a ViT or Swin such as swin_tiny."
            )
        if pretrained and hasattr(net, "conv_stem"):
            load_backbone(net, name)
        elif pretrained:  # timm gives some stages flat names, and loads weights before it does so
            weights = {"state_dict": hub_weights(name)}
            require_finite(weights["state_dict"], source=f"the ImageNet weights of {name}")
            net = timm.create_model(name, features_only=True, pretrained=True, pretrained_cfg_overlay=weights)
        use_fast_cpu_layers(net)
        self.parts, channels = _cut(net, cut)
        self.ends = {i: stride for i, (stride, _) in channels.items()}  # index of a part: stride of its output
        missing = set(LEVEL_STRIDES) - set(self.ends.values())
        if missing:
            raise InputError(
                f"timm:{name}: has no features of stride {min(missing)}; all of {LEVEL_STRIDES} are needed."
            )
        self.channels = tuple(next(c for s, c in channels.values() if s == level) for level in LEVEL_STRIDES)
        config = timm.get_pretrained_cfg(name)
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
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


def _cut(net: nn.Module, cut: int) -> tuple[nn.ModuleList, dict[int, tuple[int, int]]]:
    """The parts of a timm network in order, and {index: (stride, channels)} of the last part of each stride.

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
            x = parts[name](x)
            if i and 64 // x.shape[-1] == stride:
                ends.pop(i - 1)
            stride = 64 // x.shape[-1]
            ends[i] = (stride, x.shape[1])
    return nn.ModuleList(parts[name] for name in kept), ends


def require_timm_model(name: str) -> None:
    """Raise InputError if timm has no network called `name`."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else " timm.list_models() names all."
        raise InputError(f"timm has no network called {name!r}.{hint}")
