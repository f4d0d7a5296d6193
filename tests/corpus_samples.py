"""Cases of the corpus: an input as people have it, the command that is given it, and what the command must do.

A case is a function that fills an empty folder, and what must hold after the command has run in that folder. `run` also checks
what holds for every input: no traceback, no control character on the terminal, and nothing written when the command refuses.
"""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foldfuse import cli

CLASSES = ("cat", "dog", "bird")


@dataclass(frozen=True)
class Case:
    """One input and what must become of it.

    Attributes:
        name: the name of the test.
        make: writes the input into a folder, which becomes the working folder of the command.
        command: words of the command line after `foldfuse`.
        status: the exit status.
        says: texts that the output holds, in any order; line breaks count as blanks.
        never: texts that the output does not hold.
        right: checks values after the command, given the folder.
    """

    name: str
    make: Callable[[Path], None] = field(repr=False)
    command: str
    status: int = 0
    says: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    right: Callable[[Path], None] | None = field(default=None, repr=False)


def parametrize(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Runs a test with each case, named after it."""
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), "two cases have one name"
    return pytest.mark.parametrize("case", cases, ids=names)


def run(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs the command of a case in `folder`, checks everything, and returns what was printed, with single blanks."""
    case.make(folder)
    before = contents(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "400")
    capsys.readouterr()
    status = cli.main(shlex.split(case.command))
    out, err = capsys.readouterr()
    printed = " ".join((out + " " + err).split())
    assert status == case.status, f"exit status {status}, expected {case.status}; printed: {printed}"
    for text in case.says:
        assert " ".join(text.split()) in printed, f"{text!r} is not in what was printed: {printed}"
    for text in (*case.never, "Traceback", "NoneType", "<class '"):
        assert text not in printed, f"{text!r} was printed: {printed}"
    control = [c for c in out + err if (ord(c) < 32 and c not in "\n\r\t") or 0x7F <= ord(c) < 0xA0]
    assert not control, f"control characters were printed: {control}"
    if status == 2:
        assert contents(folder) == before, "a refused command changed the folder"
    if case.right is not None:
        case.right(folder)
    return printed


def contents(folder: Path) -> dict[str, bytes | None]:
    """{path: bytes of a regular file, None for anything else} of everything below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def save_image(path: Path, *, width: int = 96, height: int = 64, seed: int = 0, orientation: int | None = None) -> Path:
    """Writes an image of coloured noise, unlike the images of other seeds; the ending gives the format.

    Args:
        path: the file; missing folders are made.
        width, height: pixels as they are stored.
        seed: the seed of the noise.
        orientation: an EXIF orientation tag, 1 to 8, to write with the pixels.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 9, 3), np.uint8))
    image = noise.resize((width, height), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    format = Image.registered_extensions().get(path.suffix.lower(), "JPEG")
    memory = io.BytesIO()
    image.save(memory, format, **({"exif": exif} if orientation is not None else {}))
    path.write_bytes(memory.getvalue())
    return path


def coco(images: int = 4, *, width: int = 96, height: int = 64, classes: Sequence[str] = CLASSES) -> dict[str, Any]:
    """A COCO document without faults: image ids and category ids count from 1, two boxes an image, every class in turn.

    Image i is called images/i.jpg; its boxes are [8, 8, 24, 16] and [48, 24, 32, 32].
    """
    annotations = []
    for image_id in range(1, images + 1):
        for box in ([8, 8, 24, 16], [48, 24, 32, 32]):
            number = len(annotations) + 1
            annotations.append(
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": 1 + (number - 1) % len(classes),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    return {
        "images": [
            {"id": i, "file_name": f"images/{i}.jpg", "width": width, "height": height} for i in range(1, images + 1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, 1)],
        "annotations": annotations,
    }


def write_coco(folder: Path, document: dict[str, Any], name: str = "train.json", *, with_images: bool = True) -> Path:
    """Writes a COCO document, and an image of the stated size for every image that is not there yet; returns the JSON's path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    for seed, row in enumerate(document["images"] if with_images else ()):
        target = path.parent / row["file_name"]
        if not target.exists():
            save_image(target, width=int(row["width"]), height=int(row["height"]), seed=seed)
    return path
