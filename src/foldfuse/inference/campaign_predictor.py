"""The predictor of a whole campaign: its current submission's members, views, fusion and crop rescoring, for any images."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from foldfuse.data.folds import read_folds
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.ensemble.ensemble import Ensemble, apply_ensemble, read_ensemble
from foldfuse.ensemble.member_views import MemberView
from foldfuse.errors import InputError
from foldfuse.evaluation.custom_metric import is_custom
from foldfuse.evaluation.metrics import measure
from foldfuse.formats.predictions import read_predictions
from foldfuse.inference import rescorer_file
from foldfuse.inference.ensemble_predictor import EnsemblePredictor, Part, predictor_of
from foldfuse.inference.tta import View
from foldfuse.storage.ledger import snapshot
from foldfuse.storage.run import Run
from foldfuse.storage.segments import Role

logger = logging.getLogger(__name__)


def load_campaign(folder: Path, *, device: str = "auto") -> EnsemblePredictor:
    """The predictor of a campaign's current submission; logs which parts of it cannot predict new images.

    Members that are another toolkit's predictions are left out, and the weights of the others keep their proportions. The
    campaign may be running or stopped.

    Raises:
        InputError: the campaign has no submission yet, the folder of a member is missing, or every member is another toolkit's.
    """
    facts = snapshot(folder)
    number = int(facts["submissions"])
    if not number:
        raise InputError(
            f"{folder}: this campaign has no submission yet, so there is no ensemble to predict with. Wait for its first "
            f"member, or resume it: foldfuse campaign --resume {folder}"
        )
    submission = folder / "submissions" / str(number)
    submission = submission if submission.is_dir() else folder
    whole = read_ensemble(submission / "ensemble.json")
    keys = {name: _key(name, submission / "ensemble.json") for name in whole.weights}
    external = {row["name"] for row in facts["segments"] if row["role"] == Role.EXTERNAL_PREDICTIONS}
    left_out = [name for name, key in keys.items() if key.member in external]
    if len(left_out) == len(keys):
        raise InputError(
            f"{folder}: every member of its ensemble ({', '.join(left_out)}) was added as predictions of another toolkit, "
            "which alone can predict new images. Predict with that toolkit."
        )
    ensemble = _without(whole, left_out)
    notes = [_loss(folder, facts, whole, ensemble, left_out)] if left_out else []
    parts = _parts(folder, number, {name: keys[name] for name in ensemble.weights})
    rescorer, learnt = None, frozenset[str]()
    if facts.get("rescoring"):
        if (submission / rescorer_file.SETTINGS).is_file():
            classes = parts[0].run.metadata.classes
            rescorer, learnt = rescorer_file.read_rescorer(submission, classes, device=device)
        else:
            notes.append(
                f"{folder}: its submission was rescored by a classifier of crops, which this campaign did not store; these "
                "predictions are not rescored."
            )
    learnt |= Run(submission).learnt_images or frozenset()  # by its calibrations and its stacking model
    for sentence in notes:
        logger.warning("%s", sentence)
    return predictor_of(
        folder, ensemble, parts, device=device, rescorer=rescorer, learnt_hashes=learnt, noun="campaign", notes=notes
    )


def _key(name: str, path: Path) -> MemberView:
    """The member and the view in "member@view"."""
    key = MemberView.parse(name)
    if key is None:
        raise InputError(
            f"{path}: the member {name!r} is not named as a campaign does, such as base@1. Restore the file."
        )
    return key


def _without(ensemble: Ensemble, names: list[str]) -> Ensemble:
    """An ensemble without some members; the weights of the others have the same sum as all had."""
    kept = ensemble.without(names)
    factor = sum(ensemble.weights.values()) / sum(kept.weights.values()) if names else 1.0
    return replace(kept, weights={name: weight * factor for name, weight in kept.weights.items()})


def _parts(folder: Path, number: int, keys: Mapping[str, MemberView]) -> list[Part]:
    """Who predicts what, in the passes that the campaign made: the views that a submission asked for first, together.

    Images are decoded once for all views of a pass, at the size of the largest, so that the passes decide on pixels.
    """
    passes: dict[tuple[str, int], dict[str, View]] = {}
    placed: set[str] = set()
    for i in range(1, number + 1):
        path = folder / "submissions" / str(i) / "ensemble.json"
        asked = [name for name in (read_ensemble(path).weights if path.is_file() else ()) if name not in placed]
        placed.update(asked)
        for name in asked:
            key = _key(name, path)
            passes.setdefault((key.member, i), {})[name] = View.parse(key.view)
    for name, key in keys.items():
        if name not in placed:
            passes.setdefault((key.member, number + 1), {})[name] = View.parse(key.view)
    parts = []
    for (member, _), views in passes.items():
        wanted = {name: (view,) for name, view in views.items() if name in keys}
        run = Run(folder / "members" / member)
        if wanted and not (run.folder / "run.json").is_file():
            raise InputError(
                f"{run.folder}: holds no run, and the campaign's ensemble needs this member. Restore the folder from a copy of "
                "the campaign."
            )
        if wanted:
            parts.append(Part(run, wanted, tuple(views.values())))
    return parts


def _loss(folder: Path, facts: Mapping[str, Any], whole: Ensemble, rest: Ensemble, left_out: list[str]) -> str:
    """A sentence on the members that are left out, and what that costs out-of-fold where this can be computed."""
    members = {_key(name, folder).member for name in left_out}
    what = (
        f"{folder}: {', '.join(sorted(members))} joined as predictions of another toolkit, which alone can predict new images. "
        "The ensemble is applied without them; the weights of the others keep their proportions."
    )
    if whole.learned or len(facts.get("train_folds") or ()) > 1:
        return f"{what} What this costs out-of-fold is not known for members of several folds, or for learned fusion."
    metric = str((facts.get("fused") or {}).get("metric") or "ap50")
    metric = "ap50" if is_custom(metric) else metric  # no code that a folder names is run
    with suppress(InputError, KeyError, TypeError):
        request = facts["request"]
        images = request.get("images")
        data = Path(request["data"])
        data = data / "train.json" if (data / "train.json").is_file() else data
        dataset = read(
            data,
            images=None if images is None else Path(images),
            ignore_orientation=bool(request.get("ignore_orientation")),
        )
        held_out = set(read_folds(folder / "folds.json").val_ids(0)) - set(facts.get("undecodable_train") or ())
        val = dataset.subset(held_out)
        found: dict[str, Predictions] = {}
        for name in whole.weights:
            key = _key(name, folder)
            found[name] = read_predictions(folder / "members" / key.member / f"val@{key.view}.parquet", val)
        before, after = (measure(apply_ensemble(one, found), val, metric=metric) for one in (whole, rest))
        return f"{what} Out-of-fold, {metric.upper()} is {before:.3f} with them and {after:.3f} without."
    return f"{what} What this costs is not known: the campaign's data or its out-of-fold predictions are not there any more."
