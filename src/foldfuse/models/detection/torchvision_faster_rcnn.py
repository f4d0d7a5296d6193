"""torchvision's Faster R-CNN with MobileNetV3-Large and a feature pyramid, the only detector here with two stages.

Source: Ren et al., arXiv:1506.01497, with the feature pyramid of Lin et al., arXiv:1612.03144. All modules are torchvision's
(BSD-3-Clause). `forward` is the backbone and the region proposal network. Proposals depend on non-maximum suppression, so the
second stage (RoIAlign, linear layers, softmax) runs in `loss` and `decode`. So the first stage alone compiles and has a cost in
`foldfuse models`; and the losses are means over random samples of anchors and proposals, so several processes compute nearly, not
exactly, what one computes. An ONNX file holds both stages (`inference.onnx_two_stage`).
Where we differ: 300 proposals of an image are scored in prediction; torchvision scores 1000.

Shapes: B images, K classes, A anchors of all levels, P proposals of all images.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models import detection
from torchvision.models.detection.roi_heads import fastrcnn_loss

from foldfuse.detections import Annotations, Detections
from foldfuse.models.detection.heads import sizes_of
from foldfuse.models.detection.normalizers import at_least_float32
from foldfuse.models.detection.torchvision_base import (
    MOBILENET_V3,
    Sizes,
    TorchvisionDetector,
    grid_anchors,
    torchvision_targets,
)
from foldfuse.models.pretrained.class_layer import ClassLayer
from foldfuse.models.pretrained.published import coco_licence
from foldfuse.models.pretrained.torchvision import load_imagenet_body
from foldfuse.models.registry import entry

PROPOSALS = 300  # of an image in prediction
SCORE_THRESHOLD = 0.005  # torchvision's 0.05 cuts what AP and ensembles use


class FasterRCNNOutput(NamedTuple):
    """Output of `FasterRCNNDetector.forward`: the first stage.

    Attributes:
        objectness: (B, A, 1) logits.
        box_deltas: (B, A, 4).
        features: (B, 256, H_i, W_i) of each level, from which the second stage reads.
        sizes: (height, width) of each level.
        image: (height, width) of the network's input.
    """

    objectness: Tensor
    box_deltas: Tensor
    features: tuple[Tensor, ...]
    sizes: Sizes
    image: tuple[int, int]


class FasterRCNNDetector(TorchvisionDetector):
    """Faster R-CNN of torchvision: fifteen anchors in each cell of three levels, then a class and a box for each proposal."""

    def __init__(self, net: Any, num_classes: int) -> None:
        super().__init__(net, num_classes, image_size=800, stages=MOBILENET_V3)
        self.rpn, self.roi_heads = net.rpn, net.roi_heads

    def forward(self, images: Tensor) -> FasterRCNNOutput:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of `stride` -> FasterRCNNOutput.

        Raises:
            InputError: H or W is no multiple of `stride`.
        """
        levels = list(self._pyramid(images).values())
        objectness, deltas = self.rpn.head(levels)
        image = (images.shape[-2], images.shape[-1])
        return FasterRCNNOutput(
            _by_anchor(objectness, 1), _by_anchor(deltas, 4), tuple(levels), sizes_of(levels), image
        )

    def loss(self, raw: FasterRCNNOutput, targets: Sequence[Annotations]) -> dict[str, Tensor]:
        """Terms to be summed: "objectness" and "proposal_box" of the first stage, "class" and "box" of the second."""
        objectness, deltas = at_least_float32(raw.objectness), at_least_float32(raw.box_deltas)
        objects = torchvision_targets(targets, objectness.device, first_label=1)
        anchors = [self.anchors(raw)] * len(objects)
        labels, boxes = self.rpn.assign_targets_to_anchors(anchors, objects)
        wanted = self.rpn.box_coder.encode(boxes, anchors)
        first = self.rpn.compute_loss(objectness.reshape(-1, 1), deltas.reshape(-1, 4), labels, wanted)
        proposals, _, labels, wanted = self.roi_heads.select_training_samples(self._proposals(raw), objects)
        second = fastrcnn_loss(*self._second_stage(raw, proposals), labels, wanted)
        return dict(zip(("objectness", "proposal_box", "class", "box"), (*first, *second), strict=True))

    @torch.no_grad()
    def decode(self, raw: FasterRCNNOutput) -> list[Detections]:
        """B Detections in input pixels, best first."""
        proposals = self._proposals(raw)
        logits, deltas = self._second_stage(raw, proposals)
        found = self.roi_heads.postprocess_detections(logits, deltas, proposals, [raw.image] * len(proposals))
        return [
            Detections(boxes.cpu().numpy(), scores.cpu().numpy(), (labels - 1).cpu().numpy())
            for boxes, scores, labels in zip(*found, strict=True)
        ]

    def _proposals(self, raw: FasterRCNNOutput) -> list[Tensor]:
        """(n, 4) xyxy of each image: the best boxes of the first stage, without gradient; more in training mode."""
        anchors, batch = self.anchors(raw), len(raw.objectness)
        per_cell = self.rpn.anchor_generator.num_anchors_per_location()
        counts = [height * width * n for (height, width), n in zip(raw.sizes, per_cell, strict=True)]
        deltas = at_least_float32(raw.box_deltas.detach()).reshape(-1, 4)
        boxes = self.rpn.box_coder.decode(deltas, [anchors] * batch).view(batch, -1, 4)
        objectness = at_least_float32(raw.objectness.detach())
        proposals: list[Tensor] = self.rpn.filter_proposals(boxes, objectness, [raw.image] * batch, counts)[0]
        return proposals

    def _second_stage(self, raw: FasterRCNNOutput, proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """(P, K + 1) float32 logits and (P, 4 (K + 1)) box deltas, computed in the precision of the features."""
        names = self.roi_heads.box_roi_pool.featmap_names
        features = OrderedDict(zip(names, raw.features[:-1], strict=False))  # the last level is for proposals alone
        half = raw.features[0].dtype in (torch.float16, torch.bfloat16)
        kind = raw.features[0].dtype if half else None
        with torch.autocast(raw.features[0].device.type, kind, enabled=half):
            pooled = self.roi_heads.box_roi_pool(features, proposals, [raw.image] * len(proposals))
            logits, deltas = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        return at_least_float32(logits), at_least_float32(deltas)

    def anchors(self, raw: FasterRCNNOutput) -> Tensor:
        """(A, 4) float32 xyxy of the anchors in input pixels."""
        return grid_anchors(self.rpn.anchor_generator, raw.sizes, raw.image, raw.objectness.device)

    def class_layers(self) -> list[ClassLayer]:
        """The layers whose rows belong to classes; the first class is the background, and a box has four rows."""
        return [
            ClassLayer("roi_heads.box_predictor.cls_score", first=1),
            ClassLayer("roi_heads.box_predictor.bbox_pred", first=1, width=4),
        ]


def _by_anchor(levels: Sequence[Tensor], width: int) -> Tensor:
    """(B, n * width, H_i, W_i) of each level, n anchors in a cell -> (B, A, width)."""
    flat = [x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, width) for x in levels]
    return torch.cat(flat, 1)


def make_faster_rcnn(
    num_classes: int, *, anchor_scale: float | None = None, pretrained: bool = True
) -> FasterRCNNDetector:
    """A new Faster R-CNN-MobileNetV3; `anchor_scale` does not count, the anchors are the published ones.

    Raises:
        InputError: the backbone's ImageNet weights are asked for and not available.
    """
    net = detection.fasterrcnn_mobilenet_v3_large_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=num_classes + 1,
        rpn_post_nms_top_n_test=PROPOSALS,
        box_score_thresh=SCORE_THRESHOLD,
    )
    model = FasterRCNNDetector(net, num_classes)
    if pretrained:
        load_imagenet_body(model.backbone.body, "fasterrcnn_mobilenet")
    return model


FAMILY: Mapping[str, Callable[..., FasterRCNNDetector]] = {
    "fasterrcnn_mobilenet": entry(
        partial(make_faster_rcnn),
        "torchvision's Faster R-CNN: MobileNetV3-Large, FPN of 256 channels; FLOPs of the first of two stages. "
        + coco_licence("fasterrcnn_mobilenet"),
    )
}
