"""Finds image files by the names that annotations give them.

A name is looked for as it is written: beside the annotations, then in the folders where exports of the usual tools keep images
(see `image_folders`). Where it is in none of them, it is compared with all image files below: first with slashes for
backslashes, then by Unicode normalisation and the case of the ending, then percent-decoded, then whatever the case, then
without the ending. Of a path of another machine the longest end that one file alone has is taken. Two files that fit equally
well are a conflict, and no file is chosen.

Images outside the folder of the dataset are never found, unless `--images` names a folder that holds them.
"""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from foldfuse.errors import InputError

IMAGE_SUFFIXES = (
    ".bmp",
    ".gif",
    ".jfif",
    ".jpe",
    ".jpeg",
    ".jpg",
    ".mpo",
    ".pbm",
    ".pgm",
    ".png",
    ".pnm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
UNREAD_SUFFIXES = (".avif", ".heic", ".heif", ".jp2", ".jxl")  # images that have to be converted first
IGNORED_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
MAX_FILES = 2_000_000  # looked through below one folder
MAX_SEARCHED = 500_000  # files among which an image is looked for by the end of its path
MAX_DEPTH = 8
IMAGE_FOLDERS = ("images", "data", "JPEGImages", "img", "imgs", "Images")  # below the dataset's folder, in this order

RESPELLED = "the image is found under another spelling of its name"
BESIDE = "the image is not in the folder of --images, but beside the annotations"
MOVED = "the image is found in another folder than its name says"


@dataclass(frozen=True, slots=True)
class Match:
    """The image file of a name.

    Attributes:
        path: the file; the place where it was expected if `found` is False.
        found: whether there is such a file, and only one.
        how: how the file was found, as the kind of a note; "" where the name is exact.
        reason: why there is no file, as the end of a sentence; "" where there is one.
    """

    path: Path
    found: bool = True
    how: str = ""
    reason: str = ""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """The image files of a dataset.

    Attributes:
        source: the file or folder of the annotations; images lie beside the file, or in the folder, or below.
        folder: the folder of `--images`, in which images are looked for first; None without the option.
        known: {name: file} of the images whose files the reader of a layout has found already.
        unclear: {name: why it has no file} of names that seem to be a file that another name has.
    """

    source: Path
    folder: Path | None = None
    known: Mapping[str, Path] = field(default_factory=dict)
    unclear: Mapping[str, str] = field(default_factory=dict)
    _matches: dict[str, Match] = field(default_factory=dict, init=False, repr=False)  # of the names looked for so far

    def find(self, name: str) -> Match:
        """The file of an image that the annotations call `name`; it is looked for once."""
        if name not in self._matches:
            self._matches[name] = self._find_anywhere(name)
        return self._matches[name]

    def _find_anywhere(self, name: str) -> Match:
        if name in self.known:
            return Match(self.known[name])
        if name in self.unclear:
            return Match(self.root / name, found=False, reason=self.unclear[name])
        if self.folder is None:
            return self._find(name)
        match = self._find(name)
        if match.found or match.reason:
            return match
        beside = self._beside._find(name)
        return replace(beside, how=beside.how or BESIDE) if beside.found else match

    @cached_property
    def _beside(self) -> ImageFiles:
        return ImageFiles(self.source)

    def _find(self, name: str) -> Match:
        parts, is_absolute = name_parts(name)
        expected = self.root.joinpath(*parts) if parts else self.root / name
        if not parts:
            return Match(expected, found=False, reason="is no name of a file")
        is_leaving = bool(Path(name).anchor or Path(name).drive) or ".." in Path(name).parts
        for folder in () if is_leaving else self.folders:
            if is_file(path := folder / name) or (not is_absolute and is_file(path := folder.joinpath(*parts))):
                return Match(path)
        if is_absolute or ".." in parts:
            return self._find_outside(name, parts, is_absolute, expected)
        return self._search(parts, expected, is_absolute=False)

    @cached_property
    def root(self) -> Path:
        """The folder that names are relative to."""
        if self.folder is not None:
            return self.folder
        return self.source if self.source.is_dir() else self.source.parent

    @cached_property
    def top(self) -> Path:
        """The folder that all images lie in: that of the annotations, or the folder above where it is called annotations."""
        is_inner = self.folder is None and self.root.absolute().name.lower() in ("annotations", "labels", "annotation")
        return self.root.parent if is_inner and self.root.name else self.root

    @cached_property
    def folders(self) -> tuple[Path, ...]:
        """The folders in which a name is looked for as it is written, in this order."""
        tops = (self.root,) if self.top == self.root else (self.root, self.top)
        return tuple(folder for top in tops for folder in image_folders(top, self.source.stem))

    def where(self, name: str) -> str:
        """The sentence on an image that is not found: where it was looked for, and what helps."""
        match = self.find(name)
        if match.reason:
            return f"{_short(name)} {match.reason}."
        if self.folder is not None:
            return f"there is no image {_short(name)} in {self.folder} nor in the folders below."
        return (
            f"there is no image {self.root / _short(name)} nor {self.root / 'images' / _short(name)}. Put the images beside the "
            "annotations, or in images/ beside it; or give their folder as --images DIR."
        )

    def _find_outside(self, name: str, parts: list[str], is_absolute: bool, expected: Path) -> Match:
        """The file of a name that is absolute or leads upwards: taken where it lies within the dataset, else by its end."""
        path = Path(name) if is_absolute else self.root.joinpath(*parts)
        inside = Path(os.path.normpath(path.absolute())).is_relative_to(os.path.normpath(self.top.absolute()))
        if inside and is_file(path):
            return Match(path)
        match = self._search([part for part in parts if part != ".."], expected, is_absolute=True)
        if match.found or match.reason or inside or not is_file(path):
            return match
        reason = f"leads out of the folder of the dataset. If it is meant, give --images {path.parent}"
        return Match(expected, found=False, reason=reason)

    def _search(self, parts: list[str], expected: Path, *, is_absolute: bool) -> Match:
        """The one image file whose path ends like the name, spelled in any way."""
        shortest = 1 if is_absolute or len(parts) > 1 else len(parts)
        for length in range(len(parts), shortest - 1, -1):
            tail = "/".join(parts[-length:])
            is_cut = length < len(parts)
            for spelling, files in zip(SPELLINGS, self._index, strict=True):
                if spelling is _stem and is_image_name(parts[-1]):
                    continue  # x.png is not x.jpg
                paths = [p for p in files.get(spelling(parts[-1]), ()) if _ends_like(p, tail, spelling)]
                if is_cut and not is_absolute:  # a folder that is named is not simply passed over
                    paths = [p for p in paths if p.parent in self.folders]
                if not is_cut:  # the first folder that has one decides, as for names that are found as written
                    near = [[p for p in paths if p.parent == folder] for folder in self.folders]
                    paths = next(filter(None, near), paths)
                if len(paths) == 1:
                    return Match(paths[0], how=self._how(paths[0], tail, is_stem=spelling is _stem))
                if paths:
                    some = " and ".join(str(p) for p in paths[:2])
                    reason = (
                        f"may be {some}{' and others' * (len(paths) > 2)}. Keep one, or give its folder as --images DIR"
                    )
                    return Match(expected, found=False, reason=reason)
        return Match(expected, found=False)

    def _how(self, path: Path, tail: str, *, is_stem: bool) -> str:
        """The note on how the file of a name was found; "" where only its ending was missing."""
        found = "/".join(path.parts[-len(tail.split("/")) :])
        if is_stem and split_ending(found)[0] == tail:
            return "" if path.parent in self.folders else MOVED
        return MOVED if found == tail else RESPELLED

    @cached_property
    def _index(self) -> tuple[dict[str, list[Path]], ...]:
        """For each of SPELLINGS, the image files below the top folder by their spelled names."""
        tables: tuple[dict[str, list[Path]], ...] = tuple(defaultdict(list) for _ in SPELLINGS)
        paths = list(itertools.islice(files_below(self.top), MAX_SEARCHED + 1))
        for path in paths if len(paths) <= MAX_SEARCHED else ():  # half of a large disk would make names look unique
            if is_image_name(path.name):
                for spelling, table in zip(SPELLINGS, tables, strict=True):
                    table[spelling(path.name)].append(path)
        return tables


def image_folders(folder: Path, stem: str) -> Iterator[Path]:
    """The folders in which the images of annotations called `stem` may lie, from `folder` down; those that exist.

    These are `folder` itself, images/ and data/ in it, and in each of them the folder of the split: instances_train2017.json
    has its images in train2017/, instances_default.json in images/default/.
    """
    words = re.split(r"[_.\- ]+", stem)
    splits = [stem]
    for i in range(1, len(words)):
        splits += ["_".join(words[i:]), "_".join(words[:i])]
    seen = set()
    for below in (folder, *(folder / name for name in IMAGE_FOLDERS)):
        parts = [path for split in dict.fromkeys(splits) if split and (path := below / split).is_dir()]
        if parts and parts[0].name != stem and len(parts) > 1:  # train_val.json: neither train/ nor val/ is meant alone
            parts = []
        for path in (below, *parts[:1]):
            if path not in seen and path.is_dir():
                seen.add(path)
                yield path


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: its name begins with a dot, or a system makes it unasked."""
    return name.startswith(".") or name.lower() in IGNORED_NAMES


def is_image_name(name: str) -> bool:
    """Whether a file name has the ending of an image, and is not hidden."""
    return split_ending(name)[1].lower() in IMAGE_SUFFIXES and not is_hidden(name)


def split_ending(name: str) -> tuple[str, str]:
    """A file name without its ending, and the ending with its dot; "" for a name without an ending."""
    stem, dot, ending = name.rpartition(".")
    return (stem, dot + ending) if stem else (name, "")


def files_below(folder: Path, *, depth: int = MAX_DEPTH) -> Iterator[Path]:
    """The files in a folder and the folders in it, in the order of their names, without hidden ones."""
    seen: set[tuple[int, int]] = set()
    count = 0
    stack = [(folder, 0)]
    while stack:
        here, level = stack.pop()
        try:
            status = here.stat()
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except PermissionError:
            raise InputError(f"{here}: may not be listed (permission denied). Change its permissions.") from None
        except OSError:
            continue
        if (status.st_dev, status.st_ino) in seen:  # a link back up
            continue
        seen.add((status.st_dev, status.st_ino))
        below = []
        for entry in entries:
            if is_hidden(entry.name):
                continue
            try:
                is_folder, is_regular = entry.is_dir(), entry.is_file()
            except OSError:  # a loop of links
                continue
            if is_folder:
                below.append((here / entry.name, level + 1))
            elif is_regular:
                count += 1
                yield here / entry.name
        if count > MAX_FILES:
            return
        if level < depth:
            stack += reversed(below)


def entries(folder: Path) -> list[Path]:
    """Everything in a folder, by name, without hidden files.

    Raises:
        InputError: the folder cannot be listed.
    """
    try:
        return sorted(path for path in folder.iterdir() if not is_hidden(path.name))
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({(error.strerror or str(error)).lower()}).") from None


def name_parts(name: str) -> tuple[list[str], bool]:
    """The folders and the file in a name, and whether it is an absolute path, of this machine or another, or an address."""
    text = name.split("?d=", 1)[1] if "?d=" in name else name  # Label Studio's local files
    text = text.replace("\\", "/")
    is_absolute = bool(re.match(r"/|[A-Za-z]:|[a-z][a-z0-9+]+://", text)) or "?d=" in name
    text = re.sub(r"^([A-Za-z]:|[a-z][a-z0-9+]+://)", "", text)
    parts: list[str] = []
    for part in text.split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return parts, is_absolute


def _exact(name: str) -> str:
    return name


def composed(name: str) -> str:
    """A name in Unicode's composed form, with its ending in lower case."""
    stem, ending = split_ending(unicodedata.normalize("NFC", name))
    return stem + ending.lower()


def decoded(name: str) -> str:
    """`composed`, with percent-encoding undone."""
    return composed(unquote(name))


def caseless(name: str) -> str:
    """`decoded`, whatever the case."""
    return decoded(name).casefold()


def _stem(name: str) -> str:
    """`caseless`, without the ending of an image."""
    stem, ending = split_ending(caseless(name))
    return stem if ending in IMAGE_SUFFIXES else stem + ending


def unprefixed(name: str) -> str:
    """`caseless`, without the eight hexadecimal digits that Label Studio puts before a name."""
    return re.sub(r"^[0-9a-f]{8}-(?=.)", "", caseless(name))


SPELLINGS: tuple[Callable[[str], str], ...] = (_exact, composed, decoded, caseless, unprefixed, _stem)


def _ends_like(path: Path, tail: str, spelling: Callable[[str], str]) -> bool:
    """Whether a path ends in `tail`, both spelled in the same way."""
    parts = tail.split("/")
    return [spelling(p) for p in path.parts[-len(parts) :]] == [spelling(p) for p in parts]


def is_file(path: Path) -> bool:
    """Whether a regular file, or a link to one, is at `path`; a name that cannot be one is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a null byte
        return False


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:40]}...{name[-17:]}"
