"""Features of crops, and a linear classifier of the features, in numpy: the network that makes the features is a function.

Works without torch. `crop_features` has the networks of PyTorch, `onnx_predictor` that of an ONNX file.

Shapes: n crops, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from foldfuse.data.crops import Crops
from foldfuse.detections import Array
from foldfuse.system.device import in_halves
from foldfuse.system.progress import Progress, no_progress

BATCH_SIZE = 64
NETWORKS = ("tf_efficientnet_lite0", "tf_efficientnet_lite1")  # whose ImageNet weights every installation has
DEFAULT_NETWORK = "tf_efficientnet_lite1"


@dataclass(frozen=True, eq=False)
class CropEncoder:
    """A frozen network that turns a crop into features.

    Attributes:
        encode: (B, size, size, 3) uint8 -> (B, D) float32.
        size: the size of a crop, pixels.
        context: side of a crop, as a multiple of its box's longer side.
        network: timm's name of the ImageNet network that it is; None for any other.
    """

    encode: Callable[[Array], Array]
    size: int = 128
    context: float = 1.3
    network: str | None = None


def mirrored(encoder: CropEncoder) -> CropEncoder:
    """The encoder of the crops' mirror images."""
    return replace(encoder, encode=lambda images: encoder.encode(np.ascontiguousarray(images[:, :, ::-1])))


def features(crops: Crops, encoder: CropEncoder, *, progress: Progress = no_progress) -> Array:
    """(n, D) float32 features, one row per crop.

    Raises:
        InputError: an image cannot be decoded, or the memory is too small for one crop.
    """
    rows: list[Array] = []
    done = 0
    images = crops.images(context=encoder.context, size=encoder.size)
    while batch := list(islice(images, BATCH_SIZE)):
        rows += in_halves(encoder.encode, np.stack(batch))
        done += len(batch)
        progress(done / len(crops))
    return np.stack(rows) if rows else np.zeros((0, 0), np.float32)


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
