"""The heads of all detectors: anchor-free, EfficientDet's, YOLOv5's. A head holds its loss and its decoding.

Sources: the anchor-free head predicts distances to a box's four sides as Tian et al., "FCOS", arXiv:1904.01355, section 3.1,
and shares convolutions over levels, with a batch norm for each, as Lyu et al., "RTMDet", arXiv:2212.07784, section 3.3.
EfficientDet's head: Tan, Pang & Le, arXiv:1911.09070, sections 4.1 and 4.2; its modules have the tensor names of effdet 0.4.1.
YOLOv5's head is in `yolov5_head`.

Shapes: B images, K classes, A priors of all levels.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from foldfuse.models.cpu.fast_layers import SiLU
from foldfuse.models.detection import anchors as A
from foldfuse.models.detection.bifpn import SeparableConv, batch_norm, convs_of, init_convs
from foldfuse.models.detection.dense_prediction import PRIOR, DenseOutput, DensePrediction
from foldfuse.models.pretrained.class_layer import ClassLayer

MAX_LOG_DISTANCE = 4.0  # a side is at most e^4 = 55 units from the centre: keeps exp finite
PRIOR_BIAS = -math.log((1 - PRIOR) / PRIOR)


class Tower(nn.Module):
    """Convolutions shared by all levels, each followed by a batch norm per level and SiLU."""

    shared_convs = ("convs", "norms")  # see `fold_batch_norms`

    def __init__(self, width: int, *, repeats: int, num_levels: int, separable: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            SeparableConv(width, width) if separable else nn.Conv2d(width, width, 3, padding=1, bias=False)
            for _ in range(repeats)
        )
        self.norms = nn.ModuleList(nn.ModuleList(batch_norm(width) for _ in range(num_levels)) for _ in range(repeats))
        self.act = nn.SiLU()
        for conv in convs_of(self):
            nn.init.normal_(conv.weight, std=conv.weight[0].numel() ** -0.5)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """(B, C, H, W) of a level -> (B, C, H, W)."""
        for conv, norms in zip(self.convs, self.norms, strict=True):
            assert isinstance(norms, nn.ModuleList)
            x = self.act(norms[level](conv(x)))
        return x


class DenseHead(DensePrediction, nn.Module):
    """Anchor-free head: two towers, one for classes and one for boxes, each followed by a 1x1 convolution.

    Args:
        num_classes: K.
        width: channels of the levels.
        num_levels: the number of levels, from stride 8 on.
        repeats: convolutions of a tower.
        separable: depthwise and pointwise convolutions instead of plain ones.
        anchor_scale: side of an untrained box, in strides.
    """

    per_cell = 1

    def __init__(
        self,
        num_classes: int,
        *,
        width: int,
        num_levels: int = 3,
        repeats: int = 2,
        separable: bool = True,
        anchor_scale: float = 3.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.anchor_scale = num_classes, anchor_scale
        self.class_tower, self.box_tower = (
            Tower(width, repeats=repeats, num_levels=num_levels, separable=separable) for _ in range(2)
        )
        self.class_head, self.box_head = nn.Conv2d(width, num_classes, 1), nn.Conv2d(width, 4, 1)
        for conv, bias in ((self.class_head, PRIOR_BIAS), (self.box_head, 0.0)):
            nn.init.normal_(conv.weight, std=0.01)
            assert conv.bias is not None
            nn.init.constant_(conv.bias, bias)

    def forward(self, levels: Sequence[Tensor], image: tuple[int, int]) -> DenseOutput:
        """(B, width, H_i, W_i) of each level, and (height, width) of the network's input -> DenseOutput."""
        logits, box_deltas = [], []
        for i, x in enumerate(levels):
            logits.append(self.class_head(self.class_tower(x, i)).permute(0, 2, 3, 1).flatten(1, 2))
            box_deltas.append(self.box_head(self.box_tower(x, i)).permute(0, 2, 3, 1).flatten(1, 2))
        return DenseOutput(torch.cat(logits, 1), torch.cat(box_deltas, 1), sizes_of(levels), image)

    def priors(self, raw: DenseOutput) -> Tensor:
        """(A, 4): x and y of each cell's centre, and twice the distance from it to a side of its untrained box, in pixels."""
        return _cells(raw.sizes, raw.image, self.anchor_scale).to(raw.box_deltas.device)

    def decode_boxes(self, box_deltas: Tensor, priors: Tensor) -> Tensor:
        """(..., 4) log distances to the left, upper, right and lower side, (..., 4) priors -> (..., 4) xyxy in input pixels."""
        distances = box_deltas.clamp(max=MAX_LOG_DISTANCE).exp() * priors[..., 2:].repeat_interleave(2, -1)
        return torch.cat([priors[..., :2] - distances[..., :2], priors[..., :2] + distances[..., 2:]], -1)

    def class_layers(self) -> list[ClassLayer]:
        """The layer whose rows belong to classes."""
        return [ClassLayer("class_head")]


@lru_cache(maxsize=32)
def _cells(sizes: tuple[tuple[int, int], ...], image: tuple[int, int], scale: float) -> Tensor:
    """(A, 4) float32, see `DenseHead.priors`; levels from stride 8 on, finest first."""
    levels = []
    for i, size in enumerate(sizes):
        centres = A.cell_centres(size, image).flatten(0, 1)  # (H W, 2)
        levels.append(torch.cat([centres, torch.full_like(centres, 8.0 * 2**i * scale / 2)], -1))
    return torch.cat(levels)


def sizes_of(levels: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
    """(height, width) of each level."""
    return tuple((x.shape[-2], x.shape[-1]) for x in levels)  # no int(): it would fix the size of an export


class AnchorPrediction(DensePrediction):
    """Base of the modules with EfficientDet's nine anchors per cell.

    Attributes:
        anchor_scale: side of a level's smallest anchor, in cells.
        nominal_sides: the sides of anchors follow the nominal strides, as in runs of earlier versions; see `anchors`.
    """

    per_cell = A.PER_CELL
    anchor_scale: float
    nominal_sides: bool = False

    def priors(self, raw: DenseOutput) -> Tensor:
        """(A, 4) cxcywh of the anchors in input pixels."""
        anchors = A.make_anchors(raw.sizes, raw.image, self.anchor_scale, nominal=self.nominal_sides)
        return anchors.to(raw.box_deltas.device)

    def decode_boxes(self, box_deltas: Tensor, priors: Tensor) -> Tensor:
        """(..., 4) box deltas and (..., 4) anchors -> (..., 4) xyxy in input pixels."""
        return A.decode_boxes(box_deltas, priors)

    def class_layers(self) -> list[ClassLayer]:
        """The layer whose rows belong to classes."""
        return [ClassLayer("class_net.predict.conv_pw", groups=self.per_cell)]


class HeadNet(nn.Module):
    """EfficientDet's class or box head: convolutions shared by all levels, with a batch norm per level (section 4.2)."""

    shared_convs = ("conv_rep", "bn_rep")  # see `fold_batch_norms`

    def __init__(
        self, width: int, *, repeats: int, outputs: int, num_levels: int, act: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.conv_rep = nn.ModuleList(SeparableConv(width, width) for _ in range(repeats))
        self.bn_rep = nn.ModuleList(
            nn.ModuleList(nn.Sequential(OrderedDict(bn=batch_norm(width))) for _ in range(num_levels))
            for _ in range(repeats)
        )
        self.act = act()
        self.predict = SeparableConv(width, A.PER_CELL * outputs)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """(B, width, H_i, W_i) of each level -> (B, A, outputs)."""
        outputs = []
        for i, x in enumerate(levels):
            for conv, norms in zip(self.conv_rep, self.bn_rep, strict=True):
                assert isinstance(norms, nn.ModuleList)
                x = self.act(norms[i](conv(x)))
            outputs.append(self.predict(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.outputs))
        return torch.cat(outputs, 1)


def init_head_nets(class_net: HeadNet, box_net: HeadNet) -> None:
    """Draw the weights of both heads: untrained boxes are the anchors themselves, untrained scores are `PRIOR`."""
    init_convs(convs_of(class_net) + convs_of(box_net))
    bias = class_net.predict.conv_pw.bias
    assert bias is not None
    nn.init.constant_(bias, PRIOR_BIAS)
    for net in (class_net, box_net):
        nn.init.normal_(net.predict.conv_pw.weight, std=0.01)


class AnchorHead(AnchorPrediction, nn.Module):
    """EfficientDet's class and box heads, for the levels of any neck.

    Args:
        num_classes: K.
        width: channels of the levels.
        num_levels: the number of levels, from stride 8 on.
        anchor_scale: side of a level's smallest anchor, in strides.
    """

    def __init__(self, num_classes: int, *, width: int, num_levels: int = 3, anchor_scale: float = 3.0) -> None:
        super().__init__()
        self.num_classes, self.anchor_scale = num_classes, anchor_scale
        self.class_net, self.box_net = (
            HeadNet(width, repeats=3, outputs=outputs, num_levels=num_levels, act=SiLU) for outputs in (num_classes, 4)
        )
        init_head_nets(self.class_net, self.box_net)

    def forward(self, levels: Sequence[Tensor], image: tuple[int, int]) -> DenseOutput:
        """(B, width, H_i, W_i) of each level, and (height, width) of the network's input -> DenseOutput."""
        return DenseOutput(self.class_net(levels), self.box_net(levels), sizes_of(levels), image)
