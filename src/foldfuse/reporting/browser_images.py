"""The thumbnails and previews of the browser page, as JPEG files or embedded in the page."""

from __future__ import annotations

import base64
import io
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.images import load_sample
from foldfuse.errors import InputError
from foldfuse.system.progress import Progress

THUMBNAIL, PREVIEW = 256, 1280  # longest sides in pixels
_QUALITY = {THUMBNAIL: 75, PREVIEW: 82}
KINDS = {"thumbs": THUMBNAIL, "previews": PREVIEW}

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RenderedImage:
    """An image as JPEG bytes; both are empty, and `reason` says why, where it has no pixels to show."""

    thumbs: bytes = b""
    previews: bytes = b""
    reason: str = ""


def write_images(dataset: Dataset, folder: Path, progress: Progress) -> dict[int, str]:
    """Writes thumbs/NUMBER.jpg and previews/NUMBER.jpg of each image; returns {number of an image without pixels: why}.

    Args:
        dataset: opened (see `data.pixels`).
        folder: an existing folder.
        progress: called with the share done.
    """
    for kind in KINDS:
        (folder / kind).mkdir()

    def write(number: int, image: RenderedImage) -> str:
        for kind in KINDS if image.thumbs else ():
            (folder / kind / f"{number:06}.jpg").write_bytes(getattr(image, kind))
        return image.reason

    reasons = _render_all(dataset, write, progress)
    return {number: reason for number, reason in enumerate(reasons) if reason}


def embedded_images(dataset: Dataset, progress: Progress) -> tuple[dict[str, list[str]], dict[int, str]]:
    """{"thumbs" | "previews": JPEGs in base64}, and {number of an image without pixels: why}; see `write_images`."""
    images = _render_all(dataset, lambda number, image: image, progress)
    encoded = {kind: [base64.b64encode(getattr(i, kind)).decode("ascii") for i in images] for kind in KINDS}
    return encoded, {number: image.reason for number, image in enumerate(images) if image.reason}


def _render_all(dataset: Dataset, use: Callable[[int, RenderedImage], T], progress: Progress) -> list[T]:
    """What `use` makes of each image, in order."""
    results = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for result in pool.map(lambda pair: use(pair[0], _render(pair[1])), enumerate(dataset.samples)):
                results.append(result)
                progress(len(results) / len(dataset))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for thousands of images
            raise
    return results


def _render(sample: Sample) -> RenderedImage:
    """The image in both sizes, upright; one without pixels where `missing` says why, or with a line in the log."""
    if sample.missing:
        is_file = sample.path.is_file()
        return RenderedImage(reason=without_path(sample.missing, sample.path) if is_file else "the file is missing")
    try:
        image = Image.fromarray(load_sample(sample, longest=PREVIEW))
    except InputError as error:
        log.warning("%s It is shown without its pixels.", error)
        return RenderedImage(reason=without_path(str(error), sample.path))
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return RenderedImage(encode_jpeg(small, _QUALITY[THUMBNAIL]), encode_jpeg(image, _QUALITY[PREVIEW]))


def without_path(sentence: str, path: Path) -> str:
    """A sentence on an image without the path that it begins with, which the page does not need to hold."""
    return sentence.removeprefix(f"{path}: ")


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """An image as JPEG."""
    memory = io.BytesIO()
    image.save(memory, "JPEG", quality=quality)
    return memory.getvalue()
