"""What a network costs: parameters, FLOPs, memory, time.

A FLOP is one multiplication or one addition, so a multiply-add is two; only matrix products and convolutions are counted. They
are counted on shapes alone (torch's meta device), where a network of any size takes no memory and next to no time, and where
attention is spelt out as the two products that it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from foldfuse.errors import InputError, unknown_name
from foldfuse.models import CLASSIFIERS, DETECTORS, make_detector
from foldfuse.models.detection import composed

PATCH = 16  # pixels on the side of what is counted as a patch here, whatever the model makes of the picture


@dataclass(frozen=True)
class ForwardCost:
    """Of one picture's way through a network.

    Attributes:
        parameters: how many.
        flops: of all matrix products and convolutions.
        attention: the part of `flops` that multiplies activations with activations.
    """

    num_parameters: int
    flops: int
    attention_flops: int


def make_model(name: str, num_classes: int, *, device: str = "cpu") -> Any:
    """The detector (a compose:BACKBONE+NECK+HEAD too) or classifier called `name`, with random weights, in eval mode.

    Raises:
        InputError: there is none.
    """
    if name not in CLASSIFIERS and not is_detector(name):
        raise unknown_name("model", name, [*DETECTORS, *CLASSIFIERS])
    with torch.device(device):
        if name in CLASSIFIERS:
            return CLASSIFIERS[name](num_classes, pretrained=False).eval()
        return make_detector(name, num_classes, pretrained=False).eval()


def is_detector(name: str) -> bool:
    """Whether this is the name of a detector, a composed one's included, and not of a classifier."""
    return name in DETECTORS or name.startswith(composed.PREFIX)


def default_image_size(model: Any) -> int:
    """The side in pixels that a network is meant for: its own word, else that of its learned positions' 224."""
    return int(getattr(model, "image_size", 224))


def check_image_size(model: Any, image_size: int) -> None:
    """Raise InputError unless the network takes squares of this side."""
    if image_size < model.stride or image_size % model.stride:
        below = max(model.stride, image_size // model.stride * model.stride)
        raise InputError(
            f"the image size is {image_size}, and must be a multiple of {model.stride} for this model. "
            f"The nearest are {below} and {below + model.stride}."
        )


@torch.no_grad()
def forward_cost(weightless: nn.Module, image_size: int) -> ForwardCost:
    """The arithmetic of a network on the meta device, for one square picture.

    Raises:
        InputError: the size does not suit it.
    """
    check_image_size(weightless, image_size)
    with FlopCounterMode(display=False) as counter:
        weightless(torch.empty(1, 3, image_size, image_size, device="meta"))
    by_kind = counter.get_flop_counts()["Global"]
    products = sum(n for kind, n in by_kind.items() if "bmm" in str(kind))
    return ForwardCost(sum(p.numel() for p in weightless.parameters()), counter.get_total_flops(), products)


def activation_bytes(model: nn.Module, image_size: int) -> int:
    """Bytes that a training step keeps of one picture for its backward pass; of a network on a CPU."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        raw = model(torch.rand(1, 3, image_size, image_size))  # held, so that no storage's place is taken by another
    del raw
    return sum(size for place, size in kept.items() if place not in own)


@torch.inference_mode()
def latency(model: nn.Module, image_size: int, *, seconds: float = 1.0) -> float:
    """Seconds that one picture takes: the median of as many runs as fit in `seconds`, three at the least."""
    images = torch.rand(1, 3, image_size, image_size)
    model(images)
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < seconds:
        start = time.perf_counter()
        model(images)
        taken.append(time.perf_counter() - start)
    return median(taken)


@dataclass(frozen=True)
class CostPoint:
    """A model at one image size (pixels): bytes a training step keeps of a picture, seconds that predicting one takes."""

    image_size: int
    forward: ForwardCost
    activation_bytes: int
    seconds: float

    @property
    def patches(self) -> float:
        """Squares of 16 pixels in the picture."""
        return (self.image_size / PATCH) ** 2


QUANTITIES: Mapping[str, Callable[[CostPoint], float]] = {
    "parameters": lambda p: p.forward.num_parameters,
    "attention FLOPs": lambda p: p.forward.attention_flops,
    "FLOPs": lambda p: p.forward.flops,
    "activation memory": lambda p: p.activation_bytes,
    "latency": lambda p: p.seconds,
}


def measure_costs(name: str, sizes: Sequence[int], *, seconds: float = 1.0) -> list[CostPoint]:
    """A model's costs at each of `sizes`, on the CPU."""
    weightless, model = make_model(name, 10, device="meta"), make_model(name, 10)
    return [
        CostPoint(
            size, forward_cost(weightless, size), activation_bytes(model, size), latency(model, size, seconds=seconds)
        )
        for size in sizes
    ]


def scaling_exponents(points: Sequence[CostPoint]) -> dict[str, float]:
    """{quantity: e} of the best fit of quantity ~ patches^e; a quantity that is 0 is left out."""
    x = np.log([p.patches for p in points])
    found = {}
    for name, of in QUANTITIES.items():
        values = [of(p) for p in points]
        if min(values) > 0:
            found[name] = round(float(np.polyfit(x, np.log(values), 1)[0]), 4) + 0.0  # no -0
    return found
