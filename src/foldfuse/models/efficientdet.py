"""EfficientDet at any image size that is a multiple of its stride.

Source: Tan, Pang & Le, "EfficientDet", arXiv:1911.09070. The network (backbone, BiFPN, shared heads with a batch norm per
level) was checked against effdet 0.4.1 (Apache-2.0): the same outputs with the same weights.
Where we differ: what it learns from, see `aligned`.

Shapes: B images, K classes, A anchors of all levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import timm
import torch
from torch import Tensor, nn

from foldfuse.errors import InputError
from foldfuse.models import anchors as A
from foldfuse.models.aligned import PRIOR, Aligned, Raw
from foldfuse.models.bifpn import BiFPN, SeparableConv, batch_norm
from foldfuse.models.folding import folded
from foldfuse.models.quicker import ReLU6, quicken


class Head(nn.Module):
    """Class or box head: convolutions shared by all levels, a batch norm of its own for each (section 4.2)."""

    def __init__(
        self, width: int, *, repeats: int, outputs: int, num_levels: int, act: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.convs = nn.ModuleList(SeparableConv(width, width) for _ in range(repeats))
        self.norms = nn.ModuleList(nn.ModuleList(batch_norm(width) for _ in range(num_levels)) for _ in range(repeats))
        self.act = act()
        self.predict = SeparableConv(width, A.PER_CELL * outputs)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """(B, width, H_i, W_i) of each level -> (B, A, outputs)."""
        found = []
        for i, x in enumerate(levels):
            for conv, norms in zip(self.convs, self.norms, strict=True):
                assert isinstance(norms, nn.ModuleList)
                x = self.act(norms[i](conv(x)))
            found.append(self.predict(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.outputs))
        return torch.cat(found, 1)


class EfficientDet(Aligned, nn.Module):
    """Backbone -> BiFPN -> class and box heads."""

    mean: Tensor
    std: Tensor

    per_cell = A.PER_CELL
    stride = 32  # image height and width must be multiples of this

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "tf_efficientnet_lite0",
        width: int = 64,
        repeats: int = 3,
        head_repeats: int = 3,
        act: Callable[[], nn.Module] = ReLU6,
        weighted: bool = False,
        anchor_scale: float = 3.0,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        drop_path: float = 0.0,
        image_size: int = 320,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.image_size = image_size  # pixels, the side that it was published with
        self.anchor_scale = anchor_scale
        self.backbone = timm.create_model(backbone, features_only=True, out_indices=(2, 3, 4), drop_path_rate=drop_path)
        self.neck = BiFPN(
            self.backbone.feature_info.channels(), width=width, repeats=repeats, act=act, weighted=weighted
        )
        self.class_head = Head(width, repeats=head_repeats, outputs=num_classes, num_levels=5, act=act)
        self.box_head = Head(width, repeats=head_repeats, outputs=4, num_levels=5, act=act)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self._initialise()
        quicken(self.backbone)
        self._level_stages = [int(f["module"].split(".")[1]) for f in self.backbone.feature_info.get_dicts()]
        self._frozen: _Outside | None = None
        self._num_frozen = 0

    def _initialise(self) -> None:
        for part in (self.neck, self.class_head, self.box_head):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    fan_in = module.weight[0].numel()
                    nn.init.normal_(module.weight, std=fan_in**-0.5)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        bias = self.class_head.predict.pointwise.bias
        assert bias is not None
        nn.init.constant_(bias, -math.log((1 - PRIOR) / PRIOR))
        for head in (self.class_head, self.box_head):  # start from the anchors as they are, and from the prior
            nn.init.normal_(head.predict.pointwise.weight, std=0.01)

    def forward(self, images: Tensor) -> Raw:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of `stride` -> Raw.

        Raises:
            InputError: H or W is no multiple of `stride`.
        """
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise InputError(
                f"the image is {height} x {width} pixels (height x width); both must be multiples of {self.stride}."
            )
        levels = self.neck(self._features((images - self.mean) / self.std))
        sizes = tuple((x.shape[-2], x.shape[-1]) for x in levels)  # no int(): it would fix the size of an export
        return Raw(self.class_head(levels), self.box_head(levels), sizes, (height, width))

    def _features(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> the backbone's levels P3, P4, P5."""
        if self._frozen is None:
            return list(self.backbone(x))
        levels = []
        with torch.no_grad():
            x = self._frozen(x)
        for i, stage in enumerate(self.backbone.blocks):
            if i >= self._num_frozen:
                x = stage(x)
            if i in self._level_stages and i >= self._num_frozen - 1:
                levels.append(x)
        return levels

    def freeze(self, stages: int) -> None:
        """Put the model into training mode, but for the backbone's stem and first `stages` stages (0..3).

        Those have the most pixels and the most general features. They are not trained: they run as one folded copy,
        without gradients. `stages` = 0 trains everything.
        """
        self.train()
        self._frozen, self._num_frozen = None, stages
        self.backbone.requires_grad_(not stages)
        if not stages:
            return
        assert stages <= self._level_stages[0] + 1, "the levels after the first must come from stages that are trained"
        stem, blocks = [self.backbone.conv_stem, self.backbone.bn1], list(self.backbone.blocks)
        for part in [*stem, *blocks[:stages]]:
            part.eval()
        for stage in blocks[stages:]:
            stage.requires_grad_(True)
        self._frozen = _Outside(folded(nn.Sequential(*stem, *blocks[:stages])))

    def places(self, raw: Raw) -> Tensor:
        """(A, 4) cxcywh of the anchors in input pixels."""
        return A.anchors(raw.sizes, raw.image, self.anchor_scale).to(raw.codes.device)

    def boxes(self, codes: Tensor, places: Tensor) -> Tensor:
        """(..., 4) codes and (..., 4) anchors -> (..., 4) xyxy in input pixels."""
        return A.decode(codes, places)


class _Outside:
    """A module that its owner uses but does not own: it is in no state dict, and `train()` does not reach it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        return self.module(x)
