"""The dataset types: one image (`Sample`) and many of them with their classes (`Dataset`). No pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from foldfuse.detections import Annotations
from foldfuse.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One picture of a dataset.

    Attributes:
        id: the organiser's image id.
        path: where the picture lies.
        file_name: as the organiser writes it; what a contest's submission calls the picture.
        width, height: pixels.
        annotations: None where the picture is not labelled, which is not the same as "labelled, and nothing there".
    """

    id: int
    path: Path
    file_name: str
    width: int
    height: int
    annotations: Annotations | None


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pictures and what is drawn on them.

    Attributes:
        samples: in the organiser's order.
        classes: class names; a label is a position in this tuple.
        category_ids: the organiser's id of each class.
        source: the file that it was read from, for messages.
    """

    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    source: Path

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def image_ids(self) -> tuple[int, ...]:
        """The image ids, in the order of `samples`."""
        return tuple(sample.id for sample in self.samples)

    @cached_property
    def num_boxes(self) -> int:
        """Boxes drawn, crowd regions included."""
        return sum(len(s.annotations) for s in self.samples if s.annotations is not None)

    @property
    def is_labeled(self) -> bool:
        """Whether every picture has annotations (perhaps empty ones)."""
        return all(s.annotations is not None for s in self.samples)

    def subset(self, image_ids: Iterable[int]) -> Dataset:
        """Just the pictures with these ids, in this dataset's order."""
        keep = set(image_ids)
        return replace(self, samples=tuple(s for s in self.samples if s.id in keep))

    def without_annotations(self) -> Dataset:
        """The same pictures with nothing known about them."""
        return replace(self, samples=tuple(replace(s, annotations=None) for s in self.samples))

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change when a picture's name, a box or a class does."""
        digest = hashlib.sha256(json.dumps([self.classes, self.category_ids]).encode())
        for s in self.samples:
            digest.update(f"{s.id}|{s.file_name}|{s.width}x{s.height}".encode())
            if s.annotations is not None:
                digest.update(s.annotations.boxes.tobytes() + s.annotations.labels.tobytes())
        return digest.hexdigest()[:16]


def require_annotations(dataset: Dataset) -> Dataset:
    """`dataset` itself, if there is something to learn from in it.

    Raises:
        InputError: not a single object is annotated.
    """
    objects = sum(int((~s.annotations.crowd).sum()) for s in dataset.samples if s.annotations is not None)
    if not objects:
        raise InputError(
            f"{dataset.source}: not one object is annotated on its {len(dataset)} pictures. Training needs annotations."
        )
    return dataset
