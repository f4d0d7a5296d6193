"""torchvision's one-stage detectors: SSDLite320-MobileNetV3, RetinaNet-ResNet50 (v2) and FCOS-ResNet50.

Sources: SSD, Liu et al., arXiv:1512.02325, with the head of MobileNetV2, arXiv:1801.04381, section 6.2; RetinaNet, Lin et al.,
arXiv:1708.02002, with the training of ATSS, arXiv:1912.02424; FCOS, Tian et al., arXiv:1904.01355. Backbones, heads, anchors, box
coders and the losses of RetinaNet and FCOS are torchvision's (BSD-3-Clause).
Where we differ: RetinaNet and FCOS have no class 0 for the background, which their losses never use. The anchors of SSDLite have
the sides in pixels that they have at 320 px, at any image size: torchvision scales them with the image, so that what was learnt
at one size means other boxes at another. SSD's loss takes three background anchors of an image in which no anchor is matched,
where torchvision takes none. All scores above the threshold compete in one top-k, where torchvision has one per level or class.

Shapes: B images, K classes, A anchors of all levels, L levels, N objects of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import box_iou

from foldfuse.detections import Annotations, Detections
from foldfuse.errors import InputError
from foldfuse.models.cpu.fast_layers import use_fast_cpu_layers
from foldfuse.models.detection.anchors import cell_centres
from foldfuse.models.detection.dense_prediction import DenseOutput
from foldfuse.models.detection.heads import sizes_of
from foldfuse.models.detection.normalizers import BatchTotal, at_least_float32, own_total
from foldfuse.models.detection.postprocess import select_detections
from foldfuse.models.detection.torchvision_base import (
    MOBILENET_V3_SSD,
    RESNET,
    Sizes,
    TorchvisionDetector,
    grid_anchors,
    torchvision_targets,
)
from foldfuse.models.pretrained.class_layer import ClassLayer
from foldfuse.models.pretrained.torchvision import load_imagenet_body
from foldfuse.models.registry import entry

SSD_IMAGE_SIZE = 320  # pixels: the image size that SSDLite's anchors are meant for
CENTER_RADIUS = 1.5  # of FCOS: cells this close to an object's centre learn it, in strides
HARD_NEGATIVES = 3  # of SSD: background anchors in the loss for each matched one


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
        matched = [_matched(self._matcher, each["boxes"], anchors) for each in objects]
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


class SSDLiteDetector(TorchvisionDense):
    """SSDLite320 of torchvision: six anchors in each cell of six levels from stride 16 on, softmax with a background class."""

    nms_iou = 0.55

    def __init__(self, net: Any, num_classes: int) -> None:
        half = (0.5, 0.5, 0.5)
        super().__init__(
            net, num_classes, image_size=SSD_IMAGE_SIZE, stages=MOBILENET_V3_SSD, mean=half, std=half, fixed_norms=False
        )
        self.head = net.head
        self._matcher, self._coder = net.proposal_matcher, net.box_coder
        sides = [pairs.clamp(0, 1) * SSD_IMAGE_SIZE for pairs in net.anchor_generator._wh_pairs]
        self._sides = [
            [(float(w), float(h)) for w, h in pairs] for pairs in sides
        ]  # (width, height) in pixels, by level
        use_fast_cpu_layers(self.backbone)

    def _parts(self) -> list[nn.Module]:
        first, last = self.backbone.features
        return [*first, last, *self.backbone.extra]

    def forward(self, images: Tensor) -> DenseOutput:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of `stride` -> DenseOutput, with logits of K + 1 classes.

        Raises:
            InputError: H or W is no multiple of `stride`; or in training there is one image so small that the coarsest level is
                one pixel, on which batch norm cannot be trained.
        """
        if self.training and len(images) == 1 and max(images.shape[-2:]) <= 512:
            raise InputError(
                f"a step has one image of {images.shape[-2]} x {images.shape[-1]} pixels (height x width): the coarsest level of "
                "SSDLite would be one pixel, which batch norm cannot train on. Take 2 or more images a step."
            )
        levels = self._levels(images)
        out = self.head(levels)
        image = (images.shape[-2], images.shape[-1])
        return DenseOutput(out["cls_logits"], out["bbox_regression"], sizes_of(levels), image)

    def loss(
        self, raw: DenseOutput, targets: Sequence[Annotations], *, batch_total: BatchTotal = own_total
    ) -> dict[str, Tensor]:
        """Terms to be summed: "class" (cross-entropy) and "box" (smooth L1), per matched anchor of the whole batch.

        The class loss counts the matched anchors and, in each image, three times as many others: those with the largest loss.
        """
        logits, deltas = at_least_float32(raw.logits), at_least_float32(raw.box_deltas)
        anchors, objects = self.anchors(raw), torchvision_targets(targets, logits.device, first_label=1)
        labels = torch.zeros(logits.shape[:2], dtype=torch.int64, device=logits.device)
        box = deltas.sum() * 0
        for i, each in enumerate(objects):
            matched = _matched(self._matcher, each["boxes"], anchors)
            positive = (matched >= 0).nonzero()[:, 0]
            labels[i, positive] = each["labels"][matched[positive]]
            wanted = self._coder.encode_single(each["boxes"][matched[positive]], anchors[positive])
            box = box + F.smooth_l1_loss(deltas[i, positive], wanted, reduction="sum")
        per_anchor = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        found = labels > 0
        count = (HARD_NEGATIVES * found.sum(1, keepdim=True)).clamp(min=HARD_NEGATIVES)
        order = per_anchor.detach().masked_fill(found, -torch.inf).argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        counted = found | (rank < count)
        total = batch_total(found.sum().to(logits.dtype)).clamp(min=1)
        return {"class": (per_anchor * counted).sum() / total, "box": box / total}

    def anchors(self, raw: DenseOutput) -> Tensor:
        """(A, 4) float32 xyxy of the anchors in input pixels."""
        levels = []
        for size, pairs in zip(raw.sizes, self._sides, strict=True):
            centres = cell_centres(size, raw.image)[:, :, None]  # (H, W, 1, 2)
            half = torch.tensor(pairs) / 2
            levels.append(torch.cat([centres - half, centres + half], -1).reshape(-1, 4))
        return torch.cat(levels).to(raw.box_deltas.device)

    def scores(self, raw: DenseOutput) -> Tensor:
        """(B, A, K) in [0, 1]."""
        return at_least_float32(raw.logits).softmax(-1)[..., 1:]

    def decode_boxes(self, box_deltas: Tensor, anchors: Tensor) -> Tensor:
        """(n, 4) box deltas and (n, 4) xyxy anchors -> (n, 4) xyxy in input pixels."""
        boxes: Tensor = self._coder.decode_single(box_deltas, anchors)
        return boxes

    def class_layers(self) -> list[ClassLayer]:
        """The layers whose rows belong to classes; the first row of a group is the background's."""
        heads = self.head.classification_head.module_list
        return [ClassLayer(f"head.classification_head.module_list.{i}.1", groups=6, first=1) for i in range(len(heads))]


def _matched(matcher: Any, boxes: Tensor, anchors: Tensor) -> Tensor:
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


def make_ssdlite(num_classes: int, *, anchor_scale: float | None = None, pretrained: bool = True) -> SSDLiteDetector:
    """A new SSDLite320; `anchor_scale` does not count.

    Raises:
        InputError: ImageNet weights are asked for: there are none, since SSDLite's backbone is narrower than the published one.
    """
    net = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes + 1)
    if pretrained:
        raise InputError(
            "ssdlite320: there are no ImageNet weights of its backbone, whose last stage is half as wide as MobileNetV3's. Start "
            "from COCO with --set init_weights=coco, or from random weights with --set init_weights=none --set frozen_stages=0."
        )
    return SSDLiteDetector(net, num_classes)


D = TypeVar("D", bound=TorchvisionDetector)


def _started(model: D, name: str, pretrained: bool) -> D:
    """`model`, with ImageNet weights in its backbone if `pretrained`."""
    if pretrained:
        load_imagenet_body(model.backbone.body, name)
    return model


FAMILY: Mapping[str, Callable[..., SSDLiteDetector | RetinaNetDetector | FCOSDetector]] = {
    "ssdlite320": entry(
        partial(make_ssdlite),
        "torchvision's SSDLite: MobileNetV3-Large, six levels from stride 16 on, six anchors, softmax.",
    ),
    "retinanet_r50": entry(
        partial(make_retinanet), "torchvision's RetinaNet v2: ResNet-50, FPN of 256 channels, nine anchors."
    ),
    "fcos_r50": entry(
        partial(make_fcos), "torchvision's FCOS: ResNet-50, FPN of 256 channels, anchor-free with centre-ness."
    ),
}
