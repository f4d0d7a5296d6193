"""torchvision's RetinaNet-ResNet50 (v2) and FCOS-ResNet50, and what its one-stage detectors share.

Sources: RetinaNet, Lin et al., arXiv:1708.02002, with the training of ATSS, arXiv:1912.02424; FCOS, Tian et al.,
arXiv:1904.01355. Backbones, heads, anchors, box coders and losses are torchvision's (BSD-3-Clause).
Where we differ: there is no class 0 for the background, which the losses of the two never use. All scores above the threshold
compete in one top-k, where torchvision has one per level or class.

Shapes: B images, K classes, A anchors of all levels, L levels, N objects of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torchvision.models import detection
from torchvision.ops import box_iou

from foldfuse.detections import Annotations, Detections
from foldfuse.models.detection.dense_prediction import DenseOutput
from foldfuse.models.detection.heads import sizes_of
from foldfuse.models.detection.normalizers import BatchTotal, at_least_float32, own_total
from foldfuse.models.detection.postprocess import select_detections
from foldfuse.models.detection.torchvision_base import (
    RESNET,
    Sizes,
    TorchvisionDetector,
    grid_anchors,
    torchvision_targets,
)
from foldfuse.models.pretrained.class_layer import ClassLayer
from foldfuse.models.pretrained.published import coco_licence
from foldfuse.models.pretrained.torchvision import load_imagenet_body
from foldfuse.models.registry import entry

CENTER_RADIUS = 1.5  # of FCOS: cells this close to an object's centre learn it, in strides


class TorchvisionDense(TorchvisionDetector):
    """Base of torchvision's one-stage detectors: scores and boxes of anchors, and their decoding."""

    nms_iou = 0.5

    def anchors(self, raw: Any) -> Tensor:
        """(A, 4) float32 xyxy of the anchors in input pixels."""
        raise NotImplementedError

    def scores(self, raw: Any) -> Tensor:
        """(B, A, K) in [0, 1]."""
        raise NotImplementedError

    def decode_boxes(self, box_deltas: Tensor, anchors: Tensor) -> Tensor:
        """(n, 4) box deltas and (n, 4) xyxy anchors -> (n, 4) xyxy in input pixels."""
        raise NotImplementedError

    def _decode_rows(self, box_deltas: Tensor, anchors: Tensor, rows: Tensor) -> Tensor:
        """(n,) indices of anchors -> (n, 4) xyxy in input pixels, of one image."""
        return self.decode_boxes(box_deltas[rows], anchors[rows])

    @torch.no_grad()
    def decode(
        self,
        raw: Any,
        *,
        score_threshold: float = 0.005,
        nms_iou: float | None = None,
        max_detections: int = 100,
        pre_nms_topk: int = 1000,
    ) -> list[Detections]:
        """B Detections in input pixels; `select_detections` explains the options. None stands for the published `nms_iou`."""
        anchors = self.anchors(raw)
        return [
            select_detections(
                scores,
                partial(self._decode_rows, deltas, anchors),
                image=raw.image,
                score_threshold=score_threshold,
                nms_iou=self.nms_iou if nms_iou is None else nms_iou,
                max_detections=max_detections,
                pre_nms_topk=pre_nms_topk,
            )
            for scores, deltas in zip(self.scores(raw), at_least_float32(raw.box_deltas), strict=True)
        ]


class RetinaNetDetector(TorchvisionDense):
    """RetinaNet of torchvision: nine anchors in each cell of P3 to P7, focal loss and GIoU."""

    def __init__(self, net: Any, num_classes: int) -> None:
        super().__init__(net, num_classes, image_size=800, stages=RESNET)
        self.head = net.head
        self._generator, self._matcher, self._coder = net.anchor_generator, net.proposal_matcher, net.box_coder

    def forward(self, images: Tensor) -> DenseOutput:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of `stride` -> DenseOutput.

        Raises:
            InputError: H or W is no multiple of `stride`.
        """
        levels = list(self._pyramid(images).values())
        out = self.head(levels)
        image = (images.shape[-2], images.shape[-1])
        return DenseOutput(out["cls_logits"], out["bbox_regression"], sizes_of(levels), image)

    def loss(self, raw: DenseOutput, targets: Sequence[Annotations]) -> dict[str, Tensor]:
        """Terms to be summed, each a mean over images: "class" (focal) and "box" (GIoU), per matched anchor."""
        logits, deltas = at_least_float32(raw.logits), at_least_float32(raw.box_deltas)
        anchors, objects = self.anchors(raw), torchvision_targets(targets, logits.device)
        matched = [matched_objects(self._matcher, each["boxes"], anchors) for each in objects]
        out = {"cls_logits": logits, "bbox_regression": deltas}
        terms = self.head.compute_loss(objects, out, [anchors] * len(objects), matched)
        return {"class": terms["classification"], "box": terms["bbox_regression"]}

    def anchors(self, raw: DenseOutput) -> Tensor:
        """(A, 4) float32 xyxy of the anchors in input pixels."""
        return grid_anchors(self._generator, raw.sizes, raw.image, raw.box_deltas.device)

    def scores(self, raw: DenseOutput) -> Tensor:
        """(B, A, K) in [0, 1]."""
        return at_least_float32(raw.logits).sigmoid()

    def decode_boxes(self, box_deltas: Tensor, anchors: Tensor) -> Tensor:
        """(n, 4) box deltas and (n, 4) xyxy anchors -> (n, 4) xyxy in input pixels."""
        boxes: Tensor = self._coder.decode_single(box_deltas, anchors)
        return boxes

    def class_layers(self) -> list[ClassLayer]:
        """The layer whose rows belong to classes."""
        return [ClassLayer("head.classification_head.cls_logits", groups=9)]


class FCOSOutput(NamedTuple):
    """Output of `FCOSDetector.forward`.

    Attributes:
        logits: (B, A, K).
        box_deltas: (B, A, 4) distances to the left, upper, right and lower side, in strides.
        centerness: (B, A, 1) logits of how near a cell is to its object's centre.
        sizes: (height, width) of each level.
        image: (height, width) of the network's input.
    """

    logits: Tensor
    box_deltas: Tensor
    centerness: Tensor
    sizes: Sizes
    image: tuple[int, int]


class FCOSDetector(TorchvisionDense):
    """FCOS of torchvision: one box per cell of P3 to P7, focal loss, GIoU and centre-ness. An anchor is a cell's square."""

    nms_iou = 0.6

    def __init__(self, net: Any, num_classes: int) -> None:
        super().__init__(net, num_classes, image_size=800, stages=RESNET)
        self.head = net.head
        self._generator, self._coder = net.anchor_generator, net.box_coder

    def forward(self, images: Tensor) -> FCOSOutput:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of `stride` -> FCOSOutput.

        Raises:
            InputError: H or W is no multiple of `stride`.
        """
        levels = list(self._pyramid(images).values())
        out = self.head(levels)
        image = (images.shape[-2], images.shape[-1])
        return FCOSOutput(out["cls_logits"], out["bbox_regression"], out["bbox_ctrness"], sizes_of(levels), image)

    def loss(
        self, raw: FCOSOutput, targets: Sequence[Annotations], *, batch_total: BatchTotal = own_total
    ) -> dict[str, Tensor]:
        """Terms to be summed: "class" (focal), "box" (GIoU) and "centerness", per matched cell of the whole batch."""
        logits, deltas = at_least_float32(raw.logits), at_least_float32(raw.box_deltas)
        out = {"cls_logits": logits, "bbox_regression": deltas, "bbox_ctrness": at_least_float32(raw.centerness)}
        anchors, objects = self.anchors(raw), torchvision_targets(targets, logits.device)
        cells = [height * width for height, width in raw.sizes]
        matched = [_matched_cells(each["boxes"], anchors, cells[0], cells[-1]) for each in objects]
        terms = self.head.compute_loss(objects, out, [anchors] * len(objects), matched)
        own = torch.stack(matched).ge(0).sum().to(logits.dtype)
        share = own.clamp(min=1) / batch_total(own).clamp(min=1)  # torchvision divides by the count over these images
        names = {"class": "classification", "box": "bbox_regression", "centerness": "bbox_ctrness"}
        return {name: terms[theirs] * share for name, theirs in names.items()}

    def anchors(self, raw: FCOSOutput) -> Tensor:
        """(A, 4) float32 xyxy of the cells' squares in input pixels."""
        return grid_anchors(self._generator, raw.sizes, raw.image, raw.box_deltas.device)

    def scores(self, raw: FCOSOutput) -> Tensor:
        """(B, A, K) in [0, 1]."""
        return (at_least_float32(raw.logits).sigmoid() * at_least_float32(raw.centerness).sigmoid()).sqrt()

    def decode_boxes(self, box_deltas: Tensor, anchors: Tensor) -> Tensor:
        """(n, 4) box deltas and (n, 4) xyxy anchors -> (n, 4) xyxy in input pixels."""
        boxes: Tensor = self._coder.decode(box_deltas, anchors)
        return boxes

    def class_layers(self) -> list[ClassLayer]:
        """The layer whose rows belong to classes."""
        return [ClassLayer("head.classification_head.cls_logits")]


def matched_objects(matcher: Any, boxes: Tensor, anchors: Tensor) -> Tensor:
    """(A,) int64: the object of each anchor by torchvision's matcher, negative where there is none."""
    if not len(boxes):
        return torch.full((len(anchors),), -1, device=anchors.device)
    matched: Tensor = matcher(box_iou(boxes, anchors))
    return matched


def _matched_cells(boxes: Tensor, anchors: Tensor, first: int, last: int) -> Tensor:
    """(A,) int64: the object of each cell by FCOS's rule, -1 where there is none.

    A cell learns the smallest object that contains its centre, is centred within `CENTER_RADIUS` strides, and reaches 4 to 8
    strides from the centre; the finest and the coarsest level also take smaller and larger objects.

    Args:
        boxes: (N, 4) xyxy.
        anchors: (A, 4) xyxy of the cells' squares, finest level first.
        first, last: number of cells of the finest and of the coarsest level.
    """
    if not len(boxes):
        return torch.full((len(anchors),), -1, device=anchors.device)
    centres, stride = (
        (anchors[:, None, :2] + anchors[:, None, 2:]) / 2,
        anchors[:, 2:3] - anchors[:, :1],
    )  # (A, 1, 2), (A, 1)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    near = (centres - middles).abs().amax(-1) < CENTER_RADIUS * stride  # (A, N)
    sides = torch.cat([centres - boxes[:, :2], boxes[:, 2:] - centres], -1)  # (A, N, 4)
    least, most = 4 * stride, 8 * stride
    least[:first], most[-last:] = 0, torch.inf
    reach = sides.amax(-1)
    fits = near & (sides.amin(-1) > 0) & (reach > least) & (reach < most)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    smallest, matched = areas.expand_as(fits).masked_fill(~fits, torch.inf).min(1)
    return matched.masked_fill(smallest.isinf(), -1)


def make_retinanet(
    num_classes: int, *, anchor_scale: float | None = None, pretrained: bool = True
) -> RetinaNetDetector:
    """A new RetinaNet-ResNet50 (v2); `anchor_scale` does not count, the anchors are the published ones.

    Raises:
        InputError: the backbone's ImageNet weights are asked for and not available.
    """
    net = detection.retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=num_classes)
    return _started(RetinaNetDetector(net, num_classes), "retinanet_r50", pretrained)


def make_fcos(num_classes: int, *, anchor_scale: float | None = None, pretrained: bool = True) -> FCOSDetector:
    """A new FCOS-ResNet50; `anchor_scale` does not count. Raises InputError as `make_retinanet`."""
    net = detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=num_classes)
    return _started(FCOSDetector(net, num_classes), "fcos_r50", pretrained)


D = TypeVar("D", bound=TorchvisionDense)


def _started(model: D, name: str, pretrained: bool) -> D:
    """`model`, with ImageNet weights in its backbone if `pretrained`."""
    if pretrained:
        load_imagenet_body(model.backbone.body, name)
    return model


FAMILY: Mapping[str, Callable[..., RetinaNetDetector | FCOSDetector]] = {
    "retinanet_r50": entry(
        partial(make_retinanet),
        "torchvision's RetinaNet v2: ResNet-50, FPN of 256 channels, nine anchors. " + coco_licence("retinanet_r50"),
    ),
    "fcos_r50": entry(
        partial(make_fcos),
        "torchvision's FCOS: ResNet-50, FPN of 256 channels, anchor-free with centre-ness. " + coco_licence("fcos_r50"),
    ),
}
