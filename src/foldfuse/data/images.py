"""Images: from a file to pixels, and from pixels to the network's input and back.

Shapes: pictures are (height, width, 3) uint8 RGB arrays. A canvas is the (height, width) of the network's input.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foldfuse.data.dataset import Sample
from foldfuse.detections import Array, Detections
from foldfuse.errors import InputError

ImageArray = NDArray[np.uint8]
PAD_VALUE = 114  # what a canvas is filled with where no picture lies


def load_image(path: Path, *, longest: int | None = None) -> ImageArray:
    """(H, W, 3) uint8 RGB of the picture in a file, shrunk so that no side is longer than `longest` pixels.

    A JPEG is decoded at a fraction of its size where that is enough, which is several times faster. The orientation
    tag is not applied: COCO's boxes are drawn on the pixels as they are stored.

    Raises:
        InputError: the file is missing or cannot be decoded.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size
            if longest is not None and max(width, height) > longest:
                scale = longest / max(width, height)
                size = (max(1, round(width * scale)), max(1, round(height * scale)))
                file.draft("RGB", size)
                return np.array(file.convert("RGB").resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
            return np.array(file.convert("RGB"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such picture.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path}: cannot be decoded as a picture ({error}). Replace it, or remove it from the JSON."
        ) from None


@dataclass(frozen=True, slots=True)
class Letterbox:
    """How a picture is laid on a canvas: scaled by one factor, top-left, the rest grey. Knows the way back.

    Attributes:
        width, height: of the picture in its file, pixels.
        canvas: (height, width) of the network's input.
    """

    width: int
    height: int
    canvas: tuple[int, int]

    @property
    def scale(self) -> float:
        """Canvas pixels per picture pixel."""
        return min(self.canvas[0] / self.height, self.canvas[1] / self.width)

    def apply(self, picture: ImageArray) -> ImageArray:
        """(H, W, 3) pixels of the picture, perhaps shrunk already -> (*canvas, 3)."""
        out = np.full((*self.canvas, 3), PAD_VALUE, np.uint8)
        size = (max(1, round(self.width * self.scale)), max(1, round(self.height * self.scale)))
        if picture.shape[:2] != (size[1], size[0]):
            picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
        out[: size[1], : size[0]] = picture[: self.canvas[0], : self.canvas[1]]
        return out

    def apply_boxes(self, boxes: Array) -> Array:
        """(n, 4) xyxy in picture pixels -> in canvas pixels."""
        return boxes * self.scale

    def invert_boxes(self, found: Detections) -> Detections:
        """Detections in canvas pixels -> in picture pixels, cut to the picture; those wholly on the grey are gone."""
        limit = np.array([self.width, self.height, self.width, self.height], np.float32)
        boxes = np.clip(found.boxes / np.float32(self.scale), 0, limit)
        kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return Detections(boxes[kept], found.scores[kept], found.labels[kept])


def canvas_for(samples: Sequence[Sample], *, image_size: int, stride: int) -> tuple[int, int]:
    """The smallest (height, width), multiples of `stride`, on which every picture fits when its longest side is `image_size`.

    Where all pictures are of one shape, 640 x 480 say, this saves the grey quarter that a square would carry.
    """
    height = max(min(1.0, s.height / s.width) for s in samples) * image_size
    width = max(min(1.0, s.width / s.height) for s in samples) * image_size
    return _ceil(height, stride), _ceil(width, stride)


def _ceil(value: float, step: int) -> int:
    return int(-(-(value - 1e-6) // step) * step)


@dataclass(frozen=True, eq=False)
class ImageCache:
    """The pictures of some samples, decoded once: kept in memory up to a limit, beyond it in a file, else not kept.

    Attributes:
        samples: whose pictures they are.
        longest: the side, in pixels, that they are shrunk to.
    """

    samples: Sequence[Sample]
    longest: int
    _kept: tuple[ImageArray, ...]

    @staticmethod
    def load(
        samples: Sequence[Sample], *, longest: int, memory_mb: float = 800.0, disk_mb: float = 20_000.0
    ) -> ImageCache:
        """Pictures ready to be looked at.

        Args:
            samples: whose pictures they are.
            longest: the side, in pixels, that they are shrunk to.
            memory_mb: that decoded pictures may take in memory.
            disk_mb: that the rest may take in a temporary file, which has no name and so is gone with the process, however
                that ends; no more than half of what is free is taken. Pictures beyond both are decoded at every look.

        Raises:
            InputError: a picture is missing or cannot be decoded.
        """
        free = shutil.disk_usage(tempfile.gettempdir()).free / 2**20
        memory, disk = memory_mb * 2**20, min(disk_mb, free / 2) * 2**20
        sizes = []
        for s in samples:
            scale = min(1.0, longest / max(s.width, s.height))
            sizes.append(round(s.width * scale) * round(s.height * scale) * 3)
        total = np.cumsum(sizes)
        here, either = int(np.searchsorted(total, memory, "right")), int(np.searchsorted(total, memory + disk, "right"))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = pool.map(lambda s: load_image(s.path, longest=longest), samples[:here])
            kept = tuple(decoded)
            if either > here:
                kept += _on_disk(pool.map(lambda s: load_image(s.path, longest=longest), samples[here:either]))
        return ImageCache(samples, longest, kept)

    def __add__(self, more: ImageCache) -> ImageCache:
        """These pictures and those of `more` behind them, all shrunk to the same side."""
        whole = len(self._kept) == len(self.samples)  # else there would be a gap
        kept = self._kept + more._kept if whole else self._kept
        return ImageCache((*self.samples, *more.samples), self.longest, kept)

    def __getitem__(self, i: int) -> ImageArray:
        """(H, W, 3) uint8 of sample `i`."""
        return self._kept[i] if i < len(self._kept) else load_image(self.samples[i].path, longest=self.longest)


def _on_disk(pictures: Iterable[ImageArray]) -> tuple[ImageArray, ...]:
    """The same pictures, each a view of a temporary file that the system reads in and forgets as it sees fit."""
    shapes = []
    with tempfile.TemporaryFile(prefix="foldfuse-") as file:
        for picture in pictures:
            shapes.append(picture.shape)
            file.write(picture.tobytes())
        file.flush()
        flat = np.memmap(file, np.uint8, "r")
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    return tuple(flat[end - math.prod(shape) : end].reshape(shape) for end, shape in zip(ends, shapes, strict=True))


def scale_of(sample: Sample, picture: NDArray[Any]) -> tuple[float, float]:
    """(x, y) factors from the pixels of `sample` to those of its perhaps shrunk `picture`."""
    return picture.shape[1] / sample.width, picture.shape[0] / sample.height
