"""A YOLOv5-style detector: CSP backbone, PAN neck, three anchors a cell at strides 8, 16 and 32.

Provenance: written from the papers named at each part and from published facts (widths, repeats, strides, the box code and the
matching rule, parameter counts). No code of the toolkit that first had this network was read, used or tested against.
Where we had no source: the terms' weights are ours; biases begin at a prior, as the focal loss's paper has them; with a single
class the objectness alone is the score.

Shapes: B images, K classes, A = 3 anchors in each cell of all levels, N objects, M matches of anchors with objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torchvision.ops import batched_nms, complete_box_iou_loss

from foldfuse.detections import Annotations, Detections
from foldfuse.errors import InputError
from foldfuse.models.backbones.csp import REPEATS, WIDTHS, Backbone
from foldfuse.models.backbones.transformer_layers import require_multiple
from foldfuse.models.detection.dense_head import PRIOR
from foldfuse.models.detection.pan import PAN

STRIDES = (8, 16, 32)
PER_CELL = 3
RATIO = 4.0  # an anchor answers for objects whose sides are within this factor of its own
BALANCE = (4.0, 1.0, 0.4)  # weight of each level's objectness
BOX, OBJECT, CLASS = 0.15, 1.0, 0.5  # weights of the terms
# Sides of the anchors in pixels until they are fitted to data: three doublings, each in three shapes.
START = [[[s * w, s * h] for w, h in ((1.0, 1.4), (1.7, 1.2), (1.6, 2.6))] for s in (12, 34, 100)]


class Raw(NamedTuple):
    """What `forward` gives.

    Attributes:
        codes: (B, A, 5 + K) x, y, width, height, objectness and classes before the sigmoid; level, y, x, anchor.
        sizes: (height, width) of each level.
        image: (height, width) of the network's input.
    """

    codes: Tensor
    sizes: tuple[tuple[int, int], ...]
    image: tuple[int, int]


class Head(nn.Module):
    """One 1x1 convolution a level. Its biases begin at a prior (arXiv:1708.02002, section 4.1): few objects, 1 of K classes."""

    def __init__(self, inputs: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.outputs = 5 + num_classes
        self.predict = nn.ModuleList(nn.Conv2d(width, PER_CELL * self.outputs, 1) for width in inputs)
        for conv in self.predict:
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            bias = conv.bias.detach().view(PER_CELL, -1)
            bias[:, 4] = -math.log((1 - PRIOR) / PRIOR)
            bias[:, 5:] = -math.log(max(num_classes - 1, 1))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """(B, C_i, H_i, W_i) of each level -> (B, A, 5 + K)."""
        found = [conv(x).permute(0, 2, 3, 1).flatten(1, 2) for conv, x in zip(self.predict, levels, strict=True)]
        return torch.cat(found, 1).view(len(levels[0]), -1, self.outputs)


class YOLOv5(nn.Module):
    """Backbone -> PAN -> head.

    Args:
        num_classes: K.
        depth, width: multiples of `REPEATS` and `WIDTHS`.
    """

    anchors: Tensor  # (3, 3, 2) widths and heights in pixels of each level's anchors

    stride = 32  # image height and width must be multiples of this
    image_size = 640

    def __init__(self, num_classes: int, *, depth: float, width: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        widths = [math.ceil(w * width / 8) * 8 for w in WIDTHS]
        repeats = [max(1, round(n * depth)) for n in REPEATS]
        self.backbone = Backbone(widths, repeats)
        self.neck = PAN(widths[2:], repeats=repeats[0])
        self.head = Head(widths[2:], num_classes)
        self.register_buffer("anchors", torch.tensor(START))

    def forward(self, images: Tensor) -> Raw:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of `stride` -> Raw.

        Raises:
            InputError: H or W is no multiple of `stride`.
        """
        require_multiple(images, self.stride)
        levels = self.neck(self.backbone(images))
        sizes = tuple((int(x.shape[-2]), int(x.shape[-1])) for x in levels)
        return Raw(self.head(levels), sizes, (int(images.shape[-2]), int(images.shape[-1])))

    def freeze(self, stages: int) -> None:
        """Training mode, but for the backbone's stem and first `stages` stages; 0 trains everything."""
        self.train()
        self.backbone.requires_grad_(True)
        if stages:
            for part in [self.backbone.stem, *self.backbone.stages[:stages]]:
                part.eval().requires_grad_(False)

    def fit_anchors(self, sizes: Tensor) -> None:
        """Set the anchors to the centres of nine clusters of the (N, 2) object sizes in pixels, by the log of their sides.

        Objects under two pixels are passed over; with fewer than nine kinds of objects the anchors stay as they are.
        """
        sides = sizes[(sizes >= 2).all(1)].double().log().numpy()
        wanted = self.anchors.shape[0] * PER_CELL
        if len(np.unique(sides, axis=0)) < wanted:
            return
        centres = KMeans(wanted, n_init=4, random_state=0).fit(sides).cluster_centers_
        centres = np.exp(centres[centres.sum(1).argsort()])
        self.anchors.copy_(torch.from_numpy(centres).view_as(self.anchors))

    def _cells(self, raw: Raw) -> tuple[Tensor, Tensor, Tensor]:
        """Of each anchor of all levels: (A, 2) its cell's x and y, (A, 2) its sides in pixels, (A, 1) its stride."""
        cells, sides, strides = [], [], []
        for (height, width), anchors, stride in zip(raw.sizes, self.anchors, STRIDES, strict=True):
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            at = torch.stack([x, y], -1).view(-1, 1, 2).to(raw.codes)
            cells.append(at.expand(-1, PER_CELL, -1).reshape(-1, 2))
            sides.append(anchors.to(raw.codes).expand(height * width, -1, -1).reshape(-1, 2))
            strides.append(torch.full((height * width * PER_CELL, 1), float(stride), device=at.device))
        return torch.cat(cells), torch.cat(sides), torch.cat(strides)

    @staticmethod
    def _boxes(codes: Tensor, cells: Tensor, sides: Tensor, strides: Tensor) -> Tensor:
        """(..., 4) codes -> (..., 4) xyxy in pixels: centre = (2 s - 0.5 + cell) x stride, size = (2 s)^2 x anchor."""
        s = 2 * codes.sigmoid()
        centre, half = (s[..., :2] - 0.5 + cells) * strides, s[..., 2:].square() * sides / 2
        return torch.cat([centre - half, centre + half], -1)

    def loss(self, raw: Raw, targets: Sequence[Annotations]) -> dict[str, Tensor]:
        """Terms to be summed, each a scalar: "box" (CIoU, arXiv:1911.08287), "object" (its target is the IoU), "class".

        Args:
            raw: of B images.
            targets: B Annotations in input pixels; crowd regions must have been left out.
        """
        codes = raw.codes.float()
        wanted = torch.zeros_like(codes[..., 4])
        cells, sides, strides = self._cells(raw)
        image, anchor, box, label = self._matches(raw, targets)
        terms = {"box": codes.sum() * 0, "class": codes.sum() * 0}
        if len(image):
            there = codes[image, anchor]
            found = self._boxes(there[:, :4], cells[anchor], sides[anchor], strides[anchor])
            ciou = complete_box_iou_loss(found, box)
            terms["box"] = BOX * ciou.mean()
            truth = F.one_hot(label, self.num_classes).to(codes)
            if self.num_classes > 1:
                terms["class"] = CLASS * F.binary_cross_entropy_with_logits(there[:, 5:], truth)
            place = image * codes.shape[1] + anchor  # an anchor of several objects takes the best
            wanted.view(-1).scatter_reduce_(0, place, (1 - ciou.detach()).clamp(0, 1), "amax")
        per_anchor = F.binary_cross_entropy_with_logits(codes[..., 4], wanted, reduction="none")
        counts = [height * width * PER_CELL for height, width in raw.sizes]
        levels = zip(BALANCE, torch.split(per_anchor, counts, 1), strict=True)
        terms["object"] = OBJECT * torch.stack([w * x.mean() for w, x in levels]).sum()
        return terms

    def _matches(self, raw: Raw, targets: Sequence[Annotations]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(M,) image, (M,) anchor, (M, 4) xyxy box in pixels and (M,) label of each match.

        An object is matched with the anchors of like shape (`RATIO`) in the cell that holds its centre and in the two cells
        nearest to it, one to the side and one above or below.
        """
        device = raw.codes.device
        boxes = torch.cat([torch.from_numpy(t.boxes) for t in targets]).to(device, torch.float32)
        labels = torch.cat([torch.from_numpy(t.labels) for t in targets]).to(device)
        image = torch.arange(len(targets), device=device).repeat_interleave(
            torch.tensor([len(t) for t in targets], device=device)
        )
        centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        parts, first = [], 0
        for (height, width), anchors, stride in zip(raw.sizes, self.anchors, STRIDES, strict=True):
            ratio = size[:, None] / anchors  # (N, 3, 2)
            n, k = (torch.maximum(ratio, 1 / ratio.clamp(min=1e-9)).amax(-1) < RATIO).nonzero(as_tuple=True)
            at = centre[n] / stride
            cell = at.floor()
            side = torch.where(at - cell < 0.5, -1.0, 1.0)
            nothing = torch.zeros_like(side[:, :1])
            steps = (torch.zeros_like(side), torch.cat([side[:, :1], nothing], 1), torch.cat([nothing, side[:, 1:]], 1))
            for step in steps:
                x, y = (cell + step).long().unbind(1)
                inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
                place = first + (y * width + x) * PER_CELL + k
                parts.append(torch.stack([n, place])[:, inside])
            first += height * width * PER_CELL
        n, anchor = torch.cat(parts, 1)
        return image[n], anchor, boxes[n], labels[n]

    @torch.no_grad()
    def decode(
        self, raw: Raw, *, floor: float = 0.001, nms_iou: float = 0.65, most: int = 100, before_nms: int = 3000
    ) -> list[Detections]:
        """B Detections in input pixels, cut to the input, best first; a score is objectness x class, if there are several.

        Args:
            raw: of B images.
            floor: scores below it are left out. Low ones matter: AP falls when they are cut.
            nms_iou: boxes of a class that overlap a better one by more than this are left out.
            most: boxes of an image at the most.
            before_nms: the best (anchor, class) pairs that non-maximum suppression looks at.
        """
        cells, sides, strides = self._cells(raw)
        height, width = raw.image
        limit = torch.tensor([width, height, width, height], device=raw.codes.device)
        found = []
        for codes in raw.codes.float():
            scores = codes[:, 4:5].sigmoid()
            if self.num_classes > 1:
                scores = scores * codes[:, 5:].sigmoid()
            scores = scores.flatten()
            scores, place = scores.topk(min(before_nms, len(scores)))
            place, scores = place[scores >= floor], scores[scores >= floor]
            rows, labels = place // self.num_classes, place % self.num_classes
            boxes = self._boxes(codes[rows, :4], cells[rows], sides[rows], strides[rows])
            boxes = torch.minimum(boxes.clamp(min=0), limit)
            kept = batched_nms(boxes, scores, labels, nms_iou)[:most]
            found.append(Detections(boxes[kept].cpu().numpy(), scores[kept].cpu().numpy(), labels[kept].cpu().numpy()))
        return found


SIZES: Mapping[str, tuple[float, float]] = {
    # name: (depth, width)
    "yolov5n": (0.33, 0.25),
    "yolov5s": (0.33, 0.5),
    "yolov5m": (0.67, 0.75),
    "yolov5l": (1.0, 1.0),
    "yolov5x": (1.33, 1.25),
}


def _maker(name: str, depth: float, width: float) -> Callable[..., YOLOv5]:
    """The registry's maker of one size."""

    def maker(num_classes: int, *, anchor_scale: float | None = None, pretrained: bool = True) -> YOLOv5:
        if pretrained:
            raise InputError(
                f"{name} has no ImageNet weights. Begin with a run that `foldfuse import` made of your own checkpoint, or train "
                "from scratch with --change init_weights=none --change frozen_stages=0 (pretrained=False in Python)."
            )
        return YOLOv5(num_classes, depth=depth, width=width)

    maker.__name__ = maker.__qualname__ = name
    maker.__doc__ = (
        f"YOLOv5-style: CSP backbone and PAN at depth x {depth}, width x {width}; anchors fitted to the data."
    )
    return maker


FAMILY: Mapping[str, Callable[..., YOLOv5]] = {name: _maker(name, *row) for name, row in SIZES.items()}
