"""Takes the screenshots of the pages that Foldfuse writes: `make demo`, then `python docs/screenshots.py demo`.

They show a real campaign: its report, its page of `browse` and its page of `review`. Needs Chromium, and playwright.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from foldfuse import cli

HERE = Path(__file__).parent
SIZE = {"width": 1280, "height": 760}
QUALITY = 82  # of the JPEGs: some 100 KB each


def take(browser: Any, page: Path, out: Path, prepare: Callable[[Any], None] = lambda _: None) -> None:
    """Writes a screenshot of a page as JPEG."""
    opened = browser.new_page(viewport=SIZE, color_scheme="light")
    opened.goto(page.resolve().as_uri())
    opened.wait_for_timeout(500)
    prepare(opened)
    opened.wait_for_timeout(1000)
    Image.open(io.BytesIO(opened.screenshot())).convert("RGB").save(out, quality=QUALITY, optimize=True)
    opened.close()


def open_second_image(page: Any) -> None:
    """Opens an image of `browse`, with annotations and predictions side by side."""
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    page.keyboard.press("s")


def main(demo: Path) -> None:
    """Takes all screenshots of a folder that `foldfuse demo` made."""
    data, campaign = demo / "data" / "train.json", demo / "campaign"
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        for command in (["browse", str(data), "--predictions", str(campaign)], ["review", str(data), str(campaign)]):
            if cli.main([*command, "--out", str(folder / f"{command[0]}.html")]):
                sys.exit(f"foldfuse {command[0]} failed")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        take(browser, campaign / "report.html", HERE / "report.jpg")
        take(browser, folder / "browse.html", HERE / "browse.jpg", open_second_image)
        take(browser, folder / "review.html", HERE / "review.jpg")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
