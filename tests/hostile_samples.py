"""A sound dataset with predictions, in which one file is exchanged for something hostile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corpus_samples import coco, write_coco

DIGITS = "9" * 5000


def sound(folder: Path) -> None:
    """A dataset, predictions of it, and a file of folds."""
    document = coco()
    write_coco(folder, document)
    rows = [
        {"image_id": row["image_id"], "category_id": row["category_id"], "bbox": row["bbox"], "score": 0.5}
        for row in document["annotations"]
    ]
    (folder / "p.json").write_text(json.dumps(rows))
    (folder / "q.json").write_text(json.dumps(rows))


def with_file(name: str, content: str | bytes) -> Callable[[Path], None]:
    """A sound dataset, and a file with this content in the place of one of its own."""

    def make(folder: Path) -> None:
        sound(folder)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def with_node(name: str, make_node: Callable[[Path], Any]) -> Callable[[Path], None]:
    """A sound dataset, and something else than a file at `name`."""

    def make(folder: Path) -> None:
        sound(folder)
        (folder / name).unlink(missing_ok=True)
        make_node(folder / name)

    return make
