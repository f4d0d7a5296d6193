"""A campaign's metric of the user's own: its text is stored in the ledger, and a resume names the file again.

A campaign's folder may come from elsewhere, so a path or a text in it is never run: the function is the one that the command
names, and its text must be the stored one. The function runs in the campaign's own process alone: workers on cards or nodes need
no metric.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foldfuse.campaign import constants as c
from foldfuse.data.dataset import Dataset
from foldfuse.errors import InputError
from foldfuse.evaluation.custom_metric import absolute_name, check_ranks, custom_metric, is_custom, metric_label
from foldfuse.evaluation.matching import ground_truth
from foldfuse.system.durations import format_duration

FACT = "custom_metric"  # of the ledger
_RESCORING_CALLS = (
    200  # of the metric, by crop rescoring: its settings on all images and without each part, and resamples
)


def stored_facts(metric: str) -> dict[str, Any]:
    """The facts of a campaign's metric for the ledger: name, hash and text of a custom metric; nothing for another."""
    if not is_custom(metric):
        return {}
    found = custom_metric(metric)
    return {FACT: {"name": metric, "sha256": found.sha256, "source": found.source}}


def check_resumed(folder: Path, facts: Mapping[str, Any], stored_metric: str, given: str | None) -> str:
    """The metric to resume a campaign with.

    Args:
        folder: the folder of the campaign.
        facts: of its ledger.
        stored_metric: of its request.
        given: the metric that the command names; None where it names none.

    Raises:
        InputError: the campaign's metric is a function, and the command does not name it or its file has changed; or the
            command names another metric.
    """
    if not is_custom(stored_metric):
        if given is not None and given != stored_metric:
            raise InputError(
                f"--metric {given}: {folder} has the metric {stored_metric}, and continues with it. Leave out --metric."
            )
        return stored_metric
    again = f"foldfuse campaign --resume {folder} --metric {stored_metric}"
    if given is None:
        raise InputError(
            f"{folder}: its metric is your own function {metric_label(stored_metric)}, and code is run only where the command "
            f"names it. Resume with: {again}"
        )
    if metric_label(given) != metric_label(stored_metric) or not is_custom(given):
        raise InputError(f"--metric {given}: the campaign began with {stored_metric}. Resume with: {again}")
    stored = facts.get(FACT)
    found, known = custom_metric(given), stored.get("sha256") if isinstance(stored, Mapping) else None
    if found.sha256 != known:
        raise InputError(
            f"{found.path}: is not the text that the campaign began with, so its scores could not be compared. Restore the file "
            f"('{FACT}' in {folder / 'campaign.json'} holds the text), or start a new campaign."
        )
    return absolute_name(given)


def check_speed(metric: str, val: Dataset, deadline: float) -> None:
    """Raises InputError where a custom metric fails, ranks no predictions above the annotations, or is too slow to choose by."""
    if not is_custom(metric):
        return
    seconds, most = check_ranks(custom_metric(metric), ground_truth(val)), c.MAX_METRIC_SHARE * deadline
    if seconds > most:
        raise InputError(
            f"{metric}: takes {seconds:.2g} s for the {len(val)} held-out images, and a campaign calls it hundreds of times; "
            f"with a deadline of {format_duration(deadline)} expected at most {most:.2g} s. Make it faster, or give more time."
        )


def choice_seconds(metric: str, val: Dataset) -> float:
    """Seconds that crop rescoring needs for the calls of a custom metric; 0 for another metric."""
    return _RESCORING_CALLS * check_ranks(custom_metric(metric), ground_truth(val)) if is_custom(metric) else 0.0
