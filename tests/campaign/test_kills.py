"""Campaigns that are killed and resumed, by real processes; `benchmarks/kills.py` does it many times."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import kills


@pytest.mark.slow
def test_killed_twice_a_campaign_still_ends_with_a_valid_submission(tmp_path):
    counts = kills.kills(tmp_path, 2, deadline="75s", longest=25.0, seed=3)
    assert sum(counts.kills.values()) == 2
    assert counts.campaigns >= 1
    assert not counts.wrong
