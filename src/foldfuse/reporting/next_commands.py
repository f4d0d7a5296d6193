"""What to do after a training or a campaign: commands to type, with their paths quoted for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from foldfuse.reporting.error_analysis import ErrorAnalysis
from foldfuse.reporting.records import CampaignRecord
from foldfuse.storage.notes import Notes
from foldfuse.system.durations import duration_option


def next_commands(
    folder: Path, *, is_classifier: bool, has_held_out: bool, budget: Mapping[str, float] | None
) -> tuple[str, ...]:
    """The commands that evaluate a run, predict with it, and resume its training for as long again.

    Args:
        folder: the folder of the run.
        is_classifier: whether it is a classifier's.
        has_held_out: whether the run held out images, so that `evaluate` needs no data.
        budget: {"seconds": number} or {"steps": number} of the run; None where it is not known.
    """
    table = "classes.csv" if is_classifier else "predictions.parquet"
    commands = [shell_command("predict", folder, "IMAGES", "--out", table)]
    if not is_classifier:
        commands.insert(0, shell_command("evaluate", folder, *([] if has_held_out else ["DATA"])))
    if budget and "steps" in budget:
        commands.append(shell_command("train", "--resume", folder, "--steps", f"{2 * budget['steps']:.0f}"))
    elif budget and "seconds" in budget:
        commands.append(shell_command("train", "--resume", folder, "--budget", duration_option(2 * budget["seconds"])))
    return tuple(commands)


@dataclass(frozen=True)
class Step:
    """A sentence on what to do next, and the command for it; None where there is none."""

    sentence: str
    command: str | None = None


def next_steps(record: CampaignRecord, errors: ErrorAnalysis | None, notes: Notes) -> tuple[Step, ...]:
    """What to do with a campaign now, the most urgent first.

    Args:
        record: the facts of the campaign.
        errors: the errors on the held-out images, where they are known.
        notes: the notes of its users.
    """
    if record.state == "running":
        return ()
    steps, folder = [], record.folder.resolve()
    if record.state != "finished":
        steps.append(
            Step(
                "The campaign was stopped early. It can be resumed for the rest of its time.",
                shell_command("campaign", "--resume", folder),
            )
        )
    if record.fused is not None and not notes.scores:
        steps.append(
            Step(
                "Upload the submission, then note its leaderboard score: two or more show whether the held-out score can be "
                "trusted.",
                shell_command("note", folder, "--leaderboard", "SCORE"),
            )
        )
    if errors is not None and errors.costs and errors.costs[0].ap50 > 0:
        cost = errors.costs[0]
        steps.append(
            Step(
                f"Most AP50 is lost to errors of the type {cost.name} ({cost.meaning}): {cost.ap50:.3f}. The worst images below "
                "show some."
            )
        )
    return tuple(steps)


def shell_command(*words: str | Path) -> str:
    """A command of Foldfuse as a line for a shell."""
    return shlex.join(["foldfuse", *map(str, words)])
