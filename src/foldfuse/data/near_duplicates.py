"""Finds near-duplicate images by their hashes, in a dataset or among the hashes of other images.

A flat image has no hash, for all flat images would look alike: it is a duplicate of those alone whose files have the same bytes.

Source: the difference hash (N. Krawetz, "Kind of Like That", 2013), here of 16 x 16 bits instead of 8 x 8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from foldfuse.data.content_hashes import file_hash
from foldfuse.data.decoding import decode_gray
from foldfuse.data.image_file import UPRIGHT
from foldfuse.detections import Array
from foldfuse.errors import InputError
from foldfuse.system.host import usable_cores

HASH_SIDE = 16
MAX_BITS = 25  # of 256: images whose hashes differ in at most so many bits are near-duplicates
MIN_CONTRAST = (
    16  # gray levels between the darkest and the brightest of the shrunk image; less is flat, such as a blank page
)


def near_duplicates(paths: Sequence[Path], orientations: Sequence[int] | None = None) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of positions in `paths` whose images look almost the same, or whose files have the same bytes.

    Of a group of images that look alike in a chain only as many pairs are returned as connect it: n - 1 for n images.

    Args:
        paths: the image files.
        orientations: the EXIF orientation to apply to each, 0 or 1 for none; none by default.
    """
    hashes = difference_hashes(paths, orientations)
    known = [i for i, bits in enumerate(hashes) if bits is not None]
    words = _words([bits for bits in hashes if bits is not None])
    pairs = []
    group = np.arange(
        len(known)
    )  # of each image so far; a camera that never moves makes one group and millions of pairs
    for row in range(len(known) - 1):
        distance = np.bitwise_count(words[row + 1 :] ^ words[row]).sum(1, dtype=np.int64)
        near = row + 1 + np.flatnonzero(distance <= MAX_BITS)
        near = near[group[near] != group[row]]
        if len(near):
            others, first = np.unique(group[near], return_index=True)
            pairs += [(known[row], known[j]) for j in sorted(near[first].tolist())]
            group[np.isin(group, others)] = group[row]
    return sorted(pairs + _same_files(paths, [i for i, bits in enumerate(hashes) if bits is None]))


def _same_files(paths: Sequence[Path], positions: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of `positions` whose files have the same bytes: the first of each group with each of the others."""
    sizes = {i: paths[i].stat().st_size for i in positions if paths[i].is_file()}
    repeated = {size for size, times in Counter(sizes.values()).items() if times > 1}
    groups: dict[str, list[int]] = {}
    for i, size in sizes.items():
        if size in repeated:
            groups.setdefault(file_hash(paths[i]), []).append(i)
    return [(first, i) for first, *others in groups.values() for i in others]


def nearest_hashes(hashes: Sequence[Array] | Array, known: Sequence[Array] | Array) -> tuple[Array, Array]:
    """For each of n hashes the position of the most similar one in `known`, which is not empty, and the bits that differ.

    Returns:
        positions: (n,) int64.
        bits: (n,) int64, 0..256.
    """
    words, others = _words(hashes), _words(known)
    nearest = np.zeros((2, len(words)), np.int64)
    for row, word in enumerate(words):
        bits = np.bitwise_count(others ^ word).sum(1, dtype=np.int64)
        nearest[:, row] = bits.argmin(), bits.min()
    return nearest[0], nearest[1]


def difference_hashes(paths: Sequence[Path], orientations: Sequence[int] | None = None) -> list[Array | None]:
    """The `difference_hash` of each image file; of images as they are stored where no orientations are given."""
    turned = orientations if orientations is not None else [1] * len(paths)
    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(difference_hash, paths, turned))


def difference_hash(path: Path, orientation: int = 1) -> Array | None:
    """(32,) uint8: 256 bits, each True where a pixel of the shrunk gray image is darker than its right neighbour.

    None where the image cannot be decoded, or is flat: without contrast, or with too few ones or zeros to tell it from another.
    """
    try:
        image = decode_gray(path, (4 * HASH_SIDE, 4 * HASH_SIDE))
    except InputError:
        return None
    if orientation > 1:
        image = image.transpose(UPRIGHT[orientation])
    small = np.asarray(image.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), np.int16)
    bits = small[:, 1:] > small[:, :-1]
    is_flat = np.ptp(small) < MIN_CONTRAST or not 2 * MAX_BITS <= bits.sum() <= bits.size - 2 * MAX_BITS
    return None if is_flat else np.packbits(bits)


def _words(hashes: Sequence[Array] | Array) -> Array:
    """(n, 4) uint64 of n hashes, whose bits are counted faster."""
    return np.array(hashes, np.uint8).reshape(-1, HASH_SIDE**2 // 8).view(np.uint64)
