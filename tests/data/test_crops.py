"""Crops show the square around a box, unstretched, with padding beyond the border."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldfuse.data.crops import CropCache, Crops, crop_square, detection_crops, image_crops, object_crops, square_around
from foldfuse.data.images import PAD_VALUE, load_image
from foldfuse.data.readers.coco import read
from foldfuse.data.readers.image_folder import read_image_folder
from foldfuse.detections import Detections, Predictions
from foldfuse.errors import InputError

quick = settings(deadline=None, derandomize=True, max_examples=50)
side = st.floats(0.0, 60.0)


def test_a_crop_of_the_pixels_size_is_those_pixels():
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    np.testing.assert_array_equal(
        crop_square(image, np.array([10.0, 5, 26, 21]), context=1, size=16), image[5:21, 10:26]
    )


def test_context_shows_as_much_more_on_every_side():
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    wide = crop_square(image, np.array([20.0, 14, 28, 22]), context=2, size=16)
    np.testing.assert_array_equal(wide, image[10:26, 16:32])


def test_a_long_box_is_not_stretched():
    image = np.zeros((40, 60, 3), np.uint8)
    image[18:22] = 200  # a bar, 4 px high
    crop = crop_square(image, np.array([10.0, 18, 42, 22]), context=1, size=32)
    assert (crop[:, 16, 0] > 100).sum() == 4


def test_pixels_beyond_the_border_are_padding():
    image = np.zeros((20, 20, 3), np.uint8)
    crop = crop_square(image, np.array([-8.0, 0, 8, 16]), context=1, size=16)
    assert (crop[:, :8] == PAD_VALUE).all()
    assert (crop[:, 8:] == 0).all()
    assert (crop_square(image, np.array([50.0, 50, 60, 60]), context=1, size=16) == PAD_VALUE).all()


@quick
@given(side, side, side, side, st.floats(0.5, 3))
def test_the_square_has_the_boxs_centre_and_room_for_it(x, y, width, height, context):
    box = np.array([x, y, x + width, y + height])
    left, top, length = square_around(box, context)
    assert length >= max(width, height) * context - 1e-9
    np.testing.assert_allclose([left + length / 2, top + length / 2], [x + width / 2, y + height / 2], atol=1e-9)
    assert crop_square(np.zeros((30, 30, 3), np.uint8), box, context=context, size=8).shape == (8, 8, 3)


def test_objects_are_the_annotations_and_each_crop_is_of_its_own_image(make_dataset):
    dataset = read(make_dataset())
    crops = object_crops(dataset)
    assert len(crops) == dataset.num_boxes
    for i, crop in zip(range(len(crops)), crops.images(context=1.0, size=32), strict=True):
        image = load_image(dataset.samples[crops.image_index[i]].path)
        np.testing.assert_array_equal(crop, crop_square(image, crops.boxes[i], context=1.0, size=32))


def test_crops_are_the_same_cached_or_cut_on_every_access(make_dataset):
    crops = object_crops(read(make_dataset()))
    kept, not_kept = (CropCache.load(crops, context=1.3, size=24, memory_mb=mb) for mb in (100, 0))
    assert not not_kept._images
    for i in range(len(crops)):
        np.testing.assert_array_equal(kept[i], not_kept[i])


def test_of_detections_the_highest_scores_of_each_image_are_taken(make_dataset):
    samples = read(make_dataset(images=3)).samples
    scores = {0: [0.1, 0.9, 0.5], 1: [], 2: [0.2]}
    found = {
        i: Detections(np.tile(np.float32([1, 1, 9, 9]), (len(s), 1)), np.float32(s), np.zeros(len(s), int))
        for i, s in scores.items()
    }
    crops, rows = detection_crops(Predictions.of(found, ("a",)), samples, max_per_image=2)
    assert rows.tolist() == [1, 2, 3]
    assert crops.image_index.tolist() == [0, 0, 2]


def test_images_in_a_folder_are_one_object_each(tmp_path):
    write_folder(tmp_path, {"cat": 2, "dog": 1})
    dataset = read_image_folder(tmp_path)
    assert dataset.classes == ("cat", "dog")
    crops = image_crops(dataset)
    assert crops.labels.tolist() == [0, 0, 1]
    assert crops.boxes.tolist() == [[0, 0, 12, 8]] * 3
    assert [s.file_name for s in dataset.samples] == ["cat/0.png", "cat/1.png", "dog/0.png"]


def test_a_known_classifier_takes_images_without_classes_or_of_some_classes(tmp_path):
    write_folder(tmp_path / "some", {"dog": 1})
    assert image_crops(read_image_folder(tmp_path / "some", classes=("cat", "dog"))).labels.tolist() == [1]
    assert image_crops(read_image_folder(tmp_path / "some" / "dog", classes=("cat", "dog"))).labels.tolist() == [-1]


@pytest.mark.parametrize(
    ("made", "classes", "hint"),
    [
        ({}, None, "has no sub-folders"),
        ({"cat": 2}, None, "has one sub-folder, cat"),
        ({"cat": 2, "dog": 0}, None, "dog: holds no image"),
        ({"cat": 2, "cow": 1}, ("cat", "dog"), "cow: is of no class that the classifier knows (cat, dog)"),
        ({}, ("cat", "dog"), "holds no image. Known endings"),
        ({"train/cat": 1, "train/dog": 1, "val/cat": 1}, None, "then give"),
    ],
)
def test_a_folder_without_class_folders_is_refused_in_a_sentence(tmp_path, made, classes, hint):
    write_folder(tmp_path / "data", made)
    with pytest.raises(InputError) as caught:
        read_image_folder(tmp_path / "data", classes=classes)
    assert hint in str(caught.value)


def test_an_unreadable_image_is_named(tmp_path):
    write_folder(tmp_path, {"cat": 1, "dog": 1})
    (tmp_path / "dog" / "0.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"dog/0\.png: cannot be decoded"):
        read_image_folder(tmp_path)
    with pytest.raises(InputError, match="there is no such folder"):
        read_image_folder(tmp_path / "gone")


def write_folder(folder, numbers):
    """A sub-folder for each class with so many images of 12 x 8."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    for name, number in numbers.items():
        (folder / name).mkdir(parents=True)
        for i in range(number):
            Image.new("RGB", (12, 8), (40 * i, 90, 120)).save(folder / name / f"{i}.png")


def test_columns_of_other_lengths_are_refused():
    with pytest.raises(AssertionError, match="labels: expected"):
        Crops((), np.zeros(1, int), np.zeros((1, 4)), np.zeros(2, int))
