"""The segments of a campaign: which runs are trained, in which order, and which share of the time each one gets.

With little time there is one base run, on small images at a constant learning rate, and two cooldown runs that continue it on
larger images while the rate decays to 0 (warmup-stable-decay: Hu et al., "MiniCPM", arXiv:2404.06395, section 4). With more
time several base runs of different recipes and image sizes are compared. Of the better half by gain to the ensemble, the runs
with a significant gain are promoted (successive halving: Jamieson and Talwalkar, arXiv:1502.07943): an extended run continues
each on larger images, and cooldown runs follow.

With still more time several folds are trained. Base runs are compared on the first two; every other fold gets the same segments
but those of the base runs that were not promoted, each with a fold of its own that it never learns from.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product

from foldfuse.campaign import constants as c
from foldfuse.campaign.planning.state import CampaignState, Segment
from foldfuse.recipes import AUTO, BATCH_IMAGE_SIZE, Recipe
from foldfuse.storage.segments import Role, SegmentRecord, member_of


def plan_segments(state: CampaignState) -> tuple[Segment, ...]:
    """All segments in their order: the past ones, and the future ones if nothing fails.

    A single worker trains one fold after another, so that an early submission comes from one whole fold. Several workers train
    all folds together. Until the base runs are ranked, the first of them are assumed to be promoted.
    """
    first = _segments_of_first_fold(state)
    needed = {segment.parent for segment in first}
    num_rounds = max(segment.round for segment in first) + 1
    compares = sum(segment.role == Role.BASE for segment in first) > 1
    segments = list(first)
    for i, fold in enumerate(state.folds[1:], start=1):
        compared = compares and i < c.COMPARED_FOLDS  # the folds after these wait for the ranking
        later = int(compares and not compared) if state.num_workers > 1 else i * num_rounds
        for segment in first:
            if segment.role != Role.BASE:
                segments.append(_in_fold(segment, fold, later))
            elif segment.name in needed or (compared and _may_be_compared(name_in_fold(segment.name, fold), state)):
                segments.append(_in_fold(segment, fold, 0 if compared else later))
    return tuple(sorted(segments, key=lambda segment: segment.round))


def _may_be_compared(name: str, state: CampaignState) -> bool:
    """Whether a base run has a part in the ranking, which is still to come or has seen it."""
    return not state.ranking or state.record(name) is not None


def compared_base_runs(state: CampaignState) -> tuple[Segment, ...]:
    """The base runs that are compared, in the first folds; one alone where nothing is compared."""
    bases = base_runs(state)
    others = state.folds[1 : c.COMPARED_FOLDS] if len(bases) > 1 else ()
    return (*bases, *(_in_fold(segment, fold, 0) for fold in others for segment in bases))


def _in_fold(segment: Segment, fold: int, later: int) -> Segment:
    """The segment with another held-out fold, so many rounds later."""
    parent = None if segment.parent is None else name_in_fold(segment.parent, fold)
    name = name_in_fold(segment.name, fold)
    return replace(segment, name=name, parent=parent, fold=fold, round=segment.round + later)


def name_in_fold(name: str, fold: int) -> str:
    """Name of the segment in another fold than the first, such as cooldown1-320-fold2."""
    return f"{name}-fold{fold}"


def member_name(record: SegmentRecord) -> str:
    """The member of the ensemble that a segment makes; see `member_of`."""
    return member_of(record.name, role=record.role, fold=record.fold)


def _segments_of_first_fold(state: CampaignState) -> tuple[Segment, ...]:
    """The segments with the first fold held out, in their order."""
    bases = base_runs(state)
    if len(bases) == 1:
        extended = [_extended_base(bases[0], state)] if state.still_learning else []
        return (*bases, *extended, *_cooldowns_of_one((*bases, *extended)[-1], state))
    compared = {base.name: one for base, one in zip(bases, compared_candidates(state), strict=True)}
    count = max(c.MIN_PROMOTED, len(bases) // 2)
    promoted = (state.ranking or tuple(compared))[:count]
    turns = num_cooldowns(c.COOLDOWN_SHARE / len(promoted), state)
    segments = list(bases)
    for base in promoted:
        recipe_name, recipe, scale = compared[base]
        size = image_size_at(recipe, scale + c.SCALE_STEP, state)
        segments.append(
            Segment(
                segment_name(Role.EXTENDED, size, recipe_name=recipe_name),
                Role.EXTENDED,
                replace(constant_lr(at_image_size(recipe, size)), warmup_fraction=0.0),
                _seed(state, len(segments)),
                c.EXTENDED_SHARE / len(promoted),
                base,
                round=1,
            )
        )
    parents = segments[-len(promoted) :]
    for i, (turn, (parent, base)) in enumerate(product(range(turns), zip(parents, promoted, strict=True)), start=1):
        recipe_name, recipe, scale = compared[base]
        size = image_size_at(recipe, scale + (c.SCALE_STEP, 2 * c.SCALE_STEP)[turn % 2], state)
        cooldown = Segment(
            segment_name(Role.COOLDOWN, size, number=i, recipe_name=recipe_name),
            Role.COOLDOWN,
            decaying_lr(at_image_size(recipe, size)),
            _seed(state, len(segments)),
            c.COOLDOWN_SHARE / (turns * len(promoted)),
            parent.name,
            round=2,
        )
        last = state.pseudo_labels and turn == turns - 1
        segments.append(with_pseudo_labels(cooldown) if last else cooldown)
    return tuple(segments)


def base_runs(state: CampaignState) -> tuple[Segment, ...]:
    """The segments of the first round: one base run, or several to compare."""
    compared = compared_candidates(state)
    if len(compared) < c.MIN_COMPARED:
        recipe = state.default_recipe
        size = image_size_at(recipe, c.IMAGE_SCALES[0], state)
        base = constant_lr(at_image_size(recipe, size))
        return (Segment(segment_name(Role.BASE, size), Role.BASE, base, _seed(state, 0), c.SINGLE_BASE_SHARE),)
    segments = []
    for i, (recipe_name, recipe, scale) in enumerate(compared):
        size = image_size_at(recipe, scale, state)
        name = segment_name(Role.BASE, size, recipe_name=recipe_name)
        base = constant_lr(at_image_size(recipe, size))
        segments.append(Segment(name, Role.BASE, base, _seed(state, i), c.BASE_SHARE / len(compared)))
    return tuple(segments)


def _extended_base(base: Segment, state: CampaignState) -> Segment:
    """The extended run of a single base run that was still learning: larger images, at a constant learning rate."""
    size = image_size_at(state.default_recipe, c.IMAGE_SCALES[1], state)
    recipe = replace(constant_lr(at_image_size(state.default_recipe, size)), warmup_fraction=0.0)
    seed = _seed(state, c.EXTENDED_SEED)
    name = segment_name(Role.EXTENDED, size)
    return Segment(name, Role.EXTENDED, recipe, seed, c.EXTENDED_BASE_SHARE, base.name, round=1)


def _cooldowns_of_one(base: Segment, state: CampaignState) -> list[Segment]:
    """The cooldown runs of a single base or extended run, with different image sizes and seeds: at least one per worker.

    Cooldown runs that have begun stay in the plan, however many workers are left.
    """
    recipe, scales = state.default_recipe, c.IMAGE_SCALES[1:]
    begun = sum(record.role == Role.COOLDOWN and record.fold == state.folds[0] for record in state.segments)
    count = max(num_cooldowns(1 - c.SINGLE_BASE_SHARE, state), state.num_workers, begun) + state.extra_cooldowns
    sizes = [image_size_at(recipe, scales[i % len(scales)], state) for i in range(count)]
    cooldowns = [
        Segment(
            segment_name(Role.COOLDOWN, size, number=i),
            Role.COOLDOWN,
            decaying_lr(at_image_size(recipe, size)),
            _seed(state, i),
            (1 - c.SINGLE_BASE_SHARE) / count,
            base.name,
            round=base.round + 1,
        )
        for i, size in enumerate(sizes, start=1)
    ]
    return [*cooldowns[:-1], with_pseudo_labels(cooldowns[-1])] if state.pseudo_labels else cooldowns


def num_cooldowns(share: float, state: CampaignState) -> int:
    """Number of cooldown runs of one parent, which together get `share` of the training time: more time gives more runs."""
    wanted = int(share * c.TRAINING_SHARE * state.deadline / len(state.folds) / c.MIN_COOLDOWN_SECONDS)
    return max(c.MIN_COOLDOWNS, min(c.MAX_COOLDOWNS, wanted))


def with_pseudo_labels(cooldown: Segment) -> Segment:
    """The cooldown run one round later, trained on pseudo-labels too; the ensemble of the other members predicts them."""
    return replace(cooldown, round=cooldown.round + 1, pseudo_labels=True)


def compared_candidates(state: CampaignState) -> list[tuple[str, Recipe, float]]:
    """(recipe name, recipe, image scale) of the base runs that fit into the deadline: all recipes at one size first.

    Once they are ranked there are no others, though folds that are left out would give time for more.
    """
    seconds = c.TRAINING_SHARE * c.BASE_SHARE * state.deadline / len(state.folds)
    compared: list[tuple[str, Recipe, float]] = []
    ranked: list[tuple[str, Recipe, float]] = []
    for scale, (name, recipe) in product(c.IMAGE_SCALES[:2], state.recipes.items()):
        first, size = c.IMAGE_SCALES[0], image_size_at(recipe, scale, state)
        same = scale > first and size == image_size_at(recipe, first, state)
        if name not in state.step_seconds or same:
            continue
        if state.ranking and state.record(segment_name(Role.BASE, size, recipe_name=name)) is not None:
            ranked.append((name, recipe, scale))
        seconds -= c.MIN_COMPARED_STEPS * state.step_seconds[name] * (scale / first) ** 2
        if seconds >= 0:
            compared.append((name, recipe, scale))
    return ranked or compared


def segment_name(role: Role, image_size: int, *, number: int | None = None, recipe_name: str | None = None) -> str:
    """Name of a segment and its folder, such as base-256 or cooldown2-lite0_fpn-320. Nothing parses it."""
    words = [f"{role}{'' if number is None else number}", *([recipe_name] if recipe_name else []), str(image_size)]
    return "-".join(words)


def is_segment_name(name: str) -> bool:
    """Whether the campaign may use this name for its own segments, so that no external member may have the name."""
    return re.match(rf"({Role.BASE}|{Role.EXTENDED}|{Role.COOLDOWN}|{Role.SOUP})\d*-", name) is not None


def image_size_at(recipe: Recipe, scale: float, state: CampaignState) -> int:
    """The allowed image size closest to `scale` times the recipe's, in pixels; a multiple of 32 where all are allowed."""
    size = state.auto_image_size if recipe.image_size == AUTO else recipe.image_size
    assert size is not None, "the task chooses the image size that a recipe leaves open"
    wanted = size if scale == 1 else max(c.MIN_IMAGE_SIZE, round(size * scale / 32) * 32)
    return min(state.image_sizes or (wanted,), key=lambda allowed: (abs(allowed - wanted), allowed))


def largest_image_size(state: CampaignState) -> int:
    """The largest image size that any plan of this campaign may use, in pixels; larger where tiles of the image are shown."""
    several = len(compared_candidates(state)) >= c.MIN_COMPARED
    scale = c.IMAGE_SCALES[1] + 2 * c.SCALE_STEP if several else c.IMAGE_SCALES[-1]
    return max(round(image_size_at(recipe, scale, state) * recipe.tile_zoom) for recipe in state.recipes.values())


def at_image_size(recipe: Recipe, image_size: int) -> Recipe:
    """The recipe at another image size, with a batch size that needs the same memory."""
    return replace(recipe, image_size=image_size, batch_size=batch_size_at(recipe, image_size))


def batch_size_at(recipe: Recipe, image_size: int) -> int:
    """Batch size at another image size: memory grows with the pixels, so larger images make smaller batches, of 4 at least."""
    own = BATCH_IMAGE_SIZE if recipe.image_size == AUTO else recipe.image_size
    same_memory = round(recipe.batch_size * (own / image_size) ** 2)
    return min(recipe.batch_size, max(c.MIN_BATCH_SIZE, same_memory))


def constant_lr(recipe: Recipe) -> Recipe:
    """The recipe with a constant learning rate after its warmup."""
    return replace(recipe, lr_decay_start=1.0)


def decaying_lr(recipe: Recipe) -> Recipe:
    """The recipe of a cooldown run: without a warmup, the learning rate decays to 0 over the whole run."""
    mosaic_until = min(c.COOLDOWN_MOSAIC_END, recipe.mosaic_until)
    return replace(recipe, warmup_fraction=0.0, lr_decay_start=0.0, mosaic_until=mosaic_until)


def _seed(state: CampaignState, number: int) -> int:
    return state.seed * 1000 + number
