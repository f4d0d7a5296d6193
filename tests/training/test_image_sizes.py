"""The image size that is chosen from the data: the rule, and trainings and campaigns that take it."""

import json
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foldfuse.campaign.request import CampaignRequest
from foldfuse.commands.campaign import campaign
from foldfuse.commands.train import train
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.detections import Annotations
from foldfuse.errors import InputError
from foldfuse.recipes import AUTO, load_recipe
from foldfuse.storage import ledger as ledgers
from foldfuse.storage.run import Run
from foldfuse.storage.segments import Role, SegmentRecord
from foldfuse.system.records import from_plain
from foldfuse.training import step_cost
from foldfuse.training.image_sizes import (
    LEAST_AUTO,
    MIN_AUTO,
    MIN_STEPS,
    choose_image_size,
    measured_choice,
    relative_sizes,
    tiles_show_more,
    with_image_size,
)
from learning_samples import write_dataset

RECIPE = load_recipe("lite0_fpn")
SMALL = ("batch_size=2",)


def drawn(sides, size):
    """A dataset of images of (width, height), each with one square object of a side in pixels; no files."""
    samples = []
    for i, side in enumerate(sides):
        annotations = Annotations(
            np.array([[0.0, 0.0, side, side]]), np.zeros(1, np.int64), np.zeros(1, bool), np.array([side**2])
        )
        samples.append(Sample(i, Path(f"{i}.png"), f"{i}.png", *size, annotations))
    return Dataset(tuple(samples), ("thing",), (1,), Path("data.json"))


@pytest.mark.parametrize(
    ("sides", "size", "chosen", "bound"),
    [
        ([300, 400, 500], (1000, 600), 320, "smallest"),
        ([100] * 4, (1000, 600), 320, "smallest"),
        ([60] * 4, (600, 1000), 480, "objects"),
        ([80] * 4, (1000, 600), 352, "objects"),
        ([60] + [300] * 9, (600, 1000), 320, "smallest"),  # a few small objects do not decide
        ([60] * 4 + [300] * 6, (600, 1000), 480, "objects"),
        ([20] * 4, (1000, 600), 640, "largest"),
        ([20] * 4, (400, 300), 416, "images"),
        ([5] * 4, (100, 100), 320, "smallest"),  # smaller images are enlarged
    ],
)
def test_smaller_objects_give_larger_sizes_within_what_the_images_show(sides, size, chosen, bound):
    choice = choose_image_size(drawn(sides, size), RECIPE)
    assert (choice.size, choice.bound) == (chosen, bound)
    assert choice.object_px == pytest.approx(np.quantile(sides, 0.25) / max(size) * chosen)
    assert choice.reason.startswith(f"The image size is {chosen} px: ")
    assert choice.too_small == 0


@pytest.mark.parametrize(
    ("steps", "chosen", "bound"), [(1e6, 480, "objects"), (0.6, 352, "budget"), (0.1, 256, "budget")]
)
def test_the_budget_bounds_the_size(steps, chosen, bound):
    """`steps`: those of the largest size that the budget is short for, times MIN_STEPS."""
    dataset, step_seconds = drawn([60] * 4, (600, 1000)), 0.2
    seconds = steps * MIN_STEPS * step_seconds * (480 / MIN_AUTO) ** 2
    choice = choose_image_size(dataset, RECIPE, seconds=seconds, step_seconds=step_seconds)
    assert (choice.size, choice.bound) == (chosen, bound)
    if chosen > LEAST_AUTO:
        assert seconds / (step_seconds * (chosen / MIN_AUTO) ** 2) >= MIN_STEPS
    assert ("too short for 100 steps" in choice.reason) == (bound == "budget")


def test_crowds_and_what_lies_outside_are_left_out_and_boxes_are_clipped():
    first, second, third = drawn([100, 100, 100], (1000, 600)).samples
    outside = replace(second.annotations, boxes=np.array([[1100.0, 10, 1200, 90]]))
    half = replace(third.annotations, boxes=np.array([[-100.0, -100, 50, 50]]))
    crowd = replace(first.annotations, crowd=np.ones(1, bool))
    samples = [replace(s, annotations=a) for s, a in ((first, crowd), (second, outside), (third, half))]
    assert relative_sizes(samples).tolist() == [0.05]


def test_without_objects_it_is_the_usual_size():
    samples = [replace(sample, annotations=Annotations.empty()) for sample in drawn([9, 9], (90, 90)).samples]
    choice = choose_image_size(replace(drawn([], (1, 1)), samples=tuple(samples)), RECIPE)
    assert (choice.size, choice.bound, choice.object_px) == (320, "default", None)


def test_objects_that_stay_too_small_are_counted_and_tiles_advised_where_they_are_many():
    many = choose_image_size(drawn([2] * 2 + [90] * 8, (2000, 1000)), RECIPE)
    assert (many.too_small, many.size) == (pytest.approx(0.2), 640)
    assert "20% of the 10 objects stay too small to be learnt. Take --image-size" in many.reason
    assert "or tiles (--set tiles=0.5, then --view 1,1+tiles2x2)." in many.reason
    few = choose_image_size(drawn([2] + [90] * 99, (2000, 1000)), RECIPE)
    assert "1% of the 100 objects stay too small" in few.reason
    assert "tiles" not in few.reason


@pytest.mark.parametrize(
    ("sides", "size", "image_size", "shown"),
    [
        ([40] * 4, (2000, 1000), 320, True),  # 6.4 px, and 11.5 px in tiles
        ([40] * 5 + [500] * 9, (1000, 2000), 320, True),
        ([40] * 2 + [500] * 9, (2000, 1000), 320, False),  # a few small objects
        ([100] * 4, (2000, 1000), 320, False),  # 28.8 px in tiles
        ([10] * 4, (500, 400), 320, False),  # the image has no more pixels
        ([40] * 4, (2000, 1000), 1120, False),
        ([], (2000, 1000), 320, False),
    ],
)
def test_tiles_show_more_of_small_objects_in_large_images(sides, size, image_size, shown):
    assert tiles_show_more(drawn(sides, size), image_size) == shown


def test_a_step_is_timed_only_where_there_is_a_budget_of_time(monkeypatch):
    timed = []

    def measure(recipe, dataset, *, device):
        timed.append((recipe.image_size, device))
        return step_cost.StepCost(1.0, 0.1)

    monkeypatch.setattr(step_cost, "measure_step", measure)
    large, small = drawn([300] * 4, (1000, 600)), drawn([60] * 4, (1000, 600))
    assert measured_choice(small, RECIPE, seconds=float("inf"), device="cpu").size == 480
    assert not timed
    assert measured_choice(small, RECIPE, seconds=150.0, device="cpu").size == 384
    assert measured_choice(large, RECIPE, seconds=150.0, device="cpu").size == 320
    assert measured_choice(large, RECIPE, seconds=60.0, device="cpu").size == 256
    assert timed == [(320, "cpu")] * 3


def test_a_number_stays():
    recipe = replace(RECIPE, image_size=320)
    assert with_image_size(recipe, drawn([9], (90, 90))) == (recipe, None)


def test_a_training_chooses_its_size_and_a_resume_keeps_it(tmp_path, caplog):
    data = write_dataset(
        tmp_path / "d", 6, size=(600, 400)
    )  # objects of 14 to 27 px: 640 px at most, 608 by the images
    run = Run(train(data, out=tmp_path / "run", changes=SMALL, steps=1))
    assert run.recipe.image_size == 608
    reason = run.metadata.image_size_reason
    assert reason.startswith("The image size is 608 px: half of the images are not larger")
    assert reason in caplog.text
    assert json.loads((run.folder / "recipe.json").read_text())["image_size"] == 608
    with pytest.raises(InputError, match="the run has image_size=608, and the options ask for 320"):
        train(resume=run.folder, image_size=320, steps=2)
    train(resume=run.folder, image_size=AUTO, recipe="lite0_fpn", changes=SMALL, steps=2)
    assert (run.recipe.image_size, run.metadata.steps, run.metadata.image_size_reason) == (608, 2, reason)


def test_a_short_training_takes_the_size_that_it_has_time_for(tmp_path):
    data = write_dataset(tmp_path / "d", 4, size=(600, 400))
    run = Run(train(data, out=tmp_path / "run", image_size=AUTO, changes=(*SMALL, "precision=float32"), budget=0.5))
    assert run.recipe.image_size == 256
    assert "too short for 100 steps" in run.metadata.image_size_reason


def test_a_run_to_start_from_gives_its_size_and_a_recipe_chooses_anew(tmp_path):
    data = write_dataset(tmp_path / "d", 4)
    first = train(data, out=tmp_path / "first", image_size=64, changes=SMALL, steps=1)
    assert Run(first).metadata.image_size_reason is None
    second = train(data, out=tmp_path / "second", init_from=first, changes=SMALL, steps=1)
    third = train(data, out=tmp_path / "third", init_from=first, recipe="lite0_fpn", changes=SMALL, steps=1)
    assert [Run(folder).recipe.image_size for folder in (second, third)] == [64, 320]


def test_a_campaign_chooses_its_size_once(tmp_path, monkeypatch):
    monkeypatch.setattr(step_cost, "measure_step", lambda *_, **__: step_cost.StepCost(1.5, 0.1))
    request = CampaignRequest(write_dataset(tmp_path / "d", 16, size=(600, 400)), deadline=600.0, set=SMALL)
    inputs, recipes = request.read_inputs(), request.check().recipes
    assert {recipe.image_size for recipe in recipes.values()} == {AUTO}
    out = tmp_path / "out"
    out.mkdir()
    with closing(ledgers.create(out, {}, deadline=600.0, start=time.monotonic())) as ledger:
        task = request.make_task(inputs, recipes, ledger)
        assert task.image_size_choice.bound == "budget"  # 210 s for the base run, at 0.8 of the size
        assert 320 < task.auto_image_size < 608
        chosen = task.image_size_choice
        assert chosen.reason in ledgers.snapshot(out)["notes"]
        ledger.deadline = 60_000.0
        monkeypatch.setattr(step_cost, "measure_step", None)
        assert request.make_task(inputs, recipes, ledger).image_size_choice == chosen
        assert ledgers.snapshot(out)["notes"].count(chosen.reason) == 1
        fixed = {"a": replace(RECIPE, image_size=96)}
        assert request.make_task(inputs, fixed, ledger).image_size_choice is None
        ledger.set(image_size_choice={"size": 100, "reason": ""})
        with pytest.raises(InputError, match="the fact 'image_size_choice' is not what a campaign writes"):
            request.make_task(inputs, recipes, ledger)


def test_a_campaign_of_an_earlier_version_goes_on_at_its_size(tmp_path):
    request = CampaignRequest(write_dataset(tmp_path / "d", 16))
    (tmp_path / "out").mkdir()
    with closing(ledgers.create(tmp_path / "out", {}, deadline=600.0, start=0.0)) as ledger:
        record = SegmentRecord("base-256", Role.BASE, {}, None, 0, 0, "done", 1.0, 1.0, 0.0, 1.0, {})
        ledger.put_segment(record)
        task = request.make_task(request.read_inputs(), request.check().recipes, ledger)
    assert task.auto_image_size == 320


@pytest.mark.parametrize("options", [{"image_size": (AUTO,)}, {"set": ("image_size=auto",)}])
def test_a_campaigns_request_keeps_the_word(tmp_path, monkeypatch, options):
    monkeypatch.setattr("foldfuse.campaign.campaign._work", lambda *_, **__: None)
    data = write_dataset(tmp_path / "d", 16)
    out = campaign(data, out=tmp_path / "out", recipe=("efficientdet_lite1",), **options)
    facts = ledgers.snapshot(out)
    assert (facts["request"]["set"], facts["request"]["image_size"]) == (["image_size=auto"], [])
    assert "--set image_size=auto" in facts["command"]
    request = from_plain(facts["request"], CampaignRequest, where="", what="a request", version=1)
    assert request.check().recipes["efficientdet_lite1"].image_size == AUTO


@pytest.mark.slow
def test_the_plan_tells_the_size_and_why(tmp_path, capsys):
    data = write_dataset(tmp_path / "d", 16)
    campaign(data, deadline=600.0, out=tmp_path / "out", recipe=("lite0_fpn",), set=SMALL, plan=True)
    shown = " ".join(capsys.readouterr().out.split())
    assert "train base-256" in shown
    assert "train cooldown2-384" in shown
    assert (
        "The image size is 320 px: the smallest that is chosen where time suffices. Three quarters of the objects then measure"
        in shown
    )
