"""Weights of effdet's checkpoints for EfficientDet, which has effdet's tensor names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from foldfuse.errors import InputError
from foldfuse.models.pretrained.checkpoint import ANY_PACKAGE, shown
from foldfuse.models.pretrained.coco import COCO_ROWS, load_coco_state
from foldfuse.models.pretrained.published import PUBLISHED
from foldfuse.models.pretrained.state_dicts import read_state, require_finite

_CLASS_LAYER = "class_net.predict.conv_pw."


def load_effdet(path: Path, model: nn.Module) -> str:
    """Load effdet's checkpoint of the same model into `model`, an EfficientDet, and return a sentence for the log.

    If the checkpoint knows other classes, the last layer of the class head keeps its initial weights.

    Args:
        path: a checkpoint that effdet published or saved in training (.pth, .tar), or a .safetensors of the state dict.
        model: the detector, which is changed in place.

    Raises:
        InputError: the file is missing, broken, unsafe, or of another model.
    """
    state = _effdet_state(path)
    require_finite(state, source=str(path))
    ours = model.state_dict()
    new = [
        key for key, t in ours.items() if key.startswith(_CLASS_LAYER) and key in state and state[key].shape != t.shape
    ]
    wrong = [key for key in ours.keys() | state.keys() if key not in new and not _alike(ours.get(key), state.get(key))]
    if wrong:
        example = min(state.keys() - ours.keys(), default=min(wrong))
        raise InputError(
            f"{path}: is of another model: {len(wrong)} of its tensors do not fit, such as {shown(example)}. Expected the "
            "tensors of effdet's tf_efficientdet of the same name and with the same anchors."
        )
    model.load_state_dict(state | {key: ours[key] for key in new})
    if not new:
        return f"{path}: all weights were taken. It names no classes: they are taken to be those of the data, in the same order."
    per_class = ours[f"{_CLASS_LAYER}bias"].numel() // int(model.num_classes)  # type: ignore[arg-type]
    known = state[f"{_CLASS_LAYER}bias"].numel() // per_class
    return (
        f"{path}: all weights were taken but the class head's last layer, which starts from random values: the checkpoint knows "
        f"{known} classes, this model {model.num_classes}."
    )


def load_effdet_coco(path: Path, model: nn.Module, classes: Sequence[str]) -> str:
    """Load effdet's published COCO checkpoint of the same model into `model`, in place, and return a sentence for the log.

    Rows of classes that have no name of COCO's keep their initial values. A file that is not called as a published one names no
    classes, so `load_effdet` reads it.

    Args:
        path: the checkpoint.
        model: the new detector.
        classes: names of the model's classes, by label.

    Raises:
        InputError: the file is missing, broken, unsafe, or of another model.
    """
    if path.name not in {row.file for row in PUBLISHED.values()}:
        return load_effdet(path, model)
    return load_coco_state(model, _effdet_state(path), classes=classes, source=str(path), known=COCO_ROWS[1:])


def _alike(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape


def _effdet_state(path: Path) -> dict[str, Tensor]:
    """The state dict in an effdet checkpoint: the averaged weights if the file has both."""
    state = read_state(
        path, expected="an effdet checkpoint", inside=("state_dict_ema", "state_dict"), inert=ANY_PACKAGE
    )
    # effdet's training saves the network inside a benchmark module, and its anchors, which the network computes itself.
    bare = {re.sub(r"^(module\.)?(model\.)?", "", key): t for key, t in state.items()}
    return {key: t for key, t in bare.items() if key != "anchors.boxes"}
