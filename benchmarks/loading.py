"""Images a second that augmentation makes from decoded images, beside other libraries that do the same work.

    OMP_NUM_THREADS=1 python benchmarks/loading.py

Each kind makes the same batches: the same random numbers, one affine map per image (four in a mosaic), bilinear sampling, and
brightness, contrast and saturation. Kinds take turns; a figure is the median of rounds, by the processor time of one thread.
"Loader" rows are by the wall clock: batches that the training's own loader gives with N threads and nothing else to do.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageEnhance
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from foldfuse.data import augment
from foldfuse.data.images import ImageCache
from foldfuse.data.readers.coco import read
from foldfuse.recipes import load_recipe
from foldfuse.training.batches import Batches
from foldfuse.training.loading import Loader

ROOT = Path(os.environ.get("FOLDFUSE_SHARED", Path(__file__).parents[2] / "shared")) / "data"
Window = tuple[int, int, int, int]
Pair = tuple[float, float]


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="coco_val2017_128/instances.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image-sizes", default="320,640")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    samples = read(ROOT / asked.data).samples[:64]
    sizes = [int(size) for size in asked.image_sizes.split(",")]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| image size | mosaic | " + " | ".join(KINDS) + " |\n|---|---|" + "---|" * len(KINDS))
    for size in sizes:
        for mosaic in (0.0, 0.5):
            batches = batches_of(samples, size, mosaic)
            found: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for kind in KINDS:
                with kind_of(kind):
                    batches.batch(0)  # compiles
            for step in range(asked.rounds):
                for kind, rates in found.items():
                    with kind_of(kind):
                        began = time.thread_time()
                        batches.batch(step)
                        rates.append(batches.recipe.batch_size / (time.thread_time() - began))
            print(
                f"| {size} | {mosaic:g} | " + " | ".join(f"{statistics.median(r):.0f}" for r in found.values()) + " |"
            )
    print("\n| image size | threads | images/s |\n|---|---|---|")
    for size in sizes:
        for threads in (1, 2):
            print(f"| {size} | {threads} | {loaded(batches_of(samples, size, 0.5), threads):.0f} |", flush=True)


def batches_of(samples: Any, size: int, mosaic: float) -> Batches:
    """Batches of 16 images from decoded ones."""
    recipe = replace(load_recipe("lite0_fpn"), image_size=size, mosaic=mosaic, batch_size=16)
    images = ImageCache.load(samples, longest=round(size * (1 + recipe.scale_jitter)))
    return Batches(samples, images, recipe, (size, size), 0)


def loaded(batches: Batches, threads: int, steps: int = 12) -> float:
    """Images a second that a loader gives."""
    loader = Loader(batches, torch.device("cpu"), threads=threads)
    loader.get(0)
    began = time.perf_counter()
    for step in range(1, 1 + steps):
        loader.get(step)
    seconds = time.perf_counter() - began
    loader.close()
    return steps * batches.recipe.batch_size / seconds


def place_by_pillow(image: Any, canvas: Any, window: Window, scale: Pair, shift: Pair, fill: int) -> None:
    """`kernels.place` by Pillow's Image.transform."""
    x1, y1, x2, y2 = window
    canvas[y1:y2, x1:x2] = Image.fromarray(image).transform(
        (x2 - x1, y2 - y1),
        Image.Transform.AFFINE,
        (1 / scale[0], 0, -shift[0] / scale[0], 0, 1 / scale[1], -shift[1] / scale[1]),
        Image.Resampling.BILINEAR,
        fillcolor=(fill,) * 3,
    )


def colors_by_pillow(canvas: Any, brightness: float, contrast: float, saturation: float) -> None:
    """`kernels.change_colors` by Pillow's ImageEnhance."""
    image = Image.fromarray(canvas)
    for enhancer, factor in ((ImageEnhance.Brightness, brightness), (ImageEnhance.Contrast, contrast)):
        image = enhancer(image).enhance(factor)
    canvas[:] = ImageEnhance.Color(image).enhance(saturation)


def place_by_cv2(image: Any, canvas: Any, window: Window, scale: Pair, shift: Pair, fill: int) -> None:
    """`kernels.place` by OpenCV's warpAffine."""
    x1, y1, x2, y2 = window
    (sx, sy), (tx, ty) = scale, shift
    forth = np.array([[sx, 0, tx + sx / 2 - 0.5], [0, sy, ty + sy / 2 - 0.5]])
    flags, border = cv2.INTER_LINEAR, cv2.BORDER_CONSTANT
    made = cv2.warpAffine(image, forth, (x2 - x1, y2 - y1), flags=flags, borderMode=border, borderValue=(fill,) * 3)
    canvas[y1:y2, x1:x2] = made


def colors_by_cv2(canvas: Any, brightness: float, contrast: float, saturation: float) -> None:
    """`kernels.change_colors` by OpenCV: a table of brightness and contrast, then a blend with gray."""
    bright = (np.arange(256) * brightness).clip(0, 255).astype(np.uint8)
    mean = cv2.mean(cv2.cvtColor(cv2.LUT(canvas, bright), cv2.COLOR_RGB2GRAY))[0]
    table = (mean + contrast * (bright - mean)).clip(0, 255).astype(np.uint8)
    image = cv2.LUT(canvas, table)
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    cv2.addWeighted(image, saturation, gray, 1 - saturation, 0, dst=canvas)


def place_by_torchvision(image: Any, canvas: Any, window: Window, scale: Pair, shift: Pair, fill: int) -> None:
    """`kernels.place` by torchvision v2: flips and `affine`, which scales about the middle, on a padded or cut image."""
    x1, y1, x2, y2 = window
    height, width = image.shape[:2]
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    if scale[0] < 0:
        pixels = pixels.flip(2)
    if scale[1] < 0:
        pixels = pixels.flip(1)
    size = (max(1, round(height * abs(scale[1]))), max(1, round(width * abs(scale[0]))))
    made = F.resize(pixels, list(size), InterpolationMode.BILINEAR, antialias=False)
    left = round(shift[0] if scale[0] > 0 else shift[0] + width * scale[0])
    top = round(shift[1] if scale[1] > 0 else shift[1] + height * scale[1])
    made = F.pad(made, [left, top, x2 - x1 - left - size[1], y2 - y1 - top - size[0]], fill=fill)
    canvas[y1:y2, x1:x2] = made.permute(1, 2, 0).numpy()


def colors_by_torchvision(canvas: Any, brightness: float, contrast: float, saturation: float) -> None:
    """`kernels.change_colors` by torchvision v2."""
    image = torch.from_numpy(canvas).permute(2, 0, 1)
    image = F.adjust_saturation(F.adjust_contrast(F.adjust_brightness(image, brightness), contrast), saturation)
    canvas[:] = image.permute(1, 2, 0).numpy()


KINDS: dict[str, tuple[Callable[..., None], Callable[..., None]]] = {
    "ours": (augment.place, augment.change_colors),
    "Pillow": (place_by_pillow, colors_by_pillow),
    "OpenCV": (place_by_cv2, colors_by_cv2),
    "torchvision v2": (place_by_torchvision, colors_by_torchvision),
}


@contextmanager
def kind_of(name: str) -> Iterator[None]:
    """Within the block, `augment` computes by the library of a name."""
    own = augment.place, augment.change_colors
    augment.place, augment.change_colors = KINDS[name]
    try:
        yield
    finally:
        augment.place, augment.change_colors = own


if __name__ == "__main__":
    main()
