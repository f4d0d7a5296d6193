"""The head of the YOLOv5-style detector: three fitted anchors per cell, its loss and its decoding.

Provenance: see `yolov5`. Our own choices, without a source: the weights of the loss terms; biases that start at a prior, as in
the focal loss's paper; the objectness alone as the score where there is a single class.

Shapes: B images, K classes, A = 3 anchors in each cell of all levels, N objects, M matches of anchors with objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torchvision.ops import complete_box_iou_loss

from foldfuse.detections import Annotations, Detections
from foldfuse.models.detection.dense_prediction import PRIOR, Targets, gather_targets
from foldfuse.models.detection.normalizers import BatchTotal, at_least_float32, own_total
from foldfuse.models.detection.postprocess import select_detections
from foldfuse.models.pretrained.class_layer import ClassLayer

STRIDES = (8, 16, 32)
PER_CELL = 3  # anchors
BOX_ROWS = 5  # of an anchor before its classes: x, y, width, height, objectness
MAX_SIDE_RATIO = 4.0  # an anchor matches objects whose sides are within this factor of its own
LEVEL_WEIGHTS = (4.0, 1.0, 0.4)  # of the objectness loss of each level
BOX_WEIGHT, OBJECT_WEIGHT, CLASS_WEIGHT = 0.15, 1.0, 0.5  # of the loss terms
# Sides of the anchors in pixels until the anchors are fitted to data: one size per level, each in three shapes.
INITIAL_ANCHORS = [[[s * w, s * h] for w, h in ((1.0, 1.4), (1.7, 1.2), (1.6, 2.6))] for s in (12, 34, 100)]


class YOLOOutput(NamedTuple):
    """Output of the head.

    Attributes:
        logits: (B, A, 5 + K) x, y, width, height, objectness and classes before the sigmoid; in the order level, y, x, anchor.
        sizes: (height, width) of each level.
        image: (height, width) of the network's input.
    """

    logits: Tensor
    sizes: tuple[tuple[int, int], ...]
    image: tuple[int, int]


class _Priors(NamedTuple):
    """For each anchor of all levels: (A, 2) x and y of its cell in cells, (A, 2) its sides in pixels, (A, 1) its stride."""

    cells: Tensor
    sides: Tensor
    strides: Tensor

    def decode(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(n,) anchors and their (n, 5 + K) logits -> (n, 4) xyxy in pixels.

        centre = (2 s - 0.5 + cell) x stride, size = (2 s)^2 x anchor, with s = sigmoid(logit).
        """
        s = 2 * logits[:, :4].sigmoid()
        centre = (s[:, :2] - 0.5 + self.cells[rows]) * self.strides[rows]
        half = s[:, 2:].square() * self.sides[rows] / 2
        return torch.cat([centre - half, centre + half], -1)


def _decode_rows(priors: _Priors, logits: Tensor, rows: Tensor) -> Tensor:
    """(n,) anchors of one image with (A, 5 + K) logits -> (n, 4) xyxy in pixels."""
    return priors.decode(logits[rows], rows)


class YOLOv5Head(nn.Module):
    """One 1x1 convolution per level. Its biases start at a prior (arXiv:1708.02002, section 4.1): few objects, 1 of K classes."""

    anchors: Tensor  # (3, 3, 2) widths and heights in pixels of each level's anchors

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.predict = nn.ModuleList(nn.Conv2d(width, PER_CELL * (BOX_ROWS + num_classes), 1) for width in channels)
        for conv in self.predict:
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            bias = conv.bias.detach().view(PER_CELL, -1)
            bias[:, 4] = -math.log((1 - PRIOR) / PRIOR)
            bias[:, 5:] = -math.log(max(num_classes - 1, 1))
        self.register_buffer("anchors", torch.tensor(INITIAL_ANCHORS))

    def forward(self, levels: Sequence[Tensor], image: tuple[int, int]) -> YOLOOutput:
        """(B, C_i, H_i, W_i) of each level, and (height, width) of the network's input -> YOLOOutput."""
        outputs = [conv(x).permute(0, 2, 3, 1).flatten(1, 2) for conv, x in zip(self.predict, levels, strict=True)]
        logits = torch.cat(outputs, 1)
        logits = logits.view(logits.shape[0], -1, 5 + self.num_classes)  # no len(): it would fix the batch of an export
        sizes = tuple((x.shape[-2], x.shape[-1]) for x in levels)  # no int(): it would fix the size of an export
        return YOLOOutput(logits, sizes, image)

    def class_layers(self) -> list[ClassLayer]:
        """The layers whose rows belong to classes; the loss does not train the row of a single class."""
        return [
            ClassLayer(f"predict.{i}", groups=PER_CELL, first=BOX_ROWS, trains_single_class=False)
            for i in range(len(self.predict))
        ]

    def fit_anchors(self, sizes: Tensor) -> None:
        """Set the anchors to the centres of nine clusters of the (N, 2) object sizes in pixels, by the log of their sides.

        Objects under two pixels are left out. With fewer than nine different objects the anchors stay as they are.
        """
        sides = sizes[(sizes >= 2).all(1)].double().log().numpy()
        count = self.anchors.shape[0] * PER_CELL
        if len(np.unique(sides, axis=0)) < count:
            return
        centres = KMeans(count, n_init=4, random_state=0).fit(sides).cluster_centers_
        centres = np.exp(centres[centres.sum(1).argsort()])
        self.anchors.copy_(torch.from_numpy(centres).view_as(self.anchors))

    def _priors(self, raw: YOLOOutput) -> _Priors:
        """The anchors of all cells."""
        cells, sides, strides = [], [], []
        for (height, width), anchors, stride in zip(raw.sizes, self.anchors, STRIDES, strict=True):
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            xy = torch.stack([x, y], -1).view(-1, 1, 2).to(raw.logits)
            cells.append(xy.expand(-1, PER_CELL, -1).reshape(-1, 2))
            sides.append(anchors.to(raw.logits).expand(height * width, -1, -1).reshape(-1, 2))
            strides.append(torch.full((height * width * PER_CELL, 1), float(stride), device=xy.device))
        return _Priors(torch.cat(cells), torch.cat(sides), torch.cat(strides))

    def loss(
        self, raw: YOLOOutput, targets: Sequence[Annotations], *, batch_total: BatchTotal = own_total
    ) -> dict[str, Tensor]:
        """The terms of the loss, scalars to be summed: "box" (CIoU, arXiv:1911.08287), "object" (target: the CIoU), "class".

        Args:
            raw: the output of `forward` for B images.
            targets: B Annotations in input pixels, without crowd regions.
            batch_total: gives a count over the whole batch, where these B images are a share of it.
        """
        logits = at_least_float32(raw.logits)
        objectness = torch.zeros_like(logits[..., 4])
        terms = {"box": logits.sum() * 0, "class": logits.sum() * 0}
        objects = gather_targets(targets, logits.device)
        n, anchor = self._match(raw, objects)
        num_matches, num_images = batch_total(logits.new_tensor([len(n), len(logits)]))
        if len(n):
            image = objects.image[n]
            matched = logits[image, anchor]
            ciou = complete_box_iou_loss(self._priors(raw).decode(matched, anchor), objects.boxes[n])
            terms["box"] = BOX_WEIGHT * ciou.sum() / num_matches
            if self.num_classes > 1:
                one_hot = F.one_hot(objects.labels[n], self.num_classes).to(logits)
                per_class = F.binary_cross_entropy_with_logits(matched[:, 5:], one_hot, reduction="sum")
                terms["class"] = CLASS_WEIGHT * per_class / (num_matches * self.num_classes)
            index = image * logits.shape[1] + anchor  # an anchor with several objects takes the highest CIoU
            objectness.view(-1).scatter_reduce_(0, index, (1 - ciou.detach()).clamp(0, 1), "amax")
        per_anchor = F.binary_cross_entropy_with_logits(logits[..., 4], objectness, reduction="none")
        counts = [height * width * PER_CELL for height, width in raw.sizes]
        levels = zip(LEVEL_WEIGHTS, torch.split(per_anchor, counts, 1), counts, strict=True)
        terms["object"] = OBJECT_WEIGHT * torch.stack([w * x.sum() / (num_images * n) for w, x, n in levels]).sum()
        return terms

    def _match(self, raw: YOLOOutput, objects: Targets) -> tuple[Tensor, Tensor]:
        """(M,) index of the object and (M,) index of the anchor of each match.

        An object matches the anchors of similar sides (`MAX_SIDE_RATIO`) in the cell that holds its centre and in the two cells
        nearest to its centre, one to the side and one above or below.
        """
        boxes = objects.boxes
        centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        matches, first = [], 0
        for (height, width), anchors, stride in zip(raw.sizes, self.anchors, STRIDES, strict=True):
            ratio = size[:, None] / anchors  # (N, 3, 2)
            n, k = (torch.maximum(ratio, 1 / ratio.clamp(min=1e-9)).amax(-1) < MAX_SIDE_RATIO).nonzero(as_tuple=True)
            position = centre[n] / stride
            cell = position.floor()
            nearer = torch.where(position - cell < 0.5, -1.0, 1.0)
            zero = torch.zeros_like(nearer[:, :1])
            steps = (torch.zeros_like(nearer), torch.cat([nearer[:, :1], zero], 1), torch.cat([zero, nearer[:, 1:]], 1))
            for step in steps:
                x, y = (cell + step).long().unbind(1)
                inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
                matches.append(torch.stack([n, first + (y * width + x) * PER_CELL + k])[:, inside])
            first += height * width * PER_CELL
        n, anchor = torch.cat(matches, 1)
        return n, anchor

    @torch.no_grad()
    def decode(
        self,
        raw: YOLOOutput,
        *,
        score_threshold: float = 0.001,
        nms_iou: float = 0.65,
        max_detections: int = 100,
        pre_nms_topk: int = 3000,
    ) -> list[Detections]:
        """B Detections in input pixels. A score is objectness x class probability; with a single class, the objectness alone.

        `select_detections` describes the options.
        """
        priors = self._priors(raw)
        detections = []
        for logits in raw.logits.float():
            scores = logits[:, 4:5].sigmoid()
            if self.num_classes > 1:
                scores = scores * logits[:, 5:].sigmoid()
            detections.append(
                select_detections(
                    scores,
                    partial(_decode_rows, priors, logits),
                    image=raw.image,
                    score_threshold=score_threshold,
                    nms_iou=nms_iou,
                    max_detections=max_detections,
                    pre_nms_topk=pre_nms_topk,
                )
            )
        return detections
