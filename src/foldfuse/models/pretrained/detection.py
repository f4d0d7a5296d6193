"""Weights of detectors that were pre-trained on the boxes of many datasets, and how a new detector starts from them.

A file holds the backbone, the neck and the head in half precision, and in its metadata the detector's name and the names of the
classes. The last class is `OBJECT_CLASS`: its row of the class layer was trained on the objects of all classes. Every class of a
new dataset starts from that row. The files that come with the package have no other row, since nothing reads them.

A file can also hold hashes of the images that the weights have learnt from, so that a training tells of held-out images that
look like them; see `inference.pretraining_images`.

Where we differ from the usual transfer (Ren et al., "Faster R-CNN", arXiv:1506.01497, draws the class layer anew): a new class
layer that already tells objects from background gives the assignment of the first steps good candidates.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foldfuse.detections import Array
from foldfuse.errors import InputError
from foldfuse.models.detection.heads import DenseHead
from foldfuse.models.pretrained.checkpoint import read_safetensors
from foldfuse.models.pretrained.state_dicts import require_finite, require_same_tensors
from foldfuse.system.atomic_files import atomic

OBJECT_CLASS = "object"
FOLDER = Path(__file__).parent / "weights"  # of the files that come with the package
CLASS_BRANCH = "head.class_"  # the names of its tensors begin so
_DETECTOR, _CLASSES = "detector", "classes"  # keys of a file's metadata
_IMAGES = "pretraining_images"  # name of the tensor of hashes, and key of the numbers of hashes by dataset
_CLASS_LAYER = f"{CLASS_BRANCH}head."
_HALF_MAX = 6e4  # larger numbers stay in single precision
_HASH_BYTES = 32


@dataclass(frozen=True, eq=False)
class PretrainingImages:
    """What is kept of the images that detection weights have learnt from.

    Attributes:
        hashes: (n, 32) uint8, the difference hashes of the images, one dataset after the other.
        counts: {name of a dataset: number of its hashes}, in the same order.
    """

    hashes: Array
    counts: Mapping[str, int]


def shipped_weights(detector: str) -> Path:
    """The file of detection weights that comes with the package for a detector.

    Raises:
        InputError: there is none.
    """
    path = FOLDER / f"{detector}.safetensors"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in FOLDER.glob("*.safetensors"))) or "none"
        raise InputError(
            f"init_weights is detection, and this package has no detection weights of {detector}, only of: {there}. "
            "Take one of these, init_weights=imagenet, or the path of a file of detection weights."
        )
    return path


def save_detection_weights(
    path: Path,
    weights: Mapping[str, Tensor],
    *,
    detector: str,
    classes: Sequence[str],
    images: PretrainingImages | None = None,
) -> None:
    """Write a file of detection weights in half precision; a tensor with numbers too large for it, in single precision.

    Args:
        path: the file, which is replaced whole.
        weights: state dict of a detector whose last class is `OBJECT_CLASS`.
        detector: the name of the detector.
        classes: names of its classes, the last one included.
        images: the images that the weights have learnt from; None to tell nothing of them.
    """
    assert classes[-1] == OBJECT_CLASS
    kept = {
        key: t.detach().cpu().to(torch.float16 if t.abs().max() < _HALF_MAX else torch.float32).contiguous()
        for key, t in weights.items()
        if t.is_floating_point()
    }
    metadata = {_DETECTOR: detector, _CLASSES: json.dumps(list(classes))}
    if images is not None:
        kept[_IMAGES] = torch.from_numpy(images.hashes)
        metadata[_IMAGES] = json.dumps(dict(images.counts))
    with atomic(path) as temporary:
        save_file(kept, temporary, metadata=metadata)


def keep_object_class(path: Path, out: Path) -> None:
    """Write a copy of a file of detection weights that has the row of `OBJECT_CLASS` alone: what a package ships.

    Raises:
        InputError: the file is broken.
    """
    weights = _load(path)
    for part in (f"{_CLASS_LAYER}weight", f"{_CLASS_LAYER}bias"):
        weights[part] = weights[part][-1:]
    images = pretraining_images(path)
    save_detection_weights(out, weights, detector=_metadata(path)[_DETECTOR], classes=[OBJECT_CLASS], images=images)


def add_pretraining_images(path: Path, out: Path, images: PretrainingImages) -> None:
    """Write a copy of a file of detection weights that tells which images they have learnt from.

    Raises:
        InputError: the file is broken.
    """
    metadata = _metadata(path)
    classes = json.loads(metadata[_CLASSES])
    save_detection_weights(out, _load(path), detector=metadata[_DETECTOR], classes=classes, images=images)


def pretraining_images(path: Path) -> PretrainingImages | None:
    """What a file of detection weights tells of the images that they have learnt from; None where it tells nothing.

    Raises:
        InputError: the file is broken.
    """
    damaged = InputError(f"{path}: its hashes of the pre-training images are damaged. Copy the file again.")
    metadata = _metadata(path)
    if _IMAGES not in metadata:
        return None
    try:
        counts = json.loads(metadata[_IMAGES])
        with safe_open(path, "np") as file:
            hashes = file.get_tensor(_IMAGES)
    except (OSError, SafetensorError, ValueError, RecursionError):
        raise damaged from None
    numbers = list(counts.values()) if isinstance(counts, dict) else [-1]
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise damaged
    if hashes.dtype != np.uint8 or hashes.shape != (sum(numbers), _HASH_BYTES):
        raise damaged
    return PretrainingImages(hashes, counts)


def has_detection_weights(path: Path) -> bool:
    """Whether a file is one that `save_detection_weights` wrote.

    Raises:
        InputError: it is called .safetensors and cannot be read as such.
    """
    return path.suffix == ".safetensors" and path.is_file() and {_DETECTOR, _CLASSES} <= _metadata(path).keys()


def start_from_pretrained(path: Path, model: Any) -> str:
    """Load a file of detection weights into `model`, and return a sentence on it.

    Each row of the class layer becomes the row of `OBJECT_CLASS`. Its bias is lowered by the logarithm of the number of classes,
    so that at first the scores of all classes together say how likely an object is. Where a file has no tensors of the class
    branch, the branch keeps its random initial values.

    Raises:
        InputError: the file is broken or is of another detector.
    """
    theirs, name, source = _load(path), _metadata(path)[_DETECTOR], str(path)
    if path.parent == FOLDER:
        source = f"{path.name} of this package (SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]})"
    if not isinstance(getattr(model, "head", None), DenseHead):
        raise InputError(
            f"{source}: has weights of {name}, and only detectors with its anchor-free head can start from them."
        )
    require_finite(theirs, source=source)
    count, has_classes = model.num_classes, f"{_CLASS_LAYER}bias" in theirs
    if has_classes:
        rows = theirs.get(f"{_CLASS_LAYER}weight", torch.zeros(0))[-1:]
        theirs[f"{_CLASS_LAYER}weight"] = rows.repeat(count, *[1] * (rows.ndim - 1))
        theirs[f"{_CLASS_LAYER}bias"] = theirs[f"{_CLASS_LAYER}bias"][-1:].repeat(count) - math.log(count)
    ours = {
        key: t
        for key, t in model.state_dict().items()
        if t.is_floating_point() and (has_classes or not key.startswith(CLASS_BRANCH))
    }
    require_same_tensors(theirs, ours, source=f"{source}, detection weights of {name}")
    model.load_state_dict(theirs, strict=False)  # the counters of the batch norms are not in the file
    if not has_classes:
        return f"{source}: all weights were loaded; the class branch, which the file does not have, starts from random values."
    return f"{source}: all weights were loaded; every class starts from the weights for any object."


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        raise InputError(f"{path}: is no .safetensors file, or is damaged. Copy it again.") from None


def _load(path: Path) -> dict[str, Tensor]:
    return {key: t.float() for key, t in read_safetensors(path).items() if key != _IMAGES}
