"""Measuring and compiling by the clock: a short or late campaign takes usual costs, and never waits for its plan."""

from __future__ import annotations

from contextlib import closing
from types import SimpleNamespace

import pytest

from foldfuse.campaign import compiling, submissions
from foldfuse.campaign import constants as c
from foldfuse.campaign.planning import measuring
from foldfuse.campaign.planning.measuring import choose_size_by_clock, measuring_seconds, planned_pixel_seconds
from foldfuse.data.readers.coco import read
from foldfuse.inference import engine
from foldfuse.inference.runtimes import RUNTIMES
from foldfuse.recipes import load_recipe
from foldfuse.storage import ledger as ledgers
from foldfuse.training import step_cost
from learning_samples import write_dataset


def test_a_short_or_late_campaign_measures_nothing():
    assert measuring_seconds(60.0, 5.0) == measuring_seconds(75.0, 5.0) == 0
    assert measuring_seconds(600.0, 10.0) == pytest.approx(c.MEASURING_SHARE * 600)
    assert measuring_seconds(600.0, 200.0) == 0, "the machine is busy: reading the data took a third of the time"


def choice(tmp_path, deadline, elapsed):
    dataset = read(write_dataset(tmp_path / "d", 6, size=(600, 400)))
    recipe = load_recipe("lite0_fpn", ["batch_size=2"])
    times = {"deadline": deadline, "elapsed": elapsed, "seconds": 0.35 * deadline}
    return choose_size_by_clock(recipe, dataset, **times, num_images=40, device="cpu", bounds={})


def test_without_time_the_usual_cost_chooses_the_image_size_and_the_reason_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(step_cost, "measure_step", None)
    chosen, pixel_seconds = choice(tmp_path, 75.0, 5.0)
    assert (chosen.size, chosen.bound, pixel_seconds) == (256, "budget", None)
    assert chosen.reason.endswith("There is no time to measure a training step, so its usual cost was taken.")


def test_with_time_a_step_is_measured_after_its_loops_are_compiled_and_up_to_a_limit(tmp_path, monkeypatch):
    calls = []

    def measured(recipe, dataset, *, device, limit):
        calls.append(f"measure for {limit:.0f} s")
        return step_cost.StepCost(0.1, 0.02)

    monkeypatch.setattr(step_cost, "measure_step", measured)
    monkeypatch.setattr(measuring, "compile_training_loops", lambda: calls.append("compile"))
    chosen, pixel_seconds = choice(tmp_path, 600.0, 5.0)
    assert calls == ["compile", "measure for 48 s"]
    assert chosen.size == 608
    assert pixel_seconds == pytest.approx(c.PREDICTION_SAFETY * 0.02 / 320**2)


def test_the_engine_counts_in_the_planned_cost_where_converting_repays(monkeypatch):
    runtime = RUNTIMES["openvino"]
    monkeypatch.setattr(engine, "installed_runtimes", lambda: [runtime])
    few, many = (planned_pixel_seconds(0.1, 100, num_images=number, device="cpu") for number in (100, 10_000))
    assert few == pytest.approx(c.PREDICTION_SAFETY * 0.1 / 100**2)
    assert many == pytest.approx(few / runtime.speedup, rel=0.02)
    monkeypatch.setattr(engine, "installed_runtimes", list)
    assert planned_pixel_seconds(0.1, 100, num_images=10_000, device="cpu") == pytest.approx(few)


def test_measuring_a_step_stops_at_its_limit(tmp_path):
    dataset = read(write_dataset(tmp_path / "d", 6))
    recipe = load_recipe("lite0_fpn", ["batch_size=2", "image_size=64", "init_weights=none", "frozen_stages=0"])
    cost = step_cost.measure_step(recipe, dataset, limit=0.0)
    assert cost.image_seconds == pytest.approx(cost.step_seconds / 2 / 3), "no prediction was measured"


@pytest.fixture
def compiled(monkeypatch):
    """What is compiled here, in order; nothing is kept."""
    calls = []
    monkeypatch.setattr(compiling, "compile_training_loops", lambda: calls.append("training"))
    monkeypatch.setattr(compiling, "compile_scoring_loops", lambda metric: calls.append(metric))
    monkeypatch.setattr(compiling, "are_compiled", lambda: False)
    return calls


def beside(waited, *, ends):
    return SimpleNamespace(wait=waited.append, is_over=ends)


@pytest.mark.parametrize(
    ("deadline", "ends", "everything"),
    [(600.0, False, False), (60.0, False, False), (60.0, True, False), (600.0, True, True)],
)
def test_a_campaign_waits_for_loops_up_to_a_share_of_its_deadline(compiled, deadline, ends, everything):
    waited = []
    process = beside(waited, ends=ends)
    assert compiling.compile_by_clock("f2", process, deadline=deadline, elapsed=10.0) is everything
    assert compiled == ["training"] + ["f2"] * everything, "where a process failed, a long campaign compiles by itself"
    assert waited == [pytest.approx(c.COMPILE_WAIT_SHARE * deadline - 10.0, abs=1)]


def test_without_a_process_everything_is_compiled_here(compiled):
    assert compiling.compile_by_clock("ap50", None, deadline=60.0, elapsed=10.0)
    assert compiled == ["training", "ap50"]


def test_a_report_whose_loops_are_not_compiled_is_left_out_at_the_deadline(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(submissions, "write_campaign_page", written.append)
    monkeypatch.setattr(submissions, "are_compiled", lambda: False)
    with closing(ledgers.create(tmp_path, {}, deadline=75.0, start=0.0)) as ledger:
        ledger.clock = lambda: 70.0
        assert not submissions.refresh_report(ledger)
        ledger.deadline = 600.0
        assert submissions.refresh_report(ledger)
    assert written == [tmp_path]
