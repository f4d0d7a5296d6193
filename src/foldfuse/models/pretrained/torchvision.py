"""Weights of torchvision's checkpoints for its detectors, which have torchvision's tensor names here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from foldfuse.models.pretrained.class_layer import class_layers
from foldfuse.models.pretrained.coco import COCO_ROWS, load_coco_state
from foldfuse.models.pretrained.imagenet import load_features
from foldfuse.models.pretrained.published import locate, published
from foldfuse.models.pretrained.state_dicts import read_state, with_counters

_EXPECTED = "a checkpoint that torchvision published"
_OLDER_NAMES = (  # (of a checkpoint made before torchvision 0.13, now)
    (re.compile(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"(rpn\.head\.conv)\.(weight|bias)$"), r"\1.0.0.\2"),
)


def load_torchvision(path: Path, model: nn.Module, classes: Sequence[str]) -> str:
    """Load torchvision's COCO checkpoint of the same detector into `model`, in place, and return a sentence for the log.

    Rows of classes that have no name of COCO's keep their initial values.

    Args:
        path: a checkpoint that torchvision published, or a .safetensors of its state dict.
        model: the new detector.
        classes: names of the model's classes, by label.

    Raises:
        InputError: the file is missing, broken, unsafe, or of another detector.
    """
    state = with_counters(current_names(read_state(path, expected=_EXPECTED)), model.state_dict())
    has_background = class_layers(model)[0].first  # before the classes, in a softmax
    known = COCO_ROWS[1:] if has_background else COCO_ROWS
    return load_coco_state(model, state, classes=classes, source=str(path), known=known)


def load_imagenet_body(body: nn.Module, name: str) -> None:
    """Load torchvision's ImageNet weights into the backbone of the detector `name`, without its feature pyramid.

    Raises:
        InputError: the weights are not on this machine and cannot be downloaded, or the file is broken.
    """
    path = locate(published(name, "imagenet"))
    weights = {key.removeprefix("features."): t for key, t in read_state(path, expected=_EXPECTED).items()}
    load_features(body, weights, source=str(path))


def current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the tensor names of torchvision 0.13 and later; torchvision renames those of older checkpoints too."""
    renamed = {}
    for key, t in state.items():
        for older, now in _OLDER_NAMES:
            key = older.sub(now, key)
        renamed[key] = t
    return renamed
