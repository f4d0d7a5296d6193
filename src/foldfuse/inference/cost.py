"""The cost of a network: parameters, FLOPs, activation memory, latency.

A FLOP is one multiplication or one addition, so a multiply-add is two; only matrix products and convolutions are counted.
PyTorch's meta device counts them from shapes alone: there a network of any size needs no memory and little time, and attention
is two separate products.
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

PATCH = 16  # pixels: side of a patch in the statistics, whatever the model's own patches


@dataclass(frozen=True)
class ForwardCost:
    """Cost of the forward pass of one image.

    Attributes:
        num_parameters: the number of parameters of the network.
        flops: FLOPs of all matrix products and convolutions.
        attention_flops: the part of `flops` that multiplies activations with activations.
    """

    num_parameters: int
    flops: int
    attention_flops: int


def make_model(name: str, num_classes: int, *, device: str = "cpu") -> Any:
    """A detector (or compose:BACKBONE+NECK+HEAD) or classifier with random weights, in eval mode.

    Raises:
        InputError: there is no such model.
    """
    if name not in CLASSIFIERS and not is_detector(name):
        raise unknown_name("model", name, [*DETECTORS, *CLASSIFIERS])
    with torch.device(device):
        if name in CLASSIFIERS:
            return CLASSIFIERS[name](num_classes, pretrained=False).eval()
        return make_detector(name, num_classes, pretrained=False).eval()


def is_detector(name: str) -> bool:
    """Whether `name` is a detector's name, composed detectors included."""
    return name in DETECTORS or name.startswith(composed.PREFIX)


def default_image_size(model: Any) -> int:
    """The side in pixels that a network is meant for: its `image_size`, else 224, the size of ImageNet training."""
    return int(getattr(model, "image_size", 224))


def check_image_size(model: Any, image_size: int) -> None:
    """Raise InputError unless the network takes squares with this side in pixels."""
    if image_size < model.stride or image_size % model.stride:
        below = max(model.stride, image_size // model.stride * model.stride)
        raise InputError(
            f"the image size is {image_size}, and must be a multiple of {model.stride} for this model. "
            f"The nearest are {below} and {below + model.stride}."
        )


@torch.no_grad()
def forward_cost(weightless: nn.Module, image_size: int) -> ForwardCost:
    """The cost of the forward pass of one square image, of a network on the meta device.

    Raises:
        InputError: the size does not fit the network.
    """
    check_image_size(weightless, image_size)
    with FlopCounterMode(display=False) as counter:
        weightless(torch.empty(1, 3, image_size, image_size, device="meta"))
    by_kind = counter.get_flop_counts()["Global"]
    products = sum(n for kind, n in by_kind.items() if "bmm" in str(kind))
    return ForwardCost(sum(p.numel() for p in weightless.parameters()), counter.get_total_flops(), products)


def activation_bytes(model: nn.Module, image_size: int) -> int:
    """Bytes that a training step saves of one image for the backward pass; of a network on a CPU."""
    saved: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        raw = model(
            torch.rand(1, 3, image_size, image_size)
        )  # kept alive, so that no other storage gets the same address
    del raw
    return sum(size for address, size in saved.items() if address not in own)


@torch.inference_mode()
def latency(model: nn.Module, image_size: int, *, seconds: float = 1.0) -> float:
    """Seconds for the forward pass of one image: the median of as many passes as fit in `seconds`, at least three."""
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
    """The costs of a model at one image size.

    Attributes:
        image_size: side of the square in pixels.
        forward: cost of the forward pass.
        activation_bytes: saved by a training step for the backward pass of one image.
        seconds: latency of one image.
    """

    image_size: int
    forward: ForwardCost
    activation_bytes: int
    seconds: float

    @property
    def patches(self) -> float:
        """Number of 16 x 16 pixel patches in the image."""
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
    exponents = {}
    for name, of in QUANTITIES.items():
        values = [of(p) for p in points]
        if min(values) > 0:
            exponents[name] = round(float(np.polyfit(x, np.log(values), 1)[0]), 4) + 0.0  # no -0
    return exponents
