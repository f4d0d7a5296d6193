"""Detectors and classifiers by name. To add a detector, write a file, an entry of its FAMILY here, and a recipe.

An entry of `DETECTORS` is called as `make(num_classes, anchor_scale=..., pretrained=...)`; a detector with fitted anchors ignores
`anchor_scale`. The entry's docstring is one line that describes the model.

A detector keeps this contract; there is no base class:

* `stride`: image height and width must be multiples of it, else `forward` raises InputError;
* `image_size`: pixels, the side of the square that the detector was published with;
* `forward(images (B, 3, H, W) in 0..1) -> raw`: the network alone; it compiles, exports and runs on several devices;
* `loss(raw, targets: B Annotations in input pixels) -> {term: scalar}`, to be summed; it may take `batch_total`, which gives a
  count over the images of all processes (see `detection.normalizers`), and divides by such counts then;
* `decode(raw) -> B Detections` in input pixels: the step from torch to numpy;
* `freeze(stages)`: training mode, except that the first stages of the backbone are frozen;
* `fit_anchors(sizes (N, 2))`: called once before training with the widths and heights of the objects in input pixels; fitted
  anchors are in the state dict. A detector without fitted anchors may leave the method out;
* `load_coco(path, classes) -> sentence`: loads weights published for COCO, where `pretrained.published` knows some;
* `class_layers()`: the layers whose rows belong to classes; a part, such as a head, may have it in place of the detector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from foldfuse.detections import Annotations, Detections
from foldfuse.errors import unknown_name
from foldfuse.models import classifiers
from foldfuse.models.backbones.factory import timm_name
from foldfuse.models.card.depthwise import use_card_layers
from foldfuse.models.classifiers import TimmClassifier
from foldfuse.models.detection import (
    composed,
    dfine,
    efficientdet,
    rtdetr,
    torchvision_dense,
    torchvision_faster_rcnn,
    torchvision_ssdlite,
    yolov5,
)
from foldfuse.models.detection.heads import AnchorPrediction

TIMM = "timm:"


def make_classifier(name: str, num_classes: int, *, pretrained: bool = True) -> nn.Module:
    """A new network: (B, 3, H, W) in 0..1 -> (B, num_classes) logits.

    Args:
        name: one of CLASSIFIERS, or "timm:" and the name of a timm network.
        num_classes: K.
        pretrained: begin with ImageNet weights.

    Raises:
        InputError: there is no such network, or its weights are not available.
    """
    if name.startswith(TIMM):
        return use_card_layers(TimmClassifier(name.removeprefix(TIMM), num_classes, pretrained=pretrained))
    if name not in CLASSIFIERS:
        raise unknown_name("classifier", name, [*CLASSIFIERS, f"{TIMM}NAME"])
    return use_card_layers(CLASSIFIERS[name](num_classes, pretrained=pretrained))


class Detector(Protocol):
    """The contract above, for the type checker."""

    stride: int
    image_size: int
    num_classes: int

    @property
    def backbone(self) -> nn.Module:
        """The feature extractor, which may have a learning rate of its own and may be frozen."""

    def __call__(self, images: Tensor) -> Any:
        """(B, 3, H, W) in 0..1 -> raw."""

    def freeze(self, stages: int) -> None:
        """Training mode, except that the first stages of the backbone are frozen."""

    def loss(self, raw: Any, targets: Sequence[Annotations]) -> dict[str, Tensor]:
        """Terms to be summed, each a scalar."""

    def decode(self, raw: Any) -> list[Detections]:
        """B Detections in input pixels."""


DETECTORS: Mapping[str, Callable[..., Detector]] = {
    **efficientdet.FAMILY,
    **yolov5.FAMILY,
    **composed.FAMILY,
    **dfine.FAMILY,
    **rtdetr.FAMILY,
    **torchvision_ssdlite.FAMILY,
    **torchvision_dense.FAMILY,
    **torchvision_faster_rcnn.FAMILY,
}
# {name: make(num_classes, *, pretrained)}; a classifier has a `stride`, and forward(images in 0..1) gives (B, K) logits.
CLASSIFIERS: Mapping[str, Callable[..., nn.Module]] = {**classifiers.FAMILY}


def imagenet_network(name: str) -> str | None:
    """timm's name of the network whose ImageNet weights a detector or a classifier starts from; None where there are none."""
    if name in efficientdet.SCALINGS:
        return efficientdet.SCALINGS[name].backbone
    if name.startswith(TIMM):
        return name.removeprefix(TIMM)
    backbone = composed.backbone_of(name)
    return timm_name(name if backbone is None else backbone)


def make_detector(
    name: str, num_classes: int, *, anchor_scale: float | None = None, pretrained: bool = True, numerics: int = 2
) -> Any:
    """A new detector: `name` is one of DETECTORS or "compose:BACKBONE+NECK+HEAD".

    Args:
        name: the name of the detector.
        num_classes: the number of classes in the data.
        anchor_scale: side of a level's smallest anchor, in strides; None for the published one.
        pretrained: begin with ImageNet weights.
        numerics: the recipe's field; 1 gives the anchors of runs of earlier versions.

    Raises:
        InputError: there is no such detector, or its initial weights are not available.
    """
    if name.startswith(composed.PREFIX):
        parts = composed.parts_of(name)
        return use_card_layers(
            composed.make_composed(*parts, num_classes, anchor_scale=anchor_scale, pretrained=pretrained)
        )
    if name not in DETECTORS:
        raise unknown_name("detector", name, DETECTORS)
    model: Any = DETECTORS[name](num_classes, anchor_scale=anchor_scale, pretrained=pretrained)
    if numerics == 1 and isinstance(model, AnchorPrediction):
        model.nominal_sides = True
    return use_card_layers(model)
