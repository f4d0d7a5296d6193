"""Loads images, keeps them in a cache, and letterboxes them onto the network's input and back.

Shapes: images are (height, width, 3) uint8 RGB arrays. A canvas is the (height, width) of the network's input.
"""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foldfuse.data.dataset import Sample
from foldfuse.data.decoding import decode
from foldfuse.data.image_file import UPRIGHT
from foldfuse.data.value_ranges import ValueRange
from foldfuse.detections import Array, Detections
from foldfuse.system.host import usable_cores

log = logging.getLogger(__name__)

ImageArray = NDArray[np.uint8]
BLACK_MEAN = 2.5  # of 255
PAD_VALUE = 114  # the gray of a canvas outside its image


def load_image(
    path: Path, *, orientation: int = 1, longest: int | None = None, value_range: ValueRange | None = None
) -> ImageArray:
    """(H, W, 3) uint8 RGB of an image file, shrunk so that no side is longer than `longest` pixels.

    A JPEG is decoded at a fraction of its size where the fraction is large enough, which is several times faster.

    Args:
        path: the image file.
        orientation: EXIF orientation to apply to the stored pixels, 1 (none) to 8, as `pixels.open_images` decides.
        longest: the longest side in pixels; None for the size of the file.
        value_range: values that become black and white in a file of more than 8 bits; None for those of the file alone.

    Raises:
        InputError: the file is missing or cannot be decoded.
    """
    image = decode(path, longest=longest, value_range=value_range)
    return np.array(image.transpose(UPRIGHT[orientation]) if orientation != 1 else image)


def load_sample(sample: Sample, *, longest: int | None = None) -> ImageArray:
    """(H, W, 3) uint8 RGB of a sample's image in its orientation; see `load_image`.

    Raises:
        InputError: the file is missing or cannot be decoded; or it was not looked at yet, and has another size than the sample.
    """
    return np.array(sample.load(longest=longest))


def has_one_colour(image: ImageArray) -> bool:
    """Whether all pixels of an image (H, W, 3) have the same colour."""
    return bool((image[0] == image[0, 0]).all() and (image == image[0, 0]).all())


def is_all_but_black(image: ImageArray) -> bool:
    """Whether an image (H, W, 3) is so dark that next to nothing can be seen, as where a few values outshine all others."""
    return bool(image[::4, ::4].mean() < BLACK_MEAN)


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Scales an image to fit a canvas, puts it at the top left, and pads the rest; maps boxes both ways.

    The sides on the canvas are whole pixels, so their factors differ from `scale` by up to half a pixel of the canvas, and boxes
    follow them.

    Attributes:
        width, height: size of the image in its file, in pixels.
        canvas: (height, width) of the network's input.
    """

    width: int
    height: int
    canvas: tuple[int, int]

    @property
    def scale(self) -> float:
        """Canvas pixels per image pixel, before the sides become whole pixels."""
        return min(self.canvas[0] / self.height, self.canvas[1] / self.width)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the image on the canvas."""
        return max(1, round(self.width * self.scale)), max(1, round(self.height * self.scale))

    @property
    def _factors(self) -> Array:
        """(4,): canvas pixels per image pixel of x, y, x, y."""
        factors: Array = np.array([self.size[0] / self.width, self.size[1] / self.height] * 2)
        return factors

    def apply(self, image: ImageArray) -> ImageArray:
        """The canvas (*canvas, 3) with the image (H, W, 3) on it; the image may have been shrunk by `load_image`."""
        out = np.full((*self.canvas, 3), PAD_VALUE, np.uint8)
        size = self.size
        if image.shape[:2] != (size[1], size[0]):
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        out[: size[1], : size[0]] = image[: self.canvas[0], : self.canvas[1]]
        return out

    def apply_boxes(self, boxes: Array) -> Array:
        """(n, 4) xyxy in image pixels -> in canvas pixels."""
        return boxes * self._factors

    def invert_boxes(self, detections: Detections) -> Detections:
        """Detections in canvas pixels -> in image pixels, clipped to the image; boxes wholly on the padding are dropped."""
        limit = np.array([self.width, self.height, self.width, self.height], np.float32)
        boxes = np.clip(detections.boxes / self._factors.astype(np.float32), 0, limit)
        kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return Detections(boxes[kept], detections.scores[kept], detections.labels[kept])


def canvas_for(samples: Sequence[Sample], *, image_size: int, stride: int) -> tuple[int, int]:
    """The smallest (height, width), multiples of `stride`, on which every image fits when its longest side is `image_size`.

    Where all images have one shape, such as 640 x 480, the canvas has none of the padding that fills a quarter of a square.
    """
    canvases = [canvas_of(s.width, s.height, image_size=image_size, stride=stride) for s in samples]
    return max(height for height, _ in canvases), max(width for _, width in canvases)


def canvas_of(width: int, height: int, *, image_size: int, stride: int) -> tuple[int, int]:
    """`canvas_for` of one image or tile, given its sides."""
    return (
        _ceil(min(1.0, height / width) * image_size, stride),
        _ceil(min(1.0, width / height) * image_size, stride),
    )


def _ceil(value: float, step: int) -> int:
    return int(-(-(value - 1e-6) // step) * step)


@dataclass(frozen=True, eq=False)
class ImageCache:
    """The decoded images of some samples: first in memory, then in a temporary file; images beyond both are decoded on access.

    Attributes:
        samples: the samples.
        longest: the longest side of the cached images, in pixels; larger images were shrunk to it.
    """

    samples: Sequence[Sample]
    longest: int
    _images: tuple[ImageArray | None, ...] = field(repr=False)  # None: decoded on access

    @staticmethod
    def load(
        samples: Sequence[Sample], *, longest: int, memory_mb: float = 800.0, disk_mb: float = 20_000.0
    ) -> ImageCache:
        """A filled cache of the images of `samples`.

        Args:
            samples: the samples.
            longest: the longest side, in pixels, to shrink images to.
            memory_mb: memory for decoded images.
            disk_mb: disk space for the next images, in a temporary file without a name, which vanishes when the process
                ends; at most half of the free space is used. Further images are decoded on every access.

        Raises:
            InputError: an image is missing or cannot be decoded.
        """
        free = shutil.disk_usage(tempfile.gettempdir()).free / 2**20
        memory, disk = memory_mb * 2**20, min(disk_mb, free / 2) * 2**20
        sizes = []
        for s in samples:
            scale = min(1.0, longest / max(s.width, s.height))
            sizes.append(round(s.width * scale) * round(s.height * scale) * 3)
        total = np.cumsum(sizes)
        in_memory = int(np.searchsorted(total, memory, "right"))
        cached = int(np.searchsorted(total, memory + disk, "right"))
        with ThreadPoolExecutor(usable_cores()) as pool:
            images = tuple(pool.map(lambda s: load_sample(s, longest=longest), samples[:in_memory]))
            if cached > in_memory:
                images += _on_disk(pool.map(lambda s: load_sample(s, longest=longest), samples[in_memory:cached]))
        for is_odd, words in ((has_one_colour, "have one colour all over"), (is_all_but_black, "are all but black")):
            odd = [s.file_name for s, image in zip(samples, images, strict=False) if is_odd(image)]
            if odd:
                sentence = "%d of %d images %s, such as %s. Are they what they should be?"
                log.warning(sentence, len(odd), len(samples), words, odd[0])
        return ImageCache(samples, longest, images + (None,) * (len(samples) - len(images)))

    def __add__(self, more: ImageCache) -> ImageCache:
        """The cache of these samples, followed by the samples of `more`; both caches must have the same `longest`."""
        assert self.longest == more.longest, f"caches of {self.longest} and {more.longest} px cannot be joined"
        return ImageCache((*self.samples, *more.samples), self.longest, self._images + more._images)

    def of(self, samples: Sequence[Sample]) -> ImageCache:
        """The cache of some of its samples, in the order given; no image is copied."""
        position = {sample.id: i for i, sample in enumerate(self.samples)}
        return ImageCache(samples, self.longest, tuple(self._images[position[sample.id]] for sample in samples))

    def __getitem__(self, i: int) -> ImageArray:
        """(H, W, 3) uint8 of sample `i`."""
        image = self._images[i]
        return load_sample(self.samples[i], longest=self.longest) if image is None else image


def _on_disk(images: Iterable[ImageArray]) -> tuple[ImageArray, ...]:
    """The images as arrays in a memory-mapped temporary file."""
    shapes = []
    with tempfile.TemporaryFile(prefix="foldfuse-") as file:
        for image in images:
            shapes.append(image.shape)
            file.write(image.tobytes())
        file.flush()
        flat = np.memmap(file, np.uint8, "r")
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    return tuple(flat[end - math.prod(shape) : end].reshape(shape) for end, shape in zip(ends, shapes, strict=True))


def scale_of(sample: Sample, image: NDArray[Any]) -> tuple[float, float]:
    """(x, y) factors from the pixels of `sample` to pixels of its image, which may have been shrunk by `load_image`."""
    return image.shape[1] / sample.width, image.shape[0] / sample.height
