"""Joins the predictions of several folds into one set, without images that their networks have learnt from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Detections, Predictions
from foldfuse.errors import InputError, counted
from foldfuse.fusion.methods import wbf


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Predictions that are evidence, and how many images have none.

    Attributes:
        predictions: of the images that at least one file predicted and whose network has not learnt from them.
        num_images: images of the data.
        num_learnt: images without evidence that a network has learnt from.
        num_unpredicted: the other images without evidence.
    """

    predictions: Predictions
    num_images: int
    num_learnt: int
    num_unpredicted: int

    def __str__(self) -> str:
        """A sentence on the images that are left out; "" where all are evidence."""
        left_out = self.num_learnt + self.num_unpredicted
        if not left_out:
            return ""
        reasons = [
            f"{self.num_learnt:,} that the networks have learnt from" * bool(self.num_learnt),
            f"{self.num_unpredicted:,} that no file predicts" * bool(self.num_unpredicted),
        ]
        return (
            f"{counted(len(self.predictions), 'image')} of {self.num_images:,} have out-of-fold predictions. Left out: "
            f"{', '.join(filter(None, reasons))}."
        )


def join_out_of_fold(files: Mapping[str, Predictions], dataset: Dataset) -> OutOfFold:
    """The out-of-fold predictions in several sets, as one.

    Each set brings the images that its network has not learnt from. An image in several sets gets their boxes fused by WBF.

    Args:
        files: {name: predictions of images of `dataset`}.
        dataset: the annotated images.

    Raises:
        InputError: no image is left.
    """
    sets: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for image_id in dataset.image_ids:
        names = tuple(name for name, p in files.items() if image_id in p and image_id not in p.learnt_ids)
        if names:
            sets[names].append(image_id)
    found: dict[int, Detections] = {}
    for names, ids in sets.items():
        members = [files[name].select_images(ids) for name in names]
        found |= dict(members[0] if len(members) == 1 else wbf(members))
    learnt = frozenset().union(*(p.learnt_ids for p in files.values())) & set(dataset.image_ids)
    rest = set(dataset.image_ids) - set(found)
    if not found:
        raise InputError(
            f"{', '.join(files)}: no image of {dataset.source} has an out-of-fold prediction: the networks have learnt from "
            f"{counted(len(rest & learnt), 'image')} of it. Give a campaign, or predictions of held-out images."
        )
    ordered = {i: found[i] for i in dataset.image_ids if i in found}
    predictions = Predictions.of(ordered, dataset.classes)
    return OutOfFold(predictions, len(dataset), len(rest & learnt), len(rest - learnt))
