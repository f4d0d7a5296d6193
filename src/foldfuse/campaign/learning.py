"""One fold instead of several where the first base run still learns fast: more steps then bring more than another fold.

Several folds share the time. Where a network needs more steps than its share gives, as on playing cards, whose ranks differ in
small print, its members of two folds stay behind those of one fold with twice the steps. The training loss shows it early.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foldfuse.campaign import constants as c
from foldfuse.campaign.current_state import campaign_state
from foldfuse.campaign.execution.workers import Workers
from foldfuse.campaign.planning.segments import base_runs
from foldfuse.campaign.task import Task
from foldfuse.errors import counted
from foldfuse.storage.ledger import Ledger
from foldfuse.storage.run import Run


def loss_left(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The class loss in the last quarter of a run's steps, as a share of that in the second quarter; None for too few steps.

    Args:
        rows: the rows of the run's log; those without a loss are scores. A row without a class loss counts with its whole loss.
    """
    losses = [float(row.get("class", row["loss"])) for row in rows if "loss" in row]
    quarter = len(losses) // 4
    if quarter == 0:
        return None
    second, last = (sum(part) / quarter for part in (losses[quarter : 2 * quarter], losses[-quarter:]))
    return last / second if second > 0 else None


def settle_folds(task: Task, ledger: Ledger, workers: Workers) -> None:
    """Once the first base run is done: leaves all folds but the first to be, where that run still learnt fast at its end.

    Only where the campaign chose several folds by the clock, a single base run is trained, and nothing else has begun.
    """
    if not ledger.get("train_folds_auto") or ledger.get("still_learning") is not None:
        return
    state = campaign_state(task, ledger, workers)
    bases = base_runs(state)
    base = state.record(bases[0].name)
    own = [record for record in state.segments if not record.role.is_external]
    if len(state.folds) == 1 or len(bases) > 1 or base is None or base.state != "done" or own != [base]:
        return
    rows = Run(ledger.folder / "members" / base.name).log
    steps, left = sum("loss" in row for row in rows), loss_left(rows)
    if left is None or steps >= c.MAX_LEARNING_STEPS or left >= c.LEARNING_LOSS:
        ledger.set(still_learning=False)
        return
    ledger.set(still_learning=True, folds_in_time=[state.folds[0]])
    ledger.log(
        f"{base.name} was still learning fast at its end: its class loss fell by {1 - left:.0%} from the second to the last "
        f"quarter of its {counted(steps, 'step')}. So 1 fold is trained for longer, instead of {len(state.folds)}."
    )
