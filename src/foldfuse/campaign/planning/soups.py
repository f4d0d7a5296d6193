"""Soups: the averaged weights of the cooldown runs of one base run, as one more member that no time is trained for.

Cooldown runs that begin from the same weights end close to each other, and their mean predicts better than one of them (Wortsman
et al., "Model soups", arXiv:2203.05482). A soup costs the predictions of one more member.
"""

from __future__ import annotations

from dataclasses import replace

from foldfuse.campaign import constants as c
from foldfuse.campaign.planning.segments import name_in_fold, plan_segments, segment_name
from foldfuse.campaign.planning.state import CampaignState, Segment
from foldfuse.storage.segments import Role

STRIDE = 32  # pixels: image sizes are multiples of it


def planned_soups(state: CampaignState) -> dict[str, tuple[Segment, tuple[str, ...]]]:
    """{name: (the soup, names of its runs)} of the cooldown runs of each parent that have not failed, where there are several.

    The image size of a soup is the mean of those of its runs. There are none where time is short.
    """
    if not state.soups or state.deadline < c.MIN_SOUP_DEADLINE:
        return {}
    groups: dict[str, list[Segment]] = {}
    for segment in plan_segments(state):
        record = state.record(segment.name)
        usual = record is None or (record.state != "failed" and record.parent == segment.parent)
        if segment.role == Role.COOLDOWN and segment.parent is not None and usual:
            groups.setdefault(segment.parent, []).append(segment)
    soups: dict[str, tuple[Segment, tuple[str, ...]]] = {}
    for parent, runs in groups.items():
        if len(runs) < 2:
            continue
        first = runs[0]
        number = 1 + sum(soup.fold == first.fold for soup, _ in soups.values())
        sizes = [run.recipe.image_size for run in runs]
        size = max(STRIDE, round(sum(sizes) / len(sizes) / STRIDE) * STRIDE) if len({*sizes}) > 1 else sizes[0]
        name = segment_name(Role.SOUP, size, number=number)
        name = name if first.fold == state.folds[0] else name_in_fold(name, first.fold)
        recipe = replace(first.recipe, image_size=size)
        soup = replace(first, name=name, role=Role.SOUP, recipe=recipe, share=0.0, parent=parent, pseudo_labels=False)
        soups[name] = soup, tuple(run.name for run in runs)
    return soups


def ready_soups(state: CampaignState) -> dict[str, tuple[Segment, tuple[str, ...]]]:
    """The soups that are not there yet, and whose runs have all predicted their held-out images."""
    planned = planned_soups(state)
    open_parents = {
        segment.parent
        for segment in plan_segments(state)
        if segment.role == Role.COOLDOWN and state.state_of(segment.name) not in ("done", "failed")
    }
    return {
        name: (soup, runs)
        for name, (soup, runs) in planned.items()
        if state.record(name) is None and soup.parent not in open_parents
    }


def pending_soups(state: CampaignState) -> tuple[Segment, ...]:
    """The soups that are still to predict."""
    return tuple(
        soup for name, (soup, _) in planned_soups(state).items() if state.state_of(name) in ("planned", "trained")
    )
