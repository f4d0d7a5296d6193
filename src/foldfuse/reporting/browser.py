"""The browser page: a static viewer of a dataset and of predictions, which needs no server and no network."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.reporting.browser_data import page_data
from foldfuse.reporting.browser_images import embedded_images, write_images
from foldfuse.reporting.page_template import template
from foldfuse.system.atomic_files import check_target, write_text
from foldfuse.system.progress import Progress, no_progress

MARKER = "foldfuse_browse.json"  # in a folder of images that `browse` made
EMBED_MAX = 60  # images; more lie in a folder beside the page
_TEMPLATES = Path(__file__).parent / "templates"
_STYLES = ("browse/browse.css",)
_SCRIPTS = tuple(
    f"browse/{name}.js"
    for name in ("elements", "data", "matching", "selection", "drawing", "grid", "viewer", "controls", "main")
)


def images_folder(out: Path) -> Path:
    """The folder of images of a page: NAME_files beside NAME.html."""
    return out.with_name(f"{out.stem}_files")


def needs_folder(dataset: Dataset) -> bool:
    """Whether the images of a dataset lie in a folder beside the page; those of a small one are embedded."""
    return len(dataset) > EMBED_MAX


def write_browser(
    dataset: Dataset,
    layers: Mapping[str, Predictions],
    out: Path,
    *,
    title: str,
    notes: Sequence[tuple[str, str]] = (),
    left_out: Sequence[str] = (),
    progress: Progress = no_progress,
) -> Path:
    """Writes the browser page of a dataset and returns its path; an existing page and its folder of images are replaced.

    Args:
        dataset: opened (see `data.pixels`), with or without annotations.
        layers: {name: predictions of some images of `dataset`}.
        out: the HTML file.
        title: the heading of the page.
        notes: on each image, in the order of `dataset`: a few words for its thumbnail, and a sentence for the large view; none
            by default.
        left_out: names of further images, which could not be read.
        progress: called with the share of the images done.

    Raises:
        InputError: there is no way to write there.
    """
    check_target(out)
    data = page_data(dataset, layers, title=title)
    data |= {"notes": [list(each) for each in notes] or None, "leftOut": list(left_out)}
    data["originals"] = original_addresses(dataset, out.parent)
    if not needs_folder(dataset):
        data["embedded"], data["broken"] = embedded_images(dataset, progress)
        write_text(out, browser_page(data))
        return out
    folder = images_folder(out)
    check_target(folder, is_folder=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".foldfuse-browse.", dir=out.parent) as temporary:
        made = Path(temporary) / "images"
        made.mkdir()
        data["files"], data["broken"] = quote(folder.name), write_images(dataset, made, progress)
        (made / MARKER).write_text(json.dumps({"format_version": 1, "page": out.name}) + "\n", encoding="utf-8")
        page = browser_page(data)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    write_text(out, page)
    return out


def browser_page(data: Mapping[str, Any]) -> str:
    """The HTML page with its data, styles and scripts inlined; only scripts of this package can run in it."""
    return inlined_page("browse.html", data, styles=_STYLES, scripts=_SCRIPTS)


def inlined_page(name: str, data: Mapping[str, Any], *, styles: Sequence[str], scripts: Sequence[str]) -> str:
    """An HTML page with its data, styles and scripts inlined; no other script can run in it.

    Args:
        name: the name of the template, which extends viewer.html.
        data: plain values that JSON holds, with a "title".
        styles, scripts: names of files below templates/, such as "browse/data.js".
    """
    script = "\n".join(_source(name) for name in scripts)
    script = f'"use strict";\n{script}'
    digest = base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode("ascii")
    return template(name).render(
        title=data["title"],
        style=Markup("\n".join(_source(name) for name in styles)),
        script=Markup(script),
        digest=digest,
        data=Markup(script_safe_json(data)),
    )


def original_addresses(dataset: Dataset, folder: Path) -> dict[str, Any]:
    """The addresses of the image files, relative to a page in `folder`: the folder that all share, and the rest of each.

    The rest is None for an image without a file. An image on another Windows drive has a file address.
    """
    addresses = [_address(s.path, folder) if s.pixels is None and s.path.is_file() else None for s in dataset.samples]
    found = [address for address in addresses if address is not None]
    base = found[0][: found[0].rfind("/") + 1] if found else ""
    base = base if all(address.startswith(base) for address in found) else ""
    return {"base": base, "rest": [None if address is None else address[len(base) :] for address in addresses]}


def _address(path: Path, folder: Path) -> str:
    """The address of a file for a page in `folder`: a path in which every odd character is quoted, so that it stays a path."""
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:  # on another drive
        return path.absolute().as_uri()
    return quote(os.fsencode(Path(relative).as_posix()))


def script_safe_json(value: object) -> str:
    """JSON that is safe within a <script> element: ASCII alone, and no text in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _source(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")
