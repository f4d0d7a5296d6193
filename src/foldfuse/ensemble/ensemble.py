"""`Ensemble`: members, weights and the settings of their fusion, a small JSON file; applied to predictions of any tool."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from foldfuse.detections import Predictions
from foldfuse.display import MAX_ROWS, short, table_html, value_html
from foldfuse.ensemble import trials
from foldfuse.ensemble.calibration import Calibration
from foldfuse.ensemble.stack import Stack, apply_stack, check_stack
from foldfuse.errors import InputError, counted
from foldfuse.fusion.methods import Method, fuse
from foldfuse.system.atomic_files import write_text
from foldfuse.system.records import read_record, to_plain

# Of ensemble.json; one without calibrations and a stack is written as format 1, which earlier versions read.
VERSION = 2


@dataclass(frozen=True, repr=False)
class Ensemble:
    """The members of an ensemble and the settings of their fusion.

    Attributes:
        weights: {member: its weight}.
        method: the fusion method.
        iou: boxes match where their IoU is above this.
        score_threshold: boxes with a lower (calibrated) score are left out.
        score_exponents: {member: exponent of its scores before fusion}; 1 for a member without an entry.
        calibrations: {member: the calibration of its scores before the exponent}; none for a member without an entry.
        stack: the model that scores the fused boxes anew; None where they keep their scores.
    """

    weights: Mapping[str, float]
    method: Method = "wbf"
    iou: float = 0.55
    score_threshold: float = 0.0
    score_exponents: Mapping[str, float] = field(default_factory=dict)
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    stack: Stack | None = None

    @property
    def learned(self) -> str:
        """What of it learns from annotations beside the weights, such as "calibrated scores, stacking"; "" for nothing."""
        parts = {"calibrated scores": bool(self.calibrations), "stacking": self.stack is not None}
        return ", ".join(part for part, used in parts.items() if used)

    def without(self, names: Collection[str]) -> Ensemble:
        """The ensemble without some members; the others keep their settings."""
        return replace(
            self,
            weights={name: value for name, value in self.weights.items() if name not in names},
            score_exponents={name: value for name, value in self.score_exponents.items() if name not in names},
            calibrations={name: value for name, value in self.calibrations.items() if name not in names},
        )

    def __repr__(self) -> str:
        """Such as "Ensemble(wbf of 3 members: a 0.50, b 0.30, c 0.20; IoU threshold 0.55)"."""
        total, most = sum(self.weights.values()), sorted(self.weights.items(), key=lambda item: -item[1])[:5]
        shown = ", ".join(f"{short(name, 40)} {weight / total:.2f}" for name, weight in most)
        rest = f", … and {len(self.weights) - len(most)} more" if len(self.weights) > len(most) else ""
        members = counted(len(self.weights), "member")
        settings = "; ".join([f"IoU threshold {self.iou:g}", *([self.learned] if self.learned else [])])
        return f"Ensemble({self.method} of {members}: {shown}{rest}; {settings})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the members with their shares of the weight."""
        total, ranked = sum(self.weights.values()), sorted(self.weights.items(), key=lambda item: -item[1])
        rows = [
            (name, weight / total, float(self.score_exponents.get(name, 1.0))) for name, weight in ranked[:MAX_ROWS]
        ]
        return value_html(
            repr(self), table_html(["member", "weight", "score exponent"], rows, more=len(ranked) - len(rows))
        )

    def with_parts(self, parts: Mapping[str, Sequence[str]]) -> Ensemble:
        """The ensemble in which each member is replaced by its parts, which share its weight equally.

        Args:
            parts: {member: names of its parts, at least one}.
        """
        weights = {part: w / len(parts[name]) for name, w in self.weights.items() for part in parts[name]}
        exponents = {part: value for name, value in self.score_exponents.items() for part in parts[name]}
        calibrations = {part: value for name, value in self.calibrations.items() for part in parts[name]}
        voters = {part: name for name in self.weights for part in parts[name] if part != name}
        stack = None if self.stack is None else replace(self.stack, voters=voters)
        return replace(self, weights=weights, score_exponents=exponents, calibrations=calibrations, stack=stack)

    def write(self, path: Path) -> None:
        """Write as a small JSON file."""
        plain = to_plain(self, version=VERSION if self.learned else 1)
        if not self.learned:
            for name in ("calibrations", "stack"):
                plain.pop(name, None)  # a field that the file left out is no key
        write_text(path, json.dumps(plain, indent=1, allow_nan=False) + "\n")


def read_ensemble(path: Path) -> Ensemble:
    """The ensemble in a file that `Ensemble.write` wrote.

    Raises:
        InputError: the file is missing, broken or of a later version, or holds a value out of its range.
    """
    hint = "'foldfuse ensemble' and campaigns write one."
    ensemble = read_record(path, Ensemble, version=VERSION, what="an ensemble", hint=hint)
    if not ensemble.weights:
        raise InputError(f"{path}: has no member. An ensemble has at least one.")
    slopes = {name: calibration.slope for name, calibration in ensemble.calibrations.items()}
    numbers = ("weight", ensemble.weights), ("score exponent", ensemble.score_exponents), ("calibration slope", slopes)
    for what, values in numbers:
        for name, value in values.items():
            if not 0 < value < float("inf"):
                raise InputError(f"{path}: member {name!r} has the {what} {value}, expected a number above 0.")
    if ensemble.stack is not None:
        check_stack(ensemble.stack, path)
    return ensemble


def apply_ensemble(ensemble: Ensemble, members: Mapping[str, Predictions]) -> Predictions:
    """The predictions of the members, fused by the ensemble. An ensemble of one member returns its predictions unchanged.

    Raises:
        InputError: a member of the ensemble is not among `members`.
    """
    missing = [name for name in ensemble.weights if name not in members]
    if missing:
        raise InputError(
            f"the ensemble has the member {missing[0]!r}, and there are only {', '.join(members)}. Give the predictions of "
            f"all its members, under these names: {', '.join(ensemble.weights)}."
        )
    if len(ensemble.weights) == 1:
        return members[next(iter(ensemble.weights))]
    parts = [_calibrated(members[name], ensemble, name) for name in ensemble.weights]
    weights, iou, score_threshold = list(ensemble.weights.values()), ensemble.iou, ensemble.score_threshold
    fused = fuse(parts, method=ensemble.method, iou=iou, score_threshold=score_threshold, weights=weights)
    if ensemble.stack is None:
        return fused
    named = dict(zip(ensemble.weights, parts, strict=True))
    return apply_stack(ensemble.stack, fused, named, weights, iou=iou, score_threshold=score_threshold)


def _calibrated(member: Predictions, ensemble: Ensemble, name: str) -> Predictions:
    calibration, scores = ensemble.calibrations.get(name), member.scores
    scores = scores if calibration is None else calibration.apply(scores)
    return replace(member, scores=trials.calibrated(scores, ensemble.score_exponents.get(name, 1.0)))
