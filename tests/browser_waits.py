"""Waits until a page in a browser is ready."""

from __future__ import annotations


def wait_for(page, expression):
    """Waits until an expression is true; Playwright's own way needs `eval`, which the page forbids."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(25)
    raise AssertionError(f"not within 5 s: {expression}")


def drawn(page):
    """Waits until changes are shown, which are drawn at the next frame."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
