"""The decisions of whole campaigns on a simulated clock, held against golden/decisions.json.

A change of the schedule must change the file on purpose; a change of words or structure must not. The file was first made with
the code of version 0.1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from campaign_samples import (
    STEP_SECONDS,
    THREE_RECIPES,
    FakeWorkers,
    campaign_state,
    ranking_strategy,
    simulate,
)
from foldfuse.campaign import constants, runner
from foldfuse.campaign.planning.allocation import Decision, make_plan, successive_halving
from foldfuse.campaign.submissions import MemberPredictions

GOLDEN = json.loads((Path(__file__).parent / "golden" / "decisions.json").read_text(encoding="utf-8"))
THREE: dict[str, Any] = {"recipes": THREE_RECIPES, "step_seconds": STEP_SECONDS}
SIMULATED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # name: (state, how the simulation goes)
    "one_minute": ({"deadline": 60.0}, {}),
    "two_minutes": ({"deadline": 120.0}, {}),
    "ten_minutes": ({}, {}),
    "an_hour_one_recipe": ({"deadline": 3600.0}, {}),
    "two_hours_one_recipe": ({"deadline": 7200.0, "seed": 3}, {}),
    "many_test_images": ({"num_test": 3950}, {}),
    "sizes": ({"image_sizes": (320, 512)}, {}),
    "diverged": ({}, {"diverge": {"base-256"}}),
    "pseudo": ({"pseudo_labels": True}, {}),
    "workers": ({"num_workers": 3}, {}),
    "three_recipes": ({"deadline": 4200.0, **THREE}, {"strategy": ranking_strategy()}),
    "three_recipes_pseudo_day": (
        {"deadline": 72000.0, "pseudo_labels": True, **THREE},
        {"strategy": ranking_strategy()},
    ),
    "three_recipes_one_diverged": (
        {"deadline": 4200.0, **THREE},
        {"strategy": ranking_strategy(), "diverge": {"base-yolov5n-256"}},
    ),
    "three_recipes_one_promoted": ({"deadline": 4200.0, **THREE}, {"strategy": ranking_strategy(1)}),
}
FATES: dict[str, dict[str, list[str]]] = {
    "run_plain": {},
    "run_lost": {"cooldown1-192": ["lost"]},
    "run_lost_often": {"cooldown1-192": ["lost"] * 3},
    "run_diverged": {"cooldown1-192": ["diverged"]},
    "run_hangs": {"cooldown2-224": ["hangs"]},
    "run_base_lost_often": {"base-160": ["lost"] * 3},
}


def summary(decision: Decision) -> dict[str, Any]:
    """A decision as the golden file has it."""
    segment = decision.segment
    assert segment is not None
    recipe = segment.recipe
    own = {name: getattr(segment, name) for name in ("name", "parent", "seed", "pseudo_labels", "round")}
    names = ("image_size", "batch_size", "lr_decay_start", "warmup_fraction", "mosaic_until")
    trained = {name: getattr(recipe, name) for name in names}
    return own | trained | {"seconds": round(decision.seconds, 3), "num_views": decision.num_views}


@pytest.mark.parametrize("name", SIMULATED)
def test_a_simulated_campaign_decides_as_before(name):
    changes, simulation = SIMULATED[name]
    state = campaign_state(**changes)
    end, decisions = simulate(state, **simulation)
    plan = make_plan(state)
    assert {
        "segments": [summary(decision) for decision in decisions],
        "plan": [[segment.name, segment.seconds] for segment in plan.segments],
        "reserved": list(plan.reserved.values()),
        "views": list(plan.views),
        "remaining": round(end.remaining, 3),
    } == GOLDEN[name]


def jobs(workers: FakeWorkers) -> list[dict[str, Any]]:
    """The jobs that were started, as the golden file has them."""
    return [
        {
            "name": name,
            "at": round(when, 3),
            "seconds": round(job.seconds, 3),
            "parent": job.parent.folder.name if job.parent else None,
            "resumed": job.checkpoint is not None,
            "checkpoint_seconds": job.checkpoint_seconds,
        }
        for name, when, job in workers.started
    ]


@pytest.fixture(autouse=True)
def weights_decide_nothing(monkeypatch):
    """The weights of an ensemble hang on how far the search came in its time, which is real here."""
    monkeypatch.setattr(constants, "LIGHT_WEIGHT", 0.0)


def outcome(workers: FakeWorkers) -> dict[str, Any]:
    runner.run_segments(workers.task, workers.ledger, successive_halving, MemberPredictions(), workers)
    states = {record.name: record.state for record in workers.ledger.segments()}
    return {"begun": jobs(workers), "states": states, "end": round(workers.now, 3)}


@pytest.mark.parametrize("name", FATES)
def test_a_run_campaign_decides_as_before(workers, name):
    workers.fates = {segment: list(fates) for segment, fates in FATES[name].items()}
    assert outcome(workers) == GOLDEN[name]


def test_a_run_campaign_compares_base_runs_as_before(workers, compare_base_runs):
    workers.capacities = {0.0: 3}
    assert outcome(workers) | {"ranking": workers.ledger.get("ranking")} == GOLDEN["run_several"]
