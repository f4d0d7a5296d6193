"""The task of a campaign: what is learnt from, what is held back, what is predicted; made alike at the start and on resuming."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foldfuse.data.dataset import Dataset, require_annotations
from foldfuse.data.doctor import unreadable_images
from foldfuse.data.folds import Folds, make_folds, read_folds
from foldfuse.data.readers.coco import locate, read
from foldfuse.errors import InputError
from foldfuse.recipes import Recipe
from foldfuse.storage.ledger import Ledger

MOST_UNDECODABLE = 0.1  # share of the pictures; more than a few broken ones mean that something else is wrong


@dataclass(frozen=True)
class Inputs:
    """What a campaign is given, as it is read.

    Attributes:
        labelled: annotated pictures.
        target: pictures to predict; None where labelled ones must stand in.
        folds: a number, or the folds of a file.
    """

    labelled: Dataset
    target: Dataset | None
    folds: int | Folds

    def fingerprints(self) -> dict[str, str | None]:
        """What changes when the data does."""
        return {"data": self.labelled.fingerprint, "test": self.target.fingerprint if self.target else None}


@dataclass(frozen=True)
class Task:
    """What is to be done.

    Attributes:
        train: pictures to learn from, with annotations.
        held: annotated pictures that no member learns from: the ensemble is chosen on them.
        target: pictures to predict for the submission, without annotations.
        unseen: image ids of `target` whose pictures cannot be decoded; they are submitted as empty.
        recipes: {name: recipe} that members may be made of, but for image size and seed; the one to begin with first.
        sizes: image sizes that are allowed; empty for all.
        seed: of every random choice.
        num_folds: of which fold 0 is held back.
        metric: that trunks are promoted by and the ensemble is chosen by: ap50, ap, f2 or wheat.
        pseudo: whether the last members learn from pseudo-labels of `target`, too.
    """

    train: Dataset
    held: Dataset
    target: Dataset
    unseen: frozenset[int]
    recipes: Mapping[str, Recipe]
    sizes: tuple[int, ...]
    seed: int
    num_folds: int
    metric: str = "ap50"
    pseudo: bool = False


def read_inputs(data: Path, test: Path | None, folds: int | Path) -> Inputs:
    """The inputs, where their files are good.

    Raises:
        InputError: a file is missing or broken, nothing is annotated, or the folds are not of these pictures.
    """
    train_json, test_json = locate(data)
    test_json = test if test is not None else test_json
    labelled = require_annotations(read(train_json))
    target = read(test_json, annotated=False) if test_json is not None else None
    if isinstance(folds, int):
        return Inputs(labelled, target, folds)
    made = read_folds(folds)
    missing = [s for s in labelled.samples if s.id not in made.fold_of]
    if missing:
        raise InputError(
            f"{folds}: gives no fold to {len(missing)} of the {len(labelled)} pictures of {labelled.source}, such as image id "
            f"{missing[0].id} ({missing[0].file_name}). Make it anew with 'foldfuse split'."
        )
    return Inputs(labelled, target, made)


def look(inputs: Inputs, recipes: Mapping[str, Recipe], *, sizes: tuple[int, ...], seed: int, ledger: Ledger) -> Task:
    """The task. Pictures that cannot be decoded are left out; they and the folds are looked for once in a campaign.

    Raises:
        InputError: too many pictures cannot be decoded, or there are too few to fold.
    """
    if ledger.get("looked") is None:
        _look(inputs, seed, ledger)
    broken, unseen = set(ledger.get("broken")), frozenset(ledger.get("unseen"))
    labelled = inputs.labelled.subset(set(inputs.labelled.image_ids) - broken)
    split = read_folds(ledger.folder / "folds.json")
    held = require_annotations(labelled.subset(split.val_ids(0)))
    train_ids, target = set(split.train_ids(0)), inputs.target
    if target is None:
        stand_in = set(split.val_ids(1))
        target = labelled.subset(stand_in).without_annotations()
        train_ids -= stand_in
    train = require_annotations(labelled.subset(train_ids))
    if ledger.get("looked") is None:
        if inputs.target is None:
            ledger.log(
                f"No test pictures were given: {len(target)} labelled ones (fold 1) stand in, and nothing learns from them."
            )
        ledger.log(
            f"{len(train)} pictures with {train.num_boxes} boxes of {len(train.classes)} classes to learn from; {len(held)} "
            f"with {held.num_boxes} boxes held back (fold 0 of {split.num_folds}) to choose the ensemble on; "
            f"{len(target)} to predict."
        )
        ledger.set(looked=True)
    return Task(train, held, target, unseen, recipes, sizes, seed, split.num_folds)


def _look(inputs: Inputs, seed: int, ledger: Ledger) -> None:
    """Find the pictures that cannot be decoded, fold the others, and write both down."""
    broken = _unreadable_images(inputs.labelled)
    labelled = inputs.labelled.subset(set(inputs.labelled.image_ids) - {row["id"] for row in broken})
    require_annotations(labelled)
    split = inputs.folds if isinstance(inputs.folds, Folds) else make_folds(labelled, num_folds=inputs.folds, seed=seed)
    split.write(ledger.folder / "folds.json")
    unseen: list[dict[str, Any]] = []
    if inputs.target is not None:
        unseen = _unreadable_images(inputs.target)
        if len(unseen) == len(inputs.target):
            raise InputError(f"{inputs.target.source}: none of its {len(unseen)} pictures can be decoded.")
    left_out = [{"file_name": row["file_name"], "reason": row["reason"]} for row in (*broken, *unseen)]
    ledger.set(broken=[row["id"] for row in broken], unseen=[row["id"] for row in unseen], left_out=left_out)
    for row in left_out:
        ledger.log(f"{row['file_name']} is left out: {row['reason']}")


def _unreadable_images(dataset: Dataset) -> list[dict[str, Any]]:
    """Id, file name and reason for each picture that cannot be decoded.

    Raises:
        InputError: they are more than a few.
    """
    broken = unreadable_images(dataset)
    if broken and len(broken) > max(3, MOST_UNDECODABLE * len(dataset)):
        sample, reason = broken[0]
        raise InputError(
            f"{dataset.source}: {len(broken)} of {len(dataset)} pictures cannot be decoded, such as {sample.path} ({reason}). "
            "Copy the pictures again."
        )
    return [{"id": s.id, "file_name": s.file_name, "reason": reason} for s, reason in broken]
