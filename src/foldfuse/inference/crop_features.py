"""A second look at crops: features of a network that is not trained, and a logistic head on them that is, in seconds.

Shapes: n crops, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
from foldfuse.system.progress import Progress, no_progress

BATCH = 64
STD_EPSILON = 0.05  # added to a feature's spread, so that one that hardly ever differs from 0 is not blown up


@dataclass(frozen=True, eq=False)
class CropEncoder:
    """How a crop is looked at.

    Attributes:
        network: (B, 3, size, size) in 0..1 -> (B, D).
        size: of a crop, pixels.
        context: side of a crop, as a multiple of its box's longer side.
    """

    network: Callable[[Tensor], Tensor]
    size: int = 128
    context: float = 1.3


def imagenet(*, size: int = 128, context: float = 1.3) -> CropEncoder:
    """EfficientNet-Lite0 as ImageNet left it: 1280 features of a crop.

    Raises:
        InputError: its weights are not at hand.
    """
    network = timm.create_model("tf_efficientnet_lite0")
    load_backbone(network, "tf_efficientnet_lite0")
    quick = fold_batch_norms(network).to(memory_format=torch.channels_last)

    def look(images: Tensor) -> Tensor:
        return quick.forward_features(images * 2 - 1).mean((2, 3))  # type: ignore[operator]

    return CropEncoder(look, size, context)


def mirrored(look: CropEncoder) -> CropEncoder:
    """The same look at mirror images."""
    return replace(look, network=lambda images: look.network(images.flip(3)))


@torch.inference_mode()
def features(crops: Crops, look: CropEncoder, *, progress: Progress = no_progress) -> Array:
    """(n, D) float32, a row a crop. Raises InputError where a picture cannot be decoded."""
    found: list[Array] = []
    done = 0
    cut = crops.images(context=look.context, size=look.size)
    while part := list(islice(cut, BATCH)):
        images = torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2)
        found.append(look.network(images.float().div_(255)).numpy())
        done += len(part)
        progress(done / len(crops))
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A multinomial logistic regression.

    Attributes:
        mean, spread: (D,) of the features that it learnt from.
        weight, bias: (D, K), (K,).
    """

    mean: Array
    spread: Array
    weight: Array
    bias: Array

    def log_probabilities(self, features: Array) -> Array:
        """(n, D) -> (n, K) float64, the logarithms of the classes' probabilities."""
        logits = ((features - self.mean) / self.spread) @ self.weight + self.bias
        logits = logits.astype(np.float64) - logits.max(1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def fit_probe(features: Array, labels: Array, weights: Array, *, num_classes: int, ridge: float) -> LinearProbe:
    """The head with the least mean cross-entropy plus `ridge` / 2 times its squared weights; the minimum is unique.

    Args:
        features: (n, D).
        labels: (n,) in 0..num_classes-1.
        weights: (n,) how much each row counts.
        num_classes: K.
        ridge: the larger, the more alike the probabilities of the classes.
    """
    mean, spread = features.mean(0), features.std(0) + STD_EPSILON
    x = torch.from_numpy(((features - mean) / spread).astype(np.float32))
    y, share = torch.from_numpy(labels), torch.from_numpy((weights / weights.sum()).astype(np.float32))
    weight = torch.zeros(x.shape[1], num_classes, requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=100, tolerance_grad=1e-4, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (
            F.cross_entropy(x @ weight + bias, y, reduction="none") * share
        ).sum() + ridge / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return LinearProbe(mean, spread, weight.detach().numpy(), bias.detach().numpy())
