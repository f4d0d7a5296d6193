"""Carries the class layer of a trained network over to other classes: rows are matched by the names of the classes.

The last layer of every head family has rows that belong to one class each, in groups: one group for the anchor-free head and
for classifiers, one per anchor of a cell for EfficientDet's head, and one per anchor behind five rows of box and objectness for
YOLOv5's. A class of the same name keeps its row, an unknown class keeps its initial row, and all other rows are carried over.

Shapes: G groups, O rows of a group before its class rows, K classes, J classes of the trained network.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from foldfuse.errors import InputError
from foldfuse.models.backbones.swin import Swin
from foldfuse.models.backbones.vit import ViT
from foldfuse.models.classifiers import TimmClassifier
from foldfuse.models.detection.anchors import PER_CELL as ANCHORS
from foldfuse.models.detection.efficientdet import EfficientDet
from foldfuse.models.detection.heads import AnchorHead, DenseHead
from foldfuse.models.detection.yolov5_head import PER_CELL as YOLO_ANCHORS
from foldfuse.models.detection.yolov5_head import YOLOv5Head
from foldfuse.models.pretrained.class_layer import ClassLayer, carry_rows
from foldfuse.models.pretrained.state_dicts import require_same_tensors

YOLO_FIRST = 5  # rows of an anchor before its classes: x, y, width, height, objectness


def class_layers(model: nn.Module) -> list[ClassLayer]:
    """The layers of a detector or classifier with rows of classes; a detector may name them by a method `class_layers`."""
    own: Any = getattr(model, "class_layers", None)
    if own is not None:
        return list(own())
    layers = []
    for name, module in model.named_modules():
        at = f"{name}." if name else ""
        if isinstance(module, DenseHead):
            layers.append(ClassLayer(f"{at}class_head"))
        elif isinstance(module, EfficientDet | AnchorHead):
            layers.append(ClassLayer(f"{at}class_net.predict.conv_pw", groups=ANCHORS))
        elif isinstance(module, YOLOv5Head):
            layers += [ClassLayer(f"{at}predict.{i}", YOLO_ANCHORS, YOLO_FIRST) for i in range(len(module.predict))]
        elif isinstance(module, ViT | Swin) and not isinstance(module.head, nn.Identity):
            layers.append(ClassLayer(f"{at}head" if isinstance(module, ViT) else f"{at}head.fc"))
        elif isinstance(module, TimmClassifier):
            layers += [ClassLayer(f"{at}net.{inner}") for inner in _timm_heads(module.net)]
    return layers


def _timm_heads(net: Any) -> list[str]:
    """Names of the last layers of a timm network: one, or two where it was distilled."""
    names = net.pretrained_cfg.get("classifier") or ()
    return [names] if isinstance(names, str) else list(names)


def load_by_class_name(
    model: nn.Module, state: Mapping[str, Tensor], *, known: Sequence[str], classes: Sequence[str], source: str
) -> str:
    """Load the weights of a trained network into a `model` of perhaps other classes, and return a sentence for the log.

    Args:
        model: a new network, changed in place. Rows of classes that are not known keep their values.
        state: the weights, with the model's tensor names.
        known: names of the J classes of the weights, by label.
        classes: names of the model's K classes, by label.
        source: the file or folder of the weights, for sentences.

    Raises:
        InputError: the weights are of another network, or two classes have the same name.
    """
    here, there = _by_name(classes, "the data"), _by_name(known, source)
    if not known:
        raise InputError(f"{source}: names no classes, so its head cannot be matched with the data's classes.")
    layers = class_layers(model)
    if not layers and list(here) != list(there):
        raise InputError(
            f"{source}: was trained for other classes, and this network's head cannot be matched with the data's classes by name."
        )
    pairs = [(label, there[name]) for name, label in here.items() if name in there]
    own, found = model.state_dict(), dict(state)
    for layer in layers:
        for part in layer.tensors:
            if part not in own or part not in found:
                continue
            rows = layer.num_rows(len(known))
            if found[part].shape != (rows, *own[part].shape[1:]):
                continue  # `require_same_tensors` names it
            untrained = layer.first == YOLO_FIRST and len(known) == 1 < len(
                classes
            )  # YOLOv5's head never trains a single class
            found[part] = carry_rows(found[part], own[part], layer, [] if untrained else pairs)
    require_same_tensors(found, own, source=source)
    model.load_state_dict(found)
    return f"{source}: {_sentence(known, classes, here, there)}"


def _by_name(classes: Sequence[str], where: str) -> dict[str, int]:
    """{normalised name: label}. Raises InputError where two classes have one name."""
    labels: dict[str, int] = {}
    for label, name in enumerate(classes):
        key = unicodedata.normalize("NFC", name).strip()
        if key in labels:
            raise InputError(
                f"{where}: has two classes called {name[:60]!r}, so classes cannot be matched by name. Rename one of them."
            )
        labels[key] = label
    return labels


def _sentence(known: Sequence[str], classes: Sequence[str], here: Mapping[str, int], there: Mapping[str, int]) -> str:
    if list(here) == list(there):
        return "all weights were loaded."
    anew = [name for name in here if name not in there]
    dropped = [name for name in there if name not in here]
    words = [
        f"all weights were loaded; the classes of the head were matched by name ({len(here) - len(anew)} of {len(here)})"
    ]
    if anew:
        words.append(f"random initial values for {_listed(anew)}")
    if dropped:
        words.append(f"without {_listed(dropped)} of the trained run")
    return f"{', '.join(words)}."


def _listed(names: Sequence[str]) -> str:
    text = ", ".join(name[:60] for name in names[:5])
    return f"{text} and {len(names) - 5} more" if len(names) > 5 else text
