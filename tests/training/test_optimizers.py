"""Layer-wise learning rates."""

from dataclasses import replace

import pytest

from foldfuse.models import make_detector
from foldfuse.recipes import load_recipe
from foldfuse.training.optimizers import detector_groups


@pytest.mark.parametrize(
    ("detector", "first", "last", "blocks"),
    [
        ("vit_tiny_pyramid", "patch_embed.proj.weight", "blocks.11.mlp", 12),
        ("swin_tiny_fpn", "patch_embed.proj.weight", "layers.3.blocks.1.mlp", 15),
    ],
)
def test_a_backbones_rates_fall_towards_the_pixels(detector, first, last, blocks):
    recipe = load_recipe(
        detector, ["layer_decay=0.5", "lr=1.0", "backbone_lr_mult=0.1", "init_weights=none", "frozen_stages=0"]
    )
    model = make_detector(detector, 2, pretrained=False)
    model.freeze(0)
    rates = {id(p): group["base_lr"] for group in detector_groups(model, recipe) for p in group["params"]}
    named = {name: rates[id(p)] for name, p in model.backbone.named_parameters() if id(p) in rates}
    top = max(named.values())
    assert top == pytest.approx(0.1)
    assert {rates[id(p)] for p in model.head.parameters()} == {1.0}
    (lowest,) = [rate for name, rate in named.items() if name.endswith(first)]
    assert lowest == min(named.values())
    ends = {rate for name, rate in named.items() if last in name}
    assert len(ends) == 1
    assert ends.pop() / lowest == pytest.approx(2.0**blocks)


@pytest.mark.parametrize("detector", ["vit_tiny_pyramid", "swin_tiny_fpn", "compose:timm:test_vit+vitdet+dense"])
def test_tokens_positions_and_tables_do_not_decay(detector):
    recipe = load_recipe("swin_tiny_fpn", [f"detector={detector}", "init_weights=none", "frozen_stages=0"])
    model = make_detector(detector, 2, pretrained=False)
    model.freeze(0)
    names = {id(p): name for name, p in model.named_parameters()}

    def decayed(recipe):
        groups = detector_groups(model, recipe)
        return {names[id(p)].rpartition(".")[2] for group in groups if group["weight_decay"] for p in group["params"]}

    assert decayed(recipe) == {"weight"}
    more = decayed(replace(recipe, numerics=1))  # of an earlier version, whose checkpoints must go on
    assert more > {"weight"}
