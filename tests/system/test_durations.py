"""Durations as people write and read them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldfuse.errors import InputError
from foldfuse.system.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("10min", 600),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1h0m5s", 3605),
        ("45", 45),
        ("1.5m", 90),
    ],
)
def test_durations_by_hand(text, seconds):
    assert parse_duration(text) == seconds
    assert parse_duration(f" {text} ") == seconds


@pytest.mark.parametrize("text", ["", " ", "0", "0m", "-5m", "5 m", "m", "10x", "1m1h", "ten", "nan", "inf", "1e3"])
def test_a_text_that_is_no_duration_is_refused(text):
    with pytest.raises(InputError, match="Write it as 90s, 10m, 2h or 1h30m"):
        parse_duration(text)


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 40), st.integers(0, 59), st.integers(1, 59))
def test_hours_minutes_and_seconds_add_up(hours, minutes, seconds):
    assert parse_duration(f"{hours}h{minutes}m{seconds}s") == 3600 * hours + 60 * minutes + seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (3900, "1 h 5 min"),
        (-3, "-3 s"),
    ],
)
def test_formatted_durations_by_hand(seconds, text):
    assert format_duration(seconds) == text
