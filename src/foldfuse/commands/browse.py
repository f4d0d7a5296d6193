"""The browse command: a page to look at images, their annotations, and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from foldfuse.commands import options
from foldfuse.commands.image_sets import with_known_classes
from foldfuse.commands.prediction_files import member_names, read_file
from foldfuse.data.dataset import Dataset
from foldfuse.data.findings import Finding
from foldfuse.data.pixels import open_usable_images
from foldfuse.data.readers.coco import load, parse_usable, require_layout
from foldfuse.data.readers.loaded import Loaded
from foldfuse.detections import Predictions
from foldfuse.errors import InputError, counted
from foldfuse.formats.parquet import read_parquet
from foldfuse.formats.raw_boxes import ReadAs
from foldfuse.fusion.methods import wbf
from foldfuse.inference.class_labels import concat_shards
from foldfuse.reporting.browser import MARKER, images_folder, needs_folder, write_browser
from foldfuse.reporting.browser_sources import PredictionSource, find_sources
from foldfuse.system import printing
from foldfuse.system.progress import progress_bar


def browse(
    data: Path,
    *,
    predictions: Annotated[
        tuple[str, ...], Parameter(name=("--predictions", "-p"), metavar="[NAME=]FILE|CAMPAIGN")
    ] = (),
    out: options.Out = Path("browse.html"),
    score_threshold: options.ScoreThreshold = 0.05,
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
        predictions: predictions to show, of some images of `data` or of all: Parquet, COCO results JSON, a CSV, a YOLO folder; or
            the folder of a campaign (its fused out-of-fold predictions, and those of its members) or of a run. NAME= before it
            names the layer; repeat for more layers.
        out: HTML file to write.

    An image that is missing, cannot be decoded or has another size than its annotations say is shown without pixels; one whose
    size nothing tells is left out. The page and the terminal say which, and why.

    Raises:
        InputError: a file cannot be used, no image can be shown, two layers have one name, or `out` exists.

    Examples:
        foldfuse browse data/train.json
        foldfuse browse data/train.json --predictions campaign --out errors.html
        foldfuse browse data/train.json -p small=a_oof.parquet -p large=b_oof.parquet --out both.html
    """
    options.check_ending(out, ".html", ".htm")
    sources = prediction_sources(predictions)
    inputs = [data, images, classes_from, *(path for s in sources for path in s.paths)]
    options.refuse_overwrite(out, overwrite, is_file=True, inputs=inputs)
    loaded, is_annotated = _load(data, images, ignore_orientation=ignore_orientation)
    dataset, left_out = parse_usable(loaded, annotated=is_annotated)
    if sources and not is_annotated:
        paths = [path for s in sources for path in s.paths]
        dataset = with_known_classes(dataset, data, classes_from=classes_from, predictions=paths)
    if needs_folder(dataset):
        samples = [s.path for s in dataset.samples]
        options.refuse_overwrite(images_folder(out), overwrite, inputs=[*inputs, samples[0]], made_by=(MARKER,))
    layers = _read_layers(sources, dataset, ReadAs(input_format, image_ids, category_ids), score_threshold)
    dataset = open_usable_images(dataset, ignore_orientation=ignore_orientation)
    _tell_of_unusable(dataset, left_out)
    with progress_bar(f"reading {counted(len(dataset), 'image')}") as progress:
        page = write_browser(
            dataset, layers, out, title=title_of(data), left_out=[f.where for f in left_out], progress=progress
        )
    if needs_folder(dataset):
        printing.write(f"{images_folder(out)} holds its images: move both together.", to_stderr=True)
    return page


def prediction_sources(words: Sequence[str]) -> list[PredictionSource]:
    """The layers of words such as "large=b.parquet", "b.parquet", or the folder of a campaign or a run.

    Raises:
        InputError: two layers have one name, or a campaign or a run has no predictions.
    """
    names = iter(member_names([Path(word) for word in words if not _is_named(word)]))
    sources: list[PredictionSource] = []
    for word in words:
        name, path = word.split("=", 1) if _is_named(word) else (next(names), word)
        is_prefixed = _is_named(word) or sum(Path(other.split("=", 1)[-1]).is_dir() for other in words) > 1
        sources += find_sources(Path(path), name, is_prefixed=is_prefixed)
    for i, source in enumerate(sources):
        twice = next((earlier.path for earlier in sources[:i] if earlier.name == source.name), None)
        if twice is not None:
            raise InputError(
                f"{source.path}: has the name {source.name!r}, as {twice} has. Name one of them: --predictions "
                f"NAME={source.path}."
            )
    return sources


def _read_layers(
    sources: Sequence[PredictionSource], dataset: Dataset, read_as: ReadAs, score_threshold: float
) -> dict[str, Predictions]:
    """{name: predictions}, without boxes below the score threshold; prints how many are left out."""
    layers, left_out = {}, 0
    for source in sources:
        found = read_source(source, dataset, read_as)
        layers[source.name] = found.filter(found.scores >= score_threshold)
        left_out += int((found.scores < score_threshold).sum())
    if left_out:
        text = f"{left_out:,} predicted boxes with scores below {score_threshold:g} are left out; --score-threshold 0 keeps them."
        printing.write(text, to_stderr=True)
    return layers


def read_source(source: PredictionSource, dataset: Dataset, read_as: ReadAs) -> Predictions:
    """The predictions of a source; of a campaign or a run those of the test images, where the others are of other images.

    The networks of several folds each predict their own held-out images; on test images all of them are fused.
    """
    if not source.tests:
        return read_file(source.path, dataset, read_as)
    try:
        held_out = [read_parquet(path, dataset) for path in source.paths]
    except InputError:
        tests = [path for path in source.tests if path.is_file() and path not in source.paths]
        if not tests:
            raise
        return (
            wbf([read_parquet(path, dataset) for path in tests]) if len(tests) > 1 else read_parquet(tests[0], dataset)
        )
    return concat_shards(held_out, [i for i in dataset.image_ids if any(i in each for each in held_out)])


def _is_named(word: str) -> bool:
    """Whether a word is NAME=FILE, and no file whose name holds a "="."""
    name, equals, _ = word.partition("=")
    return bool(name and equals) and not Path(word).exists()


def _load(data: Path, images: Path | None, *, ignore_orientation: bool) -> tuple[Loaded, bool]:
    """The data, read once, and whether they are annotated: no folder of images, and no COCO JSON without a single annotation."""
    kind = require_layout(data).kind
    loaded = load(data, images, annotated=kind not in ("images", "coco"), ignore_orientation=ignore_orientation)
    if kind != "coco":
        return loaded, kind != "images"
    document = loaded.document
    return loaded, not isinstance(document, dict) or document.get("annotations", []) != []


def _tell_of_unusable(dataset: Dataset, left_out: Sequence[Finding]) -> None:
    """Prints how many images are left out or shown without pixels, and why, with an example of each."""
    if left_out:
        is_are = "is" if len(left_out) == 1 else "are"
        text = f"{counted(len(left_out), 'image')} {is_are} left out, since nothing tells the size: {left_out[0].error}"
        printing.write(text, to_stderr=True)
    if without := [s.missing for s in dataset.samples if s.missing]:
        is_are = "is" if len(without) == 1 else "are"
        text = f"{counted(len(without), 'image')} of {len(dataset):,} {is_are} shown without pixels: {without[0]}"
        printing.write(text, to_stderr=True)


def title_of(data: Path) -> str:
    """The name of the data with the folder above it, such as "bccd/train"."""
    path = data.resolve()
    return "/".join(part for part in (path.parent.name, path.stem) if part)
