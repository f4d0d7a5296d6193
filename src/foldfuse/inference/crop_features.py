"""Features of crops by a frozen network, and a linear probe (multinomial logistic regression) on the features.

Shapes: n crops, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from foldfuse.data.crops import Crops
from foldfuse.detections import Array
from foldfuse.models.cpu.fold_batch_norm import fold_batch_norms
from foldfuse.models.pretrained.imagenet import load_backbone
from foldfuse.system.device import choose_device, in_halves
from foldfuse.system.progress import Progress, no_progress

BATCH_SIZE = 64
STD_EPSILON = 0.05  # added to a feature's standard deviation, so that a feature that is nearly always 0 is not blown up


@dataclass(frozen=True, eq=False)
class CropEncoder:
    """A frozen network that turns a crop into features.

    Attributes:
        network: (B, 3, size, size) in 0..1 on `device` -> (B, D) on `device`.
        size: the size of a crop, pixels.
        context: side of a crop, as a multiple of its box's longer side.
        device: the device that the network computes on.
    """

    network: Callable[[Tensor], Tensor]
    size: int = 128
    context: float = 1.3
    device: str = "cpu"


def imagenet_encoder(*, size: int = 128, context: float = 1.3, device: str = "auto") -> CropEncoder:
    """A frozen ImageNet-pretrained EfficientNet-Lite0: 1280 features of a crop.

    Raises:
        InputError: the weights are not available, or there is no such device.
    """
    device = choose_device(device)
    network = timm.create_model("tf_efficientnet_lite0")
    load_backbone(network, "tf_efficientnet_lite0")
    model = fold_batch_norms(network).to(device).to(memory_format=torch.channels_last)

    def encode(images: Tensor) -> Tensor:
        return model.forward_features(images * 2 - 1).mean((2, 3))  # type: ignore[operator]

    return CropEncoder(encode, size, context, device)


def mirrored(encoder: CropEncoder) -> CropEncoder:
    """The encoder of the crops' mirror images."""
    return replace(encoder, network=lambda images: encoder.network(images.flip(3)))


@torch.inference_mode()
def features(crops: Crops, encoder: CropEncoder, *, progress: Progress = no_progress) -> Array:
    """(n, D) float32 features, one row per crop.

    Raises:
        InputError: an image cannot be decoded, or the memory is too small for one crop.
    """
    rows: list[Array] = []
    done = 0
    images = crops.images(context=encoder.context, size=encoder.size)
    while batch := list(islice(images, BATCH_SIZE)):
        rows += in_halves(partial(_encode, encoder), np.stack(batch))
        done += len(batch)
        progress(done / len(crops))
    return np.stack(rows) if rows else np.zeros((0, 0), np.float32)


def _encode(encoder: CropEncoder, images: Array) -> Array:
    """(B, S, S, 3) uint8 -> (B, D)."""
    pixels = torch.from_numpy(images).to(encoder.device).permute(0, 3, 1, 2)
    encoded: Array = encoder.network(pixels.float().div_(255)).cpu().numpy()
    return encoded


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A multinomial logistic regression on standardised features.

    Attributes:
        mean, std: (D,) of the training features.
        weight, bias: (D, K), (K,).
    """

    mean: Array
    std: Array
    weight: Array
    bias: Array

    def log_probabilities(self, features: Array) -> Array:
        """(n, D) -> (n, K) float64, log-probabilities of the classes."""
        logits = ((features - self.mean) / self.std) @ self.weight + self.bias
        logits = logits.astype(np.float64) - logits.max(1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def fit_probe(features: Array, labels: Array, weights: Array, *, num_classes: int, ridge: float) -> LinearProbe:
    """The probe with the least mean cross-entropy plus `ridge` / 2 times its squared weights; the minimum is unique.

    Args:
        features: (n, D).
        labels: (n,) in 0..num_classes-1.
        weights: (n,) of the rows in the loss.
        num_classes: K.
        ridge: the larger, the closer the probabilities of the classes to each other.
    """
    mean, std = features.mean(0), features.std(0) + STD_EPSILON
    x = torch.from_numpy(((features - mean) / std).astype(np.float32))
    y, share = torch.from_numpy(labels), torch.from_numpy((weights / weights.sum()).astype(np.float32))
    weight = torch.zeros(x.shape[1], num_classes, requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=100, tolerance_grad=1e-4, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = F.cross_entropy(x @ weight + bias, y, reduction="none")  # (n,)
        loss = (losses * share).sum() + ridge / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return LinearProbe(mean, std, weight.detach().numpy(), bias.detach().numpy())
