"""Runs a detector on images in several TTA views: letterbox, network, decoding, and back to pixels of the images.

The detector is a function of numpy arrays, so that this works with any runtime, and without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from foldfuse.data.dataset import Sample
from foldfuse.data.images import Letterbox, canvas_for, load_sample
from foldfuse.detections import Array, Detections, Predictions
from foldfuse.inference.tta import View
from foldfuse.system.progress import Progress, no_progress

BATCH_SIZE = 16  # images of 256 px at a time

Detect = Callable[[Array], list[Detections]]  # (B, H, W, 3) uint8 -> B detections in pixels of these


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
        progress: gets the finished share of the work.

    Raises:
        InputError: an image is missing or cannot be decoded.
    """
    detections: dict[View, dict[int, Detections]] = {
        view: {s.id: Detections.empty() for s in samples} for view in views
    }
    sizes = [view.image_size(image_size, stride) for view in views]
    largest = longest or max(sizes)
    max_batch = max(1, round(batch_size * (256 / largest) ** 2))
    done = 0
    with ThreadPoolExecutor(2) as pool:
        for batch, canvases in _batches_of_one_shape(samples, sizes, stride, max_batch):
            images = list(pool.map(lambda s: load_sample(s, longest=largest), batch))
            for view, canvas in zip(views, canvases, strict=True):
                letterboxes = [Letterbox(s.width, s.height, canvas) for s in batch]
                shown = view.apply(np.stack([box.apply(i) for box, i in zip(letterboxes, images, strict=True)]))
                found = detect(np.ascontiguousarray(shown))
                for sample, letterbox, one in zip(batch, letterboxes, found, strict=True):
                    detections[view][sample.id] = letterbox.invert_boxes(view.invert(one, canvas))
            done += len(batch)
            progress(done / len(samples))
    return {view: Predictions.of(by_image, classes) for view, by_image in detections.items()}


def _batches_of_one_shape(
    samples: Sequence[Sample], sizes: Sequence[int], stride: int, max_batch: int
) -> Iterator[tuple[list[Sample], list[tuple[int, int]]]]:
    """Batches of samples that have the same canvas at each of `sizes`, and those canvases.

    The detections in an image thus do not depend on the other images of its batch.
    """
    groups: dict[tuple[tuple[int, int], ...], list[Sample]] = {}
    for sample in samples:
        canvases = tuple(canvas_for([sample], image_size=size, stride=stride) for size in sizes)
        groups.setdefault(canvases, []).append(sample)
    for canvases, group in groups.items():
        for start in range(0, len(group), max_batch):
            yield group[start : start + max_batch], list(canvases)
