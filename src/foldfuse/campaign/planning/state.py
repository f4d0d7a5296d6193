"""The campaign's state: everything the scheduler looks at to pick the next segment. No torch, no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from foldfuse.campaign import constants as c
from foldfuse.recipes import Recipe
from foldfuse.storage.segments import Role, SegmentRecord


@dataclass(frozen=True)
class Segment:
    """A stretch of training that ends with a member.

    Attributes:
        name: the name of the member, and of its folder.
        role: base, extended or cooldown run.
        recipe: the recipe of its training.
        seed: the seed of its random choices.
        share: the share of the training time, relative to the other segments of the plan.
        parent: the segment whose last checkpoint it starts from; None for a start from the recipe's initial weights.
        fold: the fold whose images it never learns from.
        round: 0 for a base run; a segment starts once all segments of earlier rounds are over.
        pseudo_labels: whether it also trains on confident predictions of the test images.
    """

    name: str
    role: Role
    recipe: Recipe
    seed: int
    share: float
    parent: str | None = None
    fold: int = 0
    round: int = 0
    pseudo_labels: bool = False


@dataclass(frozen=True)
class Reserves:
    """Seconds to reserve for work beside trainings and predictions, as measured so far.

    Attributes:
        delivery: for the last submission and the report.
        overhead: for each segment: loading, checkpoints, files.
        between: for each segment but the last one: an ensemble with it, a submission and the report.
        crop: for each crop of a detection in crop rescoring.
        object_crop: for each crop of an annotated object; of images with few objects it costs more.
    """

    delivery: float = c.DELIVERY_SECONDS
    overhead: float = c.SEGMENT_OVERHEAD
    between: float = 0.0
    crop: float = c.RESCORING_CROP_SECONDS
    object_crop: float = c.RESCORING_CROP_SECONDS


@dataclass(frozen=True)
class CampaignState:
    """Everything that a strategy looks at.

    Attributes:
        recipes: {name: recipe} of the candidates, the default first.
        image_sizes: allowed image sizes; empty for all.
        seed: the seed of every random choice.
        deadline, elapsed: seconds.
        num_val, num_test: held-out and test images that each member predicts.
        num_objects: annotated boxes of all images, for crop rescoring.
        crops_per_image: detections of an image that crop rescoring rescores.
        soups: whether soups may be planned.
        folds: the folds of which each is held out from its own segments; the base runs of the first one are compared.
        segments: records of the segments so far.
        step_seconds: {recipe name: seconds of a step of its base run}, as measured; unmeasured recipes are not tried.
        ranking: promoted base runs, best first; empty until the base runs have been compared.
        pixel_seconds: seconds of one pixel's prediction in the plain view, until a member's was measured.
        busy: names of segments that a worker trains now.
        num_workers: segments that can be trained at once.
        pseudo_labels: whether the last cooldown runs also train on pseudo-labels.
        auto_image_size: pixels, of the recipes that leave the image size open; None where none does.
        max_views: limit on the TTA views, set when time runs short; None for no limit.
        tiles: whether tiles are among the TTA views.
        reserves: seconds for other work.
        slowdown: how many times as long work takes now as when it was measured.
        extra_cooldowns: cooldown runs beyond those of the plan, of a single base run.
        test_predicted: names of the segments that have predicted the test images in the plain view; None for all that are done.
        still_learning: whether the single base run was still learning fast at its end, so that an extended run continues it.
        class_error_cost: AP50 that wrong classes cost the latest submission on its held-out images; None before the first.
    """

    recipes: Mapping[str, Recipe]
    image_sizes: tuple[int, ...]
    seed: int
    deadline: float
    elapsed: float
    num_val: int
    num_test: int
    num_objects: int = c.RESCORING_TRAIN_CROPS
    crops_per_image: int = c.MAX_CROPS_PER_IMAGE
    segments: tuple[SegmentRecord, ...] = ()
    step_seconds: Mapping[str, float] = field(default_factory=dict)
    ranking: tuple[str, ...] = ()
    pixel_seconds: float = c.DEFAULT_PIXEL_SECONDS
    busy: frozenset[str] = frozenset()
    num_workers: int = 1
    pseudo_labels: bool = False
    auto_image_size: int | None = None
    max_views: int | None = None
    tiles: bool = False
    folds: tuple[int, ...] = (0,)
    reserves: Reserves = Reserves()
    slowdown: float = 1.0
    extra_cooldowns: int = 0
    soups: bool = True
    test_predicted: frozenset[str] | None = None
    still_learning: bool = False
    class_error_cost: float | None = None

    @property
    def default_recipe(self) -> Recipe:
        """The recipe of a campaign that has no time to compare several."""
        return next(iter(self.recipes.values()))

    @property
    def num_images(self) -> int:
        """Number of images that each member predicts."""
        return self.num_val + self.num_test

    @property
    def remaining(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - self.elapsed

    def record(self, name: str) -> SegmentRecord | None:
        """The ledger's record of a segment; None where it has not begun."""
        return next((record for record in self.segments if record.name == name), None)

    def state_of(self, name: str) -> str:
        """State of a segment in the ledger, or "planned"."""
        record = self.record(name)
        return "planned" if record is None else record.state

    def is_open(self, name: str) -> bool:
        """Whether a segment is still to be trained, or to be trained further."""
        return self.state_of(name) in ("planned", "running")
