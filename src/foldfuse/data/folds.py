"""Cross-validation folds, stratified by class and box count; groups and near-duplicate images stay in one fold.

A near-duplicate of a training image among the held-out images would make the held-out score too good.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.data.near_duplicates import near_duplicates
from foldfuse.detections import Array
from foldfuse.errors import InputError
from foldfuse.system.records import read_record, write_record

VERSION = 1  # of the layout of a folds file


@dataclass(frozen=True)
class Folds:
    """The fold of each image.

    Attributes:
        fold_of: {image id: fold in 0..num_folds-1}.
        num_folds: number of folds.
    """

    fold_of: Mapping[int, int]
    num_folds: int

    def __repr__(self) -> str:
        return f"Folds({len(self.fold_of)} images, {self.num_folds} folds)"

    def val_ids(self, fold: int) -> list[int]:
        """Ids of the images in `fold`. Raises InputError for a fold that does not exist."""
        if not 0 <= fold < self.num_folds:
            raise InputError(f"there is no fold {fold}: the folds are 0..{self.num_folds - 1}.")
        return [image_id for image_id, own in self.fold_of.items() if own == fold]

    def train_ids(self, fold: int) -> list[int]:
        """Ids of the images in all folds but `fold`. Raises InputError for a fold that does not exist."""
        held_out = set(self.val_ids(fold))
        return [image_id for image_id in self.fold_of if image_id not in held_out]

    def write(self, path: Path) -> None:
        """Write the folds as JSON."""
        write_record(path, self, version=VERSION)


def read_folds(path: Path) -> Folds:
    """The folds in a JSON file that `Folds.write` wrote.

    Raises:
        InputError: the file is missing or broken, is of a later version, or names a fold out of range.
    """
    hint = "'foldfuse split' writes one."
    folds = read_record(path, Folds, version=VERSION, what="a file of folds", hint=hint)
    for image_id, fold in folds.fold_of.items():
        if not 0 <= fold < folds.num_folds:
            raise InputError(
                f"{path}: image {image_id} is in fold {fold}, expected 0..{folds.num_folds - 1}. Run 'foldfuse split' again."
            )
    return folds


def groups_of(dataset: Dataset, pattern: str) -> dict[int, str]:
    """{image id: group}, the group being the first match of the regular expression `pattern` in the image's file name.

    Where the expression has a group of its own, in parentheses, that part of the match is taken. Images whose name does
    not match are absent from the result, so each of them is a group alone.

    Raises:
        InputError: `pattern` is not a regular expression, or matches no file name.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"the group {pattern!r} is not a regular expression ({error}).") from None
    matches = {s.id: match for s in dataset.samples if (match := expression.search(s.file_name)) is not None}
    if not matches:
        raise InputError(
            f"the group {pattern!r} matches none of the file names of {dataset.source}, such as "
            f"{dataset.samples[0].file_name!r}."
        )
    return {image_id: match.group(min(1, expression.groups)) or "" for image_id, match in matches.items()}


def make_folds(
    dataset: Dataset, *, num_folds: int = 5, seed: int = 0, groups: Mapping[int, str] | None = None
) -> Folds:
    """Folds of an annotated dataset, as equal as possible in boxes of each class and in images.

    Groups are assigned greedily, those with the rarest classes and most boxes first, each to the fold that most lacks the
    boxes and images of the group (Sechidis et al., "On the stratification of multi-label data", 2011).

    Args:
        dataset: annotated images.
        num_folds: number of folds.
        seed: the random seed of the order among groups of equal weight.
        groups: {image id: group}: images of one group go to one fold. Near-duplicates are grouped in any case.

    Raises:
        InputError: `num_folds` is below 2, or there are fewer groups than folds.
    """
    if num_folds < 2:
        raise InputError(f"the number of folds is {num_folds}, and must be 2 or more.")
    group_of = _groups(dataset, groups)
    num_groups = int(group_of.max()) + 1
    if num_groups < num_folds:
        raise InputError(
            f"{dataset.source}: its {len(dataset)} images form {num_groups} groups that must stay together, fewer than the "
            f"{num_folds} folds. Ask for at most {num_groups} folds."
        )
    counts = np.zeros((num_groups, len(dataset.classes) + 2))  # boxes of each class, all boxes, images
    for group, sample in zip(group_of, dataset.samples, strict=True):
        assert sample.annotations is not None
        boxes = np.bincount(sample.annotations.labels, minlength=len(dataset.classes))
        counts[group] += [*boxes, boxes.sum(), 1]
    total = np.maximum(counts.sum(0), 1)
    weight = counts / total
    rng = np.random.default_rng(seed)
    order = rng.permutation(num_groups)
    order = order[np.argsort(-weight[order].max(1), kind="stable")]
    filled = np.zeros((num_folds, counts.shape[1]))
    fold_of_group = np.empty(num_groups, np.int64)
    for group in order:
        lack = (total / num_folds - filled) / total  # (num_folds, counts): what each fold still lacks of its fair share
        gain = (lack * weight[group]).sum(1)
        fold = int(np.lexsort((filled[:, -1], -gain))[0])  # ties go to the fold with the fewest images
        fold_of_group[group] = fold
        filled[fold] += counts[group]
    return Folds({s.id: int(fold_of_group[g]) for s, g in zip(dataset.samples, group_of, strict=True)}, num_folds)


def _groups(dataset: Dataset, groups: Mapping[int, str] | None) -> Array:
    """(n,) int64: a group number 0.. for each sample. A union-find joins near-duplicates and members of a given group."""
    parent = list(range(len(dataset)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, sample in enumerate(dataset.samples):
        if groups is not None and sample.id in groups:
            parent[root(i)] = root(first.setdefault(groups[sample.id], i))
    for i, j in near_duplicates([s.path for s in dataset.samples], [s.orientation for s in dataset.samples]):
        parent[root(j)] = root(i)
    return np.unique([root(i) for i in range(len(dataset))], return_inverse=True)[1]
