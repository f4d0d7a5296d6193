"""Stores a crop rescorer: the classifier's numbers as safetensors, its settings as JSON. Nothing in them is executed.

Only rescorers on the package's own ImageNet network can be stored: the files lack its weights, which every installation has.
Where the network lies beside them as an ONNX file, as in an exported campaign, the rescorer needs no torch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from foldfuse.errors import InputError
from foldfuse.inference.crop_encoder import NETWORKS, CropEncoder, LinearProbe
from foldfuse.inference.onnx_predictor import onnx_encoder
from foldfuse.inference.rescorer import Blend, Rescorer
from foldfuse.system.atomic_files import atomic
from foldfuse.system.records import read_record, write_record

SETTINGS, TENSORS = "rescorer.json", "rescorer.safetensors"
ENCODER = "encoder.onnx"  # the network, where it does not come from PyTorch
VERSION = 2  # 1 had no name of the network, which was EfficientNet-Lite0
_TENSORS = ("mean", "std", "weight", "bias")


@dataclass(frozen=True)
class RescorerSettings:
    """What rescorer.json holds.

    Attributes:
        classes: the class names, in the order of the labels.
        crop_size: the side of a crop, pixels.
        crop_context: the side of a crop, as a multiple of its box's longer side.
        alpha, background: see `Blend`.
        max_detections, default_log_p: see `Rescorer`.
        learnt_images: content hashes of the held-out images that it has learnt from; see `data.content_hashes`.
        network: timm's name of the network that makes the features.
    """

    classes: tuple[str, ...]
    crop_size: int
    crop_context: float
    alpha: float
    background: bool
    max_detections: int
    default_log_p: float
    learnt_images: tuple[str, ...]
    network: str = "tf_efficientnet_lite0"


def write_rescorer(folder: Path, rescorer: Rescorer, classes: Collection[str], learnt_images: Collection[str]) -> None:
    """Writes both files into a folder.

    Args:
        folder: the folder.
        rescorer: on the encoder of `imagenet_encoder`.
        classes: the class names, in the order of the labels.
        learnt_images: content hashes of the held-out images that it has learnt from.
    """
    from safetensors.numpy import save_file

    assert rescorer.encoder.network is not None, "only the package's own networks can be named in a file"
    with atomic(folder / TENSORS) as path:
        save_file({name: np.ascontiguousarray(getattr(rescorer.probe, name)) for name in _TENSORS}, path)
    settings = RescorerSettings(
        tuple(classes),
        rescorer.encoder.size,
        rescorer.encoder.context,
        rescorer.blend.alpha,
        rescorer.blend.background,
        rescorer.max_detections,
        rescorer.default_log_p,
        tuple(sorted(learnt_images)),
        rescorer.encoder.network,
    )
    write_record(folder / SETTINGS, settings, version=VERSION)


def read_rescorer(folder: Path, classes: Collection[str], *, device: str) -> tuple[Rescorer, frozenset[str]]:
    """The rescorer in a folder, and the content hashes of the held-out images that it has learnt from.

    Raises:
        InputError: a file is missing or broken, or it was trained for other classes.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    settings = read_record(folder / SETTINGS, RescorerSettings, version=VERSION, what="the settings of a crop rescorer")
    if settings.classes != tuple(classes):
        raise InputError(f"{folder / SETTINGS}: is of other classes ({', '.join(settings.classes)}). Restore the file.")
    in_range = 4 <= settings.crop_size <= 4096 and settings.crop_context > 0 and 0 <= settings.alpha <= 1
    if not in_range or settings.network not in NETWORKS:
        raise InputError(f"{folder / SETTINGS}: holds a value out of its range. Restore the file.")
    path = folder / TENSORS
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({str(error)[:100]}). Restore it from a copy of the campaign."
        ) from None
    shapes = {name: tensors[name].shape for name in _TENSORS if name in tensors}
    width, num_classes = shapes.get("weight", (0, 0)) if len(shapes.get("weight", ())) == 2 else (0, 0)
    expected = {"mean": (width,), "std": (width,), "weight": (width, len(settings.classes) + 1), "bias": (num_classes,)}
    if shapes != expected or not all(np.isfinite(tensors[name]).all() for name in _TENSORS):
        raise InputError(f"{path}: is no crop rescorer of {len(settings.classes)} classes. Restore it from a copy.")
    probe = LinearProbe(*(tensors[name] for name in _TENSORS))
    encoder = _encoder(folder, settings, device)
    blend = Blend(settings.alpha, settings.background)
    rescorer = Rescorer(probe, encoder, blend, settings.max_detections, settings.default_log_p)
    return rescorer, frozenset(settings.learnt_images)


def _encoder(folder: Path, settings: RescorerSettings, device: str) -> CropEncoder:
    if (folder / ENCODER).is_file():
        path = folder / ENCODER
        encoder = onnx_encoder(path, size=settings.crop_size, context=settings.crop_context, device=device)
        return replace(encoder, network=settings.network)
    from foldfuse.inference.crop_features import imagenet_encoder

    return imagenet_encoder(settings.network, size=settings.crop_size, context=settings.crop_context, device=device)
