"""Fields of a recipe that a composed detector changes, by the kind of its backbone, and only where they were not given."""

import logging

import pytest

from foldfuse.campaign.planning.candidates import candidate_recipes
from foldfuse.commands.training_options import chosen_recipe
from foldfuse.errors import InputError
from foldfuse.recipes import load_recipe
from foldfuse.training.backbone_defaults import has_layer_norms, with_backbone_defaults

CNN, VIT = "compose:timm:resnet10t+fpn+dense", "compose:timm:test_vit+vitdet+dense"


def test_a_network_with_batch_norms_starts_from_imagenet_and_keeps_the_rest(caplog):
    caplog.set_level(logging.INFO)
    recipe = chosen_recipe("lite0_fpn", [f"detector={CNN}"], None)
    assert recipe == load_recipe("lite0_fpn", [f"detector={CNN}", "init_weights=imagenet"])
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"{CNN}: defaults for its backbone are init_weights=imagenet. --set changes each."


def test_a_transformer_trains_all_stages_at_lower_rates(caplog):
    caplog.set_level(logging.INFO)
    recipe = chosen_recipe(None, [f"detector={VIT}", "lr=5e-4"], None)
    assert (recipe.init_weights, recipe.frozen_stages, recipe.layer_decay) == ("imagenet", 0, 0.8)
    assert (recipe.lr, recipe.backbone_lr_mult, recipe.weight_decay) == (5e-4, 0.1, 0.05)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "frozen_stages=0, layer_decay=0.8" in line
    assert "lr=0.001" not in line


def test_given_fields_and_own_detectors_stay(caplog):
    caplog.set_level(logging.INFO)
    given = ("init_weights=none", "frozen_stages=0", f"detector={CNN}")
    assert with_backbone_defaults(load_recipe("lite0_fpn"), given) == given
    own = load_recipe("lite0_fpn", [f"detector={VIT}"])
    assert with_backbone_defaults(own, [f"detector={VIT}"]) == (f"detector={VIT}",)
    assert chosen_recipe("lite0_fpn", ["detector=lite1_fpn"], None).init_weights == "detection"
    assert not caplog.records


def test_a_campaign_has_the_same_defaults():
    (recipe,) = candidate_recipes(("lite0_fpn",), forbidden=(), changes=(f"detector={VIT}",), defaults={}).values()
    assert recipe == chosen_recipe("lite0_fpn", [f"detector={VIT}"], None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("swin_tiny", True),
        ("vit_tiny", True),
        ("timm:convnext_atto", True),
        ("timm:resnet18", False),
        ("timm:x", False),
    ],
)
def test_kind_of_a_backbone(name, expected):
    assert has_layer_norms(name) is expected


def test_a_name_without_three_parts_is_a_sentence():
    with pytest.raises(InputError, match=r"compose:BACKBONE\+NECK\+HEAD"):
        chosen_recipe("lite0_fpn", ["detector=compose:swin_tiny"], None)
