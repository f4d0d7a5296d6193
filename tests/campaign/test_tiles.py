"""Tiles in a campaign: offered where images are large and objects small, predicted, and kept under the view's name."""

from pathlib import Path

import pytest

from campaign_samples import campaign_state
from foldfuse.campaign.execution.jobs import predict_held_out
from foldfuse.campaign.task import VAL, Task, predictions_path
from foldfuse.commands.train import train
from foldfuse.data.pixels import open_images
from foldfuse.data.readers.coco import read
from foldfuse.formats.predictions import read_predictions, write_predictions
from foldfuse.inference.tta import View
from foldfuse.recipes import load_recipe
from foldfuse.storage.run import Run
from learning_samples import write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Images of 480 x 320 pixels with objects of 14 to 27 pixels."""
    return write_dataset(tmp_path_factory.mktemp("data") / "d", 4, size=(480, 320))


@pytest.mark.parametrize(
    ("changes", "sizes", "offered"),
    [
        (("image_size=128",), (), True),
        (("image_size=128",), (480,), False),
        (("image_size=416",), (128, 480), False),
        (("image_size=416",), (), False),
        (("image_size=auto",), (), False),
    ],
)
def test_they_are_offered_by_images_objects_and_image_size(data, changes, sizes, offered):
    dataset = read(data)
    recipes = {"a": load_recipe("lite0_fpn", changes)}
    task = Task(dataset, dataset.subset([0]), dataset, frozenset(), recipes, sizes, 0, 3)
    assert task.offers_tiles == offered


def test_a_member_predicts_the_held_out_images_in_tiles(data, tmp_path):
    train(data, out=tmp_path / "run", changes=("image_size=64", "batch_size=2"), steps=1)
    val = open_images(read(data))
    found = predict_held_out(Run(tmp_path / "run"), val, campaign_state(tiles=True), device="cpu")
    assert [str(view) for view in found.views] == ["1", "1+hflip", "1+tiles2x2"]
    path = predictions_path(tmp_path, VAL, "1+tiles2x2")
    write_predictions(found.views[View(tiles=(2, 2))], path, val)
    assert set(read_predictions(path, val).image_ids) == set(val.image_ids)
