"""The second opinion of a campaign: its submission rescored by a classifier of crops, where that helps out-of-fold."""

from __future__ import annotations

from foldfuse.campaign.planning.allocation import CROPS_LEARNT, CROPS_PER_PICTURE, FINISH
from foldfuse.campaign.submissions import Found, put
from foldfuse.campaign.task import Task
from foldfuse.data.dataset import Dataset
from foldfuse.ensemble.ensemble import read_ensemble
from foldfuse.evaluation.coco import score_predictions
from foldfuse.formats.predictions import read_predictions
from foldfuse.inference import rescoring as rescore
from foldfuse.storage.ledger import Ledger

TELLING = 0.1  # a share of learning that tells how long the rest takes
NO_TIME = (
    "A second opinion was begun, but no time is left to ask for it on the pictures to submit. Submitted as before."
)


class _Late(Exception):
    """The second opinion would not be ready in time."""


def second_opinion(task: Task, ledger: Ledger, found: Found) -> None:
    """Rescore the submission that holds now; the rescored one takes its place where the gain out-of-fold is believed.

    The classifier learns from all annotated pictures, those held back included, and judges each held-back picture
    by what the others teach.
    """
    holds = ledger.latest_submission()
    if holds is None or holds[2].get("second_opinion"):
        return
    number, before, facts = holds
    folder = ledger.folder / "submissions" / str(number)
    held = read_predictions(folder / "fused_oof.parquet", task.held)
    target = read_predictions(folder / "fused_test.parquet", task.target)
    if len(task.held) < rescore.PARTS or not len(held.boxes):
        return  # too few to tell a gain from chance
    began, name = ledger.remaining, task.metric.upper()
    seen = [s for s in task.target.samples if s.id not in task.unseen]
    learnt = CROPS_LEARNT + CROPS_PER_PICTURE * len(task.held)
    coming = CROPS_PER_PICTURE * len(seen) / learnt  # what is still to be looked at then, against that

    heard: list[tuple[float, float]] = []  # share of learning that was done, seconds that were left

    def in_time(share: float) -> None:
        """Raise _Late where learning, of which a `share` is done, and what is to come would take longer than there is."""
        heard.append((share, ledger.remaining))
        (first, before), (_, left) = heard[0], heard[-1]  # what comes before the first is not part of the pace
        pace = (before - left) / (share - first) if share - first >= TELLING else 0.0
        if pace * (1 - share + coming) > left - FINISH:
            raise _Late

    with ledger.timed("a second opinion", "fuse"):
        try:
            fitted = rescore.fit_rescorer(
                held,
                _whole(task),
                metric=task.metric,
                max_detections=CROPS_PER_PICTURE,
                examples=CROPS_LEARNT,
                seed=task.seed,
                progress=in_time,
            )
        except _Late:
            ledger.log(NO_TIME)
            return
        if not fitted.accepted or fitted.after <= before:
            ledger.log(
                f"A second opinion, by a classifier of crops, brings no gain that can be believed: {name} {before:.3f} before "
                f"and {fitted.after:.3f} after it out-of-fold. Submitted as before."
            )
            return
        if (began - ledger.remaining) * coming > ledger.remaining - FINISH:
            ledger.log(NO_TIME)
            return
        rescored = rescore.apply_rescorer(fitted.rescorer, target, seen)
    with ledger.timed("submit", "submit"):
        score = score_predictions(fitted.predictions, task.held)
        now = {"value": fitted.after, "interval": None}  # what is known of the fusion's gain says nothing of this one
        fused = {**facts["fused"], **score.to_dict(), **now}
        told = {**facts, "second_opinion": fitted.to_dict(), "fused": fused}
        put(fitted.predictions, rescored, read_ensemble(folder / "ensemble.json"), fitted.after, told, task, ledger)
    found.score = fitted.after
    ledger.log(
        f"A second opinion, by a classifier of crops, lifts {name} from {before:.3f} to {fitted.after:.3f} out-of-fold (gain on "
        f"pictures not chosen on: {fitted.gain.low:+.3f} to {fitted.gain.high:+.3f}). Submitted with it."
    )


def _whole(task: Task) -> Dataset:
    """All annotated pictures of the task."""
    return Dataset(
        (*task.train.samples, *task.held.samples), task.train.classes, task.train.category_ids, task.train.source
    )
