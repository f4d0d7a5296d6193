"""The task of a campaign: the images to train on, the held-out images and the test images, the same on start and on resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from foldfuse.campaign import constants as c
from foldfuse.campaign.image_size import chosen_image_size
from foldfuse.campaign.planning.allocation import crops_per_image
from foldfuse.data.content_hashes import image_hashes
from foldfuse.data.dataset import Dataset, Sample, require_annotations
from foldfuse.data.doctor import unreadable_images
from foldfuse.data.folds import Folds, check_num_folds, divide, fit_folds, make_folds, read_folds
from foldfuse.data.pixels import inspect_images, open_images, refuse_unusable
from foldfuse.data.readers.coco import locate, read
from foldfuse.errors import InputError
from foldfuse.formats.sample_submission import SampleSubmission
from foldfuse.inference.learnt_images import ids_of_hashes, learnt_before
from foldfuse.provenance import licence_notes
from foldfuse.recipes import AUTO, Recipe
from foldfuse.storage.ledger import Ledger
from foldfuse.training.image_sizes import ImageSizeChoice, tiles_show_more

Split = Literal["val", "test"]
VAL: Split = "val"
TEST: Split = "test"


@dataclass(frozen=True)
class Inputs:
    """The data that the user gives, as read.

    Attributes:
        labeled: annotated images.
        test: images to predict; None where a fold of the labeled images is used instead.
        folds: the number of folds, or the folds of a file.
        ignore_orientation: whether pixels are taken as stored, whatever an EXIF tag says.
    """

    labeled: Dataset
    test: Dataset | None
    folds: int | Folds
    ignore_orientation: bool = False

    def fingerprints(self) -> dict[str, str | None]:
        """Fingerprints of both datasets, which change with the data."""
        return {"data": self.labeled.fingerprint, "test": self.test.fingerprint if self.test else None}

    def have_fingerprints(self, stored: Mapping[str, str | None]) -> bool:
        """Whether `stored`, perhaps by an earlier version, are the fingerprints of these images."""
        has_test = stored.get("test") is not None
        is_test = self.test is not None and self.test.has_fingerprint(stored.get("test"))
        return self.labeled.has_fingerprint(stored.get("data")) and (is_test if has_test else self.test is None)


@dataclass(frozen=True)
class Task:
    """Data and settings of a campaign.

    Attributes:
        train: annotated images that every member trains on.
        val: held-out annotated images: each is predicted by members that have not learnt it, and the ensemble is chosen on them.
        test: images to predict for the submission, without annotations.
        undecodable: ids of test images that cannot be decoded; they are submitted without a box.
        recipes: {name: recipe} of the candidates, the default first.
        image_sizes: allowed image sizes; empty for all.
        image_size_choice: the image size of the recipes that leave it open; None where none does.
        seed: the seed of every random choice.
        num_folds: number of folds of the annotated images.
        metric: promotes base runs and chooses the ensemble; see `evaluation.metrics` for its names.
        pseudo_labels: whether the last cooldown runs also train on pseudo-labels of the test images.
        device: the device of every network, as `--device` takes it.
        sample: the sample submission that submission.csv follows; None for the contest's plain CSV.
        ignore_orientation: whether pixels are taken as stored, whatever an EXIF tag says.
        image_size_choice: the image size of the recipes that leave it open; None where none does.
        held_out: {fold: ids of its images} of the folds that are trained, all of them in `val`: a member of one fold trains on
            `train` and on the images of the others. Empty where all of `val` is fold 0.
    """

    train: Dataset
    val: Dataset
    test: Dataset
    undecodable: frozenset[int]
    recipes: Mapping[str, Recipe]
    image_sizes: tuple[int, ...]
    seed: int
    num_folds: int
    metric: str = "ap50"
    pseudo_labels: bool = False
    device: str = "auto"
    ignore_orientation: bool = False
    sample: SampleSubmission | None = None
    image_size_choice: ImageSizeChoice | None = None
    held_out: Mapping[int, frozenset[int]] = field(default_factory=dict)

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds that are trained: each is held out from members of its own."""
        return tuple(self.held_out) or (0,)

    def train_in(self, fold: int) -> Dataset:
        """The images that the members of a fold train on."""
        if not self.held_out:
            return self.train
        others = (sample for sample in self.val.samples if sample.id not in self.held_out[fold])
        return replace(self.train, samples=(*self.train.samples, *others))

    def val_in(self, *folds: int) -> Dataset:
        """The held-out images of these folds."""
        if set(folds) == set(self.folds):
            return self.val
        return self.val.subset(set().union(*(self.held_out[fold] for fold in folds)))

    @cached_property
    def learnable(self) -> Dataset:
        """The images that some member trains on."""
        return self.labeled if len(self.folds) > 1 else self.train

    @property
    def test_samples(self) -> tuple[Sample, ...]:
        """The test images that can be decoded."""
        return tuple(sample for sample in self.test.samples if sample.id not in self.undecodable)

    @property
    def labeled(self) -> Dataset:
        """All annotated images, the held-out images last."""
        return replace(self.train, samples=(*self.train.samples, *self.val.samples))

    @property
    def auto_image_size(self) -> int | None:
        """The image size in pixels of the recipes that leave it open; None where none does."""
        return None if self.image_size_choice is None else self.image_size_choice.size

    @property
    def crops_per_image(self) -> int:
        """How many detections of an image crop rescoring rescores."""
        return crops_per_image(self.labeled.num_boxes, len(self.labeled))

    @cached_property
    def offers_tiles(self) -> bool:
        """Whether members may predict in tiles: images are large, and many objects small at the default recipe's image size."""
        recipe = next(iter(self.recipes.values()))
        size = self.auto_image_size if recipe.image_size == AUTO else recipe.image_size
        if size is None:
            return False
        return tiles_show_more(self.labeled, min(self.image_sizes or (size,), key=lambda allowed: abs(allowed - size)))

    @cached_property
    def _hashes(self) -> Mapping[int, str]:
        """{image id: hash} of the images that some member trains on."""
        return dict(zip(self.learnable.image_ids, image_hashes(self.learnable.samples), strict=True))

    def train_hashes(self, fold: int) -> tuple[str, ...]:
        """The hashes of the images that the members of a fold train on, which their runs record."""
        return tuple(self._hashes[image_id] for image_id in self.train_in(fold).image_ids)


def predictions_path(folder: Path, split: Split, view: str) -> Path:
    """Where a member's folder keeps its predictions of the held-out or the test images in one TTA view."""
    return folder / f"{split}@{view}.parquet"


STAND_IN = (
    "without test images, fold 1 stands in for them beside the held-out fold 0, and the other folds are trained on."
)


def read_inputs(
    data: Path, test: Path | None, folds: int | Path, *, images: Path | None = None, ignore_orientation: bool = False
) -> Inputs:
    """The inputs of a campaign.

    Raises:
        InputError: a file is missing or broken, nothing is annotated, or the folds belong to other images.
    """
    train_json, test_json = locate(data)
    test_json = test if test is not None else test_json
    labeled = require_annotations(read(train_json, images=images, ignore_orientation=ignore_orientation))
    to_predict = (
        read(test_json, annotated=False, images=images, ignore_orientation=ignore_orientation)
        if test_json is not None
        else None
    )
    if to_predict is not None and not to_predict.classes:
        to_predict = to_predict.with_classes(labeled.classes, labeled.organiser_category_ids)
    if isinstance(folds, int):
        check_num_folds(labeled, folds)
        if to_predict is None and folds < 3:
            raise InputError(f"--folds {folds}: {STAND_IN} Give --test, or --folds 3 or more.")
        return Inputs(labeled, to_predict, folds, ignore_orientation)
    split = read_folds(folds)
    train, _ = divide(labeled, split, 0, where=str(folds))  # refuses folds of other data, and a fold without an object
    fitting = fit_folds(split, labeled, where=str(folds))
    if to_predict is None:
        stand_in = set(fitting.val_ids(1))
        rest = train.subset(set(train.image_ids) - stand_in)
        if not stand_in or not any((~s.annotations.crowd).any() for s in rest.samples if s.annotations is not None):
            lack = "fold 1 has no image" if not stand_in else "the other folds have no object to learn from"
            raise InputError(
                f"{folds}: {STAND_IN} Here {lack}. Give --test, or make 3 folds or more with 'foldfuse split'."
            )
    return Inputs(labeled, to_predict, fitting, ignore_orientation)


def prepare_task(
    inputs: Inputs,
    recipes: Mapping[str, Recipe],
    *,
    image_sizes: tuple[int, ...],
    seed: int,
    metric: str,
    pseudo_labels: bool,
    device: str,
    ledger: Ledger,
) -> Task:
    """The task. Undecodable images are left out; the campaign looks for them, and makes its folds, only once.

    Args:
        inputs: the data.
        recipes, image_sizes, seed, metric, pseudo_labels, device: see `Task`.
        ledger: remembers the undecodable images and the image size chosen from the data; folds.json lies in its folder.

    Raises:
        InputError: too many images cannot be decoded, or there are too few to fold.
    """
    first = ledger.get("train_folds") is None
    check_and_fold(inputs, seed, ledger)
    undecodable = frozenset(ledger.get("undecodable_test") or ())
    labeled = inputs.labeled.subset(set(inputs.labeled.image_ids) - set(ledger.get("undecodable_train")))
    labeled = open_images(labeled, ignore_orientation=inputs.ignore_orientation)
    folds = read_folds(ledger.folder / "folds.json")
    if not set(labeled.image_ids) <= set(folds.fold_of):
        raise InputError(
            f"{ledger.folder / 'folds.json'}: gives no fold to some of the campaign's images, so it was changed or belongs to "
            "another campaign. Restore it, or start the campaign again in another folder."
        )
    val = require_annotations(labeled.subset(folds.val_ids(0)))
    train_ids, test = set(folds.train_ids(0)), inputs.test
    if test is not None:
        test = open_images(
            test,
            ignore_orientation=inputs.ignore_orientation,
            value_ranges=labeled.value_ranges,
            skip=undecodable,
        )
    else:
        stand_in = set(folds.val_ids(1))
        test = labeled.subset(stand_in).without_annotations()
        train_ids -= stand_in
    train = require_annotations(labeled.subset(train_ids))
    if first:
        _check_init_weights(recipes, val)
        source = "" if inputs.test is None else f", from {inputs.test.source.name}"
        if inputs.test is None:
            ledger.log(
                f"No test images were given: {len(test)} labeled images (fold 1) are used instead; no member trains on them."
            )
        ledger.log(
            f"{len(train)} images with {train.num_boxes} boxes of {len(train.classes)} classes to train on; {len(val)} "
            f"with {val.num_boxes} boxes held out (fold 0 of {folds.num_folds}) to choose the ensemble; {len(test)} "
            f"images to predict{source}."
        )
    task = Task(
        train=train,
        val=val,
        test=test,
        undecodable=undecodable,
        recipes=recipes,
        image_sizes=image_sizes,
        seed=seed,
        num_folds=folds.num_folds,
        metric=metric,
        pseudo_labels=pseudo_labels,
        device=device,
        ignore_orientation=inputs.ignore_orientation,
        image_size_choice=chosen_image_size(
            recipes, train, ledger, allowed=image_sizes, num_images=len(val) + len(test), device=device
        ),
    )
    if first and task.offers_tiles:
        ledger.log(
            f"The images are large and many objects small, so members may predict in {c.TILED_VIEWS[-1]} too, if time allows."
        )
    return task


def _check_init_weights(recipes: Mapping[str, Recipe], val: Dataset) -> None:
    """Raises InputError where a recipe's initial weights are of a run that knows held-out images."""
    for init_weights in {recipe.init_weights for recipe in recipes.values()}:
        learnt = ids_of_hashes(val, learnt_before(init_weights))
        if learnt:
            raise InputError(
                f"init_weights={init_weights}: the run has learnt from {len(learnt)} of the campaign's {len(val)} held-out "
                f"images, such as image id {min(learnt)}. Train it with --folds FILE --fold 0, and give the campaign the same "
                "--folds FILE."
            )


def note_weights(recipes: Mapping[str, Recipe], val: Dataset, ledger: Ledger) -> None:
    """Notes held-out images that look like those which the recipes' detection weights have learnt, and odd licences."""
    from foldfuse.inference.pretraining_images import likeness_warnings  # loads torch
    from foldfuse.training.weights_origin import origins_of

    starts = {f"init_weights={recipe.init_weights}": recipe for recipe in recipes.values()}
    for sentence in likeness_warnings(starts, val):
        ledger.log(sentence)
    for note in licence_notes(origin for recipe in recipes.values() for origin in origins_of(recipe)):
        ledger.log(f"WARNING: {note}")


def check_and_fold(inputs: Inputs, seed: int, ledger: Ledger) -> None:
    """Finds the images that cannot be decoded, folds the others, and records both, once. Raises InputError as `prepare_task`."""
    if ledger.get("undecodable_train") is not None:
        return
    undecodable_train = _undecodable(inputs.labeled, ignore_orientation=inputs.ignore_orientation)
    labeled = inputs.labeled.subset(set(inputs.labeled.image_ids) - {row["id"] for row in undecodable_train})
    labeled = open_images(require_annotations(labeled), ignore_orientation=inputs.ignore_orientation, is_logged=False)
    folds = inputs.folds if isinstance(inputs.folds, Folds) else make_folds(labeled, num_folds=inputs.folds, seed=seed)
    folds.write(ledger.folder / "folds.json")
    undecodable_test: list[dict[str, Any]] = []
    if inputs.test is not None:
        undecodable_test = _undecodable(inputs.test, ignore_orientation=inputs.ignore_orientation)
        if len(undecodable_test) == len(inputs.test):
            raise InputError(f"{inputs.test.source}: none of its {len(undecodable_test)} images can be decoded.")
    left_out = [
        {"file_name": row["file_name"], "reason": row["reason"]} for row in (*undecodable_train, *undecodable_test)
    ]
    for row in left_out:
        ledger.log(f"{row['file_name']} is left out: {row['reason']}")
    ledger.set(
        undecodable_train=[row["id"] for row in undecodable_train],
        undecodable_test=[row["id"] for row in undecodable_test],
        left_out=left_out,
    )


def _undecodable(dataset: Dataset, *, ignore_orientation: bool) -> list[dict[str, Any]]:
    """Id, file name and reason for each image that cannot be decoded.

    Raises:
        InputError: they are too many; or images are missing, or have another size than the annotations say.
    """
    refuse_unusable(inspect_images(dataset, ignore_orientation=ignore_orientation), even_undecodable=False)
    broken = unreadable_images(dataset, ignore_orientation=ignore_orientation)
    if len(broken) > max(c.MAX_UNDECODABLE, c.MAX_UNDECODABLE_SHARE * len(dataset)):
        sample, reason = broken[0]
        raise InputError(
            f"{dataset.source}: {len(broken)} of {len(dataset)} images cannot be decoded, such as {sample.path} ({reason}). "
            "Copy the images again."
        )
    return [{"id": s.id, "file_name": s.file_name, "reason": reason} for s, reason in broken]
