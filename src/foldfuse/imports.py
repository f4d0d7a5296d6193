"""A user's own checkpoint of the original YOLOv5 toolkit as a run folder. Nothing in the file runs.

What such a file calls its tensors (a numbered list of layers with `cv1`, `cv2`, `m`, `conv`, `bn` in them) can be seen in the
file; the tables below say which of our names each has.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from foldfuse.errors import InputError
from foldfuse.models.yolov5 import SIZES, STRIDES, YOLOv5
from foldfuse.recipes import Recipe
from foldfuse.run import Run
from foldfuse.unpickle import Checkpoint, Inert, Stored, read_checkpoint

INERT = ("models", "utils", "torch.nn.modules", "numpy", "pathlib")
LICENCE = "its vendor claims AGPL-3.0 for the toolkit's checkpoints (GPL-3.0 for older ones)"
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


def import_weights(weights: Path, *, out: Path) -> Path:
    """Make a run folder of your own checkpoint of the original YOLOv5 toolkit; its path comes back. Nothing in it is run.

    Predict with it like with any run, or begin a training with it: `foldfuse train DATA --change weights=RUN ...`.

    Args:
        weights: checkpoint (.pt) of a detector of sizes n to x.
        out: folder to make; it must not exist yet.

    Raises:
        InputError: the file is damaged, would run code, or holds another network.
    """
    weights = Path(weights)
    checkpoint = read_checkpoint(weights, inert=INERT)
    network = _network(checkpoint)
    tensors = checkpoint.tensors(_named(network))
    classes = _classes(network, weights)
    state = _renamed(tensors, weights)
    name, model = _alike(state, len(classes), weights)
    state["anchors"] = state["anchors"].float() * state["anchors"].new_tensor(STRIDES).view(-1, 1, 1).float()
    model.load_state_dict({key: t.to(model.state_dict()[key].dtype) for key, t in state.items()})
    origin = {
        "file": weights.name,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "licence": f"{LICENCE}; Foldfuse claims nothing",
    }
    recipe = Recipe(name, image_size=model.image_size, weights="none", frozen_stages=0)
    facts = {"classes": list(classes), "category_ids": list(range(len(classes))), "origin": origin, "held": []}
    run = Run.create(out, recipe, facts)
    run.save_weights(model.state_dict())
    Console().print(
        f"{name} for {len(classes)} classes from {weights} is in {run.folder}. Mind its licence: {LICENCE}.",
        markup=False,
    )
    return run.folder


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
            found |= {f"{prefix}{key}": t for key, t in items if isinstance(t, Stored)}
        children = module.state.get("_modules")
        if isinstance(children, Mapping):
            waiting += [(f"{prefix}{key}.", child) for key, child in children.items()]
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
            raise InputError(f"{path}: has a tensor {key}, which no YOLOv5 of the sizes n to x has since version 6.")
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
    stem = shapes.get("backbone.stem.0.weight", (0,))[0]
    for name, (depth, width) in SIZES.items():
        if stem == round(64 * width):
            model = YOLOv5(num_classes, depth=depth, width=width)
            if {key: tuple(t.shape) for key, t in model.state_dict().items()} == shapes:
                return name, model
    raise InputError(
        f"{path}: its layers have the shapes of no YOLOv5 of the sizes {', '.join(SIZES)} with {num_classes} classes. Other "
        "networks, fused or changed ones cannot be imported."
    )
