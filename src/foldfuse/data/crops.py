"""Crops: the square around a box, cut out of its image and resized; for classifiers of objects.

A crop is square so that nothing is stretched: its side is the box's longer side times a context factor. Pixels outside the
image are padding. Each image is decoded once, for all of its crops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.images import PAD_VALUE, ImageArray, load_sample, scale_of
from foldfuse.detections import Array, Predictions

MIN_CROP_PX = 4.0  # the side of the smallest region that is cut out


@dataclass(frozen=True, eq=False)
class Crops:
    """Boxes of many images, columnar, each to be classified alone.

    Attributes:
        samples: the images.
        image_index: (n,) int64, never falling: the position in `samples` of each box's image.
        boxes: (n, 4) xyxy in pixels of the original images.
        labels: (n,) int64, positions in the list of class names; -1 for an unknown class.
    """

    samples: Sequence[Sample]
    image_index: Array
    boxes: Array
    labels: Array

    def __post_init__(self) -> None:
        n = len(self.boxes)
        assert self.boxes.shape == (n, 4), f"boxes: expected ({n}, 4), got {self.boxes.shape}"
        for name in ("image_index", "labels"):
            assert getattr(self, name).shape == (n,), f"{name}: expected ({n},), got {getattr(self, name).shape}"
        assert (np.diff(self.image_index) >= 0).all(), "image_index must not fall"

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        return f"Crops({len(self)} boxes of {len(self.samples)} images)"

    def filter(self, mask: Array) -> Crops:
        """The crops where a (n,) bool mask is True."""
        return Crops(self.samples, self.image_index[mask], self.boxes[mask], self.labels[mask])

    def images(self, *, context: float, size: int) -> Iterator[ImageArray]:
        """The pixels of each crop in turn, (size, size, 3). Raises InputError where an image cannot be decoded."""
        for i in np.unique(self.image_index):
            sample = self.samples[i]
            image = load_sample(sample)
            scale = np.array(scale_of(sample, image) * 2)
            for box in self.boxes[self.image_index == i].astype(np.float64) * scale:
                yield crop_square(image, box, context=context, size=size)


@dataclass(frozen=True, eq=False)
class CropCache:
    """The pixels of crops: in memory where they fit, else cut out on every access.

    Attributes:
        crops: the crops.
        context, size: see `crop_square`.
    """

    crops: Crops
    context: float
    size: int
    _images: tuple[ImageArray, ...] = field(repr=False)

    @staticmethod
    def load(crops: Crops, *, context: float, size: int, memory_mb: float = 800.0) -> CropCache:
        """The cache, filled where the crops fit `memory_mb`. Raises InputError where an image cannot be decoded."""
        fits = len(crops) * size * size * 3 / 2**20 <= memory_mb
        return CropCache(crops, context, size, tuple(crops.images(context=context, size=size)) if fits else ())

    def __getitem__(self, i: int) -> ImageArray:
        """(size, size, 3) uint8 of crop `i`."""
        if self._images:
            return self._images[i]
        return next(self.crops.filter(np.arange(len(self.crops)) == i).images(context=self.context, size=self.size))


def object_crops(dataset: Dataset) -> Crops:
    """The annotated objects of a dataset, without crowd regions."""
    annotations = [
        (i, s.annotations.clipped(s.width, s.height))
        for i, s in enumerate(dataset.samples)
        if s.annotations is not None
    ]
    objects = [(i, a[~a.crowd]) for i, a in annotations]
    return Crops(
        dataset.samples,
        np.repeat([i for i, _ in objects], [len(a) for _, a in objects]).astype(np.int64),
        np.concatenate([np.zeros((0, 4)), *(a.boxes for _, a in objects)]),
        np.concatenate([np.zeros(0, np.int64), *(a.labels for _, a in objects)]),
    )


def image_crops(dataset: Dataset) -> Crops:
    """Each image as one crop that covers all of it, with the label of its object where one is annotated."""
    labels = [int(s.annotations.labels[0]) if s.annotations is not None else -1 for s in dataset.samples]
    boxes = np.array([(0, 0, s.width, s.height) for s in dataset.samples], np.float64)
    return Crops(dataset.samples, np.arange(len(dataset)), boxes, np.array(labels, np.int64))


def detection_crops(predictions: Predictions, samples: Sequence[Sample], *, max_per_image: int) -> tuple[Crops, Array]:
    """The boxes with the highest scores of each image, without labels; and (n,) their rows in `predictions`.

    `samples` must be the predicted images, in the order of `predictions`.
    """
    assert [s.id for s in samples] == predictions.image_ids.tolist(), "the samples are not the predicted images"
    image_index = predictions.image_index
    order = np.lexsort((-predictions.scores, image_index))
    rank = np.arange(len(order)) - predictions.offsets[:-1][image_index]
    rows = order[rank < max_per_image]
    return Crops(samples, image_index[rows], predictions.boxes[rows], np.full(len(rows), -1)), rows


def square_around(box: Array, context: float) -> tuple[float, float, float]:
    """(left, top, side) of the square around an xyxy box; its side is `context` times the longer side of the box."""
    side = max(float((box[2:] - box[:2]).max()) * context, MIN_CROP_PX)
    left, top = ((box[:2] + box[2:]) / 2 - side / 2).tolist()
    return left, top, side


def crop_square(image: ImageArray, box: Array, *, context: float, size: int) -> ImageArray:
    """(size, size, 3): the square around `box`, with padding where it reaches beyond the image."""
    height, width = image.shape[:2]
    left, top, side = square_around(box, context)
    inside = np.array([max(0.0, left), max(0.0, top), min(width, left + side), min(height, top + side)])
    out = np.full((size, size, 3), PAD_VALUE, np.uint8)
    x1, y1, x2, y2 = (int(v) for v in np.rint((inside - [left, top, left, top]) * size / side).clip(0, size))
    if x2 > x1 and y2 > y1:
        part = Image.fromarray(image).resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR, tuple(inside))
        out[y1:y2, x1:x2] = np.asarray(part)
    return out
