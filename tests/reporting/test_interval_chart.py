"""Differences are drawn between the ends of their intervals, on one axis with the line of no difference."""

import re

from foldfuse.reporting.interval_chart import Interval, interval_chart


def positions(svg):
    """The per cents of the whisker's ends of each row, of its dot, and of the line at 0."""
    zero = float(re.search(r'<line class="whisker" x1="([\d.]+)%" y1="4"', svg)[1])
    strokes = re.findall(r'<line class="whisker rim" x1="([\d.]+)%" y1="\d+" x2="([\d.]+)%"', svg)
    whiskers = strokes[::3]  # each is followed by the strokes at its ends
    dots = re.findall(r'<circle class="bar strong" cx="([\d.]+)%"', svg)
    return zero, [(float(low), float(dot), float(high)) for (low, high), dot in zip(whiskers, dots, strict=True)]


def test_a_dot_lies_between_its_whiskers_and_zero_is_on_the_axis():
    rows = [Interval("a", 0.03, 0.01, 0.06), Interval("b", -0.02, -0.05, 0.004)]
    zero, (first, second) = positions(interval_chart(rows, label="AP50"))
    assert zero < first[0] < first[1] < first[2]
    assert second[0] < second[1] < zero < second[2]


def test_names_are_escaped():
    svg = interval_chart([Interval("<script>", 0.0, 0.0, 0.0)], label='"><script>')
    assert "<script" not in svg
