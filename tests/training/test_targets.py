"""Objects that never get a target: the count agrees with the batches that a training sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.images import ImageCache, canvas_for
from foldfuse.detections import Annotations
from foldfuse.errors import InputError
from foldfuse.models import make_detector
from foldfuse.models.detection.dense_prediction import gather_targets
from foldfuse.recipes import Recipe, load_recipe
from foldfuse.training.batches import Batches
from foldfuse.training.detector import object_sizes
from foldfuse.training.targets import check_objects, have_targets, longest_side

SIDES = (2, 6, 9, 12, 16, 20, 26, 31, 36, 44, 60)


def one_object_each(folder: Path, sides: tuple[float, ...], size: tuple[int, int] = (1000, 600)) -> Dataset:
    """A dataset with one image for each side, with one object of that side and label in its middle."""
    width, height = size
    samples = []
    for i, side in enumerate(sides):
        path = folder / f"{i}.png"
        Image.new("RGB", size, (90, 100, 110)).save(path)
        x, y = width / 2, height / 2
        box = np.array([[x, y, x + side, y + side * 1.2]], np.float32)
        annotations = Annotations(box, np.array([i]), np.zeros(1, bool), np.array([side**2 * 1.2]))
        samples.append(Sample(i, path, path.name, width, height, annotations))
    return Dataset(tuple(samples), tuple(f"of {side}" for side in sides), tuple(range(len(sides))), folder / "d.json")


def seen(dataset: Dataset, recipe: Recipe, steps: int, stride: int) -> set[int]:
    """The labels of the objects in the batches of so many steps."""
    canvas = canvas_for(dataset.samples, image_size=recipe.image_size, stride=stride)
    images = ImageCache.load(dataset.samples, longest=longest_side(recipe))
    batches = Batches(dataset.samples, images, recipe, canvas, 0)
    return {int(label) for step in range(steps) for target in batches.batch(step)[1] for label in target.labels}


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("scale_jitter=0",),
        ("mosaic=0",),
        ("mosaic=1", "scale_jitter=0.1"),
        ("mosaic=0", "tiles=0.8", "scale_jitter=0.1"),
    ],
)
def test_exactly_the_objects_without_a_target_are_missing_from_all_batches(tmp_path, changes):
    recipe = load_recipe("lite0_fpn", ("image_size=64", "batch_size=11", "color_jitter=0", *changes))
    dataset = one_object_each(tmp_path, SIDES)
    found = have_targets(dataset.samples, recipe, stride=32)
    labels = {i for i, has in enumerate(found) if has}
    batches = seen(dataset, recipe, 150, 32)
    assert batches <= labels, "an object in a batch was counted as one without a target"
    assert len(labels - batches) <= 1, "150 steps see all others, but for one at the border"
    assert 0 < len(labels) < len(SIDES)


def test_a_yolov5_matches_the_objects_that_are_counted(tmp_path):
    recipe = load_recipe("yolov5n", ("image_size=64", "batch_size=2", "mosaic=0", "scale_jitter=0", "translate=0"))
    dataset = one_object_each(tmp_path, (*SIDES, 90, 150, 300, 480))
    model = make_detector("yolov5n", len(dataset.classes), pretrained=False)
    canvas = canvas_for(dataset.samples, image_size=64, stride=32)
    for fit in (False, True):
        if fit:
            model.fit_anchors(object_sizes(dataset.samples, canvas))
        anchors = model.head.anchors.reshape(-1, 2).numpy()
        found = have_targets(dataset.samples, recipe, stride=32, anchors=anchors)
        images = ImageCache.load(dataset.samples, longest=64)
        batches = Batches(dataset.samples, images, recipe, canvas, 0)
        for i, has in enumerate(found):
            labeled = batches.labeled_image(i)
            raw = model(torch.zeros(1, 3, *canvas))
            scale = canvas[1] / labeled.image.shape[1]
            scaled = replace(labeled.annotations, boxes=labeled.annotations.boxes * scale)
            matches = model.head._match(raw, gather_targets([scaled], raw.logits.device))[0]
            assert bool(len(matches)) == has, (fit, i)


def test_an_object_outside_its_image_and_a_crowd(tmp_path):
    dataset = one_object_each(tmp_path, (100, 100, 100))
    outside = replace(dataset.samples[0].annotations, boxes=np.array([[1100, 10, 1200, 90]], np.float32))
    crowd = replace(dataset.samples[1].annotations, crowd=np.ones(1, bool))
    samples = [replace(s, annotations=a) for s, a in zip(dataset.samples, (outside, crowd), strict=False)]
    found = have_targets([*samples, dataset.samples[2]], load_recipe("lite0_fpn", ("image_size=320",)), stride=32)
    assert found.tolist() == [False, True]


@pytest.mark.parametrize(
    ("sides", "said"), [((4,) * 9, "none of the 9 objects"), ((4, 200), "1 of 2 objects never get")]
)
def test_they_are_told_with_a_size_that_is_large_enough(tmp_path, caplog, sides, said):
    dataset, recipe = one_object_each(tmp_path, sides), load_recipe("lite0_fpn", ("image_size=64",))
    model = make_detector("lite0_fpn", len(sides), pretrained=False)
    if said.startswith("none"):
        with pytest.raises(InputError, match=said) as caught:
            check_objects(model, dataset, recipe)
        text = str(caught.value)
    else:
        check_objects(model, dataset, recipe)
        text = caplog.text
    assert said in text
    size = int(text.partition("Take --image-size ")[2].split()[0])
    plain = replace(recipe, scale_jitter=0.0, mosaic=0.0)
    at = [have_targets(dataset.samples, replace(plain, image_size=s), stride=32).all() for s in (size - 32, size)]
    assert at == [False, True]


def test_where_no_size_is_large_enough_tiles_are_advised(tmp_path):
    dataset, recipe = one_object_each(tmp_path, (1.5, 1.5)), load_recipe("lite0_fpn", ("image_size=64",))
    with pytest.raises(InputError, match="Train and predict on tiles"):
        check_objects(make_detector("lite0_fpn", 2, pretrained=False), dataset, recipe)
