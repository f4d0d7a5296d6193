"""Boxes on images: what is drawn where, that labels can be read, and that any image and any name can be drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foldfuse import drawing
from foldfuse.detections import Detections
from foldfuse.drawing import PALETTE, colour_of, contrast, draw_boxes, open_rgb, text_colour_on
from foldfuse.errors import InputError

GRAY = (128, 128, 128)


def gray(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), GRAY)


def changed(image: Image.Image) -> np.ndarray:
    return (np.asarray(image) != GRAY[0]).any(-1)


@pytest.mark.parametrize(("width", "height"), [(200, 150), (4000, 3000), (12, 9), (1, 1)])
def test_the_outline_lies_around_the_object_in_the_colour_of_its_class(width: int, height: int) -> None:
    box = np.array([[0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height]])
    image = draw_boxes(gray(width, height), box, np.array([1]), scores=np.array([0.9]), classes=("a", "b"))
    assert image.size == (width, height)
    if width >= 200:
        pixels = np.asarray(image)
        assert tuple(pixels[height // 2, width // 4 - 1]) == colour_of(1)
        assert not changed(image)[int(0.3 * height) : int(0.7 * height), int(0.3 * width) : int(0.7 * width)].any()


def test_the_line_grows_with_the_image() -> None:
    def line(side: int) -> int:
        image = draw_boxes(gray(side, side), np.array([[0.4, 0.4, 0.8, 0.8]]) * side, np.array([0]))
        return int((np.asarray(image)[int(0.6 * side)] == colour_of(0)).all(-1).sum()) // 2

    assert line(200) == 1
    assert 8 <= line(4000) <= 16


def test_no_label_covers_another_or_a_small_box(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[np.ndarray] = []
    monkeypatch.setattr(drawing, "_label", lambda pen, place, *rest, **more: places.append(place))
    rng = np.random.default_rng(0)
    xy = rng.random((60, 2)) * 560
    boxes = np.concatenate([xy, xy + 4 + rng.random((60, 2)) * 60], 1)
    draw_boxes(gray(640, 640), boxes, rng.integers(0, 5, 60), scores=rng.random(60))
    assert len(places) > 20
    for i, place in enumerate(places):
        assert (place[:2] >= 0).all()
        assert (place[2:] <= 640).all()
        others = np.concatenate([*(p[None] for p in places[:i]), boxes[(boxes[:, 2:] - boxes[:, :2]).prod(1) < 300]])
        assert not drawing._touches(place, others)


def test_a_box_that_fills_the_image_has_its_label_inside() -> None:
    image = draw_boxes(gray(300, 200), np.array([[0.0, 0, 300, 200]]), np.array([0]), classes=("Metal",))
    assert (np.asarray(image)[2:12, 2:30] == colour_of(0)).all(-1).any()


def test_text_can_be_read_on_every_colour() -> None:
    assert len(set(PALETTE)) == len(PALETTE)
    assert min(contrast(colour, text_colour_on(colour)) for colour in PALETTE) >= 4.5


@pytest.mark.parametrize("name", ["Papier-Mâché", "Пластик", "紙コップ", "زجاج", "a\nb\x1b[31m", "", "x" * 500, "🧃"])
def test_any_name_of_a_class_is_drawn(name: str) -> None:
    image = draw_boxes(gray(640, 480), np.array([[200, 200, 300, 300]]), np.array([0]), classes=(name,))
    assert changed(image)[150:195, 200:210].any(), "a label above the box"


def test_odd_boxes_are_drawn_as_far_as_they_go() -> None:
    boxes = np.array([[-50, -50, -10, -10], [90, 90, 300, 300], [40, 40, 40, 40], [30, 30, 20, 20], [np.nan, 0, 5, 5]])
    image = draw_boxes(gray(100, 100), boxes, np.array([0, 1, 2, 99, 3]), scores=np.linspace(1, 0, 5))
    assert changed(image).any()
    assert not changed(draw_boxes(gray(100, 100), boxes[:1] - 500, np.array([0]))).all()
    assert not changed(draw_boxes(gray(100, 100), np.zeros((0, 4)), np.zeros(0, int))).any()


def test_images_of_any_kind_are_opened_upright(tmp_path: Path) -> None:
    turned = gray(30, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert open_rgb(str(tmp_path / "turned.jpg")).size == (20, 30)
    deep = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 50)
    assert np.asarray(open_rgb(deep)).max() == 255
    assert open_rgb(np.zeros((20, 30), np.uint8)).mode == "RGB"
    assert open_rgb(np.zeros((20, 30, 4), np.uint8)).size == (30, 20)
    with pytest.raises(InputError, match="no such image"):
        open_rgb(tmp_path / "absent.jpg")
    with pytest.raises(InputError, match="expected \\(height, width, 3\\)"):
        open_rgb(np.zeros((20, 30, 3), np.float32))
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(InputError, match="cannot be decoded"):
        open_rgb(tmp_path / "text.jpg")


def test_detections_plot_themselves() -> None:
    found = Detections(
        np.float32([[100, 100, 180, 160], [10, 10, 20, 20]]),
        np.float32([0.9, 0.1]),
        np.int64([0, 1]),
        ("Metal", "Paper"),
    )
    assert repr(found) == "Detections(2 boxes: 1 Metal, 1 Paper; best score 0.90)"
    with pytest.raises(InputError, match="do not know their image"):
        found.plot()
    image = gray(400, 300)
    assert changed(found.plot(image)).any()
    assert not changed(found.plot(image))[5:30, 5:30].any(), "a score under the threshold"
    assert changed(found.plot(image, score_threshold=0))[5:30, 5:30].any()
    assert not changed(found.plot(image, score_threshold=0, max_detections=1))[5:30, 5:30].any()
    known = Detections(found.boxes, found.scores, found.labels, found.classes, image)
    assert known[:1].image is image
    assert known[:1].classes == found.classes
    assert known.plot().size == (400, 300)
