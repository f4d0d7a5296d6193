"""What a campaign may start from: the recipes' initial weights are checked before anything is written."""

from __future__ import annotations

from contextlib import closing

import pytest

from foldfuse import cli
from foldfuse.campaign.constants import CPU_RECIPES as DEFAULT_RECIPES
from foldfuse.campaign.planning.candidates import candidate_recipes
from foldfuse.campaign.planning.hardware import default_candidates
from foldfuse.campaign.request import CampaignRequest
from foldfuse.campaign.task import Inputs, prepare_task
from foldfuse.data.folds import make_folds
from foldfuse.data.readers.coco import read
from foldfuse.recipes import RECIPES
from foldfuse.storage import ledger as ledgers
from learning_samples import write_dataset


@pytest.mark.parametrize("start", ["detection", "imagenet"])
def test_a_default_recipe_without_such_weights_goes_on_from_random_ones(start):
    defaults = default_candidates(()).recipes
    recipes = candidate_recipes(changes=[f"init_weights={start}", "lr=1e-3"], defaults=defaults)
    assert {name: recipe.init_weights for name, recipe in recipes.items()} == {
        "lite0_fpn": start,
        "lite1_fpn": start,
        "yolov5n": "none",
    }
    assert {recipe.lr for recipe in recipes.values()} == {1e-3}
    named = candidate_recipes(["yolov5n"], changes=[f"init_weights={start}"], defaults=defaults)
    assert named["yolov5n"].init_weights == start


def test_the_defaults_that_have_detection_weights_start_from_them():
    starts = {name: RECIPES[name]().init_weights for name in DEFAULT_RECIPES}
    assert starts == {"lite0_fpn": "detection", "lite1_fpn": "detection", "yolov5n": "none"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--recipe", "yolov5n", "--set", "init_weights=imagenet"], "yolov5n has no ImageNet weights"),
        (["--recipe", "efficientdet_lite0", "--set", "init_weights=detection"], "only of: lite0_fpn, lite1_fpn"),
    ],
)
def test_missing_weights_are_told_before_anything_is_written(tmp_path, capsys, options, sentence):
    data, out = write_dataset(tmp_path / "data", 16), tmp_path / "out"
    assert cli.main(["campaign", str(data), "--out", str(out), *options]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_the_test_images_may_be_a_folder_of_images_whose_number_is_told(tmp_path):
    data = write_dataset(tmp_path / "data", 16)
    photos = write_dataset(tmp_path / "photos", 5, seed=7).parent / "images"
    request = CampaignRequest(data=data, test=photos, recipe=("yolov5n",), image_size=(192,))
    (tmp_path / "out").mkdir()
    with closing(ledgers.create(tmp_path / "out", {}, deadline=600.0, start=0.0)) as ledger:
        task = request.make_task(request.read_inputs(), request.check().recipes, ledger)
        notes = " ".join(ledgers.snapshot(tmp_path / "out")["notes"])
    assert "; 5 images to predict, from images." in notes
    assert [sample.file_name for sample in task.test.samples] == [f"{i:03}.png" for i in range(5)]
    assert (task.test.classes, task.test.category_ids) == (("red", "blue"), (3, 7))
    assert all(sample.annotations is None for sample in task.test_samples)


def test_image_sizes_that_are_given_are_not_told_as_chosen_from_the_data(tmp_path):
    labeled = read(write_dataset(tmp_path / "d"))
    with closing(ledgers.create(tmp_path, {}, deadline=60, start=0.0)) as ledger:
        task = prepare_task(
            Inputs(labeled, None, make_folds(labeled, num_folds=3)),
            candidate_recipes(["yolov5n"], defaults={}),
            image_sizes=(64, 96),
            seed=0,
            metric="ap50",
            pseudo_labels=False,
            device="cpu",
            ledger=ledger,
        )
    assert task.image_size_choice is not None
    assert task.image_size_choice.reason.startswith(
        "Image sizes are limited to 64 px, 96 px, as --image-size says; the"
    )
    notes = ledgers.snapshot(tmp_path)["notes"]
    assert not [note for note in notes if note.startswith("The image size is")]
