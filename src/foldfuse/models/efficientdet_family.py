"""The EfficientDets by name: compound scaling in one table.

Source: Tan, Pang & Le, "EfficientDet", arXiv:1911.09070, table 1 (D0-D7) and section 3.3; what the paper leaves open (the
Lite variants, anchor scales, DropPath of the backbone, plain sums in D6 and D7 "for training stability") are facts of the
authors' released models, as effdet 0.4.1 (Apache-2.0) lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from foldfuse.models.efficientdet import EfficientDet
from foldfuse.models.quicker import ReLU6, SiLU
from foldfuse.models.weights import load_backbone

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE_MEAN, LITE_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Scaling:
    """How one member of the family is made.

    Attributes:
        backbone: timm's name.
        image_size: pixels, the side of the square that it was published with; it works at any.
        width: channels of the BiFPN and of the heads.
        repeats: BiFPN layers.
        head_repeats: convolutions of a head, before the one that predicts.
        fusion: "weighted" (fast normalised fusion) or "sum".
        anchor_scale: side of a level's smallest anchor, in strides.
        drop_path: rate of the backbone's last block; it grows linearly up to there.
    """

    backbone: str
    image_size: int
    width: int
    repeats: int
    head_repeats: int
    fusion: str
    anchor_scale: float
    drop_path: float

    @property
    def lite(self) -> bool:
        """Made for quantised inference: ReLU6 for SiLU, no squeeze-excite, inputs in -1..1."""
        return "lite" in self.backbone


SCALINGS: Mapping[str, Scaling] = {
    #                                 backbone                 size width repeats head  fusion  anchors drop_path
    "efficientdet_d0": Scaling("tf_efficientnet_b0", 512, 64, 3, 3, "weighted", 4.0, 0.2),
    "efficientdet_d1": Scaling("tf_efficientnet_b1", 640, 88, 4, 3, "weighted", 4.0, 0.2),
    "efficientdet_d2": Scaling("tf_efficientnet_b2", 768, 112, 5, 3, "weighted", 4.0, 0.2),
    "efficientdet_d3": Scaling("tf_efficientnet_b3", 896, 160, 6, 4, "weighted", 4.0, 0.2),
    "efficientdet_d4": Scaling("tf_efficientnet_b4", 1024, 224, 7, 4, "weighted", 4.0, 0.2),
    "efficientdet_d5": Scaling("tf_efficientnet_b5", 1280, 288, 7, 4, "weighted", 4.0, 0.2),
    "efficientdet_d6": Scaling("tf_efficientnet_b6", 1280, 384, 8, 5, "sum", 4.0, 0.2),
    "efficientdet_d7": Scaling("tf_efficientnet_b6", 1536, 384, 8, 5, "sum", 5.0, 0.2),
    "efficientdet_lite0": Scaling("tf_efficientnet_lite0", 320, 64, 3, 3, "sum", 3.0, 0.0),
    "efficientdet_lite1": Scaling("tf_efficientnet_lite1", 384, 88, 4, 3, "sum", 3.0, 0.2),
    "efficientdet_lite2": Scaling("tf_efficientnet_lite2", 448, 112, 5, 3, "sum", 3.0, 0.2),
    "efficientdet_lite3": Scaling("tf_efficientnet_lite3", 512, 160, 6, 4, "sum", 4.0, 0.2),
    "efficientdet_lite4": Scaling("tf_efficientnet_lite4", 640, 224, 7, 4, "sum", 4.0, 0.2),
}


def make(
    scaling: Scaling, num_classes: int, *, anchor_scale: float | None = None, pretrained: bool = True
) -> EfficientDet:
    """An EfficientDet of this scaling; ImageNet weights in its backbone unless told not to.

    Args:
        scaling: a row of the table.
        num_classes: of the data.
        anchor_scale: None for the table's.
        pretrained: begin with ImageNet weights.

    Raises:
        InputError: the weights are not at hand.
    """
    model = EfficientDet(
        num_classes,
        backbone=scaling.backbone,
        width=scaling.width,
        repeats=scaling.repeats,
        head_repeats=scaling.head_repeats,
        act=ReLU6 if scaling.lite else SiLU,
        weighted=scaling.fusion == "weighted",
        anchor_scale=scaling.anchor_scale if anchor_scale is None else anchor_scale,
        mean=LITE_MEAN if scaling.lite else IMAGENET_MEAN,
        std=LITE_STD if scaling.lite else IMAGENET_STD,
        drop_path=scaling.drop_path,
        image_size=scaling.image_size,
    )
    if pretrained:
        load_backbone(model.backbone, scaling.backbone)
    return model


def _maker(name: str, scaling: Scaling) -> Callable[..., EfficientDet]:
    """The registry's maker of one row."""

    def maker(num_classes: int, *, anchor_scale: float | None = None, pretrained: bool = True) -> EfficientDet:
        return make(scaling, num_classes, anchor_scale=anchor_scale, pretrained=pretrained)

    backbone = scaling.backbone.removeprefix("tf_efficientnet_").capitalize()
    maker.__name__ = maker.__qualname__ = name
    maker.__doc__ = (
        f"EfficientNet-{backbone}, {scaling.repeats} BiFPN layers of {scaling.width} channels "
        f"({'plain sums' if scaling.fusion == 'sum' else 'weighted fusion'}), heads of {scaling.head_repeats}."
    )
    return maker


FAMILY: Mapping[str, Callable[..., EfficientDet]] = {name: _maker(name, row) for name, row in SCALINGS.items()}
