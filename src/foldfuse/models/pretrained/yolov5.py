"""Reads a user's own checkpoint of the original YOLOv5 toolkit. No code in the file is executed.

The tensor names (a numbered list of layers with parts named `cv1`, `cv2`, `m`, `conv`, `bn`) are data that the file itself shows.
The tables below map these names to the names in our network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from foldfuse.errors import InputError
from foldfuse.models.detection.composed import ComposedDetector
from foldfuse.models.detection.yolov5 import SIZES, make_yolov5
from foldfuse.models.detection.yolov5_head import PER_CELL, STRIDES
from foldfuse.models.pretrained.checkpoint import Inert, read_checkpoint, shown
from foldfuse.models.pretrained.coco import COCO_CLASSES, COCO_IDS
from foldfuse.models.pretrained.state_dicts import require_finite

INERT = ("models", "utils", "torch.nn.modules", "numpy", "pathlib")
LICENCE = "its vendor claims AGPL-3.0 for the toolkit's checkpoints (GPL-3.0 for older ones)"
LAYERS: Mapping[int, str] = {  # {number of a layer in the file: name of our module}
    0: "backbone.stem",
    **{2 * i + 1 + j: f"backbone.stages.{i}.{j}" for i in range(4) for j in range(2)},
    9: "backbone.pool",
    10: "neck.laterals.1",
    13: "neck.downs.1",
    14: "neck.laterals.0",
    17: "neck.downs.0",
    18: "neck.strided.0",
    20: "neck.ups.0",
    21: "neck.strided.1",
    23: "neck.ups.1",
    24: "head",
}
_POOL, _HEAD = 9, 24
MAX_DEPTH = 20  # of nested modules; a forged file can nest a module in itself
_BLOCK = (  # (pattern in the file's tensor names, replacement) inside a block
    (r"\bconv\.", "0."),
    (r"\bbn\.", "1."),
    (r"\bm\.(\d+)\.cv1\.", r"blocks.\1.reduce."),
    (r"\bm\.(\d+)\.cv2\.", r"blocks.\1.expand."),
    (r"^cv1\.", "through."),
    (r"^cv2\.", "bypass."),
    (r"^cv3\.", "join."),
)


def category_ids(classes: Sequence[str]) -> list[int]:
    """The category id of each class: COCO's own where the classes are COCO's, else 0, 1, ..."""
    if tuple(classes) == COCO_CLASSES:
        return list(COCO_IDS)
    return list(range(len(classes)))


@dataclass(frozen=True)
class ImportedYOLOv5:
    """A network read from a file.

    Attributes:
        name: the name of the detector, such as "yolov5s".
        model: the network with the weights of the file.
        classes: names of the classes, by label.
        licence: a clause on the licence of the file.
    """

    name: str
    model: ComposedDetector
    classes: tuple[str, ...]
    licence: str


def read_yolov5(path: Path) -> ImportedYOLOv5:
    """The network in a checkpoint (.pt): the averaged network if the file has one.

    Raises:
        InputError: the file is damaged or forged, would run code, or holds another network.
    """
    loaded = read_checkpoint(path, inert=INERT)
    network = (loaded.get("ema") or loaded.get("model")) if isinstance(loaded, dict) else loaded
    if not isinstance(network, Inert):
        raise InputError(f"{path}: holds no pickled network. Expected a checkpoint of the original toolkit.")
    classes = _classes(network, path)
    state = _renamed(dict(_named_tensors(network)), path)
    require_finite(state, source=str(path))
    name, model = _make_matching(state, len(classes), path)
    expected = model.state_dict()
    anchors = state["head.anchors"].float()  # in strides
    state["head.anchors"] = anchors * anchors.new_tensor(STRIDES).view(-1, 1, 1)
    model.load_state_dict({key: t.detach().to(expected[key].dtype) for key, t in state.items()})
    declared = loaded.get("license") if isinstance(loaded, dict) else None
    licence = f'the file says "{shown(declared)}", and {LICENCE}' if isinstance(declared, str) else LICENCE
    return ImportedYOLOv5(name, model, classes, licence)


def _named_tensors(module: Any, prefix: str = "", *, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of each tensor of a pickled module; the names are those of a state dict."""
    if not isinstance(module, Inert) or depth > MAX_DEPTH:
        return
    for attribute in ("_parameters", "_buffers"):
        for key, tensor in _items(module, attribute):
            if isinstance(tensor, Tensor):
                yield f"{prefix}{key}", tensor
    for key, child in _items(module, "_modules"):
        yield from _named_tensors(child, f"{prefix}{key}.", depth=depth + 1)


def _items(module: Inert, attribute: str) -> list[tuple[str, Any]]:
    """The entries of a dict attribute of a module, read by `dict.items`: a forged file can replace the `items` of an object."""
    loaded = module.state.get(attribute)
    return (
        [(key, value) for key, value in dict.items(loaded) if isinstance(key, str)] if isinstance(loaded, dict) else []
    )


def _classes(network: Inert, path: Path) -> tuple[str, ...]:
    """The names of the classes, by label."""
    names = network.state.get("names")
    if isinstance(names, Mapping) and all(isinstance(key, int) for key in names):
        names = [names[key] for key in sorted(names)]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: does not name its classes. Expected a checkpoint of the original toolkit.")
    return tuple(names)


def _renamed(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`tensors` by the tensor names of our network.

    Raises:
        InputError: the file has a layer that our network does not have.
    """
    renamed = {}
    for key, tensor in tensors.items():
        matched = re.match(r"model\.(\d+)\.(.+)", key)
        number = int(matched[1]) if matched else -1
        if matched is None or number not in LAYERS:
            raise InputError(
                f"{path}: has a tensor {shown(key)}, which no YOLOv5 of the sizes n to x has since version 6."
            )
        rest = matched[2]
        if number == _POOL:
            rest = rest.replace("cv1.", "reduce.").replace("cv2.", "join.")
        elif number == _HEAD:
            rest = re.sub(r"^m\.", "predict.", rest)
        for pattern, ours in _BLOCK if number != _HEAD else ():
            rest = re.sub(pattern, ours, rest)
        if rest != "anchor_grid":  # a second copy of the anchors in older files
            renamed[f"{LAYERS[number]}.{rest}"] = tensor
    return renamed


def _make_matching(state: Mapping[str, Tensor], num_classes: int, path: Path) -> tuple[str, ComposedDetector]:
    """The name of the YOLOv5 size whose tensors have the shapes of `state`, and a network of that size."""
    shapes = {key: tuple(t.shape) for key, t in state.items()}
    stem = shapes.get("backbone.stem.0.weight")
    outputs = shapes.get(
        "head.predict.0.bias"
    )  # checked before a network is built: a forged list of class names could ask for any amount of memory
    for name, (_, width) in SIZES.items():
        if stem == (round(64 * width), 3, 6, 6) and outputs == (PER_CELL * (5 + num_classes),):
            model = make_yolov5(name, num_classes, pretrained=False)
            if {key: tuple(t.shape) for key, t in model.state_dict().items()} == shapes:
                return name, model
    raise InputError(
        f"{path}: its layers have the shapes of no YOLOv5 of the sizes {', '.join(SIZES)} with {num_classes} classes. Other "
        "networks, fused or changed ones cannot be imported."
    )
