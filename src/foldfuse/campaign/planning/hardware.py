"""The default candidates of a campaign, by what the machine has: those for a CPU, or those for a card.

A card computes a step of these networks many times as fast, so that frozen stages save little time and larger networks and images
fit into the same deadline. There the candidates train their whole backbones, detectors join that were trained on COCO where their
weights are at hand, and image sizes may be larger. The measured cost of each still decides which of them are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from foldfuse.campaign import constants as c
from foldfuse.campaign.planning.candidates import check_start
from foldfuse.errors import InputError, counted
from foldfuse.recipes import RECIPES, Recipe


@dataclass(frozen=True)
class DefaultCandidates:
    """The recipes that a campaign may choose from where the user names none.

    Attributes:
        recipes: {name: recipe}, the default first.
        reason: why these, in sentences; None for those of a CPU.
    """

    recipes: dict[str, Recipe]
    reason: str | None = None


def default_candidates(
    cards: Sequence[str], *, forbidden: Collection[str] = (), check: Callable[[Recipe], None] = check_start
) -> DefaultCandidates:
    """The default candidates of a machine with these cards; the CPU's where there is none.

    Args:
        cards: names of the cards that the campaign computes on.
        forbidden: names of recipes that are not allowed; nothing is looked up for them.
        check: raises InputError where the initial weights of a recipe, or a package that it needs, are not at hand.
    """
    if not cards:
        return DefaultCandidates({name: RECIPES[name]() for name in c.CPU_RECIPES})
    recipes, missing = {}, []
    for name in c.CARD_RECIPES:
        if name not in RECIPES or name in forbidden:
            continue
        recipe = for_card(RECIPES[name]())
        try:
            if name not in c.CPU_RECIPES:  # their weights come with the package
                check(recipe)
        except InputError as error:
            missing.append(f"{name} is no candidate: {error}")
        else:
            recipes[name] = recipe
    kinds = ", ".join(f"{cards.count(name)} x {name}" for name in dict.fromkeys(cards))
    reason = (
        f"With {counted(len(cards), 'card')} ({kinds}) the candidates are {', '.join(recipes)}; they train their whole "
        f"backbones, at image sizes of {c.CARD_MIN_AUTO} to {c.CARD_MAX_AUTO} px where the data choose."
    )
    return DefaultCandidates(recipes, " ".join([reason, *missing]))


def for_card(recipe: Recipe) -> Recipe:
    """The recipe with no frozen stages; a backbone that had some learns at a lower rate, so that it keeps what it knows."""
    if not recipe.frozen_stages:
        return recipe
    return replace(recipe, frozen_stages=0, backbone_lr_mult=min(recipe.backbone_lr_mult, c.UNFROZEN_BACKBONE_LR_MULT))
