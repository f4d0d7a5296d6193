"""Reads Pascal VOC datasets: one XML file per image, in Annotations/ beside JPEGImages/, or beside the images.

Corners count from 1, the last pixel included (the VOC development kit, section 7), unless a corner of the dataset is 0: then they
count from 0 in all of it. Objects that are marked difficult become crowd regions: training and scoring ignore them, as VOC's own
scoring does. Sizes are taken from <size>; image files are opened only where it is missing.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foldfuse.data.findings import Finding
from foldfuse.data.readers.image_names import ImageFiles, decoded, entries, files_below, is_file
from foldfuse.data.readers.image_rows import Row, coco_document, image_files, image_table
from foldfuse.data.readers.loaded import Loaded
from foldfuse.data.readers.voc_images import VocImages, image_of
from foldfuse.errors import InputError, shown
from foldfuse.system.files import read_text, read_xml

MAX_XML_BYTES = 2**24  # of one file; real ones have a few thousand
XML_FOLDERS = ("annotations", "annotation", "xmls", "xml", "labels")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
YES, NO = ("1", "true", "yes", "1.0"), ("0", "false", "no", "0.0", "", "unspecified")


@dataclass(frozen=True, slots=True)
class VocObject:
    """An object as its XML states it: class name, corners as written, and whether it is difficult."""

    path: Path
    where: str
    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


def xml_folder(root: Path) -> Path | None:
    """The folder of the XML files of a VOC dataset; None where `root` holds none."""
    if not root.is_dir():
        return None
    folders = [p for p in entries(root) if p.is_dir()]
    inner = [p for p in folders if p.name.lower() in XML_FOLDERS]
    for folder in sorted(inner, key=lambda p: XML_FOLDERS.index(p.name.lower())):
        if _xml_files(folder, recursive=True):
            return folder
    if any(_is_voc(path) for path in _xml_files(root, recursive=False)[:3]):
        return root
    others = [p for p in folders if p not in inner]
    with_xml = [p for p in others if any(_is_voc(path) for path in _xml_files(p, recursive=False)[:3])]
    beside = [p for p in others if p not in with_xml and image_files(p)]
    return with_xml[0] if len(with_xml) == 1 and beside and not image_files(with_xml[0]) else None


def _xml_files(folder: Path, *, recursive: bool) -> list[Path]:
    return [p for p in files_below(folder, depth=3 if recursive else 0) if p.suffix.lower() == ".xml"]


def _is_voc(path: Path) -> bool:
    """Whether an XML file is an annotation of VOC; a broken one counts, as it has to be reported."""
    try:
        return read_xml(path, what="a VOC annotation", limit=MAX_XML_BYTES).tag == "annotation"
    except InputError:
        return True


def read_voc(
    root: Path,
    *,
    listing: Path | None = None,
    images: Path | None = None,
    annotated: bool = True,
    ignore_orientation: bool = False,
) -> Loaded:
    """A VOC dataset, or the images of it that a list of ImageSets names.

    The classes come from all XML files, also when only some images are read.

    Args:
        root: the folder of the dataset.
        listing: a file of ImageSets, with the name of an image on each line.
        images: the folder of `--images`.
        annotated: False to leave objects unread.
        ignore_orientation: whether sizes that no XML states are those of the pixels as stored.

    Raises:
        InputError: there is no XML file, or none of them can be used.
    """
    folder = xml_folder(root)
    given = listing or root
    if folder is None and (annotated or listing is None):
        raise InputError(f"{root}: holds no XML file. Expected one for each image, as in Pascal VOC.")
    findings: list[Finding] = []
    xml_files = [] if folder is None else _xml_files(folder, recursive=folder != root)
    folder = folder or root / "Annotations"
    trees = _read_trees(xml_files, findings)
    names = sorted({name for tree in trees.values() for name in _names(tree)})
    labels = {name: i for i, name in enumerate(names, 1)}
    findings += _alike(names)
    finder = VocImages(root, folder, images)
    stems = {_key(path.relative_to(folder)): path for path in trees}
    chosen, without_xml = (list(trees), []) if listing is None else _listed(listing, stems, findings)
    stated = {path: tree.findtext("filename") or "" for path, tree in trees.items()}
    image_of_xml: dict[Path, Path] = {}
    sizes: dict[Path, tuple[int, int]] = {}
    for path in chosen:
        image, found = image_of(path, stated[path], finder)
        findings += found
        size = _size(trees[path])
        if image is None and size is not None and not any(f.error for f in found):
            image = finder.expected(path, stated[path])
        elif image is None and not any(f.error for f in found):
            error = f"{path}: there is no image {finder.expected(path, stated[path])}, and the XML states no size."
            findings.append(Finding("the image is missing", path.name, error))
        if image is not None:
            image_of_xml[path] = image
            if size is not None:
                sizes[image] = size
    _drop_rivals(image_of_xml, findings)
    if listing is None:
        findings += finder.unannotated(set(image_of_xml.values()))
    paths = list(image_of_xml.values())
    for name in without_xml:
        image = next(iter(finder.find(name, Path())), None)
        if annotated or image is None:
            error = f"{listing}: lists {shown(name)}, but there is no {name}.xml among the annotations."
            findings.append(Finding("the listed image has no XML file", name, error))
        else:
            paths.append(image)
    table = image_table(paths, root, sizes=sizes, ignore_orientation=ignore_orientation)
    findings += table.findings
    annotations: list[Row] = []
    if annotated:
        rows = dict(zip(table.paths, table.rows, strict=True))
        objects: list[VocObject] = []  # of all files, so that a list of some images is read like all of them
        for path, tree in trees.items():
            objects += _objects(path, tree, findings if path in image_of_xml else [])
        origin = 0.0 if _is_zero_based(objects, findings) else 1.0
        annotations = [
            _annotation(each, row, labels, origin)
            for each in objects
            if (image := image_of_xml.get(each.path)) is not None and (row := rows.get(image)) is not None
        ]
    document = coco_document(table.rows, {label: name for name, label in labels.items()}, annotations)
    known = {name: path for name, path in table.known.items() if is_file(path)}
    return Loaded(document, given, tuple(findings), ImageFiles(root, images, known), ignore_orientation)


def _read_trees(paths: Sequence[Path], findings: list[Finding]) -> dict[Path, ET.Element]:
    trees: dict[Path, ET.Element] = {}
    for path in paths:
        try:
            tree = read_xml(path, what="a VOC annotation", limit=MAX_XML_BYTES)
            if tree.tag != "annotation":
                raise InputError(
                    f"{path}: begins with <{shown(tree.tag)[1:-1]}>, expected the <annotation> of a VOC dataset."
                )
        except InputError as error:
            findings.append(
                Finding("the XML file cannot be read", str(error).replace(str(path), path.name, 1), str(error))
            )
        else:
            trees[path] = tree
    return trees


def _key(relative: Path) -> str:
    """The name of an XML file in a list: its path without the ending."""
    return decoded(relative.with_suffix("").as_posix())


def _listed(listing: Path, stems: dict[str, Path], findings: list[Finding]) -> tuple[list[Path], list[str]]:
    """The XML files of a list of ImageSets, and the listed names without one.

    A second word of -1 says that the class of the list is absent from the image, which is then left out.
    """
    without: list[str] = []
    chosen: dict[Path, None] = {}
    absent = 0
    lines = [line.split() for line in read_text(listing, what="a list of images").splitlines() if line.strip()]
    by_last: dict[str, list[Path]] = defaultdict(list)
    for stem, path in stems.items():
        by_last[stem.rsplit("/", 1)[-1]].append(path)
    for words in lines:
        if len(words) > 1 and words[1] == "-1":
            absent += 1
            continue
        name = decoded(words[0].replace("\\", "/"))
        last = name.rsplit("/", 1)[-1]
        stem, _, ending = last.rpartition(".")
        keys = (last, stem) if ending and stem else (last,)
        found = stems.get(name) or next((each[0] for key in keys if len(each := by_last.get(key, [])) == 1), None)
        if found is None:
            without.append(last)
        else:
            chosen[found] = None
    if absent:
        where = f"{absent} of {len(lines)} lines"
        findings.append(Finding("lines marked -1 (absent) are left out", where, is_fault=False, is_logged=True))
    if not chosen and not without:
        raise InputError(f"{listing}: none of its {len(lines)} lines names an image of the dataset.")
    return list(chosen), without


def _drop_rivals(image_of_xml: dict[Path, Path], findings: list[Finding]) -> None:
    """Takes out images that several XML files claim."""
    claims: dict[Path, list[Path]] = defaultdict(list)
    for path, image in image_of_xml.items():
        claims[image].append(path)
    for image, paths in claims.items():
        if len(paths) > 1:
            error = f"{paths[0]} and {paths[1].name}: both are of the image {image}. Correct <filename>, or remove one of them."
            findings.append(Finding("two XML files are of one image", image.name, error))
            for path in paths:
                del image_of_xml[path]


def _alike(names: Sequence[str]) -> list[Finding]:
    """Notes on class names that differ only in case or blanks."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups["".join(name.casefold().split())].append(name)
    kind = "class names differ only in case or blanks, and stay different classes"
    return [Finding(kind, ", ".join(group), fix="", is_logged=True) for group in groups.values() if len(group) > 1]


def _names(tree: ET.Element) -> list[str]:
    return [name for element in tree.findall("object") if (name := _text(element, "name"))]


def _text(element: ET.Element, name: str) -> str:
    return (element.findtext(name) or "").strip()


def _size(tree: ET.Element) -> tuple[int, int] | None:
    """(width, height) of <size>; None where it is not stated."""
    width, height = (_number(tree.findtext(f"size/{side}")) for side in ("width", "height"))
    if width is None or height is None or not (0 < width < 1e6 and 0 < height < 1e6):
        return None
    return (int(width), int(height)) if width == int(width) and height == int(height) else None


def _number(text: str | None) -> float | None:
    try:
        value = float((text or "").strip())
    except ValueError:
        return None
    return value if abs(value) < 1e9 else None


def _objects(path: Path, tree: ET.Element, findings: list[Finding]) -> list[VocObject]:
    """The objects of one XML file; parts of objects are none. Adds to `findings`."""
    objects = []
    for number, element in enumerate(tree.findall("object"), 1):
        where = f"{path}: object {number}"
        if _text(element, "deleted") in YES:
            continue
        try:
            objects.append(_object(element, path, where))
        except InputError as error:
            kind = "the boxes are oriented" if element.find("robndbox") is not None else "the object has no usable box"
            findings.append(Finding(kind, f"{path.name}, object {number}", str(error)))
    return objects


def _object(element: ET.Element, path: Path, where: str) -> VocObject:
    name = _text(element, "name")
    if not name:
        raise InputError(f"{where} has no <name>.")
    difficult = _text(element, "difficult").lower()
    if difficult not in (*YES, *NO):
        raise InputError(f"{where}: <difficult> is {shown(difficult)}, expected 0 or 1.")
    return VocObject(path, where, name, _corners(element, where), difficult in YES)


def _corners(element: ET.Element, where: str) -> tuple[float, float, float, float]:
    """The corners of <bndbox>, or those around <polygon>."""
    box = element.find("bndbox")
    if box is not None:
        texts = [_text(box, name) for name in CORNERS]
        missing = [name for name, text in zip(CORNERS, texts, strict=True) if not text]
        if missing:
            raise InputError(f"{where}: its <bndbox> has no <{missing[0]}>.")
        values = [_number(text) for text in texts]
        if None in values:
            raise InputError(
                f"{where}: its <bndbox> holds {shown(texts[values.index(None)])}, something else than numbers."
            )
        x1, y1, x2, y2 = (value for value in values if value is not None)
        if x2 < x1 or y2 < y1:
            raise InputError(f"{where}: its <bndbox> ends before it begins ({x1:g}, {y1:g}, {x2:g}, {y2:g}).")
        return x1, y1, x2, y2
    polygon = element.find("polygon") if element.find("polygon") is not None else element.find("segmentation/polygon")
    if polygon is not None:
        xs = [_number(point.text) for point in polygon.iter() if point.tag.rstrip("0123456789") == "x"]
        ys = [_number(point.text) for point in polygon.iter() if point.tag.rstrip("0123456789") == "y"]
        across, down = [x for x in xs if x is not None], [y for y in ys if y is not None]
        if len(across) == len(xs) == len(down) == len(ys) >= 2:
            return min(across), min(down), max(across), max(down)
        raise InputError(f"{where}: its <polygon> holds no points.")
    if element.find("robndbox") is not None:
        raise InputError(f"{where}: has a <robndbox>: oriented boxes are not supported. Export upright boxes.")
    raise InputError(f"{where} has no <bndbox>.")


def _is_zero_based(objects: Sequence[VocObject], findings: list[Finding]) -> bool:
    """Whether corners count from 0: a first corner of the dataset is 0."""
    zero = [each for each in objects if 0.0 in each.corners[:2]]
    if zero:
        where = f"{len(zero)} of {len(objects)} objects, such as {zero[0].where}"
        kind = "corners count from 0, as some are 0: none is shifted by a pixel"
        findings.append(Finding(kind, where, fix="", is_fault=False, is_logged=True))
    return bool(zero)


def _annotation(each: VocObject, image: Row, labels: dict[str, int], origin: float) -> Row:
    x1, y1, x2, y2 = each.corners
    left, top = x1 - origin, y1 - origin
    return {
        "image_id": image["id"],
        "category_id": labels[each.name],
        "bbox": [left, top, x2 - left, y2 - top],
        "iscrowd": int(each.difficult),
    }
