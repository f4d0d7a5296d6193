"""Durations as people write them, such as 90s or 1h30m."""

from __future__ import annotations

import re

from foldfuse.errors import InputError, shown

LONGEST = 366 * 24 * 3600.0  # seconds


_FORM = r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?(?:(\d+(?:\.\d+)?)s?)?"


def parse_duration(text: str) -> float:
    """The seconds in a text such as "90s", "10m", "2h", "1h30m" or "45" (seconds).

    Raises:
        InputError: the text has another form, or the duration is 0 or longer than a year.
    """
    match = re.fullmatch(_FORM, text.strip(), re.ASCII)
    hours, minutes, seconds = (
        (float(part or 0) for part in match.groups()) if match and text.strip() else (0.0, 0.0, 0.0)
    )
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise InputError(f"the time {shown(text)} is no duration above 0. Write it as 90s, 10m, 2h or 1h30m.")
    if total > LONGEST:
        raise InputError(f"the time {shown(text)} is longer than a year. Write it as 90s, 10m, 2h or 1h30m.")
    return total


def duration_option(seconds: float) -> str:
    """Seconds as an option takes them, such as "90s", "10m" or "1h30m"."""
    if seconds % 60:
        return f"{seconds:g}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes or not hours else "")


def format_duration(seconds: float) -> str:
    """Seconds as a text for people: "45 s", "3 min 20 s", "1 h 5 min", "2 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    minutes = whole % 3600 // 60
    return f"{whole // 3600} h {minutes} min" if minutes else f"{whole // 3600} h"
