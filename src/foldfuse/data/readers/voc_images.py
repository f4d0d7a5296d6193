"""Finds the image of an XML file of a VOC dataset.

An XML names its image twice: by its own name and by <filename>. Where the two differ, the one whose image exists is taken, and
that is logged; where both exist, neither is believed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from foldfuse.data.findings import Finding
from foldfuse.data.readers.image_names import (
    RESPELLED,
    SPELLINGS,
    caseless,
    entries,
    is_image_name,
    name_parts,
    split_ending,
)
from foldfuse.data.readers.image_rows import image_files
from foldfuse.errors import shown

MASKS = re.compile(r"segmentation|.*mask", re.IGNORECASE)
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "img", "imgs", "image", "jpg")


@dataclass(frozen=True, eq=False)
class VocImages:
    """The image files of a VOC dataset.

    Attributes:
        root: the folder of the dataset.
        folder: the folder of the XML files.
        images: the folder of `--images`.
    """

    root: Path
    folder: Path
    images: Path | None

    def find(self, name: str, below: Path) -> list[Path]:
        """The images of a name, with or without its ending: in the first folder that has one, spelled as closely as possible.

        Args:
            name: a file name.
            below: the folder of the XML below the folder of all XML files.
        """
        has_ending = is_image_name(name)
        stem = split_ending(name)[0] if has_ending else name
        for folder in self._folders_for(below):
            for spelling, table in zip(SPELLINGS[:-1], self._tables(folder), strict=True):
                paths = table.get(spelling(stem), [])
                if has_ending:
                    paths = [p for p in paths if caseless(p.name) == caseless(name)]
                if paths:
                    return paths
        return []

    def expected(self, path: Path, stated: str) -> Path:
        """Where the image of an XML file should lie."""
        name = _last(stated)
        if not is_image_name(name) or caseless(split_ending(name)[0]) != caseless(path.stem):
            name = path.stem + ".jpg"
        below = path.parent.relative_to(self.folder)
        return next(self._folders_for(below), self.root / "JPEGImages") / name

    def unannotated(self, used: Set[Path]) -> Iterator[Finding]:
        """Notes on the images without an XML file, in the folders of the images with one."""
        for folder in dict.fromkeys(path.parent for path in used):
            for path in image_files(folder):
                if path not in used:
                    kind = "the image has no XML file, so it is not read"
                    yield Finding(kind, path.name, is_fault=False, is_logged=True)

    def _folders_for(self, below: Path) -> Iterator[Path]:
        tops = [self.images] if self.images is not None else [*(self.root / n for n in IMAGE_FOLDERS), self.root]
        seen = set()
        candidates = [top / below for top in tops] + [*tops, self.folder / below, *self._others]
        if self.folder == self.root and self.images is None:
            candidates.insert(0, self.root)
        for folder in candidates:
            if folder not in seen and folder.is_dir():
                seen.add(folder)
                yield folder

    @cached_property
    def _others(self) -> list[Path]:
        """Folders of other names that may hold the images, but for those of masks."""
        if self.images is not None or not self.root.is_dir():
            return []
        return [p for p in entries(self.root) if p.is_dir() and not MASKS.match(p.name)]

    @cached_property
    def _cache(self) -> dict[Path, tuple[dict[str, list[Path]], ...]]:
        return {}

    def _tables(self, folder: Path) -> tuple[dict[str, list[Path]], ...]:
        """For each spelling, the images of a folder by their names without ending."""
        if folder not in self._cache:
            tables: tuple[dict[str, list[Path]], ...] = tuple(defaultdict(list) for _ in SPELLINGS[:-1])
            for path in image_files(folder, recursive=self.images is not None):
                for spelling, table in zip(SPELLINGS[:-1], tables, strict=True):
                    table[spelling(split_ending(path.name)[0])].append(path)
            self._cache[folder] = tables
        return self._cache[folder]


def image_of(path: Path, stated: str, finder: VocImages) -> tuple[Path | None, list[Finding]]:
    """(the image of an XML file, None where there is none or it is not certain; the findings about it)."""
    below = path.parent.relative_to(finder.folder)
    name = _last(stated)
    own = finder.find(path.stem, below)
    stem = split_ending(name)[0] if is_image_name(name) else name
    if not name or caseless(stem) == caseless(path.stem):
        exact = [image for image in own if image.name == name] or own
        if len(exact) > 1:
            error = f"{path}: its image may be {exact[0]} or {exact[1].name}. Write its name in <filename>."
            return None, [Finding("two images fit one XML file", path.name, error)]
        if not exact:
            return None, []
        is_same = split_ending(exact[0].name)[0] in (path.stem, stem)
        how = Finding(RESPELLED, f"{path.name} for {exact[0].name}", fix="", is_fault=False, is_logged=True)
        return exact[0], [] if is_same else [how]
    other = finder.find(name, below)
    if own and other and set(own) != set(other):
        error = (
            f"{path}: its <filename> is {shown(name)}, but {own[0].name} is there too, and only one of them can be its image. "
            "Correct or remove <filename>, or rename the XML file."
        )
        return None, [Finding("<filename> contradicts the name of the XML file", f"{path.name}: {name}", error)]
    if own:
        if len(own) > 1:
            error = f"{path}: its image may be {own[0]} or {own[1].name}. Write its name in <filename>."
            return None, [Finding("two images fit one XML file", path.name, error)]
        kind = "<filename> names no image that is there; the image with the name of the XML file is taken"
        return own[0], [Finding(kind, f"{path.name}: {name}", fix="", is_fault=False, is_logged=True)]
    if len(other) == 1:
        return other[0], []
    return None, []


def _last(stated: str) -> str:
    """The file's name at the end of <filename>."""
    parts, _ = name_parts(stated.strip())
    return parts[-1] if parts else ""
