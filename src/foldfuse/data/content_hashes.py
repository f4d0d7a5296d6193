"""Hashes of the content of image files: they tell whether two images are one, whatever their names, ids and folders are."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from foldfuse.data.dataset import Sample
from foldfuse.errors import InputError
from foldfuse.system.host import usable_cores

HASH_DIGITS = 32  # hex digits of the sha256 that are kept: two of 10^9 images share them with probability 10^-21


def image_hashes(samples: Sequence[Sample]) -> tuple[str, ...]:
    """The hash of each sample's image file, in the order of the samples: its size in bytes, and the sha256 of its content.

    Files are read once and whole, at some 0.2 ms an image where they are cached: a twentieth of decoding them.

    Raises:
        InputError: a file cannot be read.
    """
    with ThreadPoolExecutor(usable_cores()) as pool:
        return tuple(pool.map(lambda sample: file_hash(sample.path), samples))


def known_images(samples: Sequence[Sample], hashes: Collection[str]) -> list[Sample]:
    """The samples whose hash is among `hashes`. Only files of a size that occurs there are read; images in memory have no hash.

    Raises:
        InputError: a file cannot be read.
    """
    sizes = {hash_.partition("-")[0] for hash_ in hashes}

    def is_known(sample: Sample) -> bool:
        return sample.pixels is None and _size(sample.path) in sizes and file_hash(sample.path) in hashes

    with ThreadPoolExecutor(usable_cores()) as pool:
        return [sample for sample, known in zip(samples, pool.map(is_known, samples), strict=True) if known]


def same_images(samples: Sequence[Sample], others: Sequence[Sample]) -> list[Sample]:
    """The samples whose file has the same content as that of one of `others`; those of `others` whose file is gone are left out.

    Only files of a size that occurs on both sides are read.

    Raises:
        InputError: a file of `samples` cannot be read.
    """
    sizes = {_size(sample.path) for sample in samples if sample.pixels is None}
    there = [other for other in others if other.pixels is None and other.path.is_file()]
    return known_images(samples, frozenset(image_hashes([other for other in there if _size(other.path) in sizes])))


def repeated_images(samples: Sequence[Sample]) -> list[Sample]:
    """The samples whose file has the same content as that of an earlier sample.

    Raises:
        InputError: a file cannot be read.
    """
    files = [sample for sample in samples if sample.pixels is None]
    sizes = Counter(_size(sample.path) for sample in files)
    alike = [sample for sample in files if sizes[_size(sample.path)] > 1]
    seen: set[str] = set()
    repeated = []
    for sample, digest in zip(alike, image_hashes(alike), strict=True):
        if digest in seen:
            repeated.append(sample)
        seen.add(digest)
    return repeated


def _size(path: Path) -> str:
    try:
        return str(path.stat().st_size)
    except OSError as error:
        raise _unreadable(path, error) from None


def file_hash(path: Path) -> str:
    """The hash of an image file; see `image_hashes`. Raises InputError where the file cannot be read."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:HASH_DIGITS]
            return f"{os.fstat(file.fileno()).st_size}-{digest}"
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: the image cannot be read ({error.strerror}). Put it there, or leave it out.")
