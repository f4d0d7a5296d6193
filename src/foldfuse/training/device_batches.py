"""Batches of many datasets, whose images lie decoded on the device and are augmented there, all of a batch at once.

The changes are those of `data.augment`: one affine map per image does scale jitter, translation, crop and flips; four images
make a mosaic; the colours of the result are jittered. The random numbers are drawn on the CPU, from (seed, step) alone.

Shapes: N images, S side of the squares that they are kept in, M objects; B images of a batch, P parts of them (a mosaic has
four), H x W the canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foldfuse.boxes import area
from foldfuse.data.augment import MIN_SIDE, MIN_VISIBLE
from foldfuse.data.dataset import Sample
from foldfuse.data.images import PAD_VALUE, load_image, scale_of
from foldfuse.detections import Annotations, Array
from foldfuse.recipes import Recipe
from foldfuse.system.host import usable_cores

_MOSAIC_COVER = 0.7  # of a quarter of a mosaic: see `data.augment.draw_affine`
_GRAY = (0.299, 0.587, 0.114)  # weights of red, green and blue in the brightness that an eye sees


class SourceTarget(NamedTuple):
    """The annotations on an image of a batch, and the dataset that the image comes from.

    Attributes:
        annotations: in pixels of the canvas.
        source: position in the list of datasets.
    """

    annotations: Annotations
    source: int


@dataclass(frozen=True, eq=False)
class DeviceImages:
    """The decoded images of some samples in one tensor on a device, with their objects.

    Attributes:
        pixels: (N, 3, S, S) uint8; each image lies at the top left, the rest is gray.
        sizes: (N, 2) width and height of each image, in these pixels.
        boxes: (M, 4) xyxy in these pixels; crowd regions are left out.
        labels: (M,).
        offsets: (N + 1,); image i has the objects offsets[i]:offsets[i + 1].
    """

    pixels: Tensor
    sizes: Array
    boxes: Array
    labels: Array
    offsets: Array

    @staticmethod
    def load(samples: Sequence[Sample], *, longest: int, device: torch.device | str) -> DeviceImages:
        """Decode the images of annotated samples; larger ones are shrunk to a longest side of `longest` pixels.

        Raises:
            InputError: an image is missing or cannot be decoded.
        """
        pixels = torch.full((len(samples), 3, longest, longest), PAD_VALUE, dtype=torch.uint8)
        sizes, boxes, labels = np.zeros((len(samples), 2)), [np.zeros((0, 4))], [np.zeros(0, np.int64)]
        offsets = np.zeros(len(samples) + 1, np.int64)
        with ThreadPoolExecutor(usable_cores()) as pool:
            for i, image in enumerate(pool.map(lambda s: load_image(s.path, longest=longest), samples)):
                height, width = image.shape[:2]
                pixels[i, :, :height, :width] = torch.from_numpy(image).permute(2, 0, 1)
                sizes[i] = width, height
                annotations = samples[i].annotations
                assert annotations is not None
                objects = annotations[~annotations.crowd]
                boxes.append(objects.boxes * np.tile(scale_of(samples[i], image), 2))
                labels.append(objects.labels)
                offsets[i + 1] = offsets[i] + len(objects)
        return DeviceImages(pixels.to(device), sizes, np.concatenate(boxes), np.concatenate(labels), offsets)


@dataclass(frozen=True, eq=False)
class DeviceBatches:
    """A `BatchSource` of images that are drawn from several datasets; its targets are `SourceTarget`s.

    Attributes:
        samples: annotated; the images of one dataset follow each other.
        images: the images of the samples.
        source: (N,) int64, in ascending order, the dataset of each sample. A mosaic joins images of one dataset.
        probability: (N,) of each sample to be drawn.
        recipe: batch size and augmentation.
        canvas: (height, width) of the network's input.
        seed: the seed of all randomness.
    """

    samples: Sequence[Sample]
    images: DeviceImages
    source: Array
    probability: Array
    recipe: Recipe
    canvas: tuple[int, int]
    seed: int

    @property
    def mosaic_until(self) -> float:
        """The recipe's share of the budget from which on there are no mosaics."""
        return self.recipe.mosaic_until

    def indices(self, step: int) -> list[int]:
        """Positions in `samples` of a step's batch; of a mosaic, its first image."""
        rng = np.random.default_rng((self.seed, 1, step))
        return rng.choice(len(self.samples), self.recipe.batch_size, p=self.probability).tolist()

    def batch(self, step: int, shard: range | None = None, *, mosaic: bool = True) -> tuple[Tensor, list[SourceTarget]]:
        """(B, 3, H, W) uint8 on the device of the images, and B targets; see `Batches.batch`."""
        first = np.array(self.indices(step))
        rng = np.random.default_rng((self.seed, 2, step))
        begin, end = (np.searchsorted(self.source, self.source[first], side) for side in ("left", "right"))
        members = np.column_stack([first, rng.integers(begin[:, None], end[:, None], (len(first), 3))])  # (B, 4)
        is_mosaic = (rng.random(len(first)) < self.recipe.mosaic) & mosaic
        parts = draw_parts(members, is_mosaic, self.images.sizes, self.canvas, self.recipe, rng)
        factors = rng.uniform(1 - self.recipe.color_jitter, 1 + self.recipe.color_jitter, (len(first), 3))
        if shard is not None:
            parts = parts.within(shard)
            first, factors = first[list(shard)], factors[list(shard)]
        pixels = jitter_colors(paint(parts, self.images.pixels, len(first), self.canvas), factors)
        annotations = place_objects(parts, self.images, len(first))
        return pixels, [SourceTarget(a, int(s)) for a, s in zip(annotations, self.source[first], strict=True)]


class Parts(NamedTuple):
    """Where the parts of a batch's images go. Canvas = image * scale + shift, within the window.

    Attributes:
        position: (P,) int64, in ascending order, the image of the batch that a part belongs to.
        image: (P,) int64, index into N.
        scale: (P, 2) of x and y; negative where the image is mirrored.
        shift: (P, 2) of x and y, in canvas pixels.
        window: (P, 4) xyxy part of the canvas, in whole pixels, that the part fills.
    """

    position: Array
    image: Array
    scale: Array
    shift: Array
    window: Array

    def within(self, positions: range) -> Parts:
        """The parts of the images at some positions, which are counted from 0 again."""
        kept = (self.position >= positions.start) & (self.position < positions.stop)
        return Parts(self.position[kept] - positions.start, *(column[kept] for column in self[1:]))


def draw_parts(
    members: Array,
    is_mosaic: Array,
    sizes: Array,
    canvas: tuple[int, int],
    recipe: Recipe,
    rng: np.random.Generator,
) -> Parts:
    """The parts of a batch with random scales, shifts and flips.

    Args:
        members: (B, 4) images that a mosaic would have; a single image is the first one.
        is_mosaic: (B,) bool.
        sizes: (N, 2) width and height of the images.
        canvas: (height, width).
        recipe: the ranges of the changes.
        rng: source of all randomness.
    """
    batch, (height, width) = len(members), canvas
    middle = (rng.uniform(0.3, 0.7, (batch, 2)) * (width, height)).astype(int)  # where a mosaic's quarters meet
    x, y = middle[:, 0], middle[:, 1]
    zero, right, bottom = np.zeros_like(x), np.full_like(x, width), np.full_like(x, height)
    quarters = ((zero, zero, x, y), (x, zero, right, y), (zero, y, x, bottom), (x, y, right, bottom))
    windows = np.stack([np.stack(quarter, 1) for quarter in quarters], 1)  # (B, 4, 4)
    windows[~is_mosaic, 0] = (0, 0, width, height)
    jitter = np.exp(rng.uniform(-1, 1, (batch, 4)) * np.log1p(recipe.scale_jitter))
    mirror = rng.random((batch, 4, 2)) < (recipe.hflip, recipe.vflip)
    where = rng.random((batch, 4, 2))

    used = np.ones((batch, 4), bool)
    used[~is_mosaic, 1:] = False
    position = np.nonzero(used)[0]
    image, window, jitter, mirror, where = members[used], windows[used], jitter[used], mirror[used], where[used]
    room = (window[:, 2:] - window[:, :2]).astype(float)  # (P, 2) width and height
    ratio = room / sizes[image]
    cover = np.where(is_mosaic[position], _MOSAIC_COVER, 0.0)
    factor = (ratio.min(1) ** (1 - cover) * ratio.max(1) ** cover * jitter)[:, None]  # (P, 1)
    side = sizes[image] * factor
    slack, beyond = room - side, recipe.translate * room
    low, high = np.minimum(slack, 0) - beyond, np.maximum(slack, 0) + beyond
    near = window[:, :2] + low + where * (high - low)
    return Parts(position, image, np.where(mirror, -factor, factor), near + np.where(mirror, side, 0), window)


def paint(parts: Parts, pixels: Tensor, batch: int, canvas: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) float32 in 0..255: the parts on their canvases, gray elsewhere.

    Args:
        parts: the parts of the batch.
        pixels: (N, 3, S, S) uint8.
        batch: B.
        canvas: (height, width).
    """
    (height, width), stored, device = canvas, pixels.shape[-1], pixels.device
    out = torch.zeros((batch, 3, height, width), device=device)  # less the gray, so that what lies outside is 0
    # From the canvas to the image in grid_sample's coordinates, in which each side runs from -1 to 1.
    sides = np.array([width, height])
    theta = np.zeros((len(parts.image), 2, 3), np.float32)
    theta[:, [0, 1], [0, 1]] = sides / (stored * parts.scale)
    theta[:, :, 2] = (sides - 2 * parts.shift) / (stored * parts.scale) - 1
    order = np.arange(len(parts.image)) - np.searchsorted(parts.position, parts.position)  # of a part in its image
    maps, windows = torch.from_numpy(theta).to(device), torch.from_numpy(parts.window).to(device)
    image, position = torch.from_numpy(parts.image).to(device), torch.from_numpy(parts.position).to(device)
    x, y = torch.arange(width, device=device), torch.arange(height, device=device)[:, None]
    for i in range(int(order.max(initial=-1)) + 1):
        now = torch.from_numpy(np.nonzero(order == i)[0]).to(device)
        grid = F.affine_grid(maps[now], [len(now), 3, height, width], align_corners=False)
        sampled = F.grid_sample(pixels[image[now]].float() - PAD_VALUE, grid, align_corners=False)
        left, top, right, bottom = windows[now].T[:, :, None, None]  # each (n, 1, 1)
        inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)
        out[position[now]] += sampled * inside[:, None]
    return out + PAD_VALUE


def jitter_colors(images: Tensor, factors: Array) -> Tensor:
    """(B, 3, H, W) uint8: images in 0..255 with brightness, contrast and saturation multiplied by the (B, 3) factors."""
    brightness, contrast, saturation = (
        torch.from_numpy(factors.astype(np.float32)).to(images.device).T[:, :, None, None, None]
    )  # each (B, 1, 1, 1)
    weights = torch.tensor(_GRAY, device=images.device)[:, None, None]
    images = (images * brightness).clamp(0, 255)
    mean = (images * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    images = (mean + (images - mean) * contrast).clamp(0, 255)
    gray = (images * weights).sum(1, keepdim=True)
    return (gray + (images - gray) * saturation).clamp(0, 255).round().to(torch.uint8)


def place_objects(parts: Parts, images: DeviceImages, batch: int) -> list[Annotations]:
    """B Annotations in canvas pixels: clipped to the part's window; objects too little in view are dropped."""
    counts = images.offsets[parts.image + 1] - images.offsets[parts.image]
    part = np.repeat(np.arange(len(counts)), counts)
    row = np.arange(len(part)) - np.repeat(np.cumsum(counts) - counts, counts) + images.offsets[parts.image][part]
    corners = images.boxes[row].reshape(-1, 2, 2) * parts.scale[part, None] + parts.shift[part, None]  # (n, 2, xy)
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
    window = parts.window[part]
    clipped = np.clip(boxes, np.tile(window[:, :2], 2), np.tile(window[:, 2:], 2))
    sides: Array = clipped[:, 2:] - clipped[:, :2]
    kept = (area(clipped) >= MIN_VISIBLE * area(boxes)) & (sides.min(1, initial=np.inf) >= MIN_SIDE)
    clipped, labels = clipped[kept], images.labels[row][kept]
    ends = np.cumsum(np.bincount(parts.position[part][kept], minlength=batch))
    crowd, areas = np.zeros(len(clipped), bool), area(clipped)
    return [
        Annotations(clipped[a:b], labels[a:b], crowd[a:b], areas[a:b])
        for a, b in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True)
    ]
