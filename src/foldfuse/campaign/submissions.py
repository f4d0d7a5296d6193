"""The delivery of a campaign: the best ensemble of what there is, and a submission that only a better one replaces.

A submission is made whole in a folder of its own, then written down in the ledger, then copied to the top of the campaign's
folder. Whatever moment a process is killed at, what lies at the top is a valid submission.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from foldfuse.campaign.planning.allocation import FINISH, VIEWS, search_seconds
from foldfuse.campaign.task import Task
from foldfuse.detections import Detections, Predictions
from foldfuse.ensemble.ensemble import Ensemble, EnsembleReport, apply_ensemble, build_ensemble
from foldfuse.evaluation.coco import Score, score_predictions
from foldfuse.evaluation.metrics import measure
from foldfuse.formats.predictions import write_predictions
from foldfuse.formats.submission import write_submission
from foldfuse.inference.detector import load_detector, predict_views
from foldfuse.inference.tta import View
from foldfuse.reporting.campaign_page import write_campaign_page
from foldfuse.storage.ledger import Ledger, SegmentRecord
from foldfuse.storage.run import Run
from foldfuse.system.atomic_files import atomic, atomic_folder
from foldfuse.system.progress import progress_bar

FIRST_SEARCH = 2.0  # seconds for a choice that a later member may change


@dataclass
class Found:
    """What the campaign has in hand.

    Attributes:
        held: {"member@view": predictions of the held-back pictures}.
        target: as `held`, of the pictures to submit; filled when an ensemble asks for it.
        runs: {member: its run folder}.
        score: the campaign's metric on the held-back pictures of the ensemble that is submitted now.
        unchosen: members that no ensemble has been chosen from yet.
    """

    held: dict[str, Predictions] = field(default_factory=dict)
    target: dict[str, Predictions] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    score: float | None = None
    unchosen: list[str] = field(default_factory=list)


def submit_best(task: Task, ledger: Ledger, found: Found, *, last: bool) -> None:
    """Choose the best ensemble of what there is, and submit it if it does better on the held-back pictures than before.

    Until the last member is there only plain views are in the choice, so that little time is spent on predictions that
    a later choice may not want.
    """
    candidates = {
        name: predictions for name, predictions in found.held.items() if last or name.endswith(f"@{VIEWS[0]}")
    }
    with ledger.timed("choose the ensemble", "fuse"):
        seconds = search_seconds(ledger.deadline) if last else FIRST_SEARCH
        built = build_ensemble(candidates, task.held, metric=task.metric, seconds=seconds, seed=task.seed)
        built = affordable(built, candidates, task, ledger, found)
    if found.score is not None and built.score <= found.score:
        scores = f"{built.metric.upper()} {built.score:.3f} out-of-fold"
        ledger.log(f"The ensemble with the new member scores {scores}, no more than before: kept.")
    else:
        with ledger.timed("predict the pictures to submit", "predict"):
            predict_target(built, task, ledger, found)
        with ledger.timed("submit", "submit"):
            deliver(built, apply_ensemble(built.ensemble, candidates), task, ledger, found)
        found.score = built.score
        describe(built, ledger)
    found.unchosen.clear()
    ledger.set(chosen_from=sorted({name.split("@")[0] for name in found.held}))


def affordable(
    built: EnsembleReport, candidates: Mapping[str, Predictions], task: Task, ledger: Ledger, found: Found
) -> EnsembleReport:
    """The choice without the members' views that would take longer than there is time for.

    Those go first that bring the least weight for each second that it takes to predict the pictures to submit.
    """
    costs = {row.name: float(row.result.get("cost", 0.0)) for row in ledger.segments()}
    seconds = {
        name: len(task.target) * costs[name.split("@")[0]] * View.parse(name.split("@")[1]).scale ** 2
        for name in built.ensemble.weights
        if name not in found.target
    }
    weights, free = dict(built.ensemble.weights), ledger.remaining - FINISH
    dear = sorted(seconds, key=lambda name: weights[name] / max(seconds[name], 1e-9))
    while dear and len(weights) > 1 and sum(seconds.get(name, 0.0) for name in weights) > free:
        del weights[dear.pop(0)]
    dropped = [name for name in built.ensemble.weights if name not in weights]
    if not dropped:
        return built
    kept = replace(
        built.ensemble,
        weights=weights,
        score_exponents={name: power for name, power in built.ensemble.score_exponents.items() if name in weights},
    )
    ledger.log(f"Left out of the ensemble, since predicting with it would take too long: {', '.join(dropped)}.")
    score = measure(apply_ensemble(kept, candidates), task.held, metric=built.metric)
    return replace(built, ensemble=kept, score=score)


def deliver(built: EnsembleReport, held: Predictions, task: Task, ledger: Ledger, found: Found) -> None:
    """Make a submission of an ensemble whose predictions of the held-back pictures are `held`."""
    facts = told(built, score_predictions(held, task.held))
    put(held, apply_ensemble(built.ensemble, found.target), built.ensemble, built.score, facts, task, ledger)


def put(
    held: Predictions,
    target: Predictions,
    ensemble: Ensemble,
    score: float,
    facts: Mapping[str, Any],
    task: Task,
    ledger: Ledger,
) -> None:
    """Make a submission and let it take the place of the one before.

    Args:
        held, target: what is submitted, of the held-back pictures and of those to submit.
        ensemble: that it comes from.
        score: the campaign's metric of `held`.
        facts: what the ledger is to keep of it.
        task, ledger: of the campaign.
    """
    fused = all_pictures(target, task)
    before = ledger.latest_submission()
    folder = ledger.folder / "submissions" / str(before[0] + 1 if before else 1)
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed before it wrote it down
    with atomic_folder(folder) as made:
        write_submission(fused, task.target, made / "submission.csv", "contest_csv")
        write_submission(fused, task.target, made / "submission.json", "coco_json")
        write_predictions(held, made / "fused_oof.parquet", task.held)
        write_predictions(fused, made / "fused_test.parquet", task.target)
        ensemble.write(made / "ensemble.json")
    ledger.add_submission(score, facts)
    publish(ledger)


def publish(ledger: Ledger) -> None:
    """Copy the submission that holds now to the top of the campaign's folder, where there is one."""
    holds = ledger.latest_submission()
    if holds is None:
        return
    for path in sorted((ledger.folder / "submissions" / str(holds[0])).iterdir()):
        with atomic(ledger.folder / path.name) as temporary:
            shutil.copyfile(path, temporary)


def predict_target(built: EnsembleReport, task: Task, ledger: Ledger, found: Found) -> None:
    """Predict the pictures to submit with every member and view that the ensemble wants and that has not done so."""
    wanted: dict[str, list[View]] = {}
    for name in built.ensemble.weights:
        if name not in found.target:
            member, view = name.split("@")
            wanted.setdefault(member, []).append(View.parse(view))
    seen = [s for s in task.target.samples if s.id not in task.unseen]
    for member, its_views in wanted.items():
        run = found.runs[member]
        model, classes = load_detector(run)
        with progress_bar(f"predicting with {member}") as progress:
            made = predict_views(
                model, seen, classes, image_size=run.recipe.image_size, views=its_views, progress=progress
            )
        for seen_in, predictions in made.items():
            found.target[f"{member}@{seen_in}"] = predictions
            path = ledger.folder / "members" / member / f"target@{seen_in}.parquet"
            write_predictions(predictions, path, task.target)


def all_pictures(predictions: Predictions, task: Task) -> Predictions:
    """The predictions with an empty entry for each picture that could not be decoded, in the order of the target."""
    return Predictions.of(
        {i: predictions[i] if i in predictions else Detections.empty() for i in task.target.image_ids},
        predictions.classes,
    )


def told(built: EnsembleReport, score: Score) -> dict[str, Any]:
    """What the ledger and the report keep of a chosen ensemble."""
    ensemble = built.ensemble
    total = sum(ensemble.weights.values())
    named = (
        (*name.partition("@")[::2], weight / total, built.leave_one_out_gain.get(name))
        for name, weight in ensemble.weights.items()
    )
    fused = {
        "kind": ensemble.method,
        "iou": ensemble.iou,
        "skip": ensemble.score_threshold,
        "weights": dict(ensemble.weights),
        "parts": [dict(zip(("name", "view", "weight", "adds"), part, strict=True)) for part in named],
        "best_single": list(built.best_single),
        "metric": built.metric,
        "value": built.score,
        "nested": built.nested_score,
        "all_alike": built.uniform_score,
        "interval": [built.interval.low, built.interval.high] if built.interval else None,
        **score.to_dict(),
    }
    return {"best_member": built.best_single[0].split("@")[0], "fused": fused}


def describe(built: EnsembleReport, ledger: Ledger) -> None:
    """Tell each member's part in the ensemble, and in a sentence what was chosen and why."""
    ensemble, (best_name, best_score) = built.ensemble, built.best_single
    total = sum(ensemble.weights.values())
    for row in ledger.segments():
        if row.state != "done":
            continue
        parts = [name for name in ensemble.weights if name.split("@")[0] == row.name]
        share = {
            "weight": round(sum(ensemble.weights[name] for name in parts) / total, 3) if parts else 0.0,
            "adds": round(sum(built.leave_one_out_gain.get(name, 0.0) for name in parts), 4)
            if parts and built.leave_one_out_gain
            else None,
            "views": [name.split("@")[1] for name in parts] or row.result["views"],
        }
        ledger.put_segment(SegmentRecord(**vars(row) | {"result": {**row.result, **share}}))
    score = f"{built.metric.upper()} {built.score:.3f}"
    members = ", ".join(f"{weight:g} x {name}" for name, weight in ensemble.weights.items())
    honest = f" ({built.nested_score:.3f} on pictures not chosen on)" if built.nested_score is not None else ""
    ledger.log(
        f"Submitted {ensemble.method.upper()} at IoU {ensemble.iou:g} of {members}: {score} out-of-fold"
        f"{honest}; the best member in one view, {best_name}, has {best_score:.3f}, plain WBF of all {built.uniform_score:.3f}."
    )


def refresh_report(ledger: Ledger) -> None:
    """Write the page anew from what lies in the folder."""
    with ledger.timed("report", "report"):
        write_campaign_page(ledger.folder)
    ledger.export()
