"""Writes the log, the checkpoints and the result of a training into its run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from foldfuse.errors import counted
from foldfuse.storage.run import Run, RunMetadata
from foldfuse.system.finite import first_not_finite
from foldfuse.training.session import TrainingSession


@dataclass(frozen=True)
class TrainingResult:
    """The end of a training.

    Attributes:
        steps: total optimizer steps, including earlier sessions.
        seconds: seconds of the budget that were used, including earlier sessions.
    """

    steps: int
    seconds: float


class Checkpointer:
    """Writes a checkpoint and the new rows of the log whenever the training loop calls it.

    Attributes:
        log: all rows so far; the loop appends to it.
    """

    def __init__(self, run: Run, session: TrainingSession) -> None:
        """The rows after the checkpoint to resume from are cut off, on disk too: their steps are trained again."""
        self.run = run
        self.session = session
        written = run.log
        checkpoint = session.checkpoint
        self.log = [row for row in written if checkpoint is not None and _is_before(row, checkpoint["step"])]
        if session.world.is_main and (run.folder / "log.jsonl").exists():
            run.write_log(self.log)
        self._written = len(self.log)

    def __call__(self, state: Mapping[str, Any]) -> None:
        """Evaluate where the session asks for it, then write the log's new rows and the checkpoint.

        Raises:
            FloatingPointError: the state holds NaN or infinity; the message names the tensor, and nothing is written.
        """
        session = self.session
        if name := first_not_finite(state):
            raise FloatingPointError(
                f"after {counted(state['step'], 'step')}: {name} holds NaN or infinity, though every loss was finite. This state "
                "is not kept."
            )
        if session.evaluate is not None and self._is_due(state):
            with session.budget.paused():
                scores = session.evaluate(state["ema"])
            self.log.append({"step": state["step"], "seconds": round(state["seconds"], 3), **scores})
            if (ap50 := scores.get("ap50")) is not None:
                session.status({"AP50": f"{ap50:.3f}"})
        rows, self._written = self.log[self._written :], len(self.log)
        if session.world.is_main:
            # The log goes first: rows beyond the checkpoint can be cut, missing rows could not be made again.
            self.run.append_log(rows)
            self.run.save_checkpoint(state)
        if session.tracker is not None:
            session.tracker(rows)

    def _is_due(self, state: Mapping[str, Any]) -> bool:
        """Whether to evaluate a state: it was not evaluated before, and the time for it has come."""
        session = self.session
        if self.log and "loss" not in self.log[-1]:
            return False
        if session.evaluate_seconds is None:
            return True
        is_last = session.budget.spent(state["step"]) >= 1
        evaluated_at: float = next((row["seconds"] for row in reversed(self.log) if "loss" not in row), 0.0)
        return not is_last and state["seconds"] - evaluated_at >= session.evaluate_seconds


def finish_run(
    run: Run, session: TrainingSession, state: Mapping[str, Any], metadata: RunMetadata, *, batch_size: int
) -> TrainingResult:
    """Write the averaged weights and the run's metadata at the end of a training.

    Args:
        run: the folder.
        session: the session of the training.
        state: the last one.
        metadata: the metadata of the run, with the facts that the training found.
        batch_size: images per step.
    """
    steps, seconds = state["step"], state["seconds"]
    if session.world.is_main:
        run.save_weights(state["ema"])
        run.write_metadata(
            replace(
                metadata,
                trained_on=session.world.device,
                processes=session.world.size,
                mosaic_end=state["mosaic_end"],
                micro_batch=state["micro_batch"] or None,
                steps=steps,
                seconds=round(seconds, 2),
                images_per_second=round(steps * batch_size / max(seconds, 1e-9), 2),
                data_wait_share=round(state["data_wait"] / seconds, 4) if steps else None,
            )
        )
    session.world.barrier()
    return TrainingResult(steps, seconds)


def _is_before(row: Mapping[str, Any], step: int) -> bool:
    """Whether a row of the log belongs to a checkpoint at `step`: earlier steps, and the evaluation at that step."""
    return row["step"] < step or (row["step"] == step and "loss" not in row)
