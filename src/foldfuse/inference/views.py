"""Runs a detector on images in several TTA views: letterbox, network, decoding, and back to pixels of the images.

The detector is a function of numpy arrays, so that this works with any runtime, and without torch. While it works on a batch,
threads decode and letterbox the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from foldfuse.data.dataset import Sample
from foldfuse.data.images import ImageArray, Letterbox, canvas_of, load_sample
from foldfuse.data.tiles import Window, letterboxed_tile, tile_windows
from foldfuse.detections import Array, Detections, Predictions
from foldfuse.inference.tile_merging import TOUCH_PX, merge_tiles
from foldfuse.inference.tta import View
from foldfuse.system.prefetch import prefetched
from foldfuse.system.progress import Progress, no_progress

BATCH_SIZE = 16  # images of 256 px at a time

Detect = Callable[[Array], list[Detections]]  # (B, H, W, 3) uint8 -> B detections in pixels of these
Canvas = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class Batch:
    """Images that are predicted together, since they have the same canvas in each view.

    Attributes:
        samples: the images.
        views: the views.
        canvases: (height, width) of the network's input in each view.
    """

    samples: Sequence[Sample]
    views: Sequence[View]
    canvases: Sequence[Canvas]

    @property
    def pixels(self) -> int:
        """The pixels that the network sees of all images in all views."""
        sizes = zip(self.views, self.canvases, strict=True)
        return len(self.samples) * sum(view.num_tiles * height * width for view, (height, width) in sizes)


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
        longest: the longest side, in pixels, that images are decoded at; by default the largest that a view asks for. The pixels
            of the other views depend on it.
        expect: gets beforehand how many pixels the detector will see.
        progress: gets the finished share of the work.

    Raises:
        InputError: an image is missing or cannot be decoded.
    """
    detections: dict[View, dict[int, Detections]] = {
        view: {s.id: Detections.empty() for s in samples} for view in views
    }
    largest = longest or max(view.decoded_size(image_size, stride) for view in views)
    batches = batches_of_one_shape(samples, views, image_size, stride, _num_inputs(batch_size, largest))
    if expect is not None:
        expect(sum(batch.pixels for batch in batches))
    done = 0
    for batch, images in _loaded(batches, largest):
        for i, (view, canvas) in enumerate(zip(views, batch.canvases, strict=True)):
            inputs = view.apply(np.stack([one for of_views in images for one in of_views[i]]))
            at_a_time = _num_inputs(batch_size, view.image_size(image_size, stride)) if view.is_tiled else len(inputs)
            found: list[Detections] = []
            for start in range(0, len(inputs), at_a_time):
                found += detect(np.ascontiguousarray(inputs[start : start + at_a_time]))
            assert len(found) == len(inputs), f"{len(inputs)} inputs gave {len(found)} detections"
            for j, sample in enumerate(batch.samples):
                parts = found[j * view.num_tiles : (j + 1) * view.num_tiles]
                detections[view][sample.id] = _of_image(
                    [view.invert(one, canvas) for one in parts], sample, view, canvas
                )
        done += len(batch.samples)
        progress(done / len(samples))
    return {view: Predictions.of(by_image, classes) for view, by_image in detections.items()}


def _num_inputs(batch_size: int, side: int) -> int:
    """Inputs of so many pixels a side that take the memory of `batch_size` images of 256 px."""
    return max(1, round(batch_size * (256 / side) ** 2))


def _windows(sample: Sample, view: View) -> list[Window]:
    """The tiles of an image in a view; the whole image where it is not cut."""
    return tile_windows(sample.width, sample.height, columns=view.tiles[0], rows=view.tiles[1])


def _of_image(parts: Sequence[Detections], sample: Sample, view: View, canvas: Canvas) -> Detections:
    """The detections on the canvases of an image, or of its tiles, in pixels of the image."""
    if not view.is_tiled:
        (whole,) = parts
        return Letterbox(sample.width, sample.height, canvas).invert_boxes(whole)
    windows, shifted = _windows(sample, view), []
    letterbox = Letterbox(windows[0][2] - windows[0][0], windows[0][3] - windows[0][1], canvas)
    for part, window in zip(parts, windows, strict=True):
        one = letterbox.invert_boxes(part)
        shifted.append(replace(one, boxes=one.boxes + np.array(window[:2] * 2, np.float32)))
    return merge_tiles(shifted, windows, size=(sample.width, sample.height), touch=TOUCH_PX / letterbox.scale)


def batches_of_one_shape(
    samples: Sequence[Sample], views: Sequence[View], image_size: int, stride: int, max_batch: int
) -> list[Batch]:
    """Batches of samples that have the same canvas in each of `views`.

    The detections in an image thus do not depend on the other images of its batch.
    """
    sizes = [view.image_size(image_size, stride) for view in views]
    groups: dict[tuple[Canvas, ...], list[Sample]] = {}
    for sample in samples:
        first = (_windows(sample, view)[0] for view in views)
        canvases = tuple(
            canvas_of(x2 - x1, y2 - y1, image_size=size, stride=stride)
            for (x1, y1, x2, y2), size in zip(first, sizes, strict=True)
        )
        groups.setdefault(canvases, []).append(sample)
    return [
        Batch(group[start : start + max_batch], views, canvases)
        for canvases, group in groups.items()
        for start in range(0, len(group), max_batch)
    ]


def _loaded(batches: Sequence[Batch], longest: int) -> Iterator[tuple[Batch, list[list[list[ImageArray]]]]]:
    """Each batch with the inputs of its images in each view; threads load the next batch while the caller works on one."""

    def load(one: tuple[Sample, Batch]) -> list[list[ImageArray]]:
        sample, batch = one
        image, size = load_sample(sample, longest=longest), (sample.width, sample.height)
        return [
            [letterboxed_tile(image, window, size=size, canvas=canvas) for window in _windows(sample, view)]
            if view.is_tiled
            else [Letterbox(*size, canvas).apply(image)]
            for view, canvas in zip(batch.views, batch.canvases, strict=True)
        ]

    groups = [[(sample, batch) for sample in batch.samples] for batch in batches]
    with closing(prefetched(groups, load)) as loaded:
        yield from zip(batches, loaded, strict=True)
