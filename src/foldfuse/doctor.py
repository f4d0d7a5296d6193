"""The dataset doctor: what is wrong with the pictures of a dataset before anybody trains on them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from foldfuse.data import Dataset, Sample
from foldfuse.errors import InputError
from foldfuse.images import load_image


def undecodable(dataset: Dataset) -> list[tuple[Sample, str]]:
    """The pictures that cannot be decoded, or are not of the size that the JSON says, each with the reason."""

    def trouble(sample: Sample) -> str | None:
        try:
            height, width = load_image(sample.path).shape[:2]
        except InputError as error:
            return str(error)
        if (width, height) != (sample.width, sample.height):
            return f"{sample.path}: is {width} x {height} pixels, and the JSON says {sample.width} x {sample.height}."
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = list(pool.map(trouble, dataset.samples))
    return [(sample, reason) for sample, reason in zip(dataset.samples, reasons, strict=True) if reason is not None]
