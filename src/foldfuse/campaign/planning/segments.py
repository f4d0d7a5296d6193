"""The segments of a campaign: which trainings it is made of, in which order, and how they share the time.

With little time there is one trunk, at small pictures and a level learning rate, and two branches that go on from its end
at larger ones while the rate falls to 0 ("warmup-stable-decay", Hu et al., "MiniCPM", arXiv:2404.06395, section 4). With
more there are several trunks, of different recipes and sizes; of the half of them that adds most to the ensemble, those that
add enough are promoted (successive halving: Jamieson and Talwalkar, arXiv:1502.07943), go on with larger pictures, and then
have branches.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from foldfuse.campaign.planning.state import CampaignState, Segment
from foldfuse.recipes import Recipe

SCALES = (0.8, 1.0, 1.2)  # sides of a trunk and its branches against the recipe's
STEP = 0.2  # of that from rung to rung, where there are several trunks
LEAST_SIDE = 128  # pixels
LONE_TRUNK = 0.5  # of the training time, where there is only one; the branches share the rest alike
TRUNKS, GROWN, BRANCHES = 0.15, 0.4, 0.45  # of the training time, where there are several
TRAINED = 0.7  # share of a deadline that is training, about
COMPARED_FROM = 900.0  # seconds of deadline: in less, measuring what trunks would cost is not worth its time
LEAST_STEPS = 300  # of a trunk that is to be compared with others
FEWEST, PROMOTED = 3, 2  # trunks that are worth comparing, and how many may go on at the least
BRANCHES_OF_ONE = (2, 4)  # branches of a trunk that goes on, at the least and at the most
LEAST_BRANCH = 480.0  # seconds of training: with less for each there are no more than the fewest branches


def plan(standing: CampaignState) -> tuple[Segment, ...]:
    """All segments in their order: those that were, and those that are to be if nothing goes wrong.

    Before the trunks are ranked the first of them are taken for those to be promoted.
    """
    begun = trunks(standing)
    if len(begun) == 1:
        return (*begun, *_branches(begun[0], standing))
    scales = {
        trunk.name: (name, recipe, scale)
        for trunk, (name, recipe, scale) in zip(begun, candidates(standing), strict=True)
    }
    count = max(PROMOTED, len(begun) // 2)
    promoted = (standing.ranking or tuple(scales))[:count]
    rounds = branches_of_one(BRANCHES / len(promoted), standing)
    grown_share, branch_share = GROWN / len(promoted), BRANCHES / (rounds * len(promoted))
    made = list(begun)
    for trunk in promoted:
        name, recipe, scale = scales[trunk]
        px = side(recipe, scale + STEP, standing)
        own = replace(level(sized(recipe, px)), warmup_fraction=0.0)
        made.append(Segment(f"grown-{name}-{px}", own, _seed(standing, len(made)), grown_share, trunk, rung=1))
    parents = made[-len(promoted) :]
    for i, (turn, (parent, of)) in enumerate(product(range(rounds), zip(parents, promoted, strict=True)), start=1):
        name, recipe, scale = scales[of]
        px = side(recipe, scale + (STEP, 2 * STEP)[turn % 2], standing)
        seed, own = _seed(standing, len(made)), falling(sized(recipe, px))
        branch = Segment(f"branch{i}-{name}-{px}", own, seed, branch_share, parent.name, rung=2)
        made.append(taught(branch) if standing.pseudo and turn == rounds - 1 else branch)
    return tuple(made)


def trunks(standing: CampaignState) -> tuple[Segment, ...]:
    """What the campaign begins with: one trunk, or several that are to be compared."""
    tried = candidates(standing)
    if len(tried) < FEWEST:
        px = side(standing.recipe, SCALES[0], standing)
        return (Segment(f"trunk-{px}", level(sized(standing.recipe, px)), _seed(standing, 0), LONE_TRUNK),)
    made = []
    for i, (name, recipe, scale) in enumerate(tried):
        px = side(recipe, scale, standing)
        made.append(Segment(f"trunk-{name}-{px}", level(sized(recipe, px)), _seed(standing, i), TRUNKS / len(tried)))
    return tuple(made)


def _branches(trunk: Segment, standing: CampaignState) -> list[Segment]:
    """The branches of a lone trunk, each with a size or a seed of its own; as many as there are workers, at least.

    Those that have begun stay, though there be fewer workers by now.
    """
    recipe, larger = standing.recipe, SCALES[1:]
    begun = sum(row.kind == "train" and row.name.startswith("branch") for row in standing.rows)
    count = max(branches_of_one(1 - LONE_TRUNK, standing), standing.workers, begun)
    sides = [side(recipe, larger[i % len(larger)], standing) for i in range(count)]
    share = (1 - LONE_TRUNK) / count
    branches = [
        Segment(f"branch{i}-{px}", falling(sized(recipe, px)), _seed(standing, i), share, trunk.name, rung=1)
        for i, px in enumerate(sides, start=1)
    ]
    return [*branches[:-1], taught(branches[-1])] if standing.pseudo else branches


def branches_of_one(share: float, standing: CampaignState) -> int:
    """How many branches share this much of the training time: with more time they are more, not only longer."""
    fewest, most = BRANCHES_OF_ONE
    return max(fewest, min(most, int(share * TRAINED * standing.deadline / LEAST_BRANCH)))


def taught(branch: Segment) -> Segment:
    """The branch, learning from pseudo-labels too: it waits for the others, whose ensemble gives the labels."""
    return replace(branch, rung=branch.rung + 1, pseudo=True)


def candidates(standing: CampaignState) -> list[tuple[str, Recipe, float]]:
    """(name, recipe, scale of its side) of the trunks that the deadline has time to compare: recipes first, then sizes."""
    time = TRAINED * TRUNKS * standing.deadline
    made: list[tuple[str, Recipe, float]] = []
    for scale, (name, recipe) in product(SCALES[:2], standing.recipes.items()):
        again = scale > SCALES[0] and side(recipe, scale, standing) == side(recipe, SCALES[0], standing)
        if name not in standing.steps or again:
            continue
        time -= LEAST_STEPS * standing.steps[name] * (scale / SCALES[0]) ** 2
        if time < 0:
            break
        made.append((name, recipe, scale))
    return made


def side(recipe: Recipe, scale: float, standing: CampaignState) -> int:
    """The image size at a scale of the recipe's: a multiple of 32, the nearest of those that are allowed."""
    wanted = recipe.image_size if scale == 1 else max(LEAST_SIDE, round(recipe.image_size * scale / 32) * 32)
    return min(standing.sizes or (wanted,), key=lambda allowed: (abs(allowed - wanted), allowed))


def largest_side(standing: CampaignState) -> int:
    """The largest image size that any plan may come to, in pixels."""
    most = SCALES[1] + 2 * STEP if len(candidates(standing)) >= FEWEST else SCALES[-1]
    return max(side(recipe, most, standing) for recipe in standing.recipes.values())


def sized(recipe: Recipe, px: int) -> Recipe:
    """The recipe at another image size."""
    return replace(recipe, image_size=px, batch_size=batch_size(recipe, px))


def batch_size(recipe: Recipe, px: int) -> int:
    """Pictures of a step at another size. Its memory goes with the pixels: larger pictures come fewer at a time."""
    return max(2, min(recipe.batch_size, round(recipe.batch_size * (recipe.image_size / px) ** 2)))


def level(recipe: Recipe) -> Recipe:
    """The recipe of a trunk: the learning rate stays up."""
    return replace(recipe, lr_decay_start=1.0)


def falling(recipe: Recipe) -> Recipe:
    """The recipe of what goes on from a trunk: the learning rate falls to 0."""
    return replace(recipe, warmup_fraction=0.0, lr_decay_start=0.0, mosaic_until=min(0.4, recipe.mosaic_until))


def _seed(standing: CampaignState, number: int) -> int:
    return standing.seed * 1000 + number
