"""Makes the soups of a campaign: runs whose weights are the mean of those of cooldown runs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace

from foldfuse.campaign.current_state import campaign_state
from foldfuse.campaign.execution.workers import Workers
from foldfuse.campaign.planning.allocation import image_seconds, overhead_seconds, reserved_seconds
from foldfuse.campaign.planning.soups import ready_soups
from foldfuse.campaign.segment_records import leave_out, new_record
from foldfuse.campaign.task import Task
from foldfuse.recipes import Recipe
from foldfuse.storage.ledger import Ledger
from foldfuse.storage.run import Run
from foldfuse.storage.segments import SegmentRecord
from foldfuse.training.soups import average_weights


def make_soups(task: Task, ledger: Ledger, workers: Workers) -> list[SegmentRecord]:
    """Makes the soups whose runs are all there, where there is time to predict with them; returns their records."""
    state = campaign_state(task, ledger, workers)
    made = []
    for name, (soup, names) in ready_soups(state).items():
        record = replace(new_record(soup, ledger), state="trained", result={"averaged": list(names)})
        plain = image_seconds(soup, state) * state.num_images + overhead_seconds(1, state)
        if state.remaining < reserved_seconds((), replace(state, soups=False)) + plain:
            leave_out(record, "no time is left to predict with it.", ledger)
            continue
        with ledger.timed(f"average {name}", "fuse"):
            _write(ledger, name, soup.recipe, names)
        ledger.put_segment(record)
        ledger.log(f"{name} has the mean of the weights of {', '.join(names[:-1])} and {names[-1]}.")
        made.append(record)
    return made


def _write(ledger: Ledger, name: str, recipe: Recipe, names: Sequence[str]) -> None:
    """Writes the run folder of a soup; what a killed process left of it is replaced."""
    members = ledger.folder / "members"
    parts = [Run(members / part) for part in names]
    shutil.rmtree(members / name, ignore_errors=True)
    first = parts[0].metadata
    metadata = replace(
        first,
        steps=max(part.metadata.steps or 0 for part in parts),
        seconds=0.0,
        images_per_second=None,
        data_wait_share=None,
        canvas=None,
        mosaic_end=None,
        budget=None,
    )
    run = Run.create(members / name, recipe, metadata)
    run.save_weights(average_weights(parts))
    run.write_learnt_images({image for part in parts for image in part.learnt_images or ()})
