"""Layer-wise rates; schedule-free AdamW against its paper's sums, and in a training that is stopped."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import AdamW

from foldfuse.commands.train import train
from foldfuse.models import make_detector
from foldfuse.recipes import load_recipe
from foldfuse.storage.run import Run
from foldfuse.training.optimizers import ScheduleFree, averaged_state, detector_groups
from learning_samples import write_dataset

CHANGES = ("image_size=64", "batch_size=2", "optimizer=schedule_free", "warmup_fraction=0")


def test_schedule_free_by_hand():
    model = nn.Linear(2, 1, bias=False).double()
    start, goal, decay = np.array([1.0, -2.0]), np.array([3.0, 0.5]), 0.1
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(start))
    optimizer = ScheduleFree([{"params": [model.weight], "lr": 0.0, "weight_decay": decay}])
    y, z, v, points, weights = start, start, np.zeros(2), [], []
    for t, rate in enumerate((0.0, 0.05, 0.1, 0.1, 0.1), 1):  # a warm-up begins at 0
        optimizer.param_groups[0]["lr"] = rate
        loss = (model.weight - torch.from_numpy(goal)).square().sum()
        model.weight.grad = None
        loss.backward()
        optimizer.step()
        gradient = 2 * (y - goal)
        v = 0.999 * v + 0.001 * gradient**2
        rate *= (1 - 0.999**t) ** 0.5
        z = z - rate * (gradient / (v**0.5 + 1e-8) + decay * y)
        points.append(z)
        weights.append(rate**2)
        x = np.average(points, axis=0, weights=weights) if rate else start
        y = 0.1 * z + 0.9 * x
        np.testing.assert_allclose(model.weight.detach()[0], y, rtol=1e-12)
        np.testing.assert_allclose(averaged_state(model, optimizer)["weight"][0], x, rtol=1e-12)
    assert not np.allclose(x, y)


def test_other_optimizers_are_evaluated_as_they_are():
    model = nn.Linear(2, 1)
    optimizer = AdamW([{"params": list(model.parameters()), "lr": 0.1}])
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(averaged_state(model, optimizer)["weight"], model.weight)


def test_a_run_stopped_and_resumed_has_the_same_bits_and_is_evaluated_at_its_average(tmp_path):
    data = write_dataset(tmp_path / "d", 6)
    train(data, tmp_path / "whole", change=CHANGES, steps=6)
    train(data, tmp_path / "parts", change=CHANGES, steps=3)
    train(data, tmp_path / "parts", steps=6, resume=True)
    whole, parts = (Run(tmp_path / name) for name in ("whole", "parts"))
    assert {row["lr"] for row in whole.log} == {whole.recipe.lr}, "its rate stays up"
    states = whole.load_checkpoint()[0], parts.load_checkpoint()[0]
    for part in ("model", "ema"):
        assert all(torch.equal(states[0][part][key], states[1][part][key]) for key in states[0][part])
    for one, other in zip(*(state["optimizer"]["state"].values() for state in states), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("x", "z", "v"))
    weights, average, model = whole.load_weights(), states[0]["ema"], states[0]["model"]
    assert all(torch.equal(weights[key], average[key]) for key in weights)
    key = "head.class_head.weight"
    assert any(torch.equal(average[key], one["x"]) for one in states[0]["optimizer"]["state"].values())
    assert not torch.equal(average[key], model[key])


@pytest.mark.parametrize(
    ("detector", "first", "last", "blocks"),
    [
        ("vit_tiny_pyramid", "patches.weight", "blocks.11.mlp", 12),
        ("swin_tiny_fpn", "patches.weight", "stages.3.blocks.1.mlp", 15),
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
