"""torchvision's SSDLite320-MobileNetV3.

Source: SSD, Liu et al., arXiv:1512.02325, with the head of MobileNetV2, arXiv:1801.04381, section 6.2. Backbone, head and box
coder are torchvision's (BSD-3-Clause).
Where we differ: the anchors have the sides in pixels that they have at 320 px, at any image size. torchvision scales them with
the image, so that what was learnt at one size means other boxes at another. The loss takes three background anchors of an image
in which no anchor is matched, where torchvision takes none. All scores above the threshold compete in one top-k, where
torchvision has one per class.

Shapes: B images, K classes, A anchors of all levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection

from foldfuse.detections import Annotations
from foldfuse.errors import InputError
from foldfuse.models.cpu.fast_layers import use_fast_cpu_layers
from foldfuse.models.detection.anchors import cell_centres
from foldfuse.models.detection.dense_prediction import DenseOutput
from foldfuse.models.detection.heads import sizes_of
from foldfuse.models.detection.normalizers import BatchTotal, at_least_float32, own_total
from foldfuse.models.detection.torchvision_base import MOBILENET_V3_SSD, torchvision_targets
from foldfuse.models.detection.torchvision_dense import TorchvisionDense, matched_objects
from foldfuse.models.pretrained.class_layer import ClassLayer
from foldfuse.models.pretrained.published import coco_licence
from foldfuse.models.registry import entry

IMAGE_SIZE = 320  # pixels: the image size that the anchors are meant for
HARD_NEGATIVES = 3  # background anchors in the loss for each matched one


class SSDLiteDetector(TorchvisionDense):
    """SSDLite320 of torchvision: six anchors in each cell of six levels from stride 16 on, softmax with a background class."""

    nms_iou = 0.55

    def __init__(self, net: Any, num_classes: int) -> None:
        half = (0.5, 0.5, 0.5)
        super().__init__(
            net, num_classes, image_size=IMAGE_SIZE, stages=MOBILENET_V3_SSD, mean=half, std=half, fixed_norms=False
        )
        self.head = net.head
        self._matcher, self._coder = net.proposal_matcher, net.box_coder
        sides = [pairs.clamp(0, 1) * IMAGE_SIZE for pairs in net.anchor_generator._wh_pairs]
        # (width, height) in pixels of each anchor, by level
        self._sides = [[(float(w), float(h)) for w, h in pairs] for pairs in sides]
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
            matched = matched_objects(self._matcher, each["boxes"], anchors)
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


FAMILY: Mapping[str, Callable[..., SSDLiteDetector]] = {
    "ssdlite320": entry(
        partial(make_ssdlite),
        "torchvision's SSDLite: MobileNetV3-Large, six levels from stride 16 on, six anchors, softmax. "
        + coco_licence("ssdlite320"),
    )
}
