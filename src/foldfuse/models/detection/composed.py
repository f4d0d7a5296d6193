"""Detectors composed of any backbone, neck and head, by name; `lite0_fpn` and its siblings are composed so.

"compose:timm:mobilenetv4_conv_small+fpn+dense" is a detector's name like any other: a backbone of `make_backbone`, a neck of
`NECKS`, a head of `HEADS`. That a detector is these three parts, of which each can be replaced, is how Bochkovskiy, Wang and
Liao, "YOLOv4", arXiv:2004.10934, section 2.1, sort them; the papers of the parts stand in their files. A ViT gives one level,
from which ViTDet's pyramid makes the others (Li et al., arXiv:2203.16527, section 3).

Shapes: B images, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from foldfuse.detections import Annotations, Detections
from foldfuse.errors import InputError, unknown_name
from foldfuse.models.backbones.factory import make_backbone
from foldfuse.models.backbones.timm_cnn import Convolutional
from foldfuse.models.backbones.transformer_layers import require_multiple
from foldfuse.models.detection.dense_head import Raw
from foldfuse.models.detection.heads import AnchorHead, DenseHead
from foldfuse.models.detection.necks import FPN, NECKS
from foldfuse.models.detection.yolov5 import Head, YOLOv5

PREFIX = "compose:"
WIDTH = 64  # channels of a composed detector's neck and head
HEADS = ("efficientdet", "yolov5", "dense")


class ComposedDetector(nn.Module):
    """Backbone -> neck -> head; the head says what is learnt, and what is found.

    Args:
        backbone: gives levels; has `stride` and `freeze`.
        neck: gives levels of one width.
        head: gives `Raw`; has `loss` and `decode`.
        image_size: pixels, the side of the square that it is meant for.
    """

    def __init__(self, backbone: Any, neck: nn.Module, head: AnchorHead | DenseHead, *, image_size: int = 320) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = backbone, neck, head
        self.stride: int = backbone.stride
        self.num_classes, self.image_size = head.num_classes, image_size

    def forward(self, images: Tensor) -> Raw:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of `stride` -> Raw.

        Raises:
            InputError: H or W is no multiple of `stride`.
        """
        require_multiple(images, self.stride)
        found: Raw = self.head(self.neck(self.backbone(images)), (images.shape[-2], images.shape[-1]))
        return found

    def freeze(self, stages: int) -> None:
        """Training mode, but for the first stages of the backbone; 0 trains everything."""
        self.train()
        self.backbone.freeze(stages)

    def loss(self, raw: Raw, targets: Sequence[Annotations]) -> dict[str, Tensor]:
        """Terms to be summed, each a scalar."""
        return self.head.loss(raw, targets)

    def decode(self, raw: Raw) -> list[Detections]:
        """B Detections in input pixels, best first."""
        return self.head.decode(raw)


class ComposedYOLOv5(YOLOv5):
    """YOLOv5's head, with its fitted anchors and its loss, on another backbone and neck."""

    def __init__(self, backbone: Any, neck: nn.Module, num_classes: int, *, image_size: int = 320) -> None:
        super().__init__(num_classes, depth=0.33, width=0.25)
        self.backbone, self.neck = backbone, neck  # type: ignore[assignment]
        self.head = Head([WIDTH] * 3, num_classes)
        self.image_size = image_size

    def freeze(self, stages: int) -> None:
        """Training mode, but for the first stages of the backbone; 0 trains everything."""
        self.train()
        self.backbone.freeze(stages)  # type: ignore[operator]


def make_composed(
    backbone: str,
    neck: str,
    head: str,
    num_classes: int,
    *,
    anchor_scale: float | None = None,
    pretrained: bool = True,
) -> ComposedDetector | ComposedYOLOv5:
    """A new detector of these parts.

    Args:
        backbone: as `make_backbone` takes it.
        neck: of `NECKS`; "vitdet" behind a ViT, which has one level, and another behind the others, which have three.
        head: of `HEADS`.
        num_classes: of the data.
        anchor_scale: side of a level's smallest anchor, or of an untrained box, in strides.
        pretrained: begin with ImageNet weights.

    Raises:
        InputError: there is no such part, the parts do not fit, or the weights are not at hand.
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
    scale = 3.0 if anchor_scale is None else anchor_scale
    if head == "yolov5":
        return ComposedYOLOv5(body, between, num_classes)
    kind = DenseHead if head == "dense" else AnchorHead
    return ComposedDetector(body, between, kind(num_classes, width=WIDTH, anchor_scale=scale))


def parts_of(name: str) -> tuple[str, str, str]:
    """The backbone, neck and head that a name such as "compose:swin_tiny+fpn+dense" gives.

    Raises:
        InputError: these are not three.
    """
    parts = name.removeprefix(PREFIX).split("+")
    if len(parts) != 3:
        raise InputError(
            f"{name!r}: a composed detector is called compose:BACKBONE+NECK+HEAD, such as compose:swin_tiny+fpn+dense."
        )
    return parts[0], parts[1], parts[2]


def lite0_fpn(num_classes: int, *, anchor_scale: float | None = None, pretrained: bool = True) -> ComposedDetector:
    """EfficientNet-Lite0 without its last stage, FPN of 64 channels over P3 to P5, one box a cell: learns fast on a CPU."""
    return _lite_fpn("tf_efficientnet_lite0", num_classes, anchor_scale, pretrained)


def lite1_fpn(num_classes: int, *, anchor_scale: float | None = None, pretrained: bool = True) -> ComposedDetector:
    """As `lite0_fpn`, on EfficientNet-Lite1."""
    return _lite_fpn("tf_efficientnet_lite1", num_classes, anchor_scale, pretrained)


def lite2_fpn(num_classes: int, *, anchor_scale: float | None = None, pretrained: bool = True) -> ComposedDetector:
    """As `lite0_fpn`, on EfficientNet-Lite2."""
    return _lite_fpn("tf_efficientnet_lite2", num_classes, anchor_scale, pretrained)


def _lite_fpn(backbone: str, num_classes: int, anchor_scale: float | None, pretrained: bool) -> ComposedDetector:
    body = Convolutional(backbone, pretrained=pretrained, cut=1)
    scale = 3.0 if anchor_scale is None else anchor_scale
    return ComposedDetector(body, FPN(body.channels, width=64), DenseHead(num_classes, width=64, anchor_scale=scale))


def _maker(name: str, parts: str, what: str) -> Callable[..., ComposedDetector | ComposedYOLOv5]:
    """The registry's maker of one composed detector that has a name of its own."""

    def maker(
        num_classes: int, *, anchor_scale: float | None = None, pretrained: bool = True
    ) -> ComposedDetector | ComposedYOLOv5:
        return make_composed(*parts_of(parts), num_classes, anchor_scale=anchor_scale, pretrained=pretrained)

    maker.__name__ = maker.__qualname__ = name
    maker.__doc__ = what
    return maker


FAMILY: Mapping[str, Callable[..., ComposedDetector | ComposedYOLOv5]] = {
    "lite0_fpn": lite0_fpn,
    "lite1_fpn": lite1_fpn,
    "lite2_fpn": lite2_fpn,
    "swin_tiny_fpn": _maker("swin_tiny_fpn", "swin_tiny+fpn+dense", "Swin-T, FPN of 64 channels, one box a cell."),
    "vit_tiny_pyramid": _maker(
        "vit_tiny_pyramid", "vit_tiny+vitdet+dense", "ViT-Ti/16, ViTDet's plain pyramid, one box a cell."
    ),
    "vit_small_pyramid": _maker(
        "vit_small_pyramid", "vit_small+vitdet+dense", "ViT-S/16, ViTDet's plain pyramid, one box a cell."
    ),
}
