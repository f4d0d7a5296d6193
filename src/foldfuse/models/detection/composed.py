"""Detectors composed of a backbone, a neck and a head: the class, the names "compose:BACKBONE+NECK+HEAD", and `lite0_fpn`.

"compose:timm:mobilenetv4_conv_small+fpn+dense" is a detector's name like any other: a backbone of `make_backbone`, a neck of
`NECKS`, a head of `HEADS`. Bochkovskiy, Wang and Liao, "YOLOv4", arXiv:2004.10934, section 2.1, describe detectors as these
three parts; the file of each part names its paper. A ViT gives one level, from which ViTDet's pyramid makes the others (Li
et al., arXiv:2203.16527, section 3).

Shapes: B images, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from foldfuse.detections import Annotations, Detections
from foldfuse.errors import InputError, unknown_name
from foldfuse.models.backbones.factory import make_backbone
from foldfuse.models.backbones.timm_cnn import TimmBackbone
from foldfuse.models.backbones.transformer_layers import require_multiple
from foldfuse.models.detection.heads import AnchorHead, DenseHead
from foldfuse.models.detection.necks import FPN, NECKS
from foldfuse.models.detection.normalizers import BatchTotal, own_total
from foldfuse.models.detection.yolov5_head import YOLOv5Head
from foldfuse.models.registry import entry

PREFIX = "compose:"
WIDTH = 64  # channels of a composed detector's neck and head
HEADS = ("efficientdet", "yolov5", "dense")


class ComposedDetector(nn.Module):
    """Backbone -> neck -> head; the head holds the loss and the decoding.

    Args:
        backbone: gives levels; has `stride` and `freeze`.
        neck: levels -> levels.
        head: levels -> raw output; has `loss` and `decode`.
        image_size: pixels, the side of the square that the detector is meant for.
    """

    def __init__(self, backbone: Any, neck: nn.Module, head: Any, *, image_size: int = 320) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = backbone, neck, head
        self.stride: int = backbone.stride
        self.num_classes: int = head.num_classes
        self.image_size = image_size

    def forward(self, images: Tensor) -> Any:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of `stride` -> the head's output.

        Raises:
            InputError: H or W is no multiple of `stride`.
        """
        require_multiple(images, self.stride)
        return self.head(self.neck(self.backbone(images)), (images.shape[-2], images.shape[-1]))

    def freeze(self, stages: int) -> None:
        """Training mode, except that the first stages of the backbone are frozen; 0 trains everything."""
        self.train()
        self.backbone.freeze(stages)

    def fit_anchors(self, sizes: Tensor) -> None:
        """Fit the head's anchors to the (N, 2) widths and heights of objects in input pixels, if the head has such anchors."""
        if isinstance(self.head, YOLOv5Head):
            self.head.fit_anchors(sizes)

    def loss(
        self, raw: Any, targets: Sequence[Annotations], *, batch_total: BatchTotal = own_total
    ) -> dict[str, Tensor]:
        """Terms to be summed, each a scalar, normalized by counts over the whole batch."""
        terms: dict[str, Tensor] = self.head.loss(raw, targets, batch_total=batch_total)
        return terms

    def decode(self, raw: Any) -> list[Detections]:
        """B Detections in input pixels, best first."""
        detections: list[Detections] = self.head.decode(raw)
        return detections


def make_composed(
    backbone: str,
    neck: str,
    head: str,
    num_classes: int,
    *,
    anchor_scale: float | None = None,
    pretrained: bool = True,
) -> ComposedDetector:
    """A new detector of these parts.

    Args:
        backbone: a name that `make_backbone` takes.
        neck: one of `NECKS`: "vitdet" for a ViT, which has one level; another name for a backbone with three levels.
        head: one of `HEADS`.
        num_classes: the number of classes in the data.
        anchor_scale: side of a level's smallest anchor, or of an untrained box, in strides.
        pretrained: begin with ImageNet weights.

    Raises:
        InputError: there is no such part, the parts do not fit, or the weights are not available.
    """
    if neck not in NECKS:
        raise unknown_name("neck", neck, NECKS)
    if head not in HEADS:
        raise unknown_name("head", head, HEADS)
    body = make_backbone(backbone, pretrained=pretrained)
    levels = len(body.channels)
    if (levels == 1) != (neck == "vitdet"):
        fits = "vitdet" if levels == 1 else ", ".join(name for name in NECKS if name != "vitdet")
        raise InputError(f"the neck {neck} does not fit {backbone}, which has {levels} level(s). Take {fits}.")
    between = NECKS[neck](body.channels, width=WIDTH)
    if head == "yolov5":
        return ComposedDetector(body, between, YOLOv5Head([WIDTH] * 3, num_classes))
    kind = DenseHead if head == "dense" else AnchorHead
    return ComposedDetector(body, between, kind(num_classes, width=WIDTH, anchor_scale=_scale(anchor_scale)))


def parts_of(name: str) -> tuple[str, str, str]:
    """The backbone, neck and head that a name such as "compose:swin_tiny+fpn+dense" gives.

    Raises:
        InputError: the name does not give three parts.
    """
    parts = name.removeprefix(PREFIX).split("+")
    if len(parts) != 3:
        raise InputError(
            f"{name!r}: a composed detector is called {PREFIX}BACKBONE+NECK+HEAD, such as {PREFIX}swin_tiny+fpn+dense."
        )
    return parts[0], parts[1], parts[2]


def backbone_of(name: str) -> str | None:
    """The name of a composed detector's backbone, such as "timm:resnet18"; None for a name that is no composed detector's."""
    if name.startswith(PREFIX):
        return parts_of(name)[0]
    if name in _LITES:
        return f"timm:{_LITES[name].args[0]}"
    return str(_TRANSFORMERS[name].args[0]) if name in _TRANSFORMERS else None


def make_lite_fpn(
    backbone: str, num_classes: int, *, anchor_scale: float | None = None, pretrained: bool = True
) -> ComposedDetector:
    """A detector of timm's EfficientNet-Lite without its last stage, an FPN and an anchor-free head: learns fast on a CPU."""
    body = TimmBackbone(backbone, pretrained=pretrained, cut=1)
    neck = FPN(body.channels, width=WIDTH)
    return ComposedDetector(body, neck, DenseHead(num_classes, width=WIDTH, anchor_scale=_scale(anchor_scale)))


def _scale(anchor_scale: float | None) -> float:
    return 3.0 if anchor_scale is None else anchor_scale


_LITES = {
    f"lite{i}_fpn": entry(
        partial(make_lite_fpn, f"tf_efficientnet_lite{i}"),
        f"EfficientNet-Lite{i} without its last stage, FPN of {WIDTH} channels over P3 to P5, anchor-free.",
    )
    for i in range(3)
}
_TRANSFORMERS = {
    name: entry(partial(make_composed, *parts_of(parts)), summary)
    for name, parts, summary in (
        ("swin_tiny_fpn", "swin_tiny+fpn+dense", "Swin-T, FPN of 64 channels, anchor-free."),
        ("vit_tiny_pyramid", "vit_tiny+vitdet+dense", "ViT-Ti/16, ViTDet's plain pyramid, anchor-free."),
        ("vit_small_pyramid", "vit_small+vitdet+dense", "ViT-S/16, ViTDet's plain pyramid, anchor-free."),
    )
}
FAMILY: Mapping[str, Callable[..., ComposedDetector]] = {**_LITES, **_TRANSFORMERS}
