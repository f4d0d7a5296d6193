"""Datasets of image files for the corpus: files made of raw bytes, and what training sees of them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from corpus_samples import coco, write_coco
from foldfuse.data.images import load_sample
from foldfuse.data.pixels import open_images
from foldfuse.data.readers.coco import read

Make = Callable[[Path], None]
SPLIT = "split train.json --folds 2 --out folds.json"
CHECK = "check train.json"


def loaded(folder: Path, data: str = "train.json", **options: Any) -> list[np.ndarray]:
    """The pixels of every image, as training sees them."""
    dataset = open_images(read(folder / data, **options), **options)
    images = [load_sample(sample) for sample in dataset.samples]
    for sample, image in zip(dataset.samples, images, strict=True):
        assert image.shape == (sample.height, sample.width, 3)
    return images


def images_of(*images: Any, ending: str = "png", **options: Any) -> Make:
    """A dataset of four images of 96 x 64 or so: `images` over and over, each a Pillow image or the bytes of a file."""

    def make(folder: Path) -> None:
        document = coco(4)
        for number, row in enumerate(document["images"]):
            image = images[number % len(images)]
            path = folder / f"images/{row['id']}.{ending}"
            row["file_name"] = path.relative_to(folder).as_posix()
            path.parent.mkdir(exist_ok=True)
            if isinstance(image, bytes):
                path.write_bytes(image)
            else:
                image.save(path, **options)
        write_coco(folder, document, with_images=False)

    return make


def png(width: int, height: int, *, bits: int, colour: int, rows: bytes, also: bytes = b"") -> bytes:
    """A PNG of raw rows, each after its filter byte; `also`: chunks after the pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + also + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
