"""The detectors, by name. `DETECTORS` is the whole registry: to add one, write a file, a line here and a recipe.

A maker is called as `maker(num_classes, anchor_scale=..., pretrained=...)`; a detector without EfficientDet's anchors
ignores `anchor_scale`, one without weights to start from ignores `pretrained`.

A detector keeps this contract; there is no base class:

* `stride`: image height and width must be multiples of it, else `forward` raises InputError;
* `forward(images (B, 3, H, W) in 0..1) -> raw`: the network alone; what compiles, exports and is spread over devices;
* `loss(raw, targets: B Annotations in input pixels) -> {term: scalar}`, to be summed;
* `decode(raw) -> B Detections` in input pixels: here numpy takes over from torch;
* `freeze(stages)`: training mode, but for the first stages of the backbone, which are not trained;
* `fit_anchors(sizes (N, 2))`: called once before training with the widths and heights of the objects in input pixels;
  what it learns from them must be in the state dict. A detector without fitted anchors leaves the method out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from foldfuse.detections import Annotations, Detections
from foldfuse.errors import unknown_name
from foldfuse.models.efficientdet import EfficientDet
from foldfuse.models.weights import load_backbone


class Detector(Protocol):
    """The contract above, for the type checker."""

    stride: int
    num_classes: int
    backbone: nn.Module

    def __call__(self, images: Tensor) -> Any:
        """(B, 3, H, W) in 0..1 -> raw."""

    def freeze(self, stages: int) -> None:
        """Training mode, but for the first stages of the backbone."""

    def loss(self, raw: Any, targets: Sequence[Annotations]) -> dict[str, Tensor]:
        """Terms to be summed, each a scalar."""

    def decode(self, raw: Any) -> list[Detections]:
        """B Detections in input pixels."""


def efficientdet_lite0(num_classes: int, *, anchor_scale: float = 3.0, pretrained: bool = True) -> EfficientDet:
    """EfficientDet-Lite0: 3.2 M parameters, ReLU6, plain sums, no squeeze-excite; ImageNet weights unless told not to."""
    model = EfficientDet(num_classes, anchor_scale=anchor_scale)
    if pretrained:
        load_backbone(model.backbone, "tf_efficientnet_lite0")
    return model


DETECTORS: Mapping[str, Callable[..., Detector]] = {"efficientdet_lite0": efficientdet_lite0}


def make_detector(name: str, num_classes: int, *, anchor_scale: float = 3.0, pretrained: bool = True) -> Any:
    """A new detector of the kind `name`.

    Raises:
        InputError: there is no such detector.
    """
    if name not in DETECTORS:
        raise unknown_name("detector", name, DETECTORS)
    return DETECTORS[name](num_classes, anchor_scale=anchor_scale, pretrained=pretrained)
