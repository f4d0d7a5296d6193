"""Runs a detector on images in several TTA views: letterbox, network, decoding, and back to pixels of the images.

The detector is a function of numpy arrays, so that this works with any runtime, and without torch. While it works on a batch,
threads decode and letterbox the next one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from foldfuse.data.dataset import Sample
from foldfuse.data.images import ImageArray, Letterbox, canvas_for, load_sample
from foldfuse.detections import Array, Detections, Predictions
from foldfuse.inference.tta import View
from foldfuse.system.progress import Progress, no_progress

BATCH_SIZE = 16  # images of 256 px at a time
MAX_THREADS = 8  # that decode images: more wait for the disk, and for one another

Detect = Callable[[Array], list[Detections]]  # (B, H, W, 3) uint8 -> B detections in pixels of these
Canvas = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class Batch:
    """Images that are predicted together, since they have the same canvas in each view.

    Attributes:
        samples: the images.
        canvases: (height, width) of the network's input in each view.
    """

    samples: Sequence[Sample]
    canvases: Sequence[Canvas]

    @property
    def pixels(self) -> int:
        """The pixels that the network sees of all images in all views."""
        return len(self.samples) * sum(height * width for height, width in self.canvases)


def predict_images(
    detect: Detect,
    samples: Sequence[Sample],
    classes: Sequence[str],
    *,
    image_size: int,
    stride: int,
    views: Sequence[View],
    batch_size: int = BATCH_SIZE,
    longest: int | None = None,
    expect: Callable[[int], None] | None = None,
    progress: Progress = no_progress,
) -> dict[View, Predictions]:
    """The predictions on every image in each of `views`; boxes in pixels of the original images.

    Args:
        detect: the detector.
        samples: the images.
        classes: names of its classes.
        image_size: the longest side, in pixels, that the detector was trained at.
        stride: sides of its input are multiples of it.
        views: TTA views of each image.
        batch_size: images of 256 px at a time; fewer larger ones, so that memory stays the same.
        longest: the longest side, in pixels, that images are decoded at; that of the largest view by default. The pixels of a
            smaller view depend on it.
        expect: is told beforehand how many pixels the detector will see.
        progress: gets the finished share of the work.

    Raises:
        InputError: an image is missing or cannot be decoded.
    """
    detections: dict[View, dict[int, Detections]] = {
        view: {s.id: Detections.empty() for s in samples} for view in views
    }
    sizes = [view.image_size(image_size, stride) for view in views]
    largest = longest or max(sizes)
    batches = batches_of_one_shape(samples, sizes, stride, max(1, round(batch_size * (256 / largest) ** 2)))
    if expect is not None:
        expect(sum(batch.pixels for batch in batches))
    done = 0
    for batch, images in _loaded(batches, largest):
        for i, (view, canvas) in enumerate(zip(views, batch.canvases, strict=True)):
            found = detect(np.ascontiguousarray(view.apply(np.stack([of_views[i] for of_views in images]))))
            for sample, one in zip(batch.samples, found, strict=True):
                letterbox = Letterbox(sample.width, sample.height, canvas)
                detections[view][sample.id] = letterbox.invert_boxes(view.invert(one, canvas))
        done += len(batch.samples)
        progress(done / len(samples))
    return {view: Predictions.of(by_image, classes) for view, by_image in detections.items()}


def batches_of_one_shape(samples: Sequence[Sample], sizes: Sequence[int], stride: int, max_batch: int) -> list[Batch]:
    """Batches of samples that have the same canvas at each of `sizes`.

    The detections in an image thus do not depend on the other images of its batch.
    """
    groups: dict[tuple[Canvas, ...], list[Sample]] = {}
    for sample in samples:
        canvases = tuple(canvas_for([sample], image_size=size, stride=stride) for size in sizes)
        groups.setdefault(canvases, []).append(sample)
    return [
        Batch(group[start : start + max_batch], canvases)
        for canvases, group in groups.items()
        for start in range(0, len(group), max_batch)
    ]


def _loaded(batches: Sequence[Batch], longest: int) -> Iterator[tuple[Batch, list[list[ImageArray]]]]:
    """Each batch with its images, letterboxed for each view; threads load the next batch while the caller works on one."""

    def load(sample: Sample, canvases: Sequence[Canvas]) -> list[ImageArray]:
        image = load_sample(sample, longest=longest)
        return [Letterbox(sample.width, sample.height, canvas).apply(image) for canvas in canvases]

    pool = ThreadPoolExecutor(min(MAX_THREADS, max(2, os.cpu_count() or 1)), thread_name_prefix="images")

    def begin(batch: Batch) -> list[Future[list[ImageArray]]]:
        return [pool.submit(load, sample, batch.canvases) for sample in batch.samples]

    try:
        coming = begin(batches[0]) if batches else []
        for batch, following in zip_longest(batches, batches[1:]):
            current, coming = coming, [] if following is None else begin(following)
            yield batch, [future.result() for future in current]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
