"""The values of pixels in files of any depth and colour model, as training sees them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import AppendingTiffWriter, ImageFileDirectory_v2

from corpus_samples import Case, parametrize, run
from foldfuse import cli
from foldfuse.data.image_file import read_header
from pixel_samples import CHECK, SPLIT, Make, images_of, loaded, png

RAMP = np.tile(np.linspace(0, 1, 96), (64, 1))  # dark to bright, 96 x 64


def gray(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values)


def shows(expected: np.ndarray, *, tolerance: float = 1.0) -> Callable[[Path], None]:
    """Checks the gray values of the first image."""

    def right(folder: Path) -> None:
        image = loaded(folder)[0]
        assert (image[..., 0] == image[..., 1]).all()
        np.testing.assert_allclose(image[..., 0], expected, atol=tolerance)

    return right


def same_value_in_all(folder: Path) -> None:
    """A dim and a bright image of one camera: what has one value has one gray."""
    dim, bright = loaded(folder)[:2]
    np.testing.assert_allclose(dim[..., 0], RAMP * 255 / 8, atol=1)
    np.testing.assert_allclose(bright[..., 0], RAMP * 255, atol=1)


def colour16(values: np.ndarray) -> bytes:
    rows = b"".join(b"\0" + np.repeat(row[:, None], 3, 1).astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], bits=16, colour=2, rows=rows)


def tiff(image: Image.Image, **tags: Any) -> bytes:
    info = ImageFileDirectory_v2()
    for name, value in tags.items():
        info[{"photometric": 262, "nodata": 42113, "format": 339}[name]] = value
    memory = io.BytesIO()
    image.save(memory, "TIFF", tiffinfo=info)
    return memory.getvalue()


def pgm(values: np.ndarray, highest: int) -> bytes:
    return f"P5\n{values.shape[1]} {values.shape[0]}\n{highest}\n".encode() + values.astype(">u2").tobytes()


def with_alpha(alpha: np.ndarray) -> Image.Image:
    colour = np.full((64, 96, 3), 100, np.uint8)
    return Image.fromarray(np.concatenate([colour, alpha[..., None].astype(np.uint8)], -1))


def lab() -> Image.Image:
    shown = Image.fromarray(np.repeat((RAMP * 255).astype(np.uint8)[..., None], 3, -1))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(shown, *profiles, outputMode="LAB")
    assert converted is not None
    return converted


def palette(folder: Path) -> None:
    image = Image.fromarray(np.repeat((RAMP * 3.99).astype(np.uint8), 1, 1), "L").convert("P")
    image.putpalette([0, 0, 0, 80, 80, 80, 160, 160, 160, 240, 240, 240])
    images_of(image, transparency=0)(folder)


def pages(ending: str, **tags: int) -> Make:
    def make(folder: Path) -> None:
        frames = [Image.fromarray(np.full((64, 96, 3), 40 * i, np.uint8)) for i in range(1, 4)]
        frames[0].putpixel((0, 0), (255, 0, 0))
        memory = io.BytesIO()
        if tags:
            with AppendingTiffWriter(memory, new=True) as writer:
                for i, frame in enumerate(frames):
                    info = ImageFileDirectory_v2()
                    info[254] = 1 if i else 0
                    frame.save(writer, "TIFF", tiffinfo=info)
                    writer.newFrame()
        else:
            frames[0].save(memory, ending.upper().replace("TIF", "TIFF"), save_all=True, append_images=frames[1:])
        images_of(memory.getvalue(), ending=ending)(folder)

    return make


BITS = (RAMP * 255).astype(np.uint8)
TWELVE = (RAMP * 4095).astype(np.uint16)
SIXTEEN = (RAMP * 65535).astype(np.uint16)
SHOWN = RAMP * 255
DEPTH = [
    Case("gray_16_bits", images_of(gray(SIXTEEN)), CHECK, says=("no faults",), right=shows(SHOWN)),
    Case(
        "twelve_bits_in_16",
        images_of(gray(TWELVE)),
        CHECK,
        says=("16-bit values; 0 is shown as black, 4095 as white",),
        right=shows(SHOWN),
    ),
    Case("ten_bits_in_16", images_of(gray((RAMP * 1023).astype(np.uint16))), CHECK, right=shows(SHOWN)),
    Case("one_value_one_gray", images_of(gray(TWELVE // 8), gray(TWELVE)), CHECK, right=same_value_in_all),
    Case("tiff_16_bits", images_of(gray(SIXTEEN), ending="tif"), CHECK, right=shows(SHOWN)),
    Case(
        "tiff_16_bits_big_endian",
        images_of(Image.frombytes("I;16B", (96, 64), SIXTEEN.astype(">u2").tobytes()), ending="tif"),
        CHECK,
        right=shows(SHOWN),
    ),
    Case(
        "tiff_16_bits_inverted",
        images_of(tiff(gray(SIXTEEN), photometric=0), ending="tif"),
        CHECK,
        right=shows(255 - SHOWN),
    ),
    Case("pgm_12_bits", images_of(pgm(TWELVE, 4095), ending="pgm"), CHECK, right=shows(SHOWN)),
    Case("int_32", images_of(gray((RAMP * 2e9).astype(np.int32) - 10**9), ending="tif"), CHECK, right=shows(SHOWN)),
    Case("int_32_small", images_of(gray((RAMP * 4095).astype(np.int32)), ending="tif"), CHECK, right=shows(SHOWN)),
    Case("float_0_to_1", images_of(gray(RAMP.astype(np.float32)), ending="tif"), CHECK, right=shows(SHOWN)),
    Case("float_0_to_255", images_of(gray((SHOWN).astype(np.float32)), ending="tif"), CHECK, right=shows(SHOWN)),
    Case(
        "float_of_any_range",
        images_of(gray((RAMP * 30 - 20).astype(np.float32)), ending="tif"),
        CHECK,
        says=("floating-point values; -20 is shown as black, 10 as white",),
        right=shows(SHOWN),
    ),
    Case(
        "float_without_data",
        images_of(
            tiff(gray(np.where(RAMP < 0.1, -9999, RAMP * 30 - 20).astype(np.float32)), nodata="-9999"),
            gray((RAMP * 30 - 20).astype(np.float32)),
            ending="tif",
        ),
        CHECK,
        right=shows(np.where(RAMP < 0.1, 0, SHOWN)),
    ),
    Case(
        "float_nan",
        images_of(
            gray(np.where(RAMP < 0.1, np.nan, RAMP * 8).astype(np.float32)),
            gray((RAMP * 8).astype(np.float32)),
            ending="tif",
        ),
        CHECK,
        right=shows(np.where(RAMP < 0.1, 0, SHOWN)),
    ),
    Case(
        "gray_16_bits_without_data",
        images_of(
            tiff(gray(np.where(RAMP > 0.9, 65535, TWELVE).astype(np.uint16)), nodata="65535"),
            gray(TWELVE),
            ending="tif",
        ),
        CHECK,
        says=("4095 as white",),
        right=shows(np.where(RAMP > 0.9, 0, SHOWN)),
    ),
    Case("colour_16_bits", images_of(colour16(SIXTEEN)), CHECK, says=("no faults",), right=shows(SHOWN)),
    Case(
        "colour_16_bits_dark",
        images_of(colour16(TWELVE)),
        SPLIT,
        status=2,
        says=("4 images have 16 bits a colour", "below 4096 of 65535", "Convert them to 8 bits"),
    ),
    Case("one_bit", images_of(Image.fromarray(BITS).point(lambda v: 255 * (v > 127)).convert("1")), CHECK),
    Case(
        "transparent_is_white", images_of(with_alpha(255 * (RAMP > 0.5))), CHECK, right=shows(255 - 155 * (RAMP > 0.5))
    ),
    Case("half_transparent", images_of(with_alpha(SHOWN)), CHECK, right=shows(255 - 155 * RAMP, tolerance=2)),
    Case("no_pixel_visible", images_of(with_alpha(0 * RAMP)), CHECK, status=1, right=shows(np.full((64, 96), 100))),
    Case(
        "gray_with_alpha",
        images_of(with_alpha(255 * (RAMP > 0.5)).convert("LA")),
        CHECK,
        right=shows(255 - 155 * (RAMP > 0.5)),
    ),
    Case(
        "palette_with_transparency",
        palette,
        CHECK,
        right=shows(np.array([255, 80, 160, 240])[(RAMP * 3.99).astype(int)]),
    ),
    Case(
        "cmyk_jpeg",
        images_of(Image.fromarray(BITS).convert("RGB").convert("CMYK"), ending="jpg", quality=95),
        CHECK,
        right=shows(SHOWN, tolerance=6),
    ),
    Case(
        "cmyk_tiff",
        images_of(Image.fromarray(BITS).convert("RGB").convert("CMYK"), ending="tif"),
        CHECK,
        right=shows(SHOWN, tolerance=2),
    ),
    Case("lab_tiff", images_of(lab(), ending="tif"), CHECK),
    Case(
        "animated_gif",
        pages("gif"),
        SPLIT,
        says=("4 of 4 images have several pages or frames, such as images/1.gif; the first is used",),
    ),
    Case("tiff_of_pages", pages("tif"), SPLIT, says=("4 of 4 images have several pages",)),
    Case("tiff_pyramid", pages("tif", reduced=1), SPLIT, never=("several pages",)),
    Case(
        "few_values_outshine_all",
        images_of(gray(np.where(RAMP > 0.999, 65535, TWELVE // 8).astype(np.uint16))),
        CHECK,
        says=("the image is all but black │ 4",),
    ),
    Case(
        "one_colour",
        images_of(Image.new("RGB", (96, 64), (9, 9, 9))),
        CHECK,
        status=1,
        says=("all pixels of the image have one colour │ 4", "most images have one colour all over"),
    ),
]


@parametrize(DEPTH)
def test_values_of_pixels(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(case, tmp_path, monkeypatch, capsys)


def test_a_run_remembers_the_switch_and_which_values_are_black_and_white(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    images_of(gray(TWELVE // 2), gray(TWELVE), gray(TWELVE[::-1, ::-1].copy()))(other)
    train = "train other/train.json --out run12 --steps 1 --image-size 32 --ignore-orientation"
    assert cli.main(train.split()) == 0
    metadata = json.loads((tmp_path / "run12" / "run.json").read_text())
    assert metadata["ignore_orientation"] is True
    assert metadata["value_ranges"] == {"16-bit": [0.0, 4095.0]}
    bright = tmp_path / "bright"
    bright.mkdir()
    images_of(gray(SIXTEEN))(bright)
    capsys.readouterr()
    assert cli.main(["predict", "run12", "bright/train.json", "--out", "q.json"]) == 0
    printed = " ".join(capsys.readouterr().err.split())
    assert "was trained with --ignore-orientation" in printed
    assert "values beyond 0 to 4095, which the run was trained with" in printed


@pytest.mark.parametrize("ending", ["bmp", "tif", "png", "gif", "ppm", "webp", "jpg"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_size_of_16_is_no_depth_of_16(tmp_path: Path, ending: str, mode: str) -> None:
    for side in (16, 160, 1616):
        path = tmp_path / f"{side}.{ending}"
        Image.new(mode, (side, 16), 5).save(path)
        assert read_header(path).depth.kind == "8-bit"
