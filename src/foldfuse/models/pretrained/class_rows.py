"""Carries the class layer of a trained network over to other classes: rows are matched by the names of the classes.

A class of the same name keeps its row, an unknown class keeps its initial row, and all other rows are carried over (see
`class_layer`).

Shapes: K classes, J classes of the trained network.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from foldfuse.errors import InputError
from foldfuse.models.pretrained.class_layer import class_layers, load_with_rows


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
    if not class_layers(model) and list(here) != list(there):
        raise InputError(
            f"{source}: was trained for other classes, and this network's head cannot be matched with the data's classes by name."
        )
    pairs = [(label, there[name]) for name, label in here.items() if name in there]
    load_with_rows(model, state, pairs, num_known=len(known), source=source)
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
