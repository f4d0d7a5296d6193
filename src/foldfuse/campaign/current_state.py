"""The state of a running campaign, from its task, its ledger and its workers."""

from __future__ import annotations

from foldfuse.campaign import constants as c
from foldfuse.campaign.execution.workers import Workers
from foldfuse.campaign.planning.slack import measured_reserves
from foldfuse.campaign.planning.state import CampaignState, Reserves
from foldfuse.campaign.task import TEST, Task, predictions_path
from foldfuse.storage.ledger import Ledger


def campaign_state(task: Task, ledger: Ledger, workers: Workers) -> CampaignState:
    """The state of the campaign now, for the strategy."""
    return CampaignState(
        recipes=task.recipes,
        image_sizes=task.image_sizes,
        seed=task.seed,
        deadline=ledger.deadline,
        elapsed=ledger.elapsed,
        num_val=len(task.val_in(task.folds[0])),
        num_test=len(task.test),
        num_objects=task.labeled.num_boxes,
        crops_per_image=task.crops_per_image,
        segments=ledger.segments(),
        step_seconds=ledger.get("step_seconds") or {},
        pixel_seconds=ledger.get("pixel_seconds") or c.DEFAULT_PIXEL_SECONDS,
        ranking=tuple(ledger.get("ranking") or ()),
        busy=workers.busy,
        num_workers=max(1, workers.capacity),
        pseudo_labels=task.pseudo_labels,
        auto_image_size=task.auto_image_size,
        max_views=ledger.get("max_views"),
        tiles=task.offers_tiles,
        folds=tuple(ledger.get("folds_in_time") or task.folds),
        slowdown=ledger.get("slowdown") or 1.0,
        reserves=reserves_of(ledger),
        test_predicted=_test_predicted(ledger),
        still_learning=bool(ledger.get("still_learning")),
        class_error_cost=ledger.get("class_error_cost"),
    )


def _test_predicted(ledger: Ledger) -> frozenset[str]:
    """Names of the members that have predicted the test images in the plain view."""
    members = ledger.folder / "members"
    done = (record.name for record in ledger.segments() if record.state == "done")
    return frozenset(n for n in done if predictions_path(members / n, TEST, str(c.PLAIN_VIEW)).exists())


def reserves_of(ledger: Ledger) -> Reserves:
    """The seconds to reserve for work beside trainings and predictions, as measured so far."""
    return measured_reserves(
        ledger.intervals(),
        crop_seconds=ledger.get("crop_seconds"),
        object_crop_seconds=ledger.get("object_crop_seconds"),
    )


def delivery_seconds(ledger: Ledger) -> float:
    """Seconds to reserve for a submission and the report."""
    return reserves_of(ledger).delivery
