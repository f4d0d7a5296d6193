"""`Loaded`: a dataset of any layout, turned into a COCO document whose rows are not checked yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foldfuse.data.findings import Finding
from foldfuse.data.readers.image_names import ImageFiles


@dataclass(frozen=True, eq=False)
class Loaded:
    """A dataset as it is on disk, turned into a COCO document whose rows are not checked yet.

    Attributes:
        document: decoded JSON.
        source: the file or folder of the annotations, named in sentences; reading it again gives the same dataset.
        findings: faults of other files than a COCO JSON, and notes about the image files.
        files: finds the image file of a `file_name`.
        ignore_orientation: whether sizes that are taken from the image files are those of the pixels as stored.
    """

    document: Any
    source: Path
    findings: tuple[Finding, ...]
    files: ImageFiles
    ignore_orientation: bool = False
