"""Crops: the square around a box, cut out of its picture and laid on a canvas; and all the crops of some pictures.

A crop is square, so that nothing is stretched: its side is the box's longer one times a context factor, and what lies outside
of the picture is grey. Pictures are decoded once, each with all of its crops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.images import PAD_VALUE, ImageArray, load_image, scale_of
from foldfuse.detections import Array, Predictions

LEAST = 4.0  # pixels: the side of the smallest region that is cut out


@dataclass(frozen=True, eq=False)
class Crops:
    """Boxes of some pictures, in columns, each to be looked at alone.

    Attributes:
        samples: the pictures.
        image_index: (n,) int64, rising: for each box, the position of its picture in `samples`.
        boxes: (n, 4) xyxy in pixels of the original pictures.
        labels: (n,) int64, positions in the list of class names; -1 where it is not known.
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
        assert (np.diff(self.image_index) >= 0).all(), "image_index must rise"

    def __len__(self) -> int:
        return len(self.boxes)

    def filter(self, mask: Array) -> Crops:
        """Those picked by a (n,) bool mask."""
        return Crops(self.samples, self.image_index[mask], self.boxes[mask], self.labels[mask])

    def images(self, *, context: float, size: int) -> Iterator[ImageArray]:
        """Each crop in turn, (size, size, 3). Raises InputError where a picture cannot be decoded."""
        for i in np.unique(self.image_index):
            sample = self.samples[i]
            picture = load_image(sample.path)
            scale = np.array(scale_of(sample, picture) * 2)
            for box in self.boxes[self.image_index == i].astype(np.float64) * scale:
                yield crop_square(picture, box, context=context, size=size)


@dataclass(frozen=True, eq=False)
class CropCache:
    """Crops cut once where memory allows, else at every look.

    Attributes:
        crops: what is cut.
        context, size: how; see `cut`.
    """

    crops: Crops
    context: float
    size: int
    _kept: tuple[ImageArray, ...]

    @staticmethod
    def load(crops: Crops, *, context: float, size: int, memory_mb: float = 800.0) -> CropCache:
        """Crops ready to be looked at. Raises InputError where a picture cannot be decoded."""
        fits = len(crops) * size * size * 3 / 2**20 <= memory_mb
        return CropCache(crops, context, size, tuple(crops.images(context=context, size=size)) if fits else ())

    def __getitem__(self, i: int) -> ImageArray:
        """(size, size, 3) uint8 of crop `i`."""
        if self._kept:
            return self._kept[i]
        return next(self.crops.filter(np.arange(len(self.crops)) == i).images(context=self.context, size=self.size))


def object_crops(dataset: Dataset) -> Crops:
    """The annotated objects of a dataset; crowd regions are left out."""
    drawn = [s.annotations[~s.annotations.crowd] if s.annotations is not None else None for s in dataset.samples]
    known = [(i, each) for i, each in enumerate(drawn) if each is not None]
    return Crops(
        dataset.samples,
        np.repeat([i for i, _ in known], [len(each) for _, each in known]).astype(np.int64),
        np.concatenate([np.zeros((0, 4)), *(each.boxes for _, each in known)]),
        np.concatenate([np.zeros(0, np.int64), *(each.labels for _, each in known)]),
    )


def image_crops(dataset: Dataset) -> Crops:
    """Each picture as one crop, all of it; with the label of its object where one is annotated."""
    labels = [int(s.annotations.labels[0]) if s.annotations is not None else -1 for s in dataset.samples]
    boxes = np.array([(0, 0, s.width, s.height) for s in dataset.samples], np.float64)
    return Crops(dataset.samples, np.arange(len(dataset)), boxes, np.array(labels, np.int64))


def detection_crops(predictions: Predictions, samples: Sequence[Sample], *, max_per_image: int) -> tuple[Crops, Array]:
    """The `most` boxes of the highest scores of each picture, labels unknown; and (n,) their rows in `predictions`.

    `samples` must be the pictures that were predicted, in the order of `predictions`.
    """
    assert [s.id for s in samples] == predictions.image_ids.tolist(), "the samples are not those that were predicted"
    image = predictions.image_index
    order = np.lexsort((-predictions.scores, image))
    rank = np.arange(len(order)) - predictions.offsets[:-1][image]
    rows = order[rank < max_per_image]
    return Crops(samples, image[rows], predictions.boxes[rows], np.full(len(rows), -1)), rows


def square_around(box: Array, context: float) -> tuple[float, float, float]:
    """(left, top, side) of the square around an xyxy box, its side `context` times the longer one of the box."""
    side = max(float((box[2:] - box[:2]).max()) * context, LEAST)
    left, top = ((box[:2] + box[2:]) / 2 - side / 2).tolist()
    return left, top, side


def crop_square(picture: ImageArray, box: Array, *, context: float, size: int) -> ImageArray:
    """(size, size, 3): the square around `box`, with grey where it reaches beyond the picture."""
    height, width = picture.shape[:2]
    left, top, side = square_around(box, context)
    seen = np.array([max(0.0, left), max(0.0, top), min(width, left + side), min(height, top + side)])
    out = np.full((size, size, 3), PAD_VALUE, np.uint8)
    x1, y1, x2, y2 = (int(v) for v in np.rint((seen - [left, top, left, top]) * size / side).clip(0, size))
    if x2 > x1 and y2 > y1:
        part = Image.fromarray(picture).resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR, tuple(seen))
        out[y1:y2, x1:x2] = np.asarray(part)
    return out
