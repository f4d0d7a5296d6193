"""Training on tiles: the same batches for (seed, step), objects at a tile's size, and nothing changed where a recipe has none."""

import json

import numpy as np
import pytest
import torch

from foldfuse.commands.train import train
from foldfuse.data.images import ImageCache
from foldfuse.data.readers.coco import read
from foldfuse.evaluation.record import read_evaluation
from foldfuse.inference.detector import load_detector
from foldfuse.recipes import load_recipe
from foldfuse.storage.recipe_file import read_recipe
from foldfuse.storage.run import Run
from foldfuse.training.batches import Batches
from foldfuse.training.detector import object_sizes
from foldfuse.training.targets import longest_side
from learning_samples import write_dataset

CHANGES = ("image_size=64", "batch_size=4")
STILL = (*CHANGES, "mosaic=0", "scale_jitter=0", "translate=0", "color_jitter=0")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", 8, size=(256, 192))


def batches_of(data, *changes):
    recipe, samples = load_recipe("lite0_fpn", changes), read(data).samples
    return Batches(samples, ImageCache.load(samples, longest=longest_side(recipe)), recipe, (64, 64), 3)


def same(one, other):
    assert torch.equal(one[0], other[0])
    for a, b in zip(one[1], other[1], strict=True):
        np.testing.assert_array_equal(a.boxes, b.boxes)


def test_batches_of_tiles_are_a_function_of_seed_and_step(data):
    changes = (*CHANGES, "tiles=0.5", "copy_paste=0.5", "mosaic=0.5")
    batches = batches_of(data, *changes)
    whole = batches.batch(7)
    same(whole, batches_of(data, *changes).batch(7))
    part = batches.batch(7, range(2, 4))
    assert torch.equal(part[0], whole[0][2:])
    assert not torch.equal(whole[0], batches_of(data, *CHANGES, "copy_paste=0.5", "mosaic=0.5").batch(7)[0])


def test_without_tiles_their_side_changes_nothing(data):
    same(batches_of(data, *CHANGES).batch(1), batches_of(data, *CHANGES, "tile_side=0.3").batch(1))
    assert longest_side(load_recipe("lite0_fpn", (*CHANGES, "tile_side=0.3"))) == 90


@pytest.mark.parametrize(("tiles", "zoom"), [("0", 1.0), ("1", 4.0)])
def test_a_tile_shows_objects_larger(data, tiles, zoom):
    batches = batches_of(data, *STILL, f"tiles={tiles}", "tile_side=0.25")
    sides = [box[2:] - box[:2] for step in range(12) for a in batches.batch(step)[1] for box in a.boxes]
    largest = np.max(sides)
    own = max((s.annotations.boxes[:, 2:] - s.annotations.boxes[:, :2]).max() for s in batches.samples)
    assert largest == pytest.approx(own * 64 / 256 * zoom, rel=0.15)


def test_whole_images_are_shown_at_the_same_size_beside_tiles(data):
    assert batches_of(data, *STILL, "tiles=0.01").images[0].shape[1] == 116
    plain, beside = (batches_of(data, *STILL, f"tiles={tiles}").batch(0) for tiles in ("0", "0.000001"))
    for a, b in zip(plain[1], beside[1], strict=True):  # one more random number is drawn, so places differ
        np.testing.assert_allclose(*((one.boxes[:, 2:] - one.boxes[:, :2]) for one in (a, b)), atol=0.6)


def test_anchors_are_fitted_to_objects_in_tiles_too(data):
    samples = read(data).samples
    plain, both = object_sizes(samples, (64, 64)), object_sizes(samples, (64, 64), tile_zoom=2.0)
    assert torch.equal(both, torch.cat([plain, 2 * plain]))


def test_a_run_on_tiles_is_trained_resumed_and_scored_on_whole_images(data, tmp_path):
    val = write_dataset(tmp_path / "val", 3, size=(256, 192), seed=1)
    train(data, out=tmp_path / "run", changes=(*CHANGES, "batch_size=2", "tiles=0.5"), steps=1, val=val)
    train(resume=tmp_path / "run", steps=2)
    own = Run(tmp_path / "run")
    assert read_evaluation(own.folder).num_images == 3
    assert (own.recipe.tiles, own.recipe.tile_side, own.metadata.steps) == (0.5, 0.55, 2)
    assert load_detector(own)[1] == ("red", "blue")


def test_recipes_of_earlier_versions_have_no_tiles(tmp_path):
    train_data = write_dataset(tmp_path / "d", 4)
    train(train_data, out=tmp_path / "run", changes=CHANGES, steps=1)
    path = tmp_path / "run" / "recipe.json"
    document = json.loads(path.read_text())
    fields = document.get("recipe", document)
    assert fields.pop("tiles") == 0
    assert fields.pop("tile_side") == 0.55
    path.write_text(json.dumps(document))
    assert read_recipe(path).tiles == 0
