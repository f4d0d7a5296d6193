"""Features of whole images, to tell how much two images differ."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from foldfuse.detections import Array
from foldfuse.errors import InputError
from foldfuse.system.device import in_halves

SIDE = 128  # pixels of the square that an image is shrunk to
_CELLS = 8  # along a side, where there is no network

Encode = Callable[[Array], Array]  # (B, SIDE, SIDE, 3) uint8 -> (B, D) float32

log = logging.getLogger(__name__)


def image_encoder(device: str) -> Encode:
    """A frozen ImageNet-pretrained EfficientNet-Lite0; `colour_grid` where it is not installed.

    Args:
        device: the device that the network computes on.
    """
    try:
        from foldfuse.inference.crop_features import imagenet_encoder

        network = imagenet_encoder("tf_efficientnet_lite0", size=SIDE, device=device).encode
    except (ImportError, InputError) as error:
        log.warning("%s Images are compared by their colours on a grid of %d x %d.", _sentence(error), _CELLS, _CELLS)
        return colour_grid

    return lambda images: np.stack(in_halves(network, images))


def colour_grid(images: Array) -> Array:
    """(B, SIDE, SIDE, 3) uint8 -> (B, D) float32: the mean colours of the cells of a grid."""
    cell = SIDE // _CELLS
    means = images.reshape(len(images), _CELLS, cell, _CELLS, cell, 3).astype(np.float32).mean((2, 4))
    return means.reshape(len(images), -1) / 255


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else "The network that compares images needs torch."
