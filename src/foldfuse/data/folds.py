"""Folds that are alike: stratified by class and box count, with groups and near-duplicate pictures kept together.

A picture that is learnt from and, almost the same, also held back makes a held-back score look better than it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.data.near_duplicates import near_duplicates
from foldfuse.data.readers.coco import read_json
from foldfuse.detections import Array
from foldfuse.errors import InputError
from foldfuse.system.atomic_files import write_text


@dataclass(frozen=True)
class Folds:
    """Which fold each picture is in.

    Attributes:
        fold_of: {image id: fold in 0..k-1}.
        k: number of folds.
    """

    fold_of: Mapping[int, int]
    k: int

    def held_ids(self, fold: int) -> list[int]:
        """Ids of the pictures in `fold`. Raises InputError where there is no such fold."""
        if not 0 <= fold < self.k:
            raise InputError(f"there is no fold {fold}: the folds are 0..{self.k - 1}.")
        return [image_id for image_id, own in self.fold_of.items() if own == fold]

    def train_ids(self, fold: int) -> list[int]:
        """Ids of the pictures in all folds but `fold`. Raises InputError where there is no such fold."""
        held = set(self.held_ids(fold))
        return [image_id for image_id in self.fold_of if image_id not in held]

    def write(self, path: Path) -> None:
        """Write as JSON: {"k": k, "folds": {image id: fold}}."""
        write_text(path, json.dumps({"k": self.k, "folds": {str(i): f for i, f in self.fold_of.items()}}))


def read_folds(path: Path) -> Folds:
    """The folds in a JSON file that `Folds.write` left.

    Raises:
        InputError: the file is missing or broken.
    """
    value = read_json(path)
    try:
        made = Folds({int(i): int(f) for i, f in value["folds"].items()}, int(value["k"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{path}: is not a file of folds; 'foldfuse split' writes one.") from None
    for image_id, fold in made.fold_of.items():
        if not 0 <= fold < made.k:
            raise InputError(f"{path}: image {image_id} is in fold {fold}, expected 0..{made.k - 1}.")
    return made


def groups_of(dataset: Dataset, pattern: str) -> dict[int, str]:
    """{image id: group}: what the regular expression `pattern` finds first in the picture's file name.

    Where the expression has a group of its own, in parentheses, that part is taken. Pictures in whose name it finds
    nothing are left out, so each stands alone.

    Raises:
        InputError: it is no regular expression, or it finds something in no name.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"the group {pattern!r} is no regular expression ({error}).") from None
    found = {s.id: match for s in dataset.samples if (match := expression.search(s.file_name)) is not None}
    if not found:
        raise InputError(
            f"the group {pattern!r} finds nothing in the file names of {dataset.source}, such as "
            f"{dataset.samples[0].file_name!r}."
        )
    return {image_id: match.group(min(1, expression.groups)) or "" for image_id, match in found.items()}


def folds(dataset: Dataset, *, k: int = 5, seed: int = 0, groups: Mapping[int, str] | None = None) -> Folds:
    """`k` folds of an annotated dataset, as alike as can be in boxes of each class and in pictures.

    Groups are dealt out one after another, those with the rarest classes and most boxes first, each to the fold that
    then comes nearest to its fair share of everything (Sechidis et al., "On the stratification of multi-label data", 2011).

    Args:
        dataset: annotated pictures.
        k: number of folds.
        seed: of the order among groups that are alike.
        groups: {image id: group}: pictures of one group go to one fold. Near-duplicates are grouped in any case.

    Raises:
        InputError: k is below 2, or there are fewer groups than folds.
    """
    if k < 2:
        raise InputError(f"k is {k}, and must be 2 or more.")
    together = _groups(dataset, groups)
    num_groups = int(together.max()) + 1
    if num_groups < k:
        raise InputError(
            f"{dataset.source}: its {len(dataset)} pictures fall into {num_groups} groups that must stay together, fewer "
            f"than the {k} folds. Ask for at most {num_groups} folds."
        )
    counts = np.zeros((num_groups, len(dataset.classes) + 2))  # boxes of each class, all boxes, pictures
    for group, sample in zip(together, dataset.samples, strict=True):
        assert sample.annotations is not None
        boxes = np.bincount(sample.annotations.labels, minlength=len(dataset.classes))
        counts[group] += [*boxes, boxes.sum(), 1]
    total = np.maximum(counts.sum(0), 1)
    weight = counts / total
    rng = np.random.default_rng(seed)
    order = rng.permutation(num_groups)
    order = order[np.argsort(-weight[order].max(1), kind="stable")]
    filled = np.zeros((k, counts.shape[1]))
    fold_of_group = np.empty(num_groups, np.int64)
    for group in order:
        # How much nearer each fold comes to its share of what the group brings; ties go to the emptiest fold.
        lack = (total / k - filled) / total
        gain = (lack * weight[group]).sum(1)
        fold = int(np.lexsort((filled[:, -1], -gain))[0])
        fold_of_group[group] = fold
        filled[fold] += counts[group]
    return Folds({s.id: int(fold_of_group[g]) for s, g in zip(dataset.samples, together, strict=True)}, k)


def _groups(dataset: Dataset, groups: Mapping[int, str] | None) -> Array:
    """(n,) int64: a group number 0.. for each sample, joining near-duplicates and members of a given group."""
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
    for i, j in near_duplicates([s.path for s in dataset.samples]):
        parent[root(j)] = root(i)
    return np.unique([root(i) for i in range(len(dataset))], return_inverse=True)[1]
