"""The dataset doctor: what is wrong with a dataset before anybody trains on it, and a mended copy."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foldfuse.data.checks import Finding, picture_trouble
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.readers.coco import find_image


@dataclass(frozen=True)
class Checkup:
    """What a checkup came to.

    Attributes:
        source: the JSON that was looked at.
        findings: all of them, faults and notes.
        mended: the dataset with its faults mended, of which the statistics are.
        copy: where the mended JSON was written, if it was.
    """

    source: Path
    findings: tuple[Finding, ...]
    mended: Dataset
    copy: Path | None

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that are more than notes."""
        return tuple(finding for finding in self.findings if finding.fault)

    @property
    def exit_status(self) -> int:
        """Of the command: 0 where there are no faults, 1 where there are."""
        return 1 if self.faults else 0

    def __str__(self) -> str:
        """One line for the end of the command's output."""
        num_faults = len(self.faults)
        if not num_faults:
            return f"{self.source}: no faults."
        copy = f"The mended copy is {self.copy}." if self.copy else "Give --mend for a mended copy."
        return f"{self.source}: {num_faults} fault{'s' * (num_faults > 1)}. {copy}"


def unreadable_images(dataset: Dataset) -> list[tuple[Sample, str]]:
    """The pictures that cannot be decoded, or are not of the size that the JSON says, each with the reason."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        troubles = list(pool.map(lambda s: picture_trouble(s.path, s.width, s.height), dataset.samples))
    return [
        (sample, trouble.reason)
        for sample, trouble in zip(dataset.samples, troubles, strict=True)
        if trouble is not None
    ]


def _moved(document: dict[str, Any], source: Path, target: Path) -> dict[str, Any]:
    """The document with file names that lead to the pictures from the folder of `target`."""
    if target.resolve().parent == source.resolve().parent:
        return document
    images = []
    for row in document["images"]:
        path = find_image(source, row["file_name"])
        assert path is not None
        images.append(row | {"file_name": os.path.relpath(path.resolve(), target.resolve().parent)})
    return document | {"images": images}
