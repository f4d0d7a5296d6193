"""What a campaign compares by default depends on the hardware: on cards also larger images, whole backbones, COCO detectors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from campaign_samples import campaign_state
from foldfuse.campaign import campaign as campaigns
from foldfuse.campaign import constants as c
from foldfuse.campaign import request as requests
from foldfuse.campaign.planning import estimates
from foldfuse.campaign.planning.hardware import default_candidates
from foldfuse.campaign.planning.segments import base_runs
from foldfuse.campaign.request import CampaignRequest
from foldfuse.commands.campaign import campaign
from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError
from foldfuse.recipes import RECIPES, load_recipe
from foldfuse.storage import ledger as ledgers
from foldfuse.training import image_sizes
from foldfuse.training.step_cost import StepCost
from learning_samples import write_dataset

CARDS = ("Tesla T4", "Tesla T4")


@pytest.fixture
def coco_recipe(monkeypatch):
    """A recipe `dfine_n` that starts from published weights, whether or not its detector is installed."""
    recipe = replace(load_recipe("lite0_fpn"), frozen_stages=0, init_weights="coco")
    monkeypatch.setitem(RECIPES, "dfine_n", lambda: recipe)
    at_hand = {name: make for name, make in RECIPES.items() if name not in ("dfine_s", "fcos_r50")}
    monkeypatch.setattr("foldfuse.campaign.planning.hardware.RECIPES", at_hand)
    return recipe


def test_without_a_card_the_candidates_are_those_of_a_cpu_and_nothing_is_looked_up():
    found = default_candidates((), check=pytest.fail)
    assert found.recipes == {name: RECIPES[name]() for name in ("lite0_fpn", "lite1_fpn", "yolov5n")}
    assert found.reason is None


def test_on_cards_whole_backbones_learn_and_coco_detectors_join(coco_recipe):
    checked = []
    found = default_candidates(CARDS, check=lambda recipe: checked.append(recipe.init_weights))
    assert list(found.recipes) == ["lite0_fpn", "dfine_n", "lite1_fpn", "yolov5n"]
    assert {recipe.frozen_stages for recipe in found.recipes.values()} == {0}
    assert found.recipes["lite0_fpn"].backbone_lr_mult == c.UNFROZEN_BACKBONE_LR_MULT
    assert found.recipes["dfine_n"] == coco_recipe
    assert found.recipes["yolov5n"] == RECIPES["yolov5n"](), "it learns from scratch anyway"
    assert checked == ["coco"]
    assert found.reason.startswith(
        "With 2 cards (2 x Tesla T4) the candidates are lite0_fpn, dfine_n, lite1_fpn, yolov5n;"
    )


@pytest.mark.usefixtures("coco_recipe")
def test_a_detector_whose_weights_are_not_at_hand_is_left_out_with_the_reason():
    def missing(recipe):
        raise InputError("the weights of dfine_n are not on this machine. Run 'foldfuse fetch dfine_n'.")

    found = default_candidates(CARDS[:1], check=missing)
    assert "dfine_n" not in found.recipes
    assert "With 1 card (1 x Tesla T4)" in found.reason
    assert found.reason.endswith(
        "dfine_n is no candidate: the weights of dfine_n are not on this machine. Run 'foldfuse fetch dfine_n'."
    )
    assert "fetch" not in default_candidates(CARDS, forbidden=("dfine_n",), check=missing).reason


def test_a_candidate_joins_only_where_its_measured_cost_allows(coco_recipe):
    recipes = default_candidates(CARDS, check=lambda recipe: None).recipes
    steps = {"lite0_fpn": 0.05, "dfine_n": 0.1, "lite1_fpn": 0.06, "yolov5n": 0.05}
    state = campaign_state(3600.0, recipes=recipes, step_seconds=steps, auto_image_size=512)
    assert [s.name for s in base_runs(state)][:4] == [f"base-{name}-416" for name in recipes]
    slow = replace(state, step_seconds=steps | {"lite1_fpn": 3.0})
    assert [s.name for s in base_runs(slow)] == ["base-416"], "fewer than three: nothing to compare"


@pytest.fixture
def two_cards(monkeypatch):
    """The machine seems to have two cards, on which a step takes no time; networks would go to the CPU."""
    for module in ("request", "image_size"):
        monkeypatch.setattr(f"foldfuse.campaign.{module}.card_names", lambda name: CARDS)
    monkeypatch.setattr("foldfuse.training.step_cost.measure_step", lambda *_, **__: StepCost(0.01, 0.002))
    monkeypatch.setattr(estimates, "measure_step", lambda *_, **__: StepCost(0.01, 0.002))
    monkeypatch.setattr(requests, "check_start", lambda recipe, *, download: None)


@pytest.mark.usefixtures("two_cards", "coco_recipe")
def test_the_plan_says_why_and_images_are_larger(tmp_path, capsys):
    data = write_dataset(tmp_path / "d", 16)
    assert campaign(data, deadline=3600.0, plan=True, out=tmp_path / "out") is None
    shown = " ".join(capsys.readouterr().out.split())
    assert "With 2 cards (2 x Tesla T4) the candidates are lite0_fpn, dfine_n" in shown
    assert "The image size is 512 px: the smallest that is chosen where time suffices." in shown
    assert "train base-dfine_n-416" in shown


@pytest.mark.usefixtures("two_cards", "coco_recipe")
def test_named_recipes_stay_as_they_are():
    found = CampaignRequest(data=None, recipe=("lite1_fpn",)).check()
    assert found.recipes == {"lite1_fpn": RECIPES["lite1_fpn"]()}
    assert found.reason is None


@pytest.mark.usefixtures("coco_recipe")
def test_a_campaign_that_is_resumed_on_another_machine_keeps_its_candidates(tmp_path, monkeypatch, two_cards):
    seen = []
    monkeypatch.setattr(campaigns, "_work", lambda request, inputs, recipes, *_, **__: seen.append(recipes))
    data, out = write_dataset(tmp_path / "d", 16), tmp_path / "out"
    campaign(data, out=out, set=("lr=1e-3",), forbid=("lite1_fpn",))
    assert "With 2 cards" in ledgers.snapshot(out)["notes"][0]
    monkeypatch.setattr(requests, "card_names", lambda name: ())
    campaign(resume=out)
    first, again = seen
    assert list(first) == ["lite0_fpn", "dfine_n", "yolov5n"]
    assert again == first


def test_bounds_of_the_image_size(tmp_path):
    dataset = read(write_dataset(tmp_path, 6, size=(900, 600)))
    recipe = load_recipe("lite0_fpn")
    assert image_sizes.choose_image_size(dataset, recipe).size == 640
    assert image_sizes.choose_image_size(dataset, recipe, smallest=512, largest=1024).size > 640
