"""YOLOv5-style detectors: CSP backbone, PAN neck, three anchors per cell at strides 8, 16 and 32.

Provenance: written from the papers named at each part and from published facts (widths, repeats, strides, the box encoding and
the matching rule, parameter counts). No code of the toolkit that first had this network was read, used or tested against.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

from foldfuse.errors import InputError
from foldfuse.models.backbones.csp import REPEATS, WIDTHS, CSPBackbone
from foldfuse.models.detection.composed import ComposedDetector
from foldfuse.models.detection.pan import PAN
from foldfuse.models.detection.yolov5_head import YOLOv5Head
from foldfuse.models.registry import entry

SIZES: Mapping[str, tuple[float, float]] = {
    # name: multiples of (REPEATS, WIDTHS)
    "yolov5n": (0.33, 0.25),
    "yolov5s": (0.33, 0.5),
    "yolov5m": (0.67, 0.75),
    "yolov5l": (1.0, 1.0),
    "yolov5x": (1.33, 1.25),
}


def make_yolov5(
    name: str, num_classes: int, *, anchor_scale: float | None = None, pretrained: bool = True
) -> ComposedDetector:
    """A new detector of one of `SIZES`; its anchors are fitted to data, so `anchor_scale` has no effect.

    Raises:
        InputError: `pretrained` is asked for; there are no ImageNet weights.
    """
    if pretrained:
        raise InputError(
            f"{name} has no ImageNet weights. Begin with a run that `foldfuse import` made of your own checkpoint, or train "
            "from scratch with --set init_weights=none --set frozen_stages=0 (pretrained=False in Python)."
        )
    depth, width = SIZES[name]
    return build_yolov5(num_classes, depth=depth, width=width)


def build_yolov5(num_classes: int, *, depth: float, width: float) -> ComposedDetector:
    """A new detector with `REPEATS` times `depth` and `WIDTHS` times `width`."""
    widths = [math.ceil(w * width / 8) * 8 for w in WIDTHS]
    repeats = [max(1, round(n * depth)) for n in REPEATS]
    backbone = CSPBackbone(widths, repeats)
    neck = PAN(backbone.channels, repeats=repeats[0])
    return ComposedDetector(backbone, neck, YOLOv5Head(backbone.channels, num_classes), image_size=640)


FAMILY: Mapping[str, Callable[..., ComposedDetector]] = {
    name: entry(
        partial(make_yolov5, name),
        f"YOLOv5-style: CSP backbone and PAN at depth x {depth}, width x {width}; anchors fitted to the data.",
    )
    for name, (depth, width) in SIZES.items()
}
