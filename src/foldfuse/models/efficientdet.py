"""EfficientDet at any image size that is a multiple of its stride.

Source: Tan, Pang & Le, "EfficientDet", arXiv:1911.09070. The network (backbone, BiFPN, shared heads with a batch norm per
level) was checked against effdet 0.4.1 (Apache-2.0): the same outputs with the same weights.
Where we differ: what it learns from. The paper's IoU > 0.5 matching with focal and Huber loss wants hundreds of epochs;
we take task-aligned assignment (arXiv:2108.07755), the quality focal loss (arXiv:2006.04388, section 3) and GIoU
(arXiv:1902.09630), which learn a few hundred pictures within minutes.

Shapes: B images, K classes, A anchors of all levels, N objects, C candidates of an object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, generalized_box_iou_loss

from foldfuse.detections import Annotations, Detections
from foldfuse.errors import InputError
from foldfuse.models import anchors as A
from foldfuse.models.assign import task_aligned
from foldfuse.models.bifpn import BiFPN, SeparableConv, batch_norm
from foldfuse.models.folding import folded
from foldfuse.models.quicker import ReLU6, quicken

PRIOR = 0.01  # the score that an untrained class head gives (focal loss, section 4.1)


class Raw(NamedTuple):
    """What `forward` gives.

    Attributes:
        logits: (B, A, K).
        codes: (B, A, 4), see `anchors.decode`.
        sizes: (L, 2) int64, height and width of each level.
        image: (2,) int64, height and width of the network's input.
    """

    logits: Tensor
    codes: Tensor
    sizes: tuple[tuple[int, int], ...]
    image: tuple[int, int]


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


class EfficientDet(nn.Module):
    """Backbone -> BiFPN -> class and box heads."""

    mean: Tensor
    std: Tensor

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

    def _anchors(self, raw: Raw) -> Tensor:
        """(A, 4) cxcywh in input pixels."""
        return A.anchors(raw.sizes, raw.image, self.anchor_scale).to(raw.codes.device)

    def loss(self, raw: Raw, targets: Sequence[Annotations]) -> dict[str, Tensor]:
        """Terms to be summed, each a scalar: "class" (quality focal) and "box" (GIoU), per object found.

        Args:
            raw: of B images.
            targets: B Annotations in input pixels; crowd regions must have been left out.
        """
        device = raw.logits.device
        logits, codes = raw.logits.float(), raw.codes.float()
        counts = [len(t) for t in targets]
        want = torch.zeros_like(logits)
        if not sum(counts):
            return {"class": self._quality_focal(logits, want), "box": codes.sum() * 0}

        boxes = torch.cat([torch.from_numpy(t.boxes) for t in targets]).to(device, torch.float32)  # (N, 4)
        labels = torch.cat([torch.from_numpy(t.labels) for t in targets]).to(device)  # (N,)
        image = torch.arange(len(targets), device=device).repeat_interleave(torch.tensor(counts, device=device))
        anchor = self._anchors(raw)
        candidates, inside = A.nearest_cells((boxes[:, :2] + boxes[:, 2:]) / 2, raw.sizes, raw.image)  # (N, C)
        with torch.no_grad():
            boxes_there = A.decode(codes[image[:, None], candidates], anchor[candidates])  # (N, C, 4)
            scores_there = logits[image[:, None], candidates, labels[:, None]].sigmoid()
            overlap = _iou(boxes_there, boxes[:, None])
        found = task_aligned(scores_there, overlap, candidates, inside, image, num_anchors=len(anchor))
        want[found.image, found.anchor, labels[found.object]] = found.target
        there = A.decode(codes[found.image, found.anchor], anchor[found.anchor])
        box = (generalized_box_iou_loss(there, boxes[found.object]) * found.target).sum()
        total = found.target.sum().clamp(min=1)
        return {"class": self._quality_focal(logits, want) / total, "box": 2 * box / total}

    @staticmethod
    def _quality_focal(logits: Tensor, want: Tensor) -> Tensor:
        """Sum over (B, A, K) of |want - score|^2 * BCE: section 3 of arXiv:2006.04388 with beta = 2."""
        weight = (want - logits.sigmoid()).square()
        return (weight * F.binary_cross_entropy_with_logits(logits, want, reduction="none")).sum()

    @torch.no_grad()
    def decode(
        self, raw: Raw, *, floor: float = 0.005, nms_iou: float = 0.6, most: int = 100, before_nms: int = 1000
    ) -> list[Detections]:
        """B Detections in input pixels, cut to the input, best first.

        Args:
            raw: of B images.
            floor: scores below it are left out. Low ones matter: AP falls when they are cut.
            nms_iou: boxes of a class that overlap a better one by more than this are left out.
            most: boxes of an image at the most.
            before_nms: the best (anchor, class) pairs that non-maximum suppression looks at.
        """
        anchor = self._anchors(raw)
        height, width = raw.image
        limit = torch.tensor([width, height, width, height], device=anchor.device)
        found = []
        for logits, codes in zip(raw.logits.float(), raw.codes.float(), strict=True):
            scores, place = logits.sigmoid().flatten().topk(min(before_nms, logits.numel()))
            place = place[scores >= floor]
            scores = scores[scores >= floor]
            rows, labels = place // self.num_classes, place % self.num_classes
            boxes = torch.minimum(A.decode(codes[rows], anchor[rows]).clamp(min=0), limit)
            kept = batched_nms(boxes, scores, labels, nms_iou)[:most]
            found.append(Detections(boxes[kept].cpu().numpy(), scores[kept].cpu().numpy(), labels[kept].cpu().numpy()))
        return found


class _Outside:
    """A module that its owner uses but does not own: it is in no state dict, and `train()` does not reach it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        return self.module(x)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """(..., 4), (..., 4) xyxy -> (...) IoU of boxes in the same place."""
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    overlap = sides.prod(-1)
    areas = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(-1) + (b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1)
    return overlap / (areas - overlap).clamp(min=1e-9)
