"""Cross-validation folds, stratified by class and box count; groups and near-duplicate images stay in one fold.

A near-duplicate of a training image among the held-out images would make the held-out score too good.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.near_duplicates import near_duplicates
from foldfuse.detections import Array
from foldfuse.errors import InputError, shown
from foldfuse.system.records import read_record, write_record
from foldfuse.system.regular_expressions import first_matches

logger = logging.getLogger(__name__)

VERSION = 2  # of the layout of a folds file
LARGEST_GROUP = 0.5  # share of the images above which near-duplicates are cut into blocks


@dataclass(frozen=True)
class Folds:
    """The fold of each image.

    Attributes:
        fold_of: {image id: fold in 0..num_folds-1}.
        num_folds: number of folds.
        file_names: {image id: file name}, which shows folds of other data; empty in files of format 1.
    """

    fold_of: Mapping[int, int]
    num_folds: int
    file_names: Mapping[int, str] = field(default_factory=dict)

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


def fit_folds(folds: Folds, dataset: Dataset, *, where: str) -> Folds:
    """The folds of the images of `dataset`. Logs where `folds` has more images.

    Args:
        folds: perhaps made for other data.
        dataset: the images to divide.
        where: names the folds in sentences.

    Raises:
        InputError: an image has no fold, or another file name than in `folds`.
    """
    samples = {s.id: s for s in dataset.samples}
    without = [s for s in dataset.samples if s.id not in folds.fold_of]
    again = "Make the folds again with 'foldfuse split'."
    if without:
        some = "none" if len(without) == len(dataset) else f"only {len(dataset) - len(without)}"
        raise InputError(
            f"{where}: gives a fold to {some} of the {len(dataset)} images of {dataset.source}; {_image(without[0])} has none. "
            f"{again}"
        )
    renamed = [s for s in dataset.samples if _name(folds.file_names.get(s.id, s.file_name)) != _name(s.file_name)]
    if renamed:
        first = renamed[0]
        raise InputError(
            f"{where}: was made for other data: {_image(first)} of {dataset.source} is called {folds.file_names[first.id]} "
            f"there, and so {len(renamed)} of {len(dataset)} images. {again}"
        )
    others = [image_id for image_id in folds.fold_of if image_id not in samples]
    if others:
        logger.warning(
            f"{where}: names {len(others)} images that {dataset.source} does not have, such as image id {others[0]}; "
            f"the other {len(dataset)} images are used."
        )
    return Folds({s.id: folds.fold_of[s.id] for s in dataset.samples}, folds.num_folds, folds.file_names)


def divide(dataset: Dataset, folds: Folds, fold: int, *, where: str) -> tuple[Dataset, Dataset]:
    """(training images, held-out images) where `fold` is held out.

    Args:
        dataset, folds, where: see `fit_folds`.
        fold: the fold to hold out.

    Raises:
        InputError: the folds do not fit the data, there is no such fold, or one of the two parts has no object.
    """
    fitting = fit_folds(folds, dataset, where=where)
    train, val = dataset.subset(fitting.train_ids(fold)), dataset.subset(fitting.val_ids(fold))
    for part, what, use in ((val, f"fold {fold}", "score"), (train, f"the rest besides fold {fold}", "learn from")):
        if not any(map(_has_objects, part.samples)):
            raise InputError(
                f"{where}: {what} of {dataset.source} has {len(part)} images and no object to {use}. Choose another --fold, or "
                "make the folds again with 'foldfuse split'."
            )
    return train, val


def _image(sample: Sample) -> str:
    return f"image id {sample.id} ({sample.file_name})"


def _name(file_name: str) -> str:
    """The name of an image whatever folder it is in."""
    return PurePosixPath(file_name.replace("\\", "/")).name


def groups_of(dataset: Dataset, pattern: str) -> dict[int, str]:
    """{image id: group}, the group being the first match of the regular expression `pattern` in the image's file name.

    Where the expression has a group of its own, in parentheses, that part of the match is taken. Images whose name does
    not match are absent from the result, so each of them is a group alone.

    Raises:
        InputError: `pattern` is not a regular expression, takes too long, or matches no file name.
    """
    found = first_matches(pattern, [sample.file_name for sample in dataset.samples])
    groups = {sample.id: text for sample, text in zip(dataset.samples, found, strict=True) if text is not None}
    if not groups:
        raise InputError(
            f"the group {shown(pattern)} matches none of the file names of {dataset.source}, such as "
            f"{shown(dataset.samples[0].file_name)}."
        )
    return groups


def check_num_folds(dataset: Dataset, num_folds: int, *, groups: Mapping[int, str] | None = None) -> None:
    """Raises InputError where `num_folds` is below 2, or there are fewer images or `groups` with objects than folds."""
    if num_folds < 2:
        raise InputError(f"the number of folds is {num_folds}, and must be 2 or more.")
    unit_of = _units(dataset, groups)
    most = len({int(unit) for unit, sample in zip(unit_of, dataset.samples, strict=True) if _has_objects(sample)})
    if most >= num_folds:
        return
    if groups is not None:
        found = f"its {len(dataset)} images form {int(unit_of.max()) + 1} groups, and {most} of them hold objects"
    else:
        found = f"{most} of its {len(dataset)} images hold objects"
    advice = f"Ask for at most {most} folds" if most >= 2 else "Annotate objects on more images"
    if groups is not None:
        advice = f"{advice}, or give a --group that makes smaller groups" if most >= 2 else "Give another --group"
    raise InputError(
        f"{dataset.source}: {found}, fewer than {num_folds} folds, each of which needs an object. {advice}."
    )


def make_folds(
    dataset: Dataset,
    *,
    num_folds: int = 5,
    seed: int = 0,
    groups: Mapping[int, str] | None = None,
    keep_near_duplicates: bool = True,
) -> Folds:
    """Folds of an annotated dataset, as equal as possible in boxes of each class and in images; each holds an object.

    Groups are assigned greedily, those with the rarest classes and most boxes first, each to the fold that most lacks the
    boxes and images of the group (Sechidis et al., "On the stratification of multi-label data", 2011).

    Near-duplicates stay in one fold, unless more than half of all images are near-duplicates of each other, as of a fixed camera,
    or there would be fewer groups than folds. They are then cut into blocks of consecutive file names, and that is logged.

    Args:
        dataset: annotated images.
        num_folds: number of folds.
        seed: the random seed of the order among groups of equal weight.
        groups: {image id: group}: images of one group go to one fold.
        keep_near_duplicates: whether near-duplicates are kept in one fold.

    Raises:
        InputError: `num_folds` is below 2, or there are fewer groups with objects than folds.
    """
    check_num_folds(dataset, num_folds, groups=groups)
    group_of = _units(dataset, groups)
    if keep_near_duplicates:
        group_of = _with_near_duplicates(dataset, group_of, num_folds)
    counts, objects = _counts(dataset, group_of)
    total = np.maximum(counts.sum(0), 1)
    weight = counts / total
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-weight[order].max(1), kind="stable")]
    filled = np.zeros((num_folds, counts.shape[1]))
    fold_of_group = np.empty(len(counts), np.int64)
    for group in order:
        lack = (total / num_folds - filled) / total  # (num_folds, counts): what each fold still lacks of its fair share
        gain = (lack * weight[group]).sum(1)
        fold = int(np.lexsort((filled[:, -1], -gain))[0])  # ties go to the fold with the fewest images
        fold_of_group[group] = fold
        filled[fold] += counts[group]
    _give_objects(fold_of_group, objects, num_folds)
    fold_of = {s.id: int(fold_of_group[g]) for s, g in zip(dataset.samples, group_of, strict=True)}
    return Folds(fold_of, num_folds, {s.id: s.file_name for s in dataset.samples})


def _counts(dataset: Dataset, group_of: Array) -> tuple[Array, Array]:
    """((groups, classes + 2): boxes of each class, all boxes, images; (groups,): objects, which crowd regions are not)."""
    counts = np.zeros((int(group_of.max()) + 1, len(dataset.classes) + 2))
    objects = np.zeros(len(counts), np.int64)
    for group, sample in zip(group_of, dataset.samples, strict=True):
        assert sample.annotations is not None
        boxes = np.bincount(sample.annotations.labels, minlength=len(dataset.classes))
        counts[group] += [*boxes, boxes.sum(), 1]
        objects[group] += (~sample.annotations.crowd).sum()
    return counts, objects


def _give_objects(fold_of_group: Array, objects: Array, num_folds: int) -> None:
    """Moves a group with objects, the smallest of the fold with most such groups, into each fold without one. In place."""
    has_objects = objects > 0
    for fold in range(num_folds):
        if not has_objects[fold_of_group == fold].any():
            richest = np.bincount(fold_of_group[has_objects], minlength=num_folds).argmax()
            groups = np.flatnonzero(has_objects & (fold_of_group == richest))
            fold_of_group[groups[objects[groups].argmin()]] = fold


def _units(dataset: Dataset, groups: Mapping[int, str] | None) -> Array:
    """(n,) int64: a number 0.. for each sample, equal in one group; a sample without a group is alone."""
    keys = [(s.id, None) if groups is None or s.id not in groups else (None, groups[s.id]) for s in dataset.samples]
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys], np.int64)


def _with_near_duplicates(dataset: Dataset, unit_of: Array, num_folds: int) -> Array:
    """`unit_of` with the units of near-duplicates joined (a union-find), in blocks where too many are near-duplicates."""
    parent = list(range(int(unit_of.max()) + 1))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in near_duplicates([s.path for s in dataset.samples], [s.orientation for s in dataset.samples]):
        parent[root(int(unit_of[j]))] = root(int(unit_of[i]))
    joined = np.array([root(int(unit)) for unit in unit_of], np.int64)
    sizes = np.bincount(joined)
    with_objects = {int(group) for group, sample in zip(joined, dataset.samples, strict=True) if _has_objects(sample)}
    if len(with_objects) < num_folds:
        too_large = np.flatnonzero(sizes > 1)
    else:
        too_large = np.flatnonzero(sizes > LARGEST_GROUP * len(dataset))
    cut = 0
    for group in too_large:
        members = np.flatnonzero(joined == group)
        if len(set(unit_of[members].tolist())) > 1:
            joined[members] = len(dataset) * (1 + group) + _blocks(dataset, members, unit_of, num_folds)
            cut += len(members)
    if cut:
        logger.warning(
            f"{dataset.source}: {cut} of {len(dataset)} images are near-duplicates of each other, as of a fixed camera, too many "
            "for one fold. They are cut into blocks of consecutive file names: the held-out score will be better than on other "
            "scenes."
        )
    return np.unique(joined, return_inverse=True)[1]


def _blocks(dataset: Dataset, members: Array, unit_of: Array, num_blocks: int) -> Array:
    """(m,) int64: for each of the samples `members`, its block of consecutive file names; units stay whole."""
    names: dict[int, tuple[tuple[int, str], ...]] = {}
    has_objects: dict[int, bool] = {}
    for i in members.tolist():
        name, unit = _natural(dataset.samples[i].file_name), int(unit_of[i])
        names[unit] = min(names.get(unit, name), name)
        has_objects[unit] = has_objects.get(unit, False) or _has_objects(dataset.samples[i])
    total = sum(has_objects.values())
    block_of: dict[int, int] = {}
    before = 0  # units with objects, so that every block has some
    for unit in sorted(names, key=lambda unit: names[unit]):
        block_of[unit] = min(num_blocks - 1, before * num_blocks // total) if total else 0
        before += has_objects[unit]
    return np.array([block_of[int(unit)] for unit in unit_of[members]], np.int64)


def _has_objects(sample: Sample) -> bool:
    """Whether something else than a crowd region is annotated."""
    return sample.annotations is not None and bool((~sample.annotations.crowd).any())


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """The key that sorts frame_9 before frame_10."""
    return tuple((int(part[:18]) if part.isdecimal() else -1, part) for part in re.split(r"([0-9]+)", name))
