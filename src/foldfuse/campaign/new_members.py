"""Makes a trained segment a member: it predicts its held-out images and is scored on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from foldfuse.campaign import constants as c
from foldfuse.campaign.current_state import campaign_state
from foldfuse.campaign.execution.jobs import HeldOutPredictions, predict_held_out
from foldfuse.campaign.execution.workers import Workers
from foldfuse.campaign.fold_members import held_out_from
from foldfuse.campaign.pace import settle_threads
from foldfuse.campaign.submissions import MemberPredictions
from foldfuse.campaign.task import VAL, Task, predictions_path
from foldfuse.ensemble.member_views import MemberView
from foldfuse.errors import counted
from foldfuse.evaluation.coco import score_predictions
from foldfuse.formats.predictions import write_predictions
from foldfuse.storage.ledger import Ledger
from foldfuse.storage.run import Run
from foldfuse.storage.segments import Role, SegmentRecord
from foldfuse.system.durations import format_duration


def add_member(
    record: SegmentRecord,
    task: Task,
    ledger: Ledger,
    members: MemberPredictions,
    workers: Workers,
    predicted: HeldOutPredictions | None,
) -> None:
    """Makes a trained segment a member. `predicted`: its predictions of the held-out images; None to predict them now."""
    run, val = Run(ledger.folder / "members" / record.name), held_out_from(record, task)
    if predicted is None:
        settle_threads(task.device, ledger)
        with ledger.timed(f"out-of-fold {record.name}", "predict"):
            predicted = predict_held_out(run, val, campaign_state(task, ledger, workers), device=task.device)
    for view, predictions in predicted.views.items():
        write_predictions(predictions, predictions_path(run.folder, VAL, str(view)), val)
    score = score_predictions(predicted.views[c.PLAIN_VIEW], val)
    recipe, metadata = run.recipe, run.metadata
    seconds, speed = metadata.seconds or 0.0, metadata.images_per_second or 0.0
    rows = [row for row in run.log if "ap50" not in row or "loss" in row]
    run.write_log([*rows, {"step": metadata.steps, "seconds": seconds, "ap": score.ap, "ap50": score.ap50}])
    views = [str(view) for view in predicted.views]
    result: dict[str, Any] = {
        **record.result,
        "name": record.name,
        "recipe": recipe.detector,
        "image_size": recipe.image_size,
        "seed": record.seed,
        "fold": record.fold,
        "predicted_views": views,
        "views": views,
        "seconds": seconds,
        "steps": metadata.steps,
        "images_per_second": metadata.images_per_second,
        "device": metadata.trained_on,
        "ap": score.ap,
        "ap50": score.ap50,
        "leave_one_out_gain": None,
        "weight": None,
        "image_seconds": predicted.image_seconds,
    }
    for change in metadata.lr_changes:
        where = f"step {change.step:,}" if change.step else "the beginning"
        ledger.log(
            f"{record.name}: its loss was not finite, so it was trained again from {where}, with a learning rate of "
            f"{change.lr:.2g}."
        )
    if metadata.kept_from is not None and metadata.kept_from == metadata.steps:  # a resume may have trained on
        ledger.log(f"{record.name}: its loss was not finite and it could not go on, so its last checkpoint is taken.")
    ledger.set(slowdown=None)  # the time of an image is measured anew
    ledger.put_segment(replace(record, state="done", ended=ledger.elapsed, result=result))
    members.runs[record.name] = run
    members.val |= {MemberView(record.name, str(view)): boxes for view, boxes in predicted.views.items()}
    members.new_members.append(record.name)
    trained = (
        f"after {counted(metadata.steps or 0, 'step')} in {format_duration(seconds)} ({speed:.1f} images a second)"
        if record.role != Role.SOUP
        else "without a training of its own"
    )
    ledger.log(f"{record.name}: AP50 {score.ap50:.3f}, AP {score.ap:.3f} on the held-out images {trained}.")
