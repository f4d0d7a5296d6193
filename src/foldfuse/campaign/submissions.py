"""Submissions of a campaign: the best ensemble so far, and a submission that only a better one replaces.

A submission is written whole into a new folder, then recorded in the ledger, then copied to the top of the campaign's
folder. Whenever a process is killed, a valid submission lies at the top.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from foldfuse.campaign import constants as c
from foldfuse.campaign.affordable import (
    Choice,
    OutOfTime,
    by_name,
    drop_unaffordable_views,
    drop_unpredicted_views,
    ensemble_views,
    in_time,
    without_light_views,
)
from foldfuse.campaign.compiling import COMPILE_SECONDS, are_compiled
from foldfuse.campaign.fold_members import choose_folds, held_out_from, superseded
from foldfuse.campaign.pace import settle_threads
from foldfuse.campaign.planning.allocation import search_seconds
from foldfuse.campaign.planning.segments import member_name
from foldfuse.campaign.task import TEST, VAL, Task, predictions_path
from foldfuse.data.content_hashes import image_hashes
from foldfuse.detections import Detections, Predictions
from foldfuse.ensemble.best_single import best_single_member
from foldfuse.ensemble.build import EnsembleReport, build_ensemble
from foldfuse.ensemble.ensemble import Ensemble, apply_ensemble
from foldfuse.ensemble.member_views import MemberView
from foldfuse.evaluation.coco import Score, score_predictions
from foldfuse.evaluation.custom_metric import metric_label
from foldfuse.evaluation.metrics import beta_of
from foldfuse.evaluation.thresholds import THRESHOLDS, choose_thresholds, write_thresholds
from foldfuse.formats.predictions import read_predictions, write_predictions
from foldfuse.formats.submission import write_submission
from foldfuse.inference import rescorer_file
from foldfuse.inference.detector import load_detector, predict_views
from foldfuse.inference.rescorer import Rescorer
from foldfuse.inference.tta import View
from foldfuse.provenance import WeightsOrigin, origins_page
from foldfuse.reporting.campaign_page import write_campaign_page
from foldfuse.storage.ledger import Ledger
from foldfuse.storage.run import LEARNT, Run
from foldfuse.system.atomic_files import atomic, atomic_folder, write_text
from foldfuse.system.device import choose_device, release_memory
from foldfuse.system.progress import progress_bar

WEIGHTS = "weights.md"  # where the initial weights of the members come from


@dataclass
class MemberPredictions:
    """Predictions of the members, in memory.

    Attributes:
        val: each segment's predictions of its held-out images.
        test: predictions of the test images; filled when an ensemble needs them.
        runs: {member: its run folder}.
        score: the campaign's metric of the submitted ensemble on the held-out images.
        new_members: members that no ensemble has been chosen from yet.
    """

    val: dict[MemberView, Predictions] = field(default_factory=dict)
    test: dict[MemberView, Predictions] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    score: float | None = None
    new_members: list[str] = field(default_factory=list)


def load_predictions(task: Task, ledger: Ledger) -> MemberPredictions:
    """The predictions of all finished members, read from their folders."""
    members = MemberPredictions()
    chosen_from = ledger.get("chosen_from") or ()
    for record in ledger.segments():
        folder = ledger.folder / "members" / record.name
        members.runs[record.name] = Run(folder)
        if record.state != "done":
            continue
        val = held_out_from(record, task)
        for view in record.result.get("predicted_views", ()):
            for split, into, dataset in ((VAL, members.val, val), (TEST, members.test, task.test)):
                path = predictions_path(folder, split, view)
                if path.exists():
                    into[MemberView(record.name, view)] = read_predictions(path, dataset)
        if record.name not in chosen_from:
            members.new_members.append(record.name)
    latest = ledger.latest_submission()
    members.score = latest[1] if latest else None
    return members


def submit_best(
    task: Task, ledger: Ledger, members: MemberPredictions, *, last: bool, seconds: float | None = None
) -> None:
    """Chooses the best ensemble of the members, and submits it if it scores better on the held-out images than before.

    Before the `last` choice only plain views are candidates, so that little time goes into predictions that a later choice
    may not need. Where the base run was still learning, the runs that continue it take its place.

    Args:
        task, ledger: of the campaign.
        members: the members.
        last: whether all views are candidates.
        seconds: of the search; as planned by default.
    """
    plain = str(c.PLAIN_VIEW)
    known = ledger.segments()
    replaced = superseded(known) if ledger.get("still_learning") else frozenset()
    predicted = [key for key in members.val if (last or key.view == plain) and key.member not in replaced]
    latest = ledger.latest_submission()
    submitted = tuple(latest[2].get("folds") or (0,)) if latest else ()
    chosen = choose_folds(predicted, known, folds=task.folds, submitted=submitted, last=last)
    used = {part.member for parts in chosen.parts.values() for part in parts}
    if not last and members.new_members and not used & {*members.new_members}:
        finish_choice(ledger, members)  # the new member waits for the other members of its fold
        return
    images = task.val_in(*chosen.folds)
    choice = Choice(chosen.candidates(members.val, images.image_ids), chosen.parts, members.test, task, ledger)
    with ledger.timed("search the ensemble", "fuse"):
        if seconds is None:
            seconds = search_seconds(ledger.deadline) if last else c.FIRST_SEARCH_SECONDS
        if last:
            choice = without_light_views(choice, seconds)
        named = by_name(choice.candidates)
        if are_compiled():
            report = build_ensemble(named, images, metric=task.metric, seconds=seconds, seed=task.seed)
        else:  # compiling would take longer than a short campaign has
            report = best_single_member(named, images, metric=task.metric)
        report = drop_unaffordable_views(report, choice)
    is_better = members.score is None or report.score > members.score or chosen.folds != submitted
    if not is_better:
        ledger.log(
            f"The ensemble with the new member has {metric_label(report.metric)} {report.score:.3f} out-of-fold, no more than "
            "before: the submission stays."
        )
    else:
        ensemble = _of_segments(report.ensemble, choice)
        try:
            with ledger.timed("predict the test images", "predict"):
                predict_test_images(ensemble, members.val, task, ledger, members)
        except OutOfTime:
            smaller = drop_unpredicted_views(report, choice)
            if smaller is None or (members.score is not None and smaller.score <= members.score):
                ledger.log("Predicting the test images takes longer than there is time for: the submission stays.")
                finish_choice(ledger, members)
                return
            report = smaller
            ensemble = _of_segments(report.ensemble, choice)
        with ledger.timed("submit", "submit"):
            val = report.out_of_fold(named)
            test = apply_ensemble(ensemble, by_name(members.test))
            facts = ensemble_summary(report, choice.candidates, score_predictions(val, images))
            facts["folds"] = list(chosen.folds)
            write_submission_folder(val, test, ensemble, report.score, facts, task=task, ledger=ledger)
        members.score = report.score
        log_ensemble(report, choice.candidates, ledger)
    finish_choice(ledger, members)


def _of_segments(ensemble: Ensemble, choice: Choice) -> Ensemble:
    """The ensemble for test images: of the segments and views that predict them for each member."""
    return ensemble.with_parts({str(key): [*map(str, parts)] for key, parts in choice.parts.items()})


def finish_choice(ledger: Ledger, members: MemberPredictions) -> None:
    """Records that the new members have been looked at."""
    members.new_members.clear()
    ledger.set(chosen_from=sorted({key.member for key in members.val}))


def write_submission_folder(
    val: Predictions,
    test: Predictions,
    ensemble: Ensemble,
    score: float,
    facts: Mapping[str, Any],
    *,
    task: Task,
    ledger: Ledger,
    rescorer: Rescorer | None = None,
) -> None:
    """Writes a submission, records it in the ledger, and replaces the previous submission.

    Args:
        val, test: fused predictions of held-out images, of all folds or some, and of the test images.
        ensemble: the ensemble that the predictions come from.
        score: the campaign's metric of `val`.
        facts: the facts for the ledger and the report.
        task, ledger: the task and the ledger of the campaign.
        rescorer: the crop rescorer that the predictions went through, kept for further images; None without rescoring.
    """
    fused = fill_missing_images(test, task)
    latest = ledger.latest_submission()
    folder = ledger.folder / "submissions" / str(latest[0] + 1 if latest else 1)
    shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed before it recorded the submission
    with atomic_folder(folder) as temporary:
        write_submission(fused, task.test, temporary / "submission.csv", "contest_csv", like=task.sample)
        write_submission(fused, task.test, temporary / "submission.json", "coco_json")
        images = task.val.subset(val)
        learnt_ids = val.learnt_ids | set(task.labeled.image_ids) - set(images.image_ids)
        write_predictions(replace(val, learnt_ids=learnt_ids), temporary / "fused_oof.parquet", images)
        write_predictions(fused, temporary / "fused_test.parquet", task.test)
        ensemble.write(temporary / "ensemble.json")
        if ensemble.learned:  # its models have learnt from the held-out images, and a score on these would flatter it
            Run(temporary).write_learnt_images(image_hashes(images.samples))
        thresholds = choose_thresholds(val, images, beta=beta_of(task.metric) or 1.0, seed=task.seed)
        write_thresholds(temporary / THRESHOLDS, thresholds)
        write_text(temporary / WEIGHTS, origins_page(_origins(ensemble, ledger)))
        if rescorer is not None:
            rescorer_file.write_rescorer(temporary, rescorer, task.train.classes, image_hashes(images.samples))
    ledger.add_submission(score, facts)
    publish(ledger)


def _origins(ensemble: Ensemble, ledger: Ledger) -> dict[str, tuple[WeightsOrigin, ...] | None]:
    """{member: origins of its initial weights} of an ensemble; None for predictions of another toolkit or an earlier version."""
    members = dict.fromkeys(name.partition("@")[0] for name in ensemble.weights)
    runs = {name: Run(ledger.folder / "members" / name) for name in members}
    return {name: run.metadata.weights if run.exists else None for name, run in runs.items()}


def publish(ledger: Ledger) -> None:
    """Copies the current submission, if there is one, to the top of the campaign's folder."""
    latest = ledger.latest_submission()
    if latest is None:
        return
    for name in (rescorer_file.SETTINGS, rescorer_file.TENSORS, LEARNT):  # of an earlier submission
        (ledger.folder / name).unlink(missing_ok=True)
    for path in sorted((ledger.folder / "submissions" / str(latest[0])).iterdir()):
        with atomic(ledger.folder / path.name) as temporary:
            shutil.copyfile(path, temporary)


def predict_test_images(
    ensemble: Ensemble,
    candidates: Mapping[MemberView, Predictions],
    task: Task,
    ledger: Ledger,
    members: MemberPredictions,
) -> None:
    """Predicts the test images with each member and view of the ensemble that has not predicted them yet.

    Raises:
        OutOfTime: the time does not suffice, and there is a submission already.
    """
    settle_threads(task.device, ledger)
    missing: dict[str, list[View]] = {}
    weights = ensemble_views(ensemble, candidates)
    for key in sorted(
        weights, key=lambda key: -weights[key]
    ):  # the most important first, should the time be over early
        if key not in members.test:
            missing.setdefault(key.member, []).append(View.parse(key.view))
    for member, views in missing.items():
        run = members.runs[member]
        model, classes = load_detector(run, task.device)
        with progress_bar(f"predicting with {member}") as progress:
            predicted = predict_views(
                model,
                task.test_samples,
                classes,
                image_size=run.recipe.image_size,
                views=views,
                engine="auto",
                progress=in_time(ledger, progress),
            )
        for view, predictions in predicted.items():
            members.test[MemberView(member, str(view))] = predictions
            path = predictions_path(ledger.folder / "members" / member, TEST, str(view))
            write_predictions(predictions, path, task.test)
        del model
        release_memory(choose_device(task.device))


def fill_missing_images(predictions: Predictions, task: Task) -> Predictions:
    """The predictions in the order of the test images, with no boxes for each image that cannot be decoded."""
    return Predictions.of(
        {i: predictions[i] if i in predictions else Detections.empty() for i in task.test.image_ids},
        predictions.classes,
    )


def ensemble_summary(
    report: EnsembleReport, candidates: Mapping[MemberView, Predictions], score: Score
) -> dict[str, Any]:
    """The facts of a chosen ensemble for the ledger and the report."""
    ensemble, weights = report.ensemble, ensemble_views(report.ensemble, candidates)
    total = sum(weights.values())
    keys = {str(key): key for key in candidates}
    fused = {
        "method": ensemble.method,
        "iou": ensemble.iou,
        "weights": dict(ensemble.weights),
        "num_members": len({key.member for key in weights}),
        "parts": [
            {
                "name": key.member,
                "view": key.view,
                "weight": weight / total,
                "leave_one_out_gain": report.leave_one_out_gain.get(str(key)),
            }
            for key, weight in weights.items()
        ],
        "best_single": list(report.best_single),
        "metric": report.metric,
        "value": report.score,
        "nested": report.nested_score,
        "nested_single": report.nested_single,
        "uniform": report.uniform_score if report.num_candidates else None,
        "interval": [report.interval.low, report.interval.high] if report.interval else None,
        **score.to_dict(),
    }
    return {"best_member": keys[report.best_single[0]].member, "fused": fused}


def log_ensemble(report: EnsembleReport, candidates: Mapping[MemberView, Predictions], ledger: Ledger) -> None:
    """Records each member's part in the ensemble, and logs which ensemble was chosen and why."""
    ensemble, weights, gains = report.ensemble, ensemble_views(report.ensemble, candidates), report.leave_one_out_gain
    total = sum(weights.values())
    for record in ledger.segments():
        if record.state != "done":
            continue
        keys = [key for key in weights if key.member == member_name(record)]
        part = {
            "weight": round(sum(weights[key] for key in keys) / total, 3) if keys else 0.0,
            "leave_one_out_gain": round(sum(gains.get(str(key), 0.0) for key in keys), 4) if keys and gains else None,
            "views": [key.view for key in keys] or record.result.get("views", []),
        }
        ledger.put_segment(replace(record, result={**record.result, **part}))
    members = ", ".join(f"{100 * weight / total:.0f} % {name}" for name, weight in ensemble.weights.items())
    (best_name, best_score), gain = report.best_single, report.gain
    sentence = f"The best single member, {best_name}, has {best_score:.3f}." if gain is None else gain.sentence()
    if not report.num_candidates:
        ledger.log(f"Submitted {best_name} alone: {report.metric.upper()} {report.score:.3f} out-of-fold.")
        return
    learned = f" ({ensemble.learned})" if ensemble.learned else ""
    ledger.log(
        f"Submitted {ensemble.method.upper()} at IoU {ensemble.iou:g}{learned} of {members}: {metric_label(report.metric)} "
        f"{report.score:.3f} out-of-fold, where plain WBF of all members has {report.uniform_score:.3f}. {sentence}"
    )


def refresh_report(ledger: Ledger) -> bool:
    """Writes the campaign's page and its export again; returns False where there is no time to compile the page's loops."""
    if not are_compiled() and ledger.remaining < COMPILE_SECONDS:
        ledger.export()
        return False
    with ledger.timed("report", "report"):
        write_campaign_page(ledger.folder)
    ledger.export()
    return True
