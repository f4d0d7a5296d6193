"""The page of `review`: likely label errors to accept or reject, and a file of the accepted corrections to download."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foldfuse.boxes import Array, xyxy_to_xywh_of_file
from foldfuse.data.corrections import FORMAT, KIND
from foldfuse.data.dataset import Dataset
from foldfuse.reporting.browser import inlined_page, original_addresses
from foldfuse.reporting.review_data import NAMES, Cut, Item, cut_images, others_within, plain_item
from foldfuse.system.atomic_files import check_target, write_text
from foldfuse.system.progress import Progress, no_progress

SUGGESTIONS_KIND = "foldfuse suggestions"
_STYLES = ("browse/browse.css", "review/review.css")
_SCRIPTS = ("browse/elements.js", "browse/drawing.js", "review/cards.js", "review/main.js")


def write_review(
    items: Sequence[Item],
    dataset: Dataset,
    out: Path,
    *,
    title: str,
    note: str = "",
    progress: Progress = no_progress,
) -> Path:
    """Writes the page with suggestions, images embedded, and returns its path.

    Args:
        items: the suggestions, the most probable first; their samples must be opened (see `data.pixels`).
        dataset: the data as they were read.
        out: the HTML file.
        title: the heading of the page.
        note: a sentence on the images that are no evidence.
        progress: called with the share of the images done.

    Raises:
        InputError: there is no way to write there.
    """
    check_target(out)
    cuts = cut_images(items, progress)
    samples = tuple({item.sample.id: item.sample for item in items}.values())
    addresses = original_addresses(Dataset(samples, dataset.classes, dataset.category_ids, dataset.source), out.parent)
    rest = {s.id: each for s, each in zip(samples, addresses["rest"], strict=True)}
    data: dict[str, Any] = {
        "title": title,
        "note": note,
        "format": FORMAT,
        "fileKind": KIND,
        "fingerprint": dataset.fingerprint,
        "source": str(dataset.source),
        "fileName": "corrections.json",
        "kinds": NAMES,
        "classes": list(dataset.classes),
        "base": addresses["base"],
        "suggestions": [_shown(item, cut, rest[item.sample.id]) for item, cut in zip(items, cuts, strict=True)],
    }
    write_text(out, inlined_page("review.html", data, styles=_STYLES, scripts=_SCRIPTS))
    return out


def write_suggestions(items: Sequence[Item], dataset: Dataset, out: Path) -> Path:
    """Writes the suggestions as JSON and returns the path."""
    document = {
        "format": FORMAT,
        "kind": SUGGESTIONS_KIND,
        "fingerprint": dataset.fingerprint,
        "data": str(dataset.source),
        "suggestions": [plain_item(item) for item in items],
    }
    write_text(out, json.dumps(document, indent=1, allow_nan=False) + "\n")
    return out


def _shown(item: Item, cut: Cut, original: str | None) -> dict[str, Any]:
    """A suggestion with its cut, boxes as [left, top, width, height] in pixels of the image."""
    plain = plain_item(item)
    return {
        "kind": plain.pop("kind"),
        "correction": plain,
        "window": cut.window,
        "jpeg": cut.jpeg,
        "broken": cut.broken,
        "original": original,
        "present": _sides(item.present),
        "proposed": _sides(item.proposed),
        "kept": _sides(item.kept),
        "others": [_sides(box) for box in others_within(item, cut.window)],
    }


def _sides(box: Array | None) -> list[float] | None:
    sides: list[float] | None = None if box is None else xyxy_to_xywh_of_file(box[None])[0].tolist()
    return sides
