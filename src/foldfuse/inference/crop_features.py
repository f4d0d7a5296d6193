"""The networks of PyTorch that make features of crops, and the fit of a linear probe (multinomial logistic regression) on them.

Shapes: n crops, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldfuse.detections import Array
from foldfuse.inference.crop_encoder import DEFAULT_NETWORK, CropEncoder, LinearProbe
from foldfuse.models.cpu.fold_batch_norm import fold_batch_norms
from foldfuse.models.pretrained.imagenet import load_backbone
from foldfuse.system.device import choose_device

CPU_BATCH = 16  # crops that a CPU's network gets at once: more of them leave its caches
COLUMNS = 16  # MKL multiplies by 16 columns several times as fast as by 11
STD_EPSILON = 0.05  # added to a feature's standard deviation, so that a feature that is nearly always 0 is not blown up


class ImagenetFeatures(nn.Module):
    """A frozen ImageNet-pretrained EfficientNet-Lite: (B, 3, H, W) in 0..1 -> (B, 1280).

    Args:
        name: timm's name of the network, one of `NETWORKS`.

    Raises:
        InputError: the weights are not available.
    """

    stride = 32

    def __init__(self, name: str = DEFAULT_NETWORK) -> None:
        super().__init__()
        network = timm.create_model(name)
        load_backbone(network, name)
        self.network = fold_batch_norms(network)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> (B, 1280)."""
        return self.network.forward_features(images * 2 - 1).mean((2, 3))  # type: ignore[operator]


def imagenet_encoder(
    name: str = DEFAULT_NETWORK, *, size: int = 128, context: float = 1.3, device: str = "auto"
) -> CropEncoder:
    """A frozen ImageNet-pretrained EfficientNet-Lite: 1280 features of a crop.

    Args:
        name: timm's name of the network, one of `NETWORKS`.
        size: the size of a crop, pixels.
        context: side of a crop, as a multiple of its box's longer side.
        device: the device that the network computes on.

    Raises:
        InputError: the weights are not available, or there is no such device.
    """
    device = choose_device(device)
    network = ImagenetFeatures(name).to(device).to(memory_format=torch.channels_last)
    return replace(torch_encoder(network, size=size, context=context, device=device), network=name)


def torch_encoder(
    network: Callable[[Tensor], Tensor], *, size: int = 128, context: float = 1.3, device: str = "cpu"
) -> CropEncoder:
    """An encoder whose features are a network's outputs.

    Args:
        network: (B, 3, size, size) in 0..1 on `device` -> (B, D) on `device`.
        size: the size of a crop, pixels.
        context: side of a crop, as a multiple of its box's longer side.
        device: the device that the network computes on.
    """

    @torch.inference_mode()
    def encode(images: Array) -> Array:
        pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
        parts = torch.split(pixels, CPU_BATCH if pixels.device.type == "cpu" else len(pixels))
        encoded: Array = torch.cat([network(part.float().div_(255)) for part in parts]).cpu().numpy()
        return encoded

    return CropEncoder(encode, size, context)


def fit_probe(features: Array, labels: Array, weights: Array, *, num_classes: int, ridge: float) -> LinearProbe:
    """The probe with the least mean cross-entropy plus `ridge` / 2 times its squared weights; the minimum is unique.

    Args:
        features: (n, D).
        labels: (n,) in 0..num_classes-1.
        weights: (n,) of the rows in the loss.
        num_classes: K.
        ridge: the larger, the closer the probabilities of the classes to each other.
    """
    return fit_probes(features, labels, weights, num_classes=num_classes, ridges=(ridge,))[ridge]


def fit_probes(
    features: Array, labels: Array, weights: Array, *, num_classes: int, ridges: Sequence[float]
) -> dict[float, LinearProbe]:
    """{ridge: the probe of `fit_probe`}. The largest ridge comes first, and each fit begins at the result of the last."""
    mean, std = features.mean(0), features.std(0) + STD_EPSILON
    x = torch.from_numpy(((features - mean) / std).astype(np.float32))
    y, share = torch.from_numpy(labels), torch.from_numpy((weights / weights.sum()).astype(np.float32))
    # The columns beyond the classes stay 0: no logit depends on them.
    weight = torch.zeros(x.shape[1], -(-num_classes // COLUMNS) * COLUMNS, requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    probes = {}
    for ridge in sorted(ridges, reverse=True):
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=100, tolerance_grad=1e-4, tolerance_change=1e-7, line_search_fn="strong_wolfe"
        )

        def closure(optimizer: torch.optim.LBFGS = optimizer, ridge: float = ridge) -> Tensor:
            optimizer.zero_grad()
            logits = (x @ weight)[:, :num_classes] + bias
            losses = F.cross_entropy(logits, y, reduction="none")  # (n,)
            loss = (losses * share).sum() + ridge / 2 * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        own = weight.detach()[:, :num_classes].clone().numpy()
        probes[ridge] = LinearProbe(mean, std, own, bias.detach().clone().numpy())
    return probes
