"""Recipes: changes, what is refused, and the file."""

import json
from dataclasses import asdict, fields

import pytest

from foldfuse.commands.recipes import recipes
from foldfuse.errors import InputError
from foldfuse.models import DETECTORS
from foldfuse.recipes import AUTO, RECIPES, Recipe, load_recipe
from foldfuse.storage.recipe_file import read_recipe, write_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_a_detector_and_tells_what_it_is_for(name):
    assert load_recipe(name).detector in DETECTORS
    assert RECIPES[name].__doc__


def test_changes_replace_fields_and_keep_their_types():
    made = load_recipe("efficientdet_lite0", ["lr=3e-4", "image_size=256", "mosaic=1", "detector=other"])
    assert (made.lr, made.image_size, made.mosaic, made.detector) == (3e-4, 256, 1.0, "other")
    assert type(made.mosaic) is float
    same = asdict(load_recipe("efficientdet_lite0"))
    assert {k for k, v in asdict(made).items() if v != same[k]} == {"lr", "image_size", "mosaic", "detector"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lr", "NAME=VALUE"),
        ("lrr=1", "Did you mean 'lr'"),
        ("lr=fast", "'fast' is not a number"),
        ("lr=True", "'True' is not a number"),
        ("lr=nan", "not a number"),
        ("lr=1e999", "lr is inf"),
        ("lr=0", "lr is 0.*above 0"),
        ("lr=__import__('os')", "not a number"),
        ("batch_size=2.5", "not a whole number"),
        ("batch_size=0", r"batch_size is 0, and must be in 1\.\.4096"),
        ("batch_size=100000", r"must be in 1\.\.4096"),
        ("image_size=24000", "must be 4096 or less"),
        ("lr=1e9", "above 0 and at most 100"),
        ("scale_jitter=1e9", "0 or more, at most 10"),
        ("image_size=300", "nearest are 288 and 320"),
        ("image_size=-32", "nearest are 32 and 64"),
        ("image_size=0", "image_size is 0.*nearest are 32 and 64"),
        ("image_size=Auto", "'Auto' is not a whole number"),
        ("hflip=1.5", r"in 0\.\.1"),
        ("ema_decay=-0.1", r"in 0\.\.1"),
        ("frozen_stages=9", r"frozen_stages is 9.*0\.\.3"),
        ("frozen_stages=-1", r"frozen_stages is -1.*0\.\.3"),
        ("anchor_scale=0", "anchor_scale is 0.*above 0"),
        ("grad_clip_norm=0", "grad_clip_norm is 0.*above 0"),
        ("weight_decay=-1", "weight_decay is -1.*0 or more"),
        ("backbone_lr_mult=-1", "backbone_lr_mult is -1.*0 or more"),
        ("scale_jitter=-1", "scale_jitter is -1.*0 or more"),
        ("translate=-1", "translate is -1.*0 or more"),
        ("layer_decay=0", "layer_decay is 0.*above 0"),
        ("color_jitter=2", r"color_jitter is 2.*0\.\.1"),
        ("init_weights=none", "init_weights is none and frozen_stages is 3.*frozen_stages=0"),
    ],
)
def test_a_change_that_cannot_be_is_named(change, message):
    with pytest.raises(InputError, match=message):
        load_recipe("efficientdet_lite0", [change])


def test_an_image_size_may_be_left_to_the_data():
    left_open = {name for name in RECIPES if load_recipe(name).image_size == AUTO}
    published = {
        "dfine_n",
        "dfine_s",
        "dfine_m",
        "rtdetr_r18",
        "ssdlite320",
        "retinanet_r50",
        "fcos_r50",
        "fasterrcnn_mobilenet",
    }
    small = {"lite0_fpn", "lite1_fpn", "lite2_fpn", "efficientdet_lite0", "yolov5n", "yolov5s"}
    assert left_open == published | small
    assert load_recipe("efficientdet_lite1", ["image_size=auto"]).image_size == AUTO
    assert load_recipe("lite0_fpn", ["image_size=256"]).image_size == 256
    assert Recipe("lite0_fpn").image_size == 320


def test_one_small_image_a_step_is_refused():
    # The coarsest level would be a single pixel, on which batch norm cannot be trained.
    with pytest.raises(InputError, match="batch_size is 1"):
        load_recipe("efficientdet_lite0", ["image_size=128", "batch_size=1"])
    assert load_recipe("efficientdet_lite0", ["image_size=160", "batch_size=1"]).batch_size == 1


def test_a_misspelt_recipe_is_named_with_its_neighbour():
    with pytest.raises(InputError, match="Did you mean 'efficientdet_lite0'"):
        load_recipe("efficientdet-lite0")


def test_a_recipe_comes_back_from_its_file(tmp_path):
    made = load_recipe("efficientdet_lite0", ["lr=3e-4", "mosaic=0", "image_size=320"])
    write_recipe(made, tmp_path / "recipe.json")
    assert read_recipe(tmp_path / "recipe.json") == made
    assert set(json.loads((tmp_path / "recipe.json").read_text())) == {"format", *(f.name for f in fields(Recipe))}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "holds a list, expected the JSON object of a recipe"),
        ("{}", r"is not a recipe: .*detector"),
        ('{"detector": "a", "lr": "x"}', r"is not a recipe: .*lr"),
        ('{"detector": "a", "mosaik": 1}', "no field is called 'mosaik'. Did you mean 'mosaic'"),
        ('{"detector": "a", "image_size": 100}', "image_size is 100, and must be a positive multiple of 32"),
        ('{"detector": "a", "image_size": 0}', "image_size is 0, and must be a positive multiple of 32"),
        ('{"format": 3, "detector": "a"}', "is a recipe of format 3, and this version of Foldfuse reads up to 2"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, message):
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(InputError, match=rf"recipe\.json: .*{message}"):
        read_recipe(tmp_path / "recipe.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"Is .* the folder of a run"):
        read_recipe(tmp_path / "recipe.json")


def test_recipes_are_shown_with_what_they_are_for(capsys):
    recipes()
    shown = capsys.readouterr().out
    assert all(name in shown for name in RECIPES)
    (line,) = (line for line in shown.splitlines() if line.split()[:1] == ["lite0_fpn"])
    assert line.split()[1] == "auto"


@pytest.mark.parametrize("order", [1, -1])
def test_changes_that_need_one_another_may_come_in_any_order(order):
    changes = ["init_weights=none", "frozen_stages=0", "lr=0.01", "lr=0.02"]
    recipe = load_recipe("vit_tiny_pyramid", changes[:2][::order] + changes[2:])
    assert (recipe.init_weights, recipe.frozen_stages, recipe.lr) == ("none", 0, 0.02)
