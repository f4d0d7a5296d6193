"""A browser and its pages, for the tests of pages."""

from __future__ import annotations

import shutil

import pytest

from browser_waits import wait_for

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def chromium():
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """A function that opens a page and fails on errors in its console."""
    pages, problems = [], []

    def open_(path, *, fragment="", width=1280, height=800, **options):
        page = chromium.new_context(viewport={"width": width, "height": height}, **options).new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(path.absolute().as_uri() + fragment)
        wait_for(page, "typeof app !== 'undefined' && document.querySelector('#status').textContent")
        pages.append(page)
        return page

    yield open_
    for page in pages:
        page.context.close()
    assert not problems
