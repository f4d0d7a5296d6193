"""A user's own checkpoint of the original YOLOv5 toolkit as a run folder. Nothing in the file runs.

What such a file calls its tensors (a numbered list of layers with `cv1`, `cv2`, `m`, `conv`, `bn` in them) can be seen in the
file; the tables below say which of our names each has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from foldfuse.errors import InputError
from foldfuse.models.detection.yolov5 import PER_CELL, SIZES, YOLOv5
from foldfuse.models.pretrained.unpickle import Checkpoint, Inert, Stored, shown

INERT = ("models", "utils", "torch.nn.modules", "numpy", "pathlib")
LICENCE = "its vendor claims AGPL-3.0 for the toolkit's checkpoints (GPL-3.0 for older ones)"
COCO = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,bench,bird,"
    "cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,"
    "sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,"
    "banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,"
    "laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,"
    "hair drier,toothbrush"
)  # the names of COCO's classes, in the order of its category ids
COCO_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # of its category ids 1..90
LAYERS: Mapping[int, str] = {
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
_BLOCK = (
    (r"\bconv\.", "0."),
    (r"\bbn\.", "1."),
    (r"\bm\.(\d+)\.cv1\.", r"blocks.\1.reduce."),
    (r"\bm\.(\d+)\.cv2\.", r"blocks.\1.expand."),
    (r"^cv1\.", "through."),
    (r"^cv2\.", "past."),
    (r"^cv3\.", "join."),
)


def category_ids(classes: Sequence[str]) -> list[int]:
    """The category id of each class: COCO's own where the classes are COCO's, else 0, 1, ..."""
    if ",".join(classes) == COCO:
        return [i for i in range(1, 91) if i not in COCO_UNUSED]
    return list(range(len(classes)))


def _licence(checkpoint: Checkpoint) -> str:
    """What the file says of its licence, where it does, and what is known of its kind."""
    said = checkpoint.value.get("license") if isinstance(checkpoint.value, dict) else None
    return f'the file says "{shown(said)}", and {LICENCE}' if isinstance(said, str) else LICENCE


def _network(checkpoint: Checkpoint) -> Inert:
    """The averaged network in the file where it has one, else the network."""
    held = checkpoint.value
    found = (held.get("ema") or held.get("model")) if isinstance(held, dict) else held
    if not isinstance(found, Inert):
        raise InputError(f"{checkpoint.path}: holds no pickled network. Expected a checkpoint of the original toolkit.")
    return found


def _named(network: Inert) -> dict[str, Stored]:
    """{name in the file: tensor}, as a state dict would have it."""
    found: dict[str, Stored] = {}
    waiting: list[tuple[str, Any]] = [("", network)]
    seen: set[int] = set()
    while waiting:
        prefix, module = waiting.pop()
        if not isinstance(module, Inert) or id(module) in seen:
            continue
        seen.add(id(module))
        for kind in ("_parameters", "_buffers"):
            held = module.state.get(kind)
            items = held.items() if isinstance(held, Mapping) else ()
            found |= {f"{prefix}{key}": t for key, t in items if isinstance(key, str) and isinstance(t, Stored)}
        children = module.state.get("_modules")
        if isinstance(children, Mapping):
            waiting += [(f"{prefix}{key}.", child) for key, child in children.items() if isinstance(key, str)]
    return found


def _classes(network: Inert, path: Path) -> tuple[str, ...]:
    """The names of the classes, by number."""
    names = network.state.get("names")
    if isinstance(names, Mapping) and all(isinstance(key, int) for key in names):
        names = [names[key] for key in sorted(names)]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: does not name its classes. Expected a checkpoint of the original toolkit.")
    return tuple(names)


def _renamed(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`tensors` under our names.

    Raises:
        InputError: there is a layer that our network does not have.
    """
    found = {}
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
        place = rest if rest.startswith("anchor") else f"{LAYERS[number]}.{rest}"
        if place != "anchor_grid":  # older files keep the anchors twice
            found[place] = tensor
    return found


def _alike(state: Mapping[str, Tensor], num_classes: int, path: Path) -> tuple[str, YOLOv5]:
    """The size whose tensors have the shapes of `state`, by name, and a network of it."""
    shapes = {key: tuple(t.shape) for key, t in state.items()}
    stem = shapes.get("backbone.stem.0.weight")
    outputs = shapes.get("head.predict.0.bias")  # looked at first: a list of names is no bound on memory
    for name, (depth, width) in SIZES.items():
        if stem == (round(64 * width), 3, 6, 6) and outputs == (PER_CELL * (5 + num_classes),):
            model = YOLOv5(num_classes, depth=depth, width=width)
            if {key: tuple(t.shape) for key, t in model.state_dict().items()} == shapes:
                return name, model
    raise InputError(
        f"{path}: its layers have the shapes of no YOLOv5 of the sizes {', '.join(SIZES)} with {num_classes} classes. Other "
        "networks, fused or changed ones cannot be imported."
    )
