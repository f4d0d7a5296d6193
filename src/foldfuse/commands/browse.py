"""The browse command: a page to look at images, their annotations, and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from foldfuse.commands import options
from foldfuse.commands.image_sets import read_images
from foldfuse.commands.prediction_files import member_names, read_file
from foldfuse.data.dataset import Dataset
from foldfuse.data.pixels import open_images
from foldfuse.data.readers.coco import load, read, require_layout
from foldfuse.errors import InputError, counted
from foldfuse.formats.raw_boxes import ReadAs
from foldfuse.reporting.browser import MARKER, images_folder, needs_folder, write_browser
from foldfuse.system import printing
from foldfuse.system.progress import progress_bar

FUSED = "fused_oof.parquet"  # in the folder of a campaign


def browse(
    data: Path,
    *,
    predictions: Annotated[tuple[str, ...], Parameter(name=("--predictions", "-p"), metavar="[NAME=]FILE")] = (),
    out: options.Out = Path("browse.html"),
    input_format: options.InputFormat = None,
    image_ids: options.ImageIds = None,
    category_ids: options.CategoryIds = None,
    classes_from: options.ClassesFrom = None,
    images: options.Images = None,
    ignore_orientation: options.IgnoreOrientation = False,
    overwrite: options.Overwrite = False,
) -> Path:
    """Write a page to look at images, their annotations and predictions, and return its path.

    The page opens in any browser, from the disk, without a server or network: thumbnails, full size with zoom, errors by kind,
    filters by class and error, sliders for score and IoU, and keys (press ? for them). Up to 60 images are embedded; more lie
    in a folder NAME_files beside NAME.html, which must move with the page.

    Args:
        data: the images: a dataset of any layout, or a folder of images.
        predictions: predictions to show, of some images of `data` or of all: Parquet, COCO results JSON, a CSV, a YOLO folder, or
            the folder of a campaign (its fused out-of-fold predictions). NAME= before it names the layer; repeat for more layers.
        out: HTML file to write.

    Raises:
        InputError: a file cannot be used, an image is missing, two layers have one name, or `out` exists.

    Examples:
        foldfuse browse data/train.json
        foldfuse browse data/train.json --predictions campaign --out errors.html
        foldfuse browse data/train.json --predictions small=a_oof.parquet --predictions large=b_oof.parquet --overwrite
    """
    options.check_ending(out, ".html", ".htm")
    files = prediction_files(predictions)
    inputs = [data, images, classes_from, *files.values()]
    options.refuse_overwrite(out, overwrite, is_file=True, inputs=inputs)
    dataset = _read_dataset(
        data,
        list(files.values()),
        classes_from=classes_from,
        images=images,
        ignore_orientation=ignore_orientation,
    )
    if needs_folder(dataset):
        samples = [s.path for s in dataset.samples]
        options.refuse_overwrite(images_folder(out), overwrite, inputs=[*inputs, samples[0]], made_by=(MARKER,))
    read_as = ReadAs(input_format, image_ids, category_ids)
    layers = {name: read_file(path, dataset, read_as) for name, path in files.items()}
    dataset = open_images(dataset, ignore_orientation=ignore_orientation)
    with progress_bar(f"reading {counted(len(dataset), 'image')}") as progress:
        page = write_browser(dataset, layers, out, title=_title(data), progress=progress)
    if needs_folder(dataset):
        printing.write(f"{images_folder(out)} holds its images: move both together.", to_stderr=True)
    return page


def prediction_files(words: Sequence[str]) -> dict[str, Path]:
    """{name of the layer: file} of words such as "large=b.parquet", "b.parquet" or the folder of a campaign.

    Raises:
        InputError: two layers have one name, or a campaign has no fused predictions yet.
    """
    named: list[tuple[str, Path]] = []
    plain = [Path(word) for word in words if not _is_named(word)]
    names = iter(member_names(plain))
    for word in words:
        name, path = word.split("=", 1) if _is_named(word) else (next(names), word)
        folder = Path(path)
        if not (folder / "campaign.sqlite").exists() and not (folder / FUSED).exists():
            named.append((name, folder))
            continue
        if not (folder / FUSED).exists():
            raise InputError(f"{folder}: this campaign has no {FUSED} yet. Wait for its end, or give another file.")
        several = sum(Path(other.split("=", 1)[-1]).is_dir() for other in words) > 1
        named.append((name if _is_named(word) or several else "campaign", folder / FUSED))
    for i, (name, file) in enumerate(named):
        twice = next((other for earlier, other in named[:i] if earlier == name), None)
        if twice is not None:
            raise InputError(
                f"{file}: has the name {name!r}, as {twice} has. Name one of them: --predictions NAME={file}."
            )
    return dict(named)


def _is_named(word: str) -> bool:
    """Whether a word is NAME=FILE, and no file whose name holds a "="."""
    name, equals, _ = word.partition("=")
    return bool(name and equals) and not Path(word).exists()


def _read_dataset(
    data: Path,
    predictions: Sequence[Path],
    *,
    classes_from: Path | None,
    images: Path | None,
    ignore_orientation: bool,
) -> Dataset:
    """The dataset with its annotations, where it has some; else its images, with the classes of the predictions."""
    if _is_annotated(data, images):
        return read(data, images=images, ignore_orientation=ignore_orientation)
    if not predictions:
        return read(data, annotated=False, images=images, ignore_orientation=ignore_orientation)
    return read_images(
        data,
        classes_from=classes_from,
        predictions=predictions,
        images=images,
        ignore_orientation=ignore_orientation,
    )


def _is_annotated(data: Path, images: Path | None) -> bool:
    """Whether a dataset has annotations to read: it is no folder of images, and no COCO JSON without a single annotation."""
    kind = require_layout(data).kind
    if kind != "coco":
        return kind != "images"
    document = load(data, images, annotated=False).document
    return not isinstance(document, dict) or document.get("annotations", []) != []


def _title(data: Path) -> str:
    """The name of the data with the folder above it, such as "bccd/train"."""
    path = data.resolve()
    return "/".join(part for part in (path.parent.name, path.stem) if part)
