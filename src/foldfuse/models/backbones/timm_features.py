"""Any other timm network as a backbone: transformers, and networks whose stages are no plain stack.

timm's own feature extractors give the levels (`features_only`), so the network runs as timm runs it. A network with levels of
stride 8, 16 and 32 gives these three; a plain ViT, whose blocks all have one stride, gives its last map as P4. A plain ViT with
patches of another size than 16 px is made with patches of 16 px: timm resamples the kernel of its weights (Beyer et al.,
"FlexiViT", arXiv:2212.08013, section 3.4).

Networks that take one image size alone are refused, since images of contests have any shape.

Shapes: B images, H and W height and width, C_i channels of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foldfuse.errors import InputError
from foldfuse.models.backbones.timm_cnn import LEVEL_STRIDES, create_features, normalization
from foldfuse.models.pretrained.imagenet import load_renamed, timm_weights

PATCH = 16  # px, the stride of the one level of a plain ViT
_PROBE = (256, 352)  # height and width, not those that any network was made for


class TimmFeatures(nn.Module):
    """A timm network behind timm's feature extractor: (B, 3, H, W) in 0..1 -> levels P3, P4, P5, or P4 alone.

    Args:
        name: timm's.
        pretrained: begin with ImageNet weights.

    Raises:
        InputError: timm has no such network, it has no such levels, it does not take images of any shape, or its weights are
            not available.
    """

    mean: Tensor
    std: Tensor
    stride = 32
    has_odd_maps = True  # perhaps; see `fold_batch_norms`

    def __init__(self, name: str, *, pretrained: bool) -> None:
        super().__init__()
        self.name = name
        net, options = create_features(name, any_size=True)
        strides = list(net.feature_info.reduction())
        if len(set(strides)) == 1 and strides[0] != PATCH:
            net, options = create_features(name, any_size=True, patch_size=PATCH)
            strides = list(net.feature_info.reduction())
        if set(strides) == {PATCH}:
            self.picks = [len(strides) - 1]
        elif set(LEVEL_STRIDES) <= set(strides):
            self.picks = [max(i for i, s in enumerate(strides) if s == level) for level in LEVEL_STRIDES]
        else:
            raise InputError(
                f"timm:{name}: has features of stride {', '.join(map(str, sorted(set(strides))))}; a detector needs all of "
                f"{LEVEL_STRIDES}, or {PATCH} alone. Take another network."
            )
        channels = net.feature_info.channels()
        self.channels = tuple(channels[i] for i in self.picks)
        self.stages = [(row["reduction"], row["module"]) for row in net.feature_info.info]
        if pretrained:
            load_renamed(net, timm_weights(name, **options), source=f"the ImageNet weights of {name}")
        self.net = net
        self._channels_last = _probe(net, name, self.picks, self.channels)
        mean, std = normalization(name)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in 0..1 -> the levels, finest first."""
        outputs = self.net((images - self.mean) / self.std)
        levels = [outputs[i] for i in self.picks]
        return [x.permute(0, 3, 1, 2) for x in levels] if self._channels_last else levels

    def freeze(self, stages: int) -> None:
        """Training mode, except that the part up to stride 2^stages is frozen; of a plain ViT, quarters of its blocks."""
        self.train().requires_grad_(True)
        if len(self.channels) == 1:
            frozen = self.stages[: stages * len(self.stages) // 4]
        else:
            frozen = [row for row in self.stages if stages and row[0] <= 2**stages]
        names = [name for name, _ in self.net.named_parameters()]
        ends = [end for _, part in frozen if (end := _end_of(self.net, part)) is not None]
        if frozen and not ends:
            raise InputError(
                f"timm:{self.name}: its first stages cannot be told apart. Train all: --set frozen_stages=0."
            )
        fixed = set(names[: max(ends, default=0)])
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(name not in fixed)
        for name, module in self.net.named_modules():
            own = {f"{name}.{key}" if name else key for key, _ in module.named_parameters()}
            if own and own <= fixed:
                module.eval()


def _end_of(net: nn.Module, part: str) -> int | None:
    """The number of parameters up to the end of a part that `feature_info` names; None where there is no such part.

    A feature extractor changes some dots of the names to underscores.
    """
    count, end, wanted = 0, None, part.replace("_", ".")
    for name, module in net.named_modules():
        count += sum(1 for _ in module.parameters(recurse=False))
        if f"{name.removeprefix('model.').removeprefix('body.').replace('_', '.')}.".startswith(f"{wanted}."):
            end = count
    return end


@torch.no_grad()
def _probe(net: nn.Module, name: str, picks: Sequence[int], channels: Sequence[int]) -> bool:
    """Whether the levels of `net` are (B, H, W, C) and not (B, C, H, W).

    Raises:
        InputError: the network does not take such a shape, or its levels are no maps.
    """
    net.eval()
    strides = [PATCH] if len(picks) == 1 else list(LEVEL_STRIDES)
    height, width = _PROBE
    outputs: Any
    try:
        outputs = net(torch.zeros(1, 3, height, width))
    except Exception:  # each network has its own way to refuse a size
        raise InputError(
            f"timm:{name}: does not take images of any shape, as a detector must. Take another network, such as a ResNet, a "
            "ConvNeXt, a Swin or a plain ViT."
        ) from None
    found = [tuple(outputs[i].shape) if isinstance(outputs[i], Tensor) else () for i in picks]
    for last in (False, True):
        maps = [(height // s, width // s) for s in strides]
        want = [(1, *m, c) if last else (1, c, *m) for m, c in zip(maps, channels, strict=True)]
        if found == want:
            return last
    raise InputError(f"timm:{name}: its features are no maps of stride {', '.join(map(str, strides))}. Take another.")
