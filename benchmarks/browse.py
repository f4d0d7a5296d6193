"""Print how long the page of `foldfuse browse` takes to write, how large it is, and how smoothly it scrolls in Chromium.

    python benchmarks/browse.py [--images 5000] [--boxes 100000] [--folder DIR]

The images are drawn, 640 x 480 pixels; half of the boxes are annotations, half are predictions of one layer. The page opens
from disk in a window of 1280 x 800 pixels. The times of frames are the differences of the times that requestAnimationFrame gives
while the script scrolls the grid by 90 pixels a frame, or sets the score slider to another value in each frame.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.pixels import open_images
from foldfuse.detections import Annotations, Detections, Predictions
from foldfuse.reporting.browser import images_folder, write_browser

CLASSES = tuple(f"class {k}" for k in range(20))
WIDTH, HEIGHT = 640, 480
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FRAMES = """(act) => new Promise((resolve) => {
  const step = new Function("frame", act), times = [];
  const next = (now) => {
    times.push(now);
    if (times.length > 240) return resolve(times.slice(1).map((time, i) => time - times[i]));
    step(times.length);
    requestAnimationFrame(next);
  };
  requestAnimationFrame(next);
})"""
SCROLL = "document.querySelector('#scroller').scrollTop += 90;"
SLIDE = """const slider = document.querySelector('#score');
slider.value = 0.2 + 0.5 * Math.abs(Math.sin(frame / 20));
slider.dispatchEvent(new Event('input', { bubbles: true }));"""


def draw_scene(folder: Path, *, images: int, boxes: int) -> tuple[Dataset, Predictions]:
    """Drawn images with about boxes / 2 annotations, and as many predictions of which most are right."""
    rng = np.random.default_rng(0)
    samples, found = [], {}
    each = max(1, round(boxes / images / 2))
    for i in range(images):
        pixels = rng.integers(0, 255, (12, 16, 3), np.uint8)
        path = folder / f"{i:05}.jpg"
        Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(path, quality=80)
        corners = rng.uniform(0, [WIDTH - 120, HEIGHT - 120], (each, 2))
        truth = np.concatenate([corners, corners + rng.uniform(20, 120, (each, 2))], 1).round(1)
        labels = rng.integers(0, len(CLASSES), each)
        annotations = Annotations(truth, labels, np.zeros(each, bool), np.prod(truth[:, 2:] - truth[:, :2], 1))
        samples.append(Sample(i, path, path.name, WIDTH, HEIGHT, annotations))
        moved = (truth + rng.normal(0, 6, truth.shape)).clip(0, [WIDTH, HEIGHT] * 2).astype(np.float32)
        guessed = np.where(rng.random(each) < 0.9, labels, rng.integers(0, len(CLASSES), each))
        solid = (moved[:, 2:] > moved[:, :2]).all(1)
        found[i] = Detections(moved[solid], rng.beta(4, 2, each).astype(np.float32)[solid], guessed[solid])
    dataset = Dataset(tuple(samples), CLASSES, tuple(range(len(CLASSES))), folder / "drawn")
    return open_images(dataset), Predictions.of(found, CLASSES)


def frame_times(page: Page, act: str) -> str:
    """The median and the 95th percentile of the milliseconds between frames while `act` runs in each of them."""
    times: Any = page.evaluate(FRAMES, act)
    return "median {:.1f} ms, 95th percentile {:.1f} ms".format(*np.percentile(times, [50, 95]))


def measure_browser(path: Path) -> dict[str, str]:
    """Times of the page in Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        start = time.perf_counter()
        page.goto(path.absolute().as_uri())
        page.wait_for_selector(".cell img")
        opened = time.perf_counter() - start
        paint: Any = page.evaluate("performance.getEntriesByType('paint').map((e) => e.startTime).pop()")
        page.wait_for_timeout(1000)
        rows = {
            "Chromium": browser.version,
            "first paint": f"{paint:.0f} ms",
            "open, with the first thumbnails": f"{1000 * opened:.0f} ms",
            "frames while scrolling": frame_times(page, SCROLL),
            "frames while the score slider moves": frame_times(page, SLIDE),
            "memory of JavaScript": f"{page.evaluate('performance.memory.usedJSHeapSize') / 1e6:.0f} MB",
        }
        browser.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--boxes", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="keep images and page here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        (folder / "images").mkdir(parents=True, exist_ok=True)
        dataset, predictions = draw_scene(folder / "images", images=arguments.images, boxes=arguments.boxes)
        out = folder / "browse.html"
        start = time.perf_counter()
        write_browser(dataset, {"drawn": predictions}, out, title="drawn")
        seconds = time.perf_counter() - start
        files = images_folder(out)
        size = {
            kind: sum(f.stat().st_size for f in files.rglob(f"{kind}/*.jpg")) / 1e6 for kind in ("thumbs", "previews")
        }
        total = dataset.num_boxes + len(predictions.boxes)
        rows = {
            "images, boxes": f"{len(dataset):,}, {total:,}",
            "time to write": f"{seconds:.1f} s, {1000 * seconds / len(dataset):.1f} ms an image",
            "size of the page": f"{out.stat().st_size / 1e6:.2f} MB",
            "size of thumbnails, previews": f"{size['thumbs']:.1f} MB, {size['previews']:.1f} MB",
        }
        for name, value in (rows | measure_browser(out)).items():
            print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
