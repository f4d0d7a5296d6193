"""Weights of torchvision's checkpoints for its detectors, which have torchvision's tensor names here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from foldfuse.errors import InputError
from foldfuse.models.pretrained.checkpoint import read_checkpoint, read_safetensors
from foldfuse.models.pretrained.class_layer import ClassLayer
from foldfuse.models.pretrained.coco import COCO_ROWS, load_coco_state
from foldfuse.models.pretrained.imagenet import load_features
from foldfuse.models.pretrained.published import locate, published

_OLDER_NAMES = (  # (of a checkpoint made before torchvision 0.13, now)
    (re.compile(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"(rpn\.head\.conv)\.(weight|bias)$"), r"\1.0.0.\2"),
)


def load_torchvision(path: Path, model: nn.Module, classes: Sequence[str], *, layers: Sequence[ClassLayer]) -> str:
    """Load torchvision's COCO checkpoint of the same detector into `model`, in place, and return a sentence for the log.

    Rows of classes that have no name of COCO's keep their initial values.

    Args:
        path: a checkpoint that torchvision published, or a .safetensors of its state dict.
        model: the new detector.
        classes: names of the model's classes, by label.
        layers: the layers whose rows belong to classes; those of a softmax have a first row, that of the background.

    Raises:
        InputError: the file is missing, broken, unsafe, or of another detector.
    """
    state = with_counters(current_names(read_state(path)), model.state_dict())
    known = COCO_ROWS[1:] if layers[0].first else COCO_ROWS
    return load_coco_state(model, state, layers=layers, classes=classes, source=str(path), known=known)


def load_imagenet_body(body: nn.Module, name: str) -> None:
    """Load torchvision's ImageNet weights into the backbone of the detector `name`, without its feature pyramid.

    Raises:
        InputError: the weights are not on this machine and cannot be downloaded, or the file is broken.
    """
    path = locate(published(name, "imagenet"))
    weights = {key.removeprefix("features."): t for key, t in read_state(path).items()}
    load_features(body, weights, source=str(path))


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of torch.save or a .safetensors file; no code in the file is executed.

    Raises:
        InputError: the file is missing, broken or unsafe, or holds something else.
    """
    loaded = read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path, inert=())
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in dict.values(loaded)):
        raise InputError(f"{path}: holds no state dict. Expected a checkpoint that torchvision published.")
    return {str(key): t for key, t in dict.items(loaded)}


def current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the tensor names of torchvision 0.13 and later; torchvision renames those of older checkpoints too."""
    renamed = {}
    for key, t in state.items():
        for older, now in _OLDER_NAMES:
            key = older.sub(now, key)
        renamed[key] = t
    return renamed


def with_counters(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the counters of the batch norms in `own`: checkpoints of frozen batch norms have none."""
    return {**{key: t for key, t in own.items() if key.endswith("num_batches_tracked")}, **state}
