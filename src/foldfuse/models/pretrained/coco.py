"""COCO's 80 classes: their names, their category ids, and which classes of a dataset are among them.

Source of names and ids: the annotation files of COCO 2017 (Lin et al., "Microsoft COCO", arXiv:1405.0312).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from foldfuse.models.pretrained.class_layer import load_with_rows
from foldfuse.models.pretrained.state_dicts import require_finite

_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,bench,"
    "bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,"
    "sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,"
    "bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,"
    "toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,"
    "teddy bear,hair drier,toothbrush"
)
COCO_CLASSES = tuple(_NAMES.split(","))  # in the order of their category ids
_UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # in 1..90
COCO_IDS = tuple(i for i in range(1, 91) if i not in _UNUSED_IDS)  # the category id of each class
_BY_ID = dict(zip(COCO_IDS, COCO_CLASSES, strict=True))
# Names of the rows of a class layer with a row for each id in 0..90; those of unused ids, and of 0, have no name.
COCO_ROWS = tuple(_BY_ID.get(i, "") for i in range(91))
MAX_NAMED = 8  # classes in the sentence


def load_coco_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    classes: Sequence[str],
    source: str,
    known: Sequence[str] = COCO_CLASSES,
) -> str:
    """Load weights trained on COCO into a new `model` of other classes, and return a sentence for the log.

    Rows of classes that have no name of COCO's keep their initial values.

    Args:
        model: the new network, changed in place.
        state: the weights, with the model's tensor names.
        classes: names of the model's classes, by label.
        source: the file, for sentences.
        known: names of the classes of the weights, by row.

    Raises:
        InputError: the weights are of another network, or hold NaN or infinity.
    """
    require_finite(state, source=source)
    pairs = name_pairs(classes, known)
    load_with_rows(model, state, pairs, num_known=len(known), source=source)
    return coco_sentence(source, classes, [label for label, _ in pairs])


def name_pairs(classes: Sequence[str], known: Sequence[str] = COCO_CLASSES) -> list[tuple[int, int]]:
    """(label, position in `known`) of each class that has the name of a known class.

    Case, spaces, underscores and hyphens do not count: "cell phone", "Cell_Phone" and "cellphone" are one class.
    """
    positions = {_key(name): i for i, name in enumerate(known)}
    return [(label, positions[_key(name)]) for label, name in enumerate(classes) if _key(name) in positions]


def coco_sentence(source: str, classes: Sequence[str], labels: Sequence[int]) -> str:
    """What a training's log says of a class layer that starts from the rows of COCO's classes where names agree.

    Args:
        source: the file.
        classes: names of the model's classes, by label.
        labels: those that start from COCO's row.
    """
    if not labels:
        return f"{source}: all weights were loaded but the rows of the classes, since none has the name of a class of COCO."
    names = ", ".join(classes[label][:60] for label in labels[:MAX_NAMED])
    more = f" and {len(labels) - MAX_NAMED} more" if len(labels) > MAX_NAMED else ""
    sentence = (
        f"{source}: all weights were loaded; {len(labels)} of {len(classes)} classes start from COCO's of the same name"
    )
    rest = "" if len(labels) == len(classes) else ", the others from random values"
    return f"{sentence} ({names}{more}){rest}."


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFC", name)).casefold()
