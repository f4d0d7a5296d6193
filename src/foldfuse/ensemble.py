"""Ensembles chosen on out-of-fold predictions: which members, in which views, with which weights, fused how.

Source: Caruana et al., "Ensemble Selection from Libraries of Models", ICML 2004: forward selection with replacement, so
that a member that is taken twice weighs double. It works on predictions made by anybody's tool; no model is loaded.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from foldfuse.data import Dataset, read_json
from foldfuse.detections import Predictions
from foldfuse.errors import InputError, unknown_name
from foldfuse.files import write_text
from foldfuse.fuse import Kind, fuse
from foldfuse.score import Score, score_predictions

Metric = Callable[[Score], float]
METRICS: dict[str, Metric] = {"ap": lambda score: score.ap or 0.0, "ap50": lambda score: score.ap50 or 0.0}
IOUS = (0.5, 0.55, 0.6, 0.65, 0.7)
MOST_MEMBERS = 12  # with repeats
LEAST_GAIN = 5e-4  # a further member must bring more than this


@dataclass(frozen=True)
class Ensemble:
    """How to make one set of predictions out of several.

    Attributes:
        weights: {member: its weight}, in the order in which they were chosen.
        kind: of fusion.
        iou: above which boxes match.
    """

    weights: Mapping[str, float]
    kind: Kind = "wbf"
    iou: float = 0.55

    def write(self, path: Path) -> None:
        """Write as a small JSON file."""
        write_text(path, json.dumps(asdict(self), indent=1))


def read_ensemble(path: Path) -> Ensemble:
    """The ensemble in a file that `Ensemble.write` left.

    Raises:
        InputError: the file is missing or broken.
    """
    value = read_json(path)
    try:
        made = Ensemble({str(k): float(v) for k, v in value["weights"].items()}, value["kind"], float(value["iou"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{path}: is not an ensemble; a campaign or 'foldfuse ensemble' writes one.") from None
    if made.kind not in get_args(Kind):
        raise unknown_name("kind of fusion", made.kind, get_args(Kind))
    return made


def apply(ensemble: Ensemble, members: Mapping[str, Predictions]) -> Predictions:
    """What the ensemble makes of its members' predictions of some pictures.

    Raises:
        InputError: a member of the ensemble is not among `members`.
    """
    missing = [name for name in ensemble.weights if name not in members]
    if missing:
        raise InputError(f"the ensemble wants {missing[0]!r}, and there are only {', '.join(members)}.")
    if len(ensemble.weights) == 1:
        return members[next(iter(ensemble.weights))]
    parts = [members[name] for name in ensemble.weights]
    return fuse(parts, kind=ensemble.kind, iou=ensemble.iou, weights=list(ensemble.weights.values()))


@dataclass(frozen=True)
class Built:
    """An ensemble and what speaks for it, all measured on the pictures that it was chosen on.

    Attributes:
        ensemble: the choice.
        score: of it, by the metric asked for.
        best_single: the best member, and its score.
        all_alike: score of plain WBF of all members.
        adds: {member: how much the score falls when it is taken out of the choice}.
    """

    ensemble: Ensemble
    score: float
    best_single: tuple[str, float]
    all_alike: float
    adds: Mapping[str, float]


def build(
    members: Mapping[str, Predictions],
    dataset: Dataset,
    *,
    metric: str = "ap50",
    seconds: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
) -> Built:
    """The best ensemble that forward selection finds in the time given; never worse than the best member or WBF of all.

    Args:
        members: {name: out-of-fold predictions of the pictures of `dataset`}.
        dataset: annotated.
        metric: ap50 or ap.
        seconds: after which the best so far is taken.
        clock: seconds, from any start.

    Raises:
        InputError: there is no member, no such metric, or the members do not fit the dataset.
    """
    if not members:
        raise InputError("there is no member to build an ensemble of.")
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    end = clock() + seconds
    known: dict[Ensemble_key, float] = {}

    def worth(ensemble: Ensemble) -> float:
        key = (tuple(sorted(ensemble.weights.items())), ensemble.kind, ensemble.iou)
        if key not in known:
            known[key] = METRICS[metric](score_predictions(apply(ensemble, members), dataset))
        return known[key]

    singles = {name: worth(Ensemble({name: 1.0})) for name in members}
    best_name = max(singles, key=lambda name: singles[name])
    everyone = max((Ensemble(dict.fromkeys(members, 1.0), iou=iou) for iou in IOUS), key=worth)
    starts = [Ensemble({best_name: 1.0}), everyone]
    best = max((_grown(start, list(members), worth, lambda: clock() > end) for start in starts), key=worth)
    adds = {name: worth(best) - worth(_without(best, name)) for name in best.weights if len(best.weights) > 1}
    alike = worth(Ensemble(dict.fromkeys(members, 1.0)))
    return Built(best, worth(best), (best_name, singles[best_name]), alike, adds)


Ensemble_key = tuple[tuple[tuple[str, float], ...], str, float]


def _grown(
    ensemble: Ensemble, names: Sequence[str], worth: Callable[[Ensemble], float], late: Callable[[], bool]
) -> Ensemble:
    """`ensemble` with members added, one at a time and the best each time, for as long as that helps."""
    while sum(ensemble.weights.values()) < MOST_MEMBERS:
        tries = []
        for name in names:
            if late():
                return ensemble
            more = Counter(ensemble.weights)
            more[name] += 1
            tries += [Ensemble(dict(more), ensemble.kind, iou) for iou in dict.fromkeys((ensemble.iou, 0.55, 0.65))]
        best = max(tries, key=worth)
        if worth(best) <= worth(ensemble) + LEAST_GAIN:
            return ensemble
        ensemble = best
    return ensemble


def _without(ensemble: Ensemble, name: str) -> Ensemble:
    return Ensemble({n: w for n, w in ensemble.weights.items() if n != name}, ensemble.kind, ensemble.iou)
