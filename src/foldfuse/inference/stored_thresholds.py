"""The score thresholds that were stored with a run, a campaign or a bundle of them, for new images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foldfuse.ensemble.ensemble import read_ensemble
from foldfuse.errors import InputError
from foldfuse.evaluation.thresholds import THRESHOLDS, Thresholds, read_thresholds
from foldfuse.inference.base_predictor import Predictor
from foldfuse.inference.bundle import is_bundle
from foldfuse.inference.ensemble_predictor import EnsemblePredictor
from foldfuse.inference.tta import PLAIN_VIEW, View
from foldfuse.storage.ledger import is_campaign, snapshot
from foldfuse.storage.run import Run


def stored_thresholds(predictor: Predictor, views: Sequence[View] = ()) -> Thresholds:
    """The Thresholds that belong to a predictor: of a run's last evaluation, or of a campaign's current submission.

    Args:
        predictor: of a run, a campaign or a bundle of one.
        views: the TTA views that are asked for; none for the predictor's own.

    Raises:
        InputError: none are stored, or they were chosen for other predictions than the predictor makes now.
    """
    folder = predictor.source
    of_bundle = predictor.extracted is not None or is_bundle(folder)
    if not of_bundle and is_campaign(folder):
        return _of_campaign(folder, predictor)
    if not (of_bundle or Run(folder).exists):
        raise InputError(
            f"{folder}: holds no score thresholds; runs and campaigns do. Give a number, or predict to a file and give that to "
            "'foldfuse submit' with --thresholds FILE, which 'foldfuse score' writes."
        )
    if tuple(views) not in ((), (PLAIN_VIEW,)):
        names = ", ".join(map(str, views))
        raise InputError(
            f"{folder}: its score thresholds were chosen on predictions in view 1, and fused views ({names}) have other scores. "
            "Leave out --view, or give a number."
        )
    if of_bundle:
        path = (folder if predictor.extracted is None else predictor.extracted.path) / THRESHOLDS
        if not path.is_file():
            raise InputError(f"{folder}: holds no {THRESHOLDS}: what was bundled had stored none. Give a number.")
        return read_thresholds(path)
    again = f"Choose them with: foldfuse evaluate {folder}"
    if not (folder / THRESHOLDS).is_file():
        raise InputError(f"{folder}: holds no {THRESHOLDS}, the thresholds that its held-out images choose. {again}")
    found, steps = read_thresholds(folder / THRESHOLDS), Run(folder).metadata.steps
    if found.steps != steps:
        raise InputError(
            f"{folder / THRESHOLDS}: was chosen after {found.steps} steps, and the run has {steps} now. {again}"
        )
    return found


def _of_campaign(folder: Path, predictor: Predictor) -> Thresholds:
    number = int(snapshot(folder)["submissions"])
    submission = folder / "submissions" / str(number)
    submission = submission if submission.is_dir() else folder
    if not (submission / THRESHOLDS).is_file():
        raise InputError(
            f"{folder}: its submission has no {THRESHOLDS}: an earlier version of Foldfuse made it. Give a number, or choose "
            f"thresholds with: foldfuse score {submission / 'fused_oof.parquet'} DATA --thresholds {THRESHOLDS}"
        )
    whole = set(read_ensemble(submission / "ensemble.json").weights)
    if isinstance(predictor, EnsemblePredictor) and set(predictor.ensemble.weights) != whole:
        lacking = ", ".join(sorted(whole - set(predictor.ensemble.weights)))
        raise InputError(
            f"{folder}: its score thresholds were chosen with members that cannot predict new images ({lacking}), and without "
            "them the scores are others. Give a number."
        )
    return read_thresholds(submission / THRESHOLDS)
