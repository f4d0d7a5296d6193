"""Any convolutional network of timm's as a backbone that gives the levels P3, P4 and P5."""

from __future__ import annotations

import difflib

import timm
import torch
from timm.models import FeatureListNet
from torch import Tensor, nn

from foldfuse.errors import InputError
from foldfuse.models.cpu.fast_layers import quicken
from foldfuse.models.cpu.fold_batch_norm import fold_batch_norms
from foldfuse.models.pretrained.imagenet import load_backbone

LEVELS = (8, 16, 32)  # strides


class Hidden:
    """A module that its owner uses but does not own: it is in no state dict, and `train()` does not reach it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = self.module(x)
        return found


class Convolutional(nn.Module):
    """Any of timm's convolutional networks: (B, 3, H, W) in 0..1 -> [(B, C_i, H / s, W / s)] for s in 8, 16, 32.

    Args:
        name: timm's.
        pretrained: begin with ImageNet weights.
        cut: stages left out at the end; the last that stays must have stride 32.

    Raises:
        InputError: timm has no such network, it has no such levels, or its weights are not at hand.
    """

    mean: Tensor
    std: Tensor
    stride = 32

    def __init__(self, name: str, *, pretrained: bool, cut: int = 0) -> None:
        super().__init__()
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else " timm.list_models() names all."
            raise InputError(f"timm has no network called {name!r}.{hint}")
        try:
            net = timm.create_model(name, features_only=True)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise InputError(f"timm:{name}: gives no features of its stages ({error}). Take another.") from None
        if not isinstance(net, FeatureListNet) and not hasattr(net, "conv_stem"):
            raise InputError(
                f"timm:{name}: is no stack of convolutional stages. Take another, or a ViT or Swin such as swin_tiny."
            )
        if pretrained:
            _load(net, name)
        quicken(net)
        self.parts, channels = _cut(net, cut)
        self.ends = {i: stride for i, (stride, _) in channels.items()}  # position of a part: stride of what it gives
        missing = set(LEVELS) - set(self.ends.values())
        if missing:
            raise InputError(f"timm:{name}: has no features of stride {min(missing)}; all of {LEVELS} are needed.")
        self.channels = tuple(next(c for s, c in channels.values() if s == level) for level in LEVELS)
        told = timm.get_pretrained_cfg(name)
        self.register_buffer("mean", torch.tensor(told.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(told.std).view(1, 3, 1, 1), persistent=False)
        self._frozen: Hidden | None = None
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
            if self.ends.get(i) in LEVELS and i >= self._num_frozen - 1:
                levels.append(x)
        return levels

    def freeze(self, stages: int) -> None:
        """Training mode, but for the parts up to the features of stride 2^stages (0..3), which run as one folded copy."""
        self.train().requires_grad_(True)
        within = [i for i, stride in self.ends.items() if stages and stride <= 2**stages]
        self._frozen, self._num_frozen = None, 1 + max(within, default=-1)
        if not within:
            return
        frozen = self.parts[: self._num_frozen]
        frozen.eval().requires_grad_(False)
        self._frozen = Hidden(fold_batch_norms(nn.Sequential(*frozen)))


def _cut(net: nn.Module, cut: int) -> tuple[nn.ModuleList, dict[int, tuple[int, int]]]:
    """A network of timm's as parts to be run one after the other; {position: (stride, channels)} of the last of each stride.

    Args:
        net: made with features_only.
        cut: parts left out at the end.
    """
    parts = dict(net.named_children())
    if "blocks" in parts:
        blocks = parts.pop("blocks")
        assert isinstance(blocks, nn.Sequential)
        parts |= {f"blocks.{i}": block for i, block in enumerate(blocks)}
    kept = list(parts)[: len(parts) - cut]
    found: dict[int, tuple[int, int]] = {}
    stride, x = 0, torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        net.eval()
        for i, name in enumerate(kept):
            x = parts[name](x)
            if i and 64 // x.shape[-1] == stride:
                found.pop(i - 1)
            stride = 64 // x.shape[-1]
            found[i] = (stride, x.shape[1])
    return nn.ModuleList(parts[name] for name in kept), found


def _load(net: nn.Module, name: str) -> None:
    """ImageNet weights for a network made with features_only, some of whose parts timm has given flat names."""
    if hasattr(net, "conv_stem"):
        load_backbone(net, name)
        return
    whole = timm.create_model(name)
    load_backbone(whole, name)
    weights = whole.state_dict()
    for key in net.state_dict():
        first, _, rest = key.partition(".")
        if key not in weights:  # stages_0.x was stages.0.x
            weights[key] = weights[f"{'.'.join(first.rsplit('_', 1))}.{rest}"]
    net.load_state_dict({key: weights[key] for key in net.state_dict()})
