"""The dataset types: one image (`Sample`), and many images with their classes (`Dataset`). They hold no pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from foldfuse.data.decoding import decode, shrunk
from foldfuse.data.image_file import UPRIGHT
from foldfuse.data.inspection import inspect
from foldfuse.data.values import Ids
from foldfuse.detections import Annotations, Array
from foldfuse.display import MAX_ROWS, image_html, note_html, short, table_html, value_html
from foldfuse.drawing import draw_boxes
from foldfuse.errors import InputError

NUM_THUMBNAILS = 6  # that a notebook shows of a dataset
THUMBNAIL_SIDE = 220  # pixels
FINGERPRINT_VERSION = 2  # 1 left out crowd flags and areas, and took boxes clipped to their images; it had no prefix


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One image of a dataset.

    Attributes:
        id: the organiser's image id.
        path: the image file.
        file_name: the organiser's name of the image, as a submission needs it.
        width, height: pixels.
        annotations: None for an image without labels, which differs from a labeled image without objects.
        orientation: EXIF orientation that loading applies to the stored pixels, 1 (none) to 8; width, height and boxes are
            of the image after that. `pixels.open_images` sets it; 0 before, and loading then decides for the one image.
        value_range: values that become black and white in a file of more than 8 bits that does not state its depth.
        missing: why `path` is no image file, as a sentence; "" where it is one.
        original_id: the organiser's id where it is not `id` itself: text, or a number beyond 64 bits; else None.
        pixels: (height, width, 3) uint8 RGB of an image that is in memory; None for an image in a file.
    """

    id: int
    path: Path
    file_name: str
    width: int
    height: int
    annotations: Annotations | None
    orientation: int = 0
    value_range: tuple[float, float] | None = None
    missing: str = ""
    original_id: str | int | None = None
    pixels: Array | None = None

    @property
    def organiser_id(self) -> str | int:
        """The id of the image in the organiser's files, as predictions and submissions name it."""
        return self.id if self.original_id is None else self.original_id

    def __repr__(self) -> str:
        boxes = "no annotations" if self.annotations is None else f"{len(self.annotations)} boxes"
        return f"Sample(id={self.id}, {short(self.file_name)!r}, {self.width}x{self.height}, {boxes})"

    def load(self, *, longest: int | None = None) -> Image.Image:
        """The image as a Pillow image of mode RGB, in the orientation of its boxes.

        Args:
            longest: pixels of the longest side, to shrink larger images to; None for the size of the file.

        Raises:
            InputError: the file is missing or cannot be decoded; or it was not looked at yet, and has another size than stated.
        """
        if self.pixels is not None:
            image, size = Image.fromarray(self.pixels), shrunk((self.width, self.height), longest)
            return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        orientation = self.orientation
        if orientation == 0:
            inspection = inspect(self.path, (self.width, self.height), missing=self.missing)
            if inspection.error:
                raise InputError(inspection.error)
            orientation = inspection.orientation
        image = decode(self.path, longest=longest, value_range=self.value_range)
        return image.transpose(UPRIGHT[orientation]) if orientation != 1 else image

    def plot(self, *, classes: Iterable[str] = (), longest: int | None = None) -> Image.Image:
        """The image with its annotated boxes drawn on it, as a Pillow image; without annotations the image alone.

        Args:
            classes: class names by label; `dataset.plot(image_id)` knows them.
            longest: see `load`.

        Raises:
            InputError: as `load` does.
        """
        image, annotations = self.load(longest=longest), self.annotations or Annotations.empty()
        scale = np.array([image.width / self.width, image.height / self.height] * 2)
        return draw_boxes(image, annotations.boxes * scale, annotations.labels, classes=tuple(classes))

    def __array__(self, dtype: np.dtype[np.generic] | None = None, copy: bool | None = None) -> Array:
        """(height, width, 3) uint8 RGB of the image."""
        return np.array(self.load(), dtype=dtype)

    def _repr_html_(self) -> str:
        """What a notebook shows: the image with its annotations."""
        return value_html(repr(self), _image_or_error(self, ()))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with their annotations and classes.

    Attributes:
        samples: the images, in the organiser's order.
        classes: class names; a label is a position in this tuple.
        category_ids: the organiser's id of each class.
        source: the file that the dataset was read from, for error sentences.
        value_ranges: {kind of depth: values that become black and white in its images of more than 8 bits}; see `pixels`.
        original_category_ids: the organiser's id of each class where some are not whole numbers; else ().
        has_project_class: whether the first class is the name of the project, as Roboflow adds it: no object is of it.
    """

    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    source: Path
    original_category_ids: tuple[str | int, ...] = ()
    value_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    has_project_class: bool = False

    @property
    def organiser_category_ids(self) -> tuple[str | int, ...]:
        """The id of each class in the organiser's files."""
        return self.original_category_ids or self.category_ids

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        boxes = f"{self.num_boxes} boxes of {len(self.classes)} classes"
        return f"Dataset({len(self)} images, {boxes}, source={short(str(self.source), 200)!r})"

    def __iter__(self) -> Iterator[Sample]:
        """The samples, in the organiser's order."""
        return iter(self.samples)

    def __getitem__(self, image_id: int) -> Sample:
        """The sample with an image id. Raises InputError for an id that no image has."""
        place = self._places.get(image_id)
        if place is None:
            raise InputError(
                f"{self.source}: no image has the id {image_id!r}; the first has the id {self.image_ids[0] if self else None}. "
                "Take images by their place from dataset.samples."
            )
        return self.samples[place]

    @cached_property
    def _places(self) -> dict[int, int]:
        return {sample.id: place for place, sample in enumerate(self.samples)}

    def plot(self, image_id: int, *, longest: int | None = None) -> Image.Image:
        """One image with its annotated boxes and their classes drawn on it, as a Pillow image.

        Args:
            image_id: the id of the image.
            longest: pixels of the longest side, to shrink larger images to; None for the size of the file.

        Raises:
            InputError: no image has this id, or its file cannot be read.
        """
        return self[image_id].plot(classes=self.classes, longest=longest)

    def _repr_html_(self) -> str:
        """What a notebook shows: the boxes and images of each class, and a few images with their annotations."""
        boxes, images = np.zeros(len(self.classes), np.int64), np.zeros(len(self.classes), np.int64)
        for sample in self.samples:
            if sample.annotations is not None and len(sample.annotations):
                counts = np.bincount(sample.annotations.labels, minlength=len(self.classes))
                boxes, images = boxes + counts, images + (counts > 0)
        order = np.argsort(-boxes, kind="stable")[:MAX_ROWS].tolist()
        rows = [(self.classes[k], str(self.organiser_category_ids[k]), int(boxes[k]), int(images[k])) for k in order]
        table = table_html(["class", "category id", "boxes", "images"], rows, more=len(self.classes) - len(rows))
        steps = np.unique(np.linspace(0, len(self) - 1, min(NUM_THUMBNAILS, len(self))).round().astype(int)).tolist()
        strip = "".join(_image_or_error(self.samples[i], self.classes, longest=THUMBNAIL_SIDE) for i in steps)
        return value_html(repr(self), table if rows else "", f"<div>{strip}</div>")

    @cached_property
    def image_ids(self) -> tuple[int, ...]:
        """The image ids, in the order of `samples`."""
        return tuple(sample.id for sample in self.samples)

    @cached_property
    def num_boxes(self) -> int:
        """The number of annotated boxes, crowd regions included."""
        return sum(len(s.annotations) for s in self.samples if s.annotations is not None)

    @property
    def is_labeled(self) -> bool:
        """Whether every image has annotations (perhaps empty ones)."""
        return all(s.annotations is not None for s in self.samples)

    def subset(self, image_ids: Iterable[int]) -> Dataset:
        """The images with these ids, in this dataset's order."""
        keep = set(image_ids)
        return replace(self, samples=tuple(s for s in self.samples if s.id in keep))

    def without_annotations(self) -> Dataset:
        """The same images without annotations."""
        return replace(self, samples=tuple(replace(s, annotations=None) for s in self.samples))

    def with_classes(self, classes: Iterable[str], category_ids: Iterable[int | str]) -> Dataset:
        """The same images with other classes and the organiser's ids of these, for a test set that has none of its own."""
        raw = tuple(category_ids)
        ids = Ids(raw)
        numbers = tuple(number for value in raw if (number := ids.number(value)) is not None)
        original = () if numbers == raw else raw
        return replace(self, classes=tuple(classes), category_ids=numbers, original_category_ids=original)

    @cached_property
    def fingerprint(self) -> str:
        """The version of the fingerprint, "-" and 16 hex digits that change with an image's name, a box, a flag or a class."""
        digest = hashlib.sha256(json.dumps([self.classes, self.category_ids]).encode())
        for s in self.samples:
            digest.update(f"{s.id}|{s.file_name}|{s.width}x{s.height}".encode())
            if s.annotations is not None:
                for values in (s.annotations.boxes, s.annotations.labels, s.annotations.crowd, s.annotations.area):
                    digest.update(values.tobytes())
        return f"{FINGERPRINT_VERSION}-{digest.hexdigest()[:16]}"

    def has_fingerprint(self, stored: str | None) -> bool:
        """Whether a stored fingerprint is of these data; one of version 1 says nothing of crowd flags and areas."""
        if stored is None or "-" in stored:
            return stored == self.fingerprint
        digest = hashlib.sha256(json.dumps([self.classes, self.category_ids]).encode())
        for s in self.samples:
            digest.update(f"{s.id}|{s.file_name}|{s.width}x{s.height}".encode())
            if s.annotations is not None:
                digest.update(s.annotations.clipped(s.width, s.height).boxes.tobytes() + s.annotations.labels.tobytes())
        return stored == digest.hexdigest()[:16]


def _image_or_error(sample: Sample, classes: tuple[str, ...], *, longest: int = 800) -> str:
    """A sample's image with its annotations as HTML; the reason where it cannot be read."""
    try:
        return image_html(sample.plot(classes=classes, longest=longest), longest=longest, title=sample.file_name)
    except InputError as error:
        return note_html(str(error))


def require_annotations(dataset: Dataset) -> Dataset:
    """`dataset` itself, if at least one object is annotated in it.

    Raises:
        InputError: no object is annotated.
    """
    objects = sum(int((~s.annotations.crowd).sum()) for s in dataset.samples if s.annotations is not None)
    if not objects and dataset.num_boxes:
        raise InputError(
            f"{dataset.source}: not one object is annotated on its {len(dataset)} images: all {dataset.num_boxes} boxes are "
            "crowd regions (COCO's 'iscrowd', VOC's <difficult>), which training and scoring ignore. CVAT exports masks so. "
            "If these are single objects, 'foldfuse check --fix --ignore-crowd --out FILE' writes a copy that says so."
        )
    if not objects:
        raise InputError(
            f"{dataset.source}: not one object is annotated on its {len(dataset)} images. Training and scoring need annotations."
        )
    return dataset
