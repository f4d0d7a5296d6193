"""`NextImages`: what `foldfuse next` picked, as its folder keeps it in next.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foldfuse.system.records import read_record, write_record

RECORD = "next.json"
FORMAT = 1


@dataclass(frozen=True)
class NextImage:
    """An image to label next, and why.

    Attributes:
        image: its name among the images that were given.
        path: its file, as it was given.
        copy: its copy, below the folder.
        score: the members' disagreement, in bits, weighted by the difficulty of the classes.
        expected: {class: the number of objects that the members expect, a sum of probabilities}.
        reason: the greatest disagreement, in words.
        members: the members that suspect an object there that another member does not, or hardly.
    """

    image: str
    path: str
    copy: str
    score: float
    expected: dict[str, float]
    reason: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class NextImages:
    """What was picked.

    Attributes:
        unlabelled: where the images came from.
        predictors: the campaign or the runs.
        images: the picked images, the first to label first.
        members: the names of all members.
        annotations: the sha256 of annotations.json as it was written, which tells whether a person changed it since.
    """

    unlabelled: str
    predictors: tuple[str, ...]
    images: tuple[NextImage, ...]
    members: tuple[str, ...]
    annotations: str = ""


def write_next(folder: Path, record: NextImages) -> None:
    """Writes next.json in a folder."""
    write_record(folder / RECORD, record, version=FORMAT)


def read_next(folder: Path) -> NextImages:
    """What the folder of a `foldfuse next` holds.

    Raises:
        InputError: the file is missing or broken.
    """
    hint = "'foldfuse next' writes one."
    return read_record(folder / RECORD, NextImages, version=FORMAT, what="a list of images to label", hint=hint)
