"""Pairs image files with the label files of a YOLO dataset, and reports what is left over on either side.

The label file of `.../images/a/b.jpg` is `.../labels/a/b.txt`, with labels/ for the last images/ of the path. Where no label
file lies there, labels are looked for beside the images, and in a labels/ beside or below their folder. Names are compared
as `image_names` compares them: a file that was packed on another system may be spelled in another way.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from foldfuse.data.findings import Finding
from foldfuse.data.readers.image_names import (
    MAX_SEARCHED,
    SPELLINGS,
    files_below,
    is_hidden,
    is_image_name,
    split_ending,
)

ORPHAN = "the label file has no image"
UNLABELED = "the image has no label file"
OTHER_TEXTS = frozenset(
    {"classes", "labels", "names", "obj", "notes", "readme", "readme.dataset", "readme.roboflow", "license", "licence"}
    | {"train", "val", "valid", "test", "predefined_classes", "requirements", "_classes"}
)  # text files in a dataset that are no labels, unless an image has that name too


@dataclass(frozen=True, eq=False)
class LabelPairs:
    """Label files of images.

    Attributes:
        label_of: {image: its label file}; an image without a label file is missing.
        unclear: images whose label file is not certain; a fixed copy leaves them out.
        findings: images and label files that are left over, and names that fit only when spelled in another way.
    """

    label_of: Mapping[Path, Path]
    unclear: frozenset[Path]
    findings: tuple[Finding, ...]


@dataclass(eq=False)
class _Pairing:
    """The pairs found so far, and the findings about them."""

    label_of: dict[Path, Path] = field(default_factory=dict)
    respelled: set[Path] = field(default_factory=set)
    conflicts: dict[Path, Finding] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    orphans: list[Path] = field(default_factory=list)


def pair_labels(paths: Sequence[Path], *, source: Path, images: Path | None = None) -> LabelPairs:
    """The label files of images.

    Args:
        paths: the images of the dataset.
        source: the file or folder that describes the dataset, for sentences; misnamed folders are looked for below it.
        images: the folder of `--images`; labels are then looked for in labels/ beside `source` too.
    """
    pairing = _Pairing()
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for image in paths:
        by_folder[image.parent].append(image)
    wanted = set(paths)
    root = source if source.is_dir() else source.parent
    for folder, own in by_folder.items():
        far = [] if images is None else [root / "labels" / folder.name, root / "labels"]
        _pair_folder(folder, own, far, pairing)
    label_of = {image: label for image, label in pairing.label_of.items() if image in wanted}
    unclear = {image: finding for image, finding in pairing.conflicts.items() if image in wanted}
    findings = [*pairing.findings, *unclear.values(), *_shared(label_of)]
    findings += [
        Finding(
            "the label file is found under another spelling of its image's name",
            f"{_name(label_of[image])} for {image.name}",
            fix="",
            is_fault=False,
            is_logged=True,
        )
        for image in paths
        if image in pairing.respelled
    ]
    if not label_of and not unclear and paths:
        findings.append(_all_missing(paths, source))
    else:
        findings += [
            Finding(UNLABELED, _name(image), fix="", is_fault=False, is_logged=True)
            for image in paths
            if image not in label_of and image not in unclear
        ]
    findings += [Finding(ORPHAN, _name(path), fix="", is_logged=True) for path in pairing.orphans]
    return LabelPairs(label_of, frozenset(unclear), tuple(findings))


def _pair_folder(folder: Path, chosen: Sequence[Path], far: Sequence[Path], pairing: _Pairing) -> None:
    """Pairs the images of one folder, those that were not chosen included, so that their labels do not count as left over."""
    unpaired = sorted({*chosen, *_images_in(folder)})
    used: Path | None = None
    for labels, is_own in (*label_folders(folder), *((path, False) for path in far if path.is_dir())):
        texts = _texts_in(labels)
        pairs, conflicts = match_stems(unpaired, texts)
        if not pairs and not conflicts:
            continue
        if used is not None:
            where = f"{_name(next(iter(pairs.values())))}, others in {used.name}/" if pairs else str(labels)
            pairing.findings.append(
                Finding(
                    "label files lie in another folder than the others", where, fix="", is_fault=False, is_logged=True
                )
            )
        used = used or labels
        pairing.label_of |= pairs
        pairing.respelled |= {image for image, label in pairs.items() if label.name not in _exact_names(image)}
        pairing.conflicts |= conflicts
        unpaired = [image for image in unpaired if image not in pairs]
        if is_own:
            taken = set(pairs.values())
            pairing.orphans += [
                text for text in texts if text not in taken and text.stem.lower() not in OTHER_TEXTS and not conflicts
            ]
        if not unpaired:
            return


def label_folders(folder: Path) -> Iterator[tuple[Path, bool]]:
    """The folders in which the labels of the images in `folder` may lie, and whether they hold labels of no other images."""
    absolute = Path(os.path.normpath(folder.absolute()))
    parts = absolute.parts
    seen = {None}
    last = max((i for i, part in enumerate(parts) if part.lower() == "images"), default=None)
    mirrors = [] if last is None else [Path(*parts[:last], word, *parts[last + 1 :]) for word in ("labels", "Labels")]
    above = absolute.parent
    candidates = [
        *((mirror, True) for mirror in mirrors),
        (folder, True),
        (folder / "labels", True),
        (above / "labels" / absolute.name, True),
        (above.parent / "labels" / absolute.name, True),
        (above / "labels", False),
    ]
    for path, is_own in candidates:
        key = os.path.normcase(os.path.normpath(path.absolute()))
        if key not in seen and path.is_dir():
            seen.add(key)  # type: ignore[arg-type]
            yield path, is_own


def match_stems(images: Iterable[Path], labels: Iterable[Path]) -> tuple[dict[Path, Path], dict[Path, Finding]]:
    """{image: label file} by the names without their endings, the exact names first; and names that two files share."""
    pairs: dict[Path, Path] = {}
    conflicts: dict[Path, Finding] = {}
    left, free = list(images), list(labels)
    for spelling in SPELLINGS[:-1]:
        table: dict[str, list[Path]] = defaultdict(list)
        for label in free:
            table[spelling(split_ending(label.name)[0])].append(label)
        found: dict[Path, Path] = {}
        for image in left:
            keys = dict.fromkeys((spelling(split_ending(image.name)[0]), spelling(image.name)))
            rivals = [label for key in keys for label in table.get(key, ())]
            if len(rivals) > 1 and spelling is not SPELLINGS[0]:
                error = f"{image}: its label file may be {rivals[0].name} or {rivals[1].name}. Remove one of them."
                conflicts[image] = Finding("two label files fit one image", image.name, error)
            elif rivals:
                found[image] = rivals[0]
        pairs |= found
        taken = set(found.values())
        left = [image for image in left if image not in found and image not in conflicts]
        free = [label for label in free if label not in taken]
    return pairs, conflicts


def _exact_names(image: Path) -> set[str]:
    stem = split_ending(image.name)[0]
    return {stem + ".txt", image.name + ".txt", stem + ".TXT"}


def _images_in(folder: Path) -> list[Path]:
    return [path for path in files_below(folder, depth=0) if is_image_name(path.name)]


def _texts_in(folder: Path) -> list[Path]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError:
        return []
    return [folder / name for name in names if name.lower().endswith(".txt") and not is_hidden(name)]


def _shared(label_of: Mapping[Path, Path]) -> Iterator[Finding]:
    """Findings on label files that two images share, such as a.jpg and a.png."""
    times = Counter(label_of.values())
    for image, label in label_of.items():
        if times[label] > 1:
            yield Finding("two images share one label file", f"{image.name} and {_name(label)}", fix="", is_logged=True)


def _all_missing(images: Sequence[Path], source: Path) -> Finding:
    """The fault of a dataset without a label file; names a folder that seems to hold them."""
    root = source if source.is_dir() else source.parent
    stems = {split_ending(image.name)[0] for image in images}
    folders = Counter(
        path.parent
        for path in itertools.islice(files_below(root), MAX_SEARCHED)
        if path.suffix.lower() == ".txt" and split_ending(path.name)[0] in stems
    )
    first = images[0]
    if folders:
        folder, count = folders.most_common(1)[0]
        hint = f"{folder} holds {count} of these names: rename it to labels/, beside images/."
    else:
        hint = "Put the label files in labels/ instead of images/, or beside the images."
    error = (
        f"{source}: none of its {len(images)} images has a label file, such as {split_ending(first.name)[0]}.txt for {first}. "
        f"{hint}"
    )
    return Finding("no image has a label file", f"{len(images)} images", error, fix="")


def _name(path: Path) -> str:
    """The file and its folder, for a table."""
    return "/".join(path.parts[-2:])
