"""Checks a built site: `python docs/check_site.py site` prints its faults, one a line, and exits with 1 if there are any.

A fault is a link to a file or an anchor that the site lacks, an image without a text, a page that loads a file from another
server, or Markdown that was not rendered.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {
    "script": "src",
    "img": "src",
    "source": "src",
    "iframe": "src",
    "link": "href",
}  # what a browser fetches to show a page
BLOCKS = ("p", "li", "td", "th", "h1", "h2", "h3", "h4")
BREAK = "\0"  # begins a block in the text of a page
CODE = ("pre", "code", "script", "style")
RAW = {  # what shows in the text of a page when Markdown was not rendered
    "a list": re.compile(r"\n\s*([*-]|1\.) \S"),
    "a table": re.compile(r"\|\s*-{3,}"),
    "a link": re.compile(r"\]\([^)\s]+\)"),
    "bold text": re.compile(r"\*\*"),
    "code": re.compile(r"`"),
}


class Page(HTMLParser):
    """The anchors, the links and the text of a page; `prose` has a mark where a block begins."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {"", "top"}
        self.links: list[str] = []
        self.loads: list[str] = []
        self.images_without_text: list[str] = []
        self.prose: list[str] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keeps the anchors and the addresses of an element."""
        values = {key: value or "" for key, value in attrs}
        self.anchors |= {values[key] for key in ("id", "name") if key in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADED and LOADED[tag] in values and values.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(values[LOADED[tag]])
        if tag == "img" and not values.get("alt"):
            self.images_without_text.append(values.get("src", ""))
        if tag in ("article", *BLOCKS, *CODE):
            self._inside.append(tag)
            self.prose.append(BREAK if tag in BLOCKS else "")

    def handle_endtag(self, tag: str) -> None:
        """Leaves an element."""
        if tag in self._inside:
            del self._inside[len(self._inside) - 1 - self._inside[::-1].index(tag) :]

    def handle_data(self, data: str) -> None:
        """Keeps the text outside of code."""
        if "article" in self._inside and set(BLOCKS) & set(self._inside):
            self.prose.append("CODE" if set(CODE) & set(self._inside) else data)


def faults_of(folder: Path) -> list[str]:
    """The faults of the site in a folder, each as a sentence that names the page."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    if not pages:
        return [f"{folder} has no page."]
    return [f"{path.relative_to(folder)}: {fault}" for path in pages for fault in page_faults(path, pages, folder)]


def page_faults(path: Path, pages: dict[Path, Page], folder: Path) -> Iterator[str]:
    """The faults of one page."""
    page = pages[path]
    for address in page.loads:
        if urlsplit(address).netloc:
            yield f"it loads {address} from another server."
    for address in (*page.links, *page.loads):
        if (fault := link_fault(address, path, pages, folder)) is not None:
            yield fault
    for address in page.images_without_text:
        yield f"the image {address} has no text (alt)."
    text = "".join(page.prose)
    for what, pattern in RAW.items():
        if found := pattern.search(text):
            place = text[max(0, found.start() - 30) : found.end() + 30].replace(BREAK, " ")
            yield f"{what} is not rendered: {place!r}"


def link_fault(address: str, path: Path, pages: dict[Path, Page], folder: Path) -> str | None:
    """What is wrong with a link, if anything is; links to other servers are not followed."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return None
    target = path
    if parts.path.startswith("/"):
        target = folder / unquote(parts.path).lstrip("/")
    elif parts.path:
        target = path.parent / unquote(parts.path)
    target = target.resolve()
    if target.is_dir():
        target /= "index.html"
    if not target.is_relative_to(folder.resolve()) or not target.is_file():
        return f"the link {address} leads to no file."
    if parts.fragment and target.suffix == ".html":
        known = {found.resolve(): page for found, page in pages.items()}[target].anchors
        if unquote(parts.fragment) not in known:
            return f"the link {address} leads to no anchor."
    return None


if __name__ == "__main__":
    found = faults_of(Path(sys.argv[1]))
    print("\n".join(found))
    sys.exit(1 if found else 0)
