"""Image files as cameras and tools write them: orientation, format and size."""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from corpus_samples import Case, coco, parametrize, run, save_image, write_coco
from foldfuse import cli
from foldfuse.campaign.execution.ray_worker import image_chunks, unpack_images
from foldfuse.data.image_file import UPRIGHT
from foldfuse.data.images import load_image, load_sample
from foldfuse.data.pixels import open_images
from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError
from pixel_samples import CHECK, SPLIT, Make, chunk, images_of, loaded, png

BOX = (56, 8, 88, 24)  # xyxy on the upright image of 96 x 64, where a white box is painted


def upright(seed: int) -> Image.Image:
    """A dark image of noise, 96 x 64, with the white BOX."""
    noise = np.random.default_rng(seed).integers(0, 90, (8, 12, 3), np.uint8)
    image = Image.fromarray(noise).resize((96, 64), Image.Resampling.NEAREST)
    image.paste((255, 255, 255), BOX)
    return image


def turned(image: Image.Image, tag: int) -> Image.Image:
    """The stored pixels of an image that `tag` shows as `image`."""
    back = {6: UPRIGHT[8], 8: UPRIGHT[6]}.get(tag, UPRIGHT.get(tag))
    return image if back is None else image.transpose(back)


def save(image: Image.Image, path: Path, tag: int | None = None, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if tag is not None:
        exif[0x0112] = tag
        options["exif"] = exif
    image.save(path, **options)


def phone(
    tags: tuple[int, ...],
    size: Callable[[Image.Image], tuple[int, int] | None] | None = None,
    *,
    ending: str = "png",
) -> Make:
    """Images of a phone, each with the white BOX after its tag; `size` gives the stated size from the stored pixels."""

    def make(folder: Path) -> None:
        document = coco(len(tags))
        x1, y1, x2, y2 = BOX
        document["annotations"] = [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for i in range(1, len(tags) + 1)
        ]
        for row, tag in zip(document["images"], tags, strict=True):
            row["file_name"] = f"{row['id']}.{ending}"
            stored = turned(upright(row["id"]), tag)
            save(stored, folder / row["file_name"], tag, **({"lossless": True} if ending == "webp" else {}))
            stated = size(stored) if size is not None else (96, 64)
            for key, value in zip(("width", "height"), stated or (None, None), strict=True):
                row[key] = value
        (folder / "train.json").write_text(json.dumps(document), encoding="utf-8")

    return make


def box_is_white(folder: Path) -> None:
    x1, y1, x2, y2 = BOX
    for image in loaded(folder):
        assert image[y1:y2, x1:x2].min() >= 250
        assert image.mean() < 90


def pixels_as_stored(folder: Path, **options: Any) -> None:
    for path, image in zip(sorted(folder.glob("*.png")), loaded(folder, **options), strict=True):
        with Image.open(path) as stored:
            np.testing.assert_array_equal(image, np.asarray(stored))


def ignored_as_stored(folder: Path) -> None:
    pixels_as_stored(folder, ignore_orientation=True)


def square(folder: Path) -> None:
    phone((6, 6, 1, 1), lambda stored: (64, 64))(folder)
    for i, path in enumerate(sorted(folder.glob("*.png"))):
        save(turned(upright(i).crop((32, 0, 96, 64)), 6 if i < 2 else 1), path, 6 if i < 2 else 1)


def yolo_phone(folder: Path) -> None:
    phone((6, 6, 8, 1), ending="jpg")(folder)
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for path in sorted(folder.glob("*.jpg")):
        path.rename(folder / "images" / path.name)
        (folder / "labels" / path.name).with_suffix(".txt").write_text("0 0.75 0.25 0.333333333 0.25\n")
    (folder / "train.json").unlink()
    (folder / "data.yaml").write_text("train: images\nnames: [box]\n")


def yolo_is_right(folder: Path) -> None:
    sample = open_images(read(folder / "data.yaml")).samples[0]
    assert (sample.width, sample.height, sample.orientation) == (96, 64, 6)
    assert sample.annotations is not None
    np.testing.assert_allclose(sample.annotations.boxes[0], BOX, atol=1e-4)
    x1, y1, x2, y2 = BOX
    assert load_sample(sample)[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].min() > 220


def yolo_as_stored(folder: Path) -> None:
    dataset = open_images(read(folder / "data.yaml", ignore_orientation=True), ignore_orientation=True)
    assert [(s.width, s.height, s.orientation) for s in dataset.samples] == [*[(64, 96, 1)] * 3, (96, 64, 1)]


def fixed_copy_keeps(number: int) -> Callable[[Path], None]:
    def right(folder: Path) -> None:
        document = json.loads((folder / "fixed.json").read_text())
        assert len(document["images"]) == number
        assert {(row["width"], row["height"]) for row in document["images"]} <= {(96, 64)}

    return right


ORIENTATION = [
    *(Case(f"upright_size_tag_{tag}", phone((tag, 1, tag, 1)), SPLIT, right=box_is_white) for tag in (5, 6, 7, 8)),
    Case("stored_size", phone((6, 8, 6, 1), lambda stored: stored.size), SPLIT, right=pixels_as_stored),
    *(
        Case(
            f"size_says_nothing_tag_{tag}",
            phone((tag, tag, 1, 1)),
            SPLIT,
            says=("2 of 4 images are turned or mirrored as their EXIF tag says, such as 1.png", "--ignore-orientation"),
            right=box_is_white,
        )
        for tag in (2, 3, 4)
    ),
    Case("square", square, SPLIT, says=("2 of 4 images are turned or mirrored",)),
    Case("square_ignored", square, SPLIT + " --ignore-orientation", never=("mirrored",), right=ignored_as_stored),
    Case(
        "contradicts_both",
        phone((6, 6, 1, 1), lambda stored: (stored.width * 2, stored.height * 2)),
        SPLIT,
        status=2,
        says=(
            "1.png: is 64 x 96 pixels as stored, 96 x 64 after its EXIF",
            "say 128 x 192",
            "4 of 4 images have another size",
        ),
    ),
    Case(
        "swapped_without_tag",
        phone((1, 1, 1, 1), lambda stored: (64, 96)),
        SPLIT,
        status=2,
        says=("is 96 x 64 pixels", "say 64 x 96", "no EXIF tag says so"),
    ),
    Case(
        "resized_after_annotating",
        phone((1, 1, 1, 1), lambda stored: (960, 640)),
        SPLIT,
        status=2,
        says=("is 96 x 64 pixels", "say 960 x 640", "--images DIR"),
    ),
    Case("off_by_one", phone((1, 1, 1, 1), lambda stored: (97, 64)), SPLIT, status=2, says=("say 97 x 64",)),
    Case(
        "ignored_against_the_size",
        phone((6, 6, 1, 1)),
        SPLIT + " --ignore-orientation",
        status=2,
        says=("leave out --ignore-orientation", "2 of 4 images have another size"),
    ),
    Case("no_size", phone((6, 8, 3, 1), lambda stored: None), SPLIT, right=box_is_white),
    Case(
        "no_size_ignored",
        phone((6, 8, 3, 1), lambda stored: None),
        SPLIT + " --ignore-orientation",
        right=ignored_as_stored,
    ),
    Case("webp", phone((6, 8, 6, 1), ending="webp"), SPLIT, right=box_is_white),
    Case("tiff", phone((6, 8, 6, 1), ending="tif"), SPLIT, right=box_is_white),
    Case("jpeg", phone((6, 8, 6, 1), ending="jpg"), SPLIT),
    Case("yolo", yolo_phone, SPLIT.replace("train.json", "data.yaml"), right=yolo_is_right),
    Case(
        "yolo_ignored",
        yolo_phone,
        SPLIT.replace("train.json", "data.yaml") + " --ignore-orientation",
        right=yolo_as_stored,
    ),
    Case(
        "check_keeps_turned",
        phone((6, 8, 6, *[1] * 7)),
        CHECK + " --fix --out fixed.json",
        says=("no faults", "the image is turned as its EXIF tag says │ 3"),
        right=fixed_copy_keeps(10),
    ),
    Case(
        "check_leaves_out_wrong_sizes",
        phone((6, 1, 1, 1), lambda stored: (96, 64) if stored.width > 64 else (40, 40)),
        CHECK + " --fix --out fixed.json",
        status=1,
        says=("the size differs from the annotations' │ 1",),
        right=fixed_copy_keeps(3),
    ),
]


def file_of(content: bytes, ending: str = "jpg") -> Make:
    """A dataset whose second image holds `content`."""

    def make(folder: Path) -> None:
        write_coco(folder, coco(4))
        document = json.loads((folder / "train.json").read_text())
        document["images"][1]["file_name"] = f"images/b.{ending}"
        (folder / "images" / f"b.{ending}").write_bytes(content)
        write_coco(folder, document)

    return make


def encoded(ending: str) -> bytes:
    memory = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)).save(memory, ending)
    return memory.getvalue()


def exif_of(block: bytes) -> bytes:
    """A JPEG of 96 x 64 with an EXIF block."""
    jpeg = encoded("JPEG")
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block + jpeg[2:]


def late_exif(folder: Path) -> None:
    """PNGs whose orientation stands after the pixels, as some editors write it."""
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
    rows = b"".join(b"\0" + bytes(row) for row in np.asarray(turned(upright(0), 3)).reshape(64, -1))
    images_of(png(96, 64, bits=8, colour=2, rows=rows, also=chunk(b"eXIf", exif)))(folder)


def pipe(folder: Path) -> None:
    file_of(b"")(folder)
    (folder / "images" / "b.jpg").unlink()
    os.mkfifo(folder / "images" / "b.jpg")


def heic_folder(folder: Path) -> None:
    for i in range(3):
        save_image(folder / "images" / f"{i}.jpg", seed=i)
    (folder / "images" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    (folder / "labels").mkdir()
    (folder / "data.yaml").write_text("train: images\nnames: [a]\n")
    for i in range(3):
        (folder / "labels" / f"{i}.txt").write_text("0 0.5 0.5 0.2 0.2\n")


def endings(folder: Path) -> None:
    document = coco(4)
    for row, ending in zip(document["images"], ("jfif", "JPG", "jpe", "JPEG"), strict=True):
        row["file_name"] = f"images/{row['id']}.{ending}"
    write_coco(folder, document)


def refused(name: str, content: bytes, *says: str, ending: str = "jpg") -> Case:
    where = f"images/b.{ending}: cannot be decoded as an image"
    return Case(name, file_of(content, ending), SPLIT, status=2, says=(where, *says))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 64\n%%EndComments\n%%EOF\n"
FORMATS = [
    refused("eps", EPS, "it is a PostScript file", "Convert it"),
    refused("heic", b"\0\0\0\x18ftypheic" + b"\0" * 40, "it is a HEIC image", "Convert it to JPEG or PNG"),
    refused("avif", b"\0\0\0\x18ftypavif" + b"\0" * 40, "it is an AVIF image"),
    refused("jpeg_xl", b"\xff\x0a" + b"\0" * 40, "it is a JPEG XL image"),
    refused("video", b"\0\0\0\x18ftypisom" + b"\0" * 40, "it is a video"),
    refused("dicom", b"\0" * 128 + b"DICM" + b"\0" * 40, "it is a DICOM file"),
    refused("pdf", b"%PDF-1.7\n", "it is a PDF file"),
    refused("web_page", b"<!DOCTYPE html><html>404</html>", "it is a web page"),
    refused("lfs_pointer", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    refused("empty", b"", "it is empty"),
    refused("text", b"hello", "it is none of JPEG, PNG"),
    refused("psd", b"8BPS\0\x01" + b"\0" * 40, "a Photoshop file", ending="png"),
    refused("png_header_alone", encoded("PNG")[:20], ending="png"),
    refused("zero_size", png(0, 0, bits=8, colour=2, rows=b""), ending="png"),
    Case("truncated", file_of(encoded("JPEG")[:2000]), CHECK, status=1, says=("the image cannot be decoded │ 1",)),
    Case("truncated_png", file_of(encoded("PNG")[:6000], "png"), CHECK, status=1, says=("cannot be decoded │ 1",)),
    *([Case("pipe", pipe, SPLIT, status=2, says=("b.jpg",))] if hasattr(os, "mkfifo") else []),
    Case("heic_in_a_folder", heic_folder, "check data.yaml", status=1, says=("the image cannot be decoded", "HEIC")),
    Case("endings", endings, CHECK, says=("no faults",)),
    *(
        Case(f"broken_exif_{i}", file_of(exif_of(block)), CHECK, says=("no faults",))
        for i, block in enumerate(
            [
                b"",
                b"garbage",
                b"II*\0\xff\xff\xff\xff",
                b"II*\0\x08\0\0\0\xff\xff",
                b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0",
                b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\xff\x10\0\0\0",
            ]
        )
    ),
    Case(
        "orientation_after_the_pixels",
        late_exif,
        CHECK,
        says=("turned or mirrored as its EXIF tag",),
        right=box_is_white,
    ),
    Case(
        "liar",
        file_of(png(4000, 4000, bits=8, colour=2, rows=b"\0" * 99), "png"),
        SPLIT,
        status=2,
        says=("4000 x 4000",),
    ),
    Case(
        "missing",
        lambda folder: file_of(b"")(folder) or (folder / "images/b.jpg").unlink(),
        SPLIT,
        status=2,
        says=("no image",),
    ),
]


@parametrize([*ORIENTATION, *FORMATS])
def test_image_files(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    run(case, tmp_path, monkeypatch, capsys)


def test_no_image_file_is_needed_to_score_convert_and_submit(tmp_path, monkeypatch, capsys):
    document = coco(4)
    write_coco(tmp_path, document, with_images=False)
    found = [
        {"image_id": row["image_id"], "category_id": row["category_id"], "bbox": row["bbox"], "score": 0.9}
        for row in document["annotations"]
    ]
    (tmp_path / "found.json").write_text(json.dumps(found))
    monkeypatch.chdir(tmp_path)
    for command in (
        "score found.json train.json",
        "convert found.json train.json --out found.parquet",
        "submit found.json train.json --out submission.csv",
        "check train.json --json-only",
    ):
        assert cli.main(command.split()) == 0, f"{command}: {capsys.readouterr()}"
    assert cli.main(SPLIT.split()) == 2
    assert "there is no image" in capsys.readouterr().err


def test_a_satellite_image_is_read_and_one_beyond_the_memory_is_refused(tmp_path, monkeypatch):
    rows = (b"\0" + b"\xf0" * 1750) * 13_000  # one bit a pixel: 182 megapixels in a small file
    images_of(png(14_000, 13_000, bits=1, colour=0, rows=rows))(tmp_path)
    document = coco(1, width=14_000, height=13_000)
    document["images"][0]["file_name"] = "images/1.png"
    write_coco(tmp_path, document)
    (sample,) = open_images(read(tmp_path / "train.json")).samples
    assert load_sample(sample, longest=140).shape == (130, 140, 3)
    monkeypatch.setenv("FOLDFUSE_MAX_IMAGE_GB", "0.5")
    with pytest.raises(InputError, match=r"14000 x 13000 pixels.* 0\.7 GB .*FOLDFUSE_MAX_IMAGE_GB=1 to allow it"):
        load_sample(sample, longest=140)


def test_pixels_are_right_even_where_the_images_were_not_looked_at_first(tmp_path):
    phone((6, 8, 3, 1))(tmp_path)
    dataset = read(tmp_path / "train.json")
    for sample, opened in zip(dataset.samples, open_images(dataset).samples, strict=True):
        np.testing.assert_array_equal(load_sample(sample), load_sample(opened))
    wrong = replace(dataset.samples[0], width=50)
    with pytest.raises(InputError, match=r"is 64 x 96 pixels as stored.* say 50 x 64"):
        load_sample(wrong)


def test_images_travel_to_other_machines_with_their_orientation_and_range(tmp_path):
    phone((6, 8, 3, 1))(tmp_path)
    dataset = open_images(read(tmp_path / "train.json"))
    there = unpack_images(dataset, image_chunks(dataset.samples, size=1000), tmp_path / "node")
    for here, sent in zip(dataset.samples, there.samples, strict=True):
        assert sent.path.parent == tmp_path / "node"
        np.testing.assert_array_equal(load_sample(sent), load_sample(here))
    assert [s.orientation for s in there.samples] == [6, 8, 3, 1]


def test_a_tiff_with_fewer_rows_than_its_header_says_is_refused(tmp_path):
    content = bytearray(encoded("TIFF"))
    at = content.index(struct.pack("<HHII", 257, 4, 1, 64)) if struct.pack("<HHII", 257, 4, 1, 64) in content else -1
    at = at if at >= 0 else content.index(struct.pack("<HHIHH", 257, 3, 1, 64, 0))
    content[at : at + 12] = struct.pack("<HHII", 257, 4, 1, 4000)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.tif: cannot be decoded"):
        load_image(tmp_path / "a.tif")
