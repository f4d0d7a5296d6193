"""Images on canvases and back: laws, and painted images as the reference."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from foldfuse.data.dataset import Sample
from foldfuse.data.image_file import read_header
from foldfuse.data.images import PAD_VALUE, ImageCache, Letterbox, canvas_for, load_image, scale_of
from foldfuse.detections import Detections
from foldfuse.errors import InputError

quiet = settings(deadline=None, derandomize=True, max_examples=60)
side = st.integers(1, 700)
canvas_side = st.integers(1, 12).map(lambda n: 32 * n)


def sample(width, height, path=Path("x.png"), id=0):
    return Sample(id, path, path.name, width, height, None)


def found(boxes):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(boxes, np.linspace(1, 0.5, len(boxes), dtype=np.float32), np.arange(len(boxes)))


def painted(width, height, box):
    """A black image with a whole-pixel xyxy box of white."""
    image = np.zeros((height, width, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image


def bounds(image, *, above=128):
    """xyxy of the pixels brighter than `above`."""
    y, x = np.nonzero(image.min(-1) > above)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


# load_image


def test_an_image_of_any_mode_is_loaded_as_rgb(tmp_path):
    for mode in ("RGB", "L", "P", "RGBA", "CMYK", "1"):
        path = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (5, 3)).save(path)
        image = load_image(path)
        assert (image.shape, image.dtype) == ((3, 5, 3), np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize(("longest", "shape"), [(None, (60, 200)), (200, (60, 200)), (50, (15, 50)), (400, (60, 200))])
def test_an_image_is_shrunk_to_the_longest_side_and_never_enlarged(tmp_path, suffix, longest, shape):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(painted(200, 60, (100, 30, 200, 60))).save(path)
    image = load_image(path, longest=longest)
    assert image.shape[:2] == shape
    np.testing.assert_allclose(bounds(image), [shape[1] // 2, shape[0] / 2, shape[1], shape[0]], atol=1)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".jpg"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_an_orientation_is_applied_as_pillow_does_and_otherwise_pixels_are_as_stored(tmp_path, suffix, tag):
    pixels = np.kron(np.arange(0, 240, 40, np.uint8).reshape(2, 3), np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = tag
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).convert("RGB").save(path, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    header = read_header(path)
    assert (header.orientation, header.stored_size) == (tag, (48, 32))
    np.testing.assert_allclose(load_image(path)[..., 0], pixels, atol=3)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert header.upright_size == (upright.shape[1], upright.shape[0])
    np.testing.assert_allclose(load_image(path, orientation=tag), upright, atol=3)
    small = load_image(path, orientation=tag, longest=24)
    assert small.shape[:2] == (upright.shape[0] // 2, upright.shape[1] // 2)
    np.testing.assert_allclose(small[4:-4:8, 4:-4:8], upright[8:-8:16, 8:-8:16], atol=8)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n broken"])
def test_an_undecodable_image_is_named(tmp_path, content):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.png: cannot be decoded"):
        load_image(path)


def test_a_truncated_image_is_named(tmp_path):
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(InputError, match=r"cut\.jpg: cannot be decoded"):
        load_image(path)


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.png: there is no such image"):
        load_image(tmp_path / "gone.png")


# Letterbox


@quiet
@given(side, side, canvas_side, canvas_side)
def test_boxes_come_back_from_the_canvas_where_they_were(width, height, canvas_height, canvas_width):
    letterbox = Letterbox(width, height, (canvas_height, canvas_width))
    boxes = np.array([[0, 0, width, height], [0.25 * width, 0.5 * height, 0.75 * width, 0.9 * height]])
    on_canvas = letterbox.apply_boxes(boxes)
    assert (on_canvas[:, 2:] <= np.array([canvas_width, canvas_height]) + 1e-6).all()
    back = letterbox.invert_boxes(found(on_canvas))
    np.testing.assert_allclose(back.boxes, boxes, rtol=1e-4, atol=1e-3)


@quiet
@given(side, side, canvas_side, canvas_side)
def test_an_image_fits_one_side_of_its_canvas_and_the_rest_is_padding(width, height, canvas_height, canvas_width):
    letterbox = Letterbox(width, height, (canvas_height, canvas_width))
    out = letterbox.apply(np.full((height, width, 3), 255, np.uint8))
    assert out.shape == (canvas_height, canvas_width, 3)
    right, low = bounds(out)[2:]
    assert right == canvas_width or low == canvas_height
    assert (out[:low, :right] == 255).all()
    assert (out[low:] == PAD_VALUE).all()
    assert (out[:, right:] == PAD_VALUE).all()


@pytest.mark.parametrize(
    ("width", "height", "canvas"), [(100, 67, (160, 160)), (333, 1000, (64, 64)), (641, 13, (64, 64))]
)
def test_a_box_around_the_image_covers_whole_pixels_of_the_canvas(width, height, canvas):
    letterbox = Letterbox(width, height, canvas)
    out = letterbox.apply(np.full((height, width, 3), 255, np.uint8))
    covered = letterbox.apply_boxes(np.array([[0, 0, width, height]]))[0]
    np.testing.assert_allclose(covered, bounds(out, above=254), atol=1e-4)


@pytest.mark.parametrize("canvas", [(32, 64), (64, 64), (160, 96), (320, 320)])
@pytest.mark.parametrize("shrunk", [1, 2])
def test_boxes_follow_the_pixels_onto_the_canvas(canvas, shrunk):
    box = (20, 40, 80, 60)
    letterbox = Letterbox(160, 80, canvas)
    image = painted(160, 80, box)[::shrunk, ::shrunk]  # perhaps shrunk already when it was decoded
    tolerance = max(1.0, letterbox.scale * shrunk)
    np.testing.assert_allclose(bounds(letterbox.apply(image)), letterbox.apply_boxes(np.array(box)), atol=tolerance)


def test_boxes_on_the_padding_are_dropped_and_boxes_that_stick_out_are_clipped():
    letterbox = Letterbox(100, 50, (64, 64))  # 32 rows of image, 32 of gray
    got = letterbox.invert_boxes(found([[10, 40, 20, 60], [-5, 20, 32, 50]]))
    assert got.labels.tolist() == [1]
    np.testing.assert_allclose(got.boxes, [[0, 31.25, 50, 50]])


def test_empty_detections_stay_empty():
    assert len(Letterbox(10, 10, (32, 32)).invert_boxes(Detections.empty())) == 0


# canvases


@quiet
@given(st.lists(st.tuples(side, side), min_size=1, max_size=5), st.integers(1, 20).map(lambda n: 32 * n))
def test_the_canvas_is_the_smallest_that_holds_every_image(sizes, image_size):
    height, width = canvas_for([sample(w, h) for w, h in sizes], image_size=image_size, stride=32)
    assert height % 32 == width % 32 == 0
    assert max(height, width) <= image_size
    longest = [(w * image_size / max(w, h), h * image_size / max(w, h)) for w, h in sizes]
    assert max(w for w, _ in longest) <= width + 1e-3
    assert max(h for _, h in longest) <= height + 1e-3
    assert max(w for w, _ in longest) > width - 32 - 1e-3
    assert max(h for _, h in longest) > height - 32 - 1e-3


@pytest.mark.parametrize(
    ("sizes", "want"),
    [
        ([(640, 480)], (256, 320)),
        ([(480, 640)], (320, 256)),
        ([(640, 480), (480, 640)], (320, 320)),
        ([(1000, 10)], (32, 320)),
        ([(7, 7)], (320, 320)),
    ],
)
def test_canvases_by_hand(sizes, want):
    assert canvas_for([sample(w, h) for w, h in sizes], image_size=320, stride=32) == want


# ImageCache


@pytest.mark.parametrize(("memory_mb", "disk_mb"), [(800.0, 0.0), (0.0, 800.0), (0.003, 0.003), (0.0, 0.0)])
def test_cached_images_are_the_same_in_memory_on_disk_and_decoded_again(tmp_path, memory_mb, disk_mb):
    samples = []
    for i, (width, height) in enumerate([(60, 40), (20, 30)]):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (width, height), (i, i, i)).save(path)
        samples.append(sample(width, height, path, i))
    images = ImageCache.load(samples, longest=30, memory_mb=memory_mb, disk_mb=disk_mb)
    assert [images[i].shape for i in range(2)] == [(20, 30, 3), (30, 20, 3)]
    assert [int(images[i][0, 0, 0]) for i in range(2)] == [0, 1]
    assert scale_of(samples[0], images[0]) == (0.5, 0.5)
    path.unlink()
    if memory_mb + disk_mb:
        assert images[1].shape == (30, 20, 3)
    else:
        with pytest.raises(InputError, match="no such image"):
            images[1]


def test_a_broken_image_is_named_before_training_begins(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.png"):
        ImageCache.load([sample(4, 4, tmp_path / "a.png")], longest=8)
