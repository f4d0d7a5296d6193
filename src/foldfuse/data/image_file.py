"""Opens image files of the formats that are read, and no other: header, orientation tag and pixels.

Every image file is opened here, so that no other decoder of Pillow (EPS starts a program) ever sees a file.
Source of the orientation tag: Exif 2.32 (CIPA DC-008-2019), section 4.6.4; of PNG's chunk: PNG third edition, 11.3.3.5.
"""

from __future__ import annotations

import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from foldfuse.data.value_ranges import EIGHT_BITS, Depth, depth_of
from foldfuse.errors import InputError

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")  # PPM: also PGM, PBM and PFM
ORIENTATION_TAG = 0x0112
SWAPPED = range(5, 9)  # orientations that swap width and height
UPRIGHT = {  # orientation: the change that shows the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STORED = UPRIGHT | {6: UPRIGHT[8], 8: UPRIGHT[6]}  # orientation: the change that takes upright pixels back
_KNOWN = (  # (offset, bytes, name) of files that are often taken for images that can be read
    (4, b"ftypavif", "an AVIF image"),
    (4, b"ftypavis", "an AVIF image"),
    *(
        (4, b"ftyp" + brand, "a HEIC image")
        for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
    ),
    (4, b"ftyp", "a video"),
    (128, b"DICM", "a DICOM file"),
    (0, b"\x93NUMPY", "a numpy array"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (0, b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (0, b"%!PS", "a PostScript file"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript file"),
    (0, b"%PDF", "a PDF file"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"<!DOCTYPE", "a web page"),
    (0, b"<html", "a web page"),
    (0, b"<?xml", "an XML file"),
    (0, b"<svg", "an SVG file"),
    (0, b"version https://git-lfs", "a pointer of Git LFS"),
)

_DAMAGED = (  # (bytes, sentence) of files that begin like an image of a format that is read
    (
        b"II*\0",
        "it is a TIFF that is damaged or of a kind that is not read, such as one of 64 bits or of many channels",
    ),
    (
        b"MM\0*",
        "it is a TIFF that is damaged or of a kind that is not read, such as one of 64 bits or of many channels",
    ),
    (b"\x89PNG", "it is a damaged PNG"),
    (
        b"\xff\xd8",
        "it is a JPEG that is damaged or of a kind that is not read, such as one of 12 bits or a lossless one",
    ),
    (b"GIF8", "it is a damaged GIF"),
    (b"BM", "it is a damaged BMP"),
    (b"RIFF", "it is a damaged WebP"),
)
_PAGED = ("GIF", "TIFF", "WEBP", "PNG")
_SIZE_TAGS = (256, 257)  # of TIFF: width, height as stored
_SUBFILE_TAG = 254  # of TIFF: bit 0 marks a page that is a smaller copy of another

_opening = threading.Lock()  # what warnings are shown is the same for all threads

warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
Image.MAX_IMAGE_PIXELS = None  # `decoding` has a limit of its own, which says how to allow more


@dataclass(frozen=True, slots=True)
class Header:
    """The header of an image file.

    Attributes:
        width, height: pixels as they are stored.
        orientation: the EXIF orientation tag, 1 (none or upright) to 8.
        depth: how the values of the pixels are stored.
        has_pages: whether there are more pages or frames than the first, which alone is read.
    """

    width: int
    height: int
    orientation: int = 1
    depth: Depth = EIGHT_BITS
    has_pages: bool = False

    @property
    def stored_size(self) -> tuple[int, int]:
        """(width, height) of the pixels as they are stored."""
        return self.width, self.height

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) after the orientation tag."""
        return (self.height, self.width) if self.orientation in SWAPPED else (self.width, self.height)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The image in a file, opened but not decoded; errors while the block decodes it become InputErrors with the file's name.

    Raises:
        InputError: the file is missing, is no regular file, is of no format that is read, or cannot be decoded.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{path}: is a {'folder' if path.is_dir() else 'device or pipe'}, expected an image file.")
        with path.open("rb") as file, _image(file, path) as image:
            yield image
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such image.") from None
    except MemoryError:
        raise InputError(
            f"{path}: cannot be decoded as an image (it takes too much memory). Cut it into tiles."
        ) from None
    except Exception as error:  # a damaged file can make Pillow fail in any way
        raise InputError(
            f"{path}: cannot be decoded as an image ({_reason(error)}). Replace it, or remove it from the annotations."
        ) from None


def read_header(path: Path) -> Header:
    """The header of an image file; nothing is decoded. Raises InputError as `opened` does."""
    with opened(path) as image:
        header = header_of(image)
        return replace(header, has_pages=_has_pages(image))


def header_of(image: Image.Image) -> Header:
    """The header of an opened image that is not loaded yet; pages are not looked for."""
    width, height = image.size
    orientation = orientation_of(image)
    if image.format == "TIFF":  # Pillow shows the upright size of this format alone
        width, height = (int(image.tag_v2[tag]) for tag in _SIZE_TAGS)  # type: ignore[attr-defined]
    if not width or not height:
        raise ValueError(f"it has {width} x {height} pixels")
    if image.format == "TIFF" and image.tile and max(tile[1][3] for tile in image.tile) < height:  # type: ignore[attr-defined]
        raise ValueError("it has fewer rows of pixels than its header says")  # Pillow would leave the others black
    return Header(width, height, orientation, depth_of(image))


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 to 8; 1 without a tag, or with one that is broken."""
    if image.format == "TIFF":
        value = image.tag_v2.get(ORIENTATION_TAG, 1)  # type: ignore[attr-defined]
        return value if isinstance(value, int) and value in UPRIGHT else 1
    exif = image.info.get("exif")
    if exif is None and image.format == "PNG":
        exif = _late_png_exif(image.fp)  # type: ignore[attr-defined]
    return _orientation_in(exif) if isinstance(exif, bytes) else 1


def stored_pixels(image: Image.Image) -> Image.Image:
    """The pixels of an opened image as they are stored. Pillow turns those of a TIFF upright while it loads them."""
    orientation = orientation_of(image)
    image.load()
    is_turned = image.format == "TIFF" and orientation != 1 and ORIENTATION_TAG not in image.tag_v2  # type: ignore[attr-defined]
    return image.transpose(_STORED[orientation]) if is_turned else image


def _reason(error: Exception) -> str:
    """The message of an error of Pillow, without line breaks, in at most some 100 characters."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 100 else words[:97] + "..."


def _has_pages(image: Image.Image) -> bool:
    """Whether an opened image has a second page or frame that is no smaller copy of the first; moves the image to that page."""
    try:
        if image.format not in _PAGED or not getattr(image, "is_animated", False):
            return False
        if image.format != "TIFF":
            return True
        for page in range(1, 100):
            image.seek(page)
            if not int(image.tag_v2.get(_SUBFILE_TAG, 0)) & 1:  # type: ignore[attr-defined]
                return True
    except (EOFError, OSError, SyntaxError, ValueError):  # no more pages, or a broken one, which is not read
        return False
    return True


def _orientation_in(exif: bytes) -> int:
    """The orientation in a block of EXIF: a TIFF header and its first directory; 1 where it has none or is broken."""
    exif = exif.removeprefix(b"Exif\x00\x00")
    order = {b"II": "little", b"MM": "big"}.get(exif[:2])
    if order is None:
        return 1

    def number(at: int, length: int) -> int:
        return int.from_bytes(exif[at : at + length], "little" if order == "little" else "big")

    start = number(4, 4)
    for at in range(start + 2, min(start + 2 + 12 * number(start, 2), len(exif) - 11), 12):
        if number(at, 2) == ORIENTATION_TAG:
            value = number(at + 8, 4 if number(at + 2, 2) == 4 else 2)  # a long, or as it should be a short
            return value if value in UPRIGHT else 1
    return 1


def _late_png_exif(file: IO[bytes]) -> bytes | None:
    """The content of a PNG's eXIf chunk wherever it stands; Pillow knows of one before the pixels only."""
    position = file.tell()
    file.seek(8)
    found = None
    while found is None and len(head := file.read(8)) == 8 and head[4:] != b"IEND":
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"eXIf":
            found = file.read(min(length, 2**16))
        file.seek(length + 4, 1)
    file.seek(position)
    return found


def _image(file: IO[bytes], path: Path) -> Image.Image:
    head = file.read(160)
    file.seek(0)
    if not head:
        raise InputError(f"{path}: cannot be decoded as an image (it is empty). Replace it, or remove it.")
    try:
        with _opening, warnings.catch_warnings():  # Pillow warns of broken EXIF, and prints that to the terminal
            warnings.simplefilter("ignore")
            return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        for offset, content, name in _KNOWN:
            if head[offset:].startswith(content):
                raise InputError(
                    f"{path}: cannot be decoded as an image (it is {name}). Convert it to JPEG or PNG in its full size."
                ) from None
        for content, sentence in _DAMAGED:
            if head.startswith(content):
                raise InputError(
                    f"{path}: cannot be decoded as an image ({sentence}). Replace it, or remove it from the annotations."
                ) from None
        raise InputError(
            f"{path}: cannot be decoded as an image (it is none of {', '.join(FORMATS)}). Replace it, or remove it."
        ) from None
