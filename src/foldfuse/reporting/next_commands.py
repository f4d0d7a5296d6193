"""The commands to type after a training, with their paths quoted for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from foldfuse.system.durations import duration_option


def next_commands(
    folder: Path, *, is_classifier: bool, has_held_out: bool, budget: Mapping[str, float] | None
) -> tuple[str, ...]:
    """The commands that evaluate a run, predict with it, and train it on for as long as it was trained.

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


def shell_command(*words: str | Path) -> str:
    """A command of Foldfuse as a line for a shell."""
    return shlex.join(["foldfuse", *map(str, words)])
