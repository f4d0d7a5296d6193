"""Charts are well-formed SVG with a label, and put values at their positions."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldfuse.reporting.axes import Axis, linear_axis, log_axis, power_of_two_axis, time_axis, whole_number_axis
from foldfuse.reporting.charts import (
    Bar,
    Lane,
    Line,
    Span,
    bar_chart,
    downsampled,
    duration_text,
    histogram,
    lane_chart,
    line_chart,
)
from foldfuse.reporting.learning_charts import score_chart
from foldfuse.reporting.records import LearningCurves

law = settings(deadline=None, derandomize=True)
HOSTILE = '<b>"quoted" & more</b>'
DIAGONAL = np.array([0.0, 1.0])
UNIT = Axis(0, 1, ((0, "0"), (1, "1")))


def attribute(element: ElementTree.Element, key: str) -> float:
    return float(element.attrib[key].removesuffix("%"))


@law
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_a_linear_axis_covers_its_values_with_a_few_even_ticks(low, width):
    axis = linear_axis(low, low + width)
    slack = 1e-6 * max(abs(low), width)
    assert axis.low <= low + slack
    assert axis.high >= low + width - slack
    assert 2 <= len(axis.ticks) <= 8
    steps = np.diff([value for value, _ in axis.ticks])
    assert np.allclose(steps, steps[0], rtol=1e-3)


def test_a_linear_axis_has_round_ticks():
    assert [text for _, text in linear_axis(0, 0.66).ticks] == ["0", "0.2", "0.4", "0.6", "0.8"]


@law
@given(st.floats(1e-6, 1e6), st.floats(1, 1e6))
def test_a_log_axis_covers_its_values_with_ticks_inside(low, factor):
    axis = log_axis(low, low * factor)
    assert axis.low < low <= low * factor < axis.high
    assert 2 <= len(axis.ticks) <= 15
    assert all(axis.low <= value <= axis.high for value, _ in axis.ticks)


@law
@given(st.floats(0, 1e6))
def test_a_time_axis_has_few_ticks_from_zero_on(high):
    axis = time_axis(high)
    assert axis.ticks[0][0] == 0
    assert 2 <= len(axis.ticks) <= 7
    assert all(value <= axis.high for value, _ in axis.ticks)


def test_a_time_axis_names_its_unit():
    assert [text for _, text in time_axis(600).ticks] == ["0 min", "2 min", "4 min", "6 min", "8 min", "10 min"]


def test_other_axes_have_ticks_at_whole_numbers():
    assert power_of_two_axis(3, 6).ticks == ((8, "8"), (16, "16"), (32, "32"), (64, "64"))
    assert whole_number_axis(-0.5, 4.5).ticks == ((0, "0"), (1, "1"), (2, "2"), (3, "3"), (4, "4"))
    assert whole_number_axis(-0.5, 1.5).ticks == ((0, "0"), (1, "1"))


@pytest.mark.parametrize(
    ("axis", "value", "fraction"),
    [(UNIT, 0.25, 0.25), (UNIT, -3, 0), (UNIT, 7, 1), (Axis(1, 100, (), log=True), 10, 0.5)],
)
def test_a_position_is_a_fraction_of_the_axis(axis, value, fraction):
    assert axis.position(value) == pytest.approx(fraction)


@pytest.mark.parametrize(("seconds", "text"), [(0.42, "0.4 s"), (9.96, "10 s"), (75, "1 min 15 s")])
def test_durations_below_ten_seconds_have_tenths(seconds, text):
    assert duration_text(seconds) == text


def test_downsampling_keeps_the_mean_and_short_curves():
    x, y = np.arange(1000.0), np.arange(1000.0) * 3
    short_x, short_y = downsampled(x, y, points=50)
    assert len(short_x) == 50
    assert short_y.mean() == pytest.approx(y.mean())
    assert np.allclose(short_y, 3 * short_x)
    assert np.array_equal(downsampled(x[:7], y[:7])[1], y[:7])


@pytest.mark.parametrize(
    "svg",
    [
        line_chart([Line(HOSTILE, DIAGONAL, DIAGONAL, 9)], UNIT, UNIT, titles=(HOSTILE,) * 2, label=HOSTILE),
        bar_chart([Bar(HOSTILE, 1, HOSTILE, interval=(0.5, 1.5))], label=HOSTILE),
        bar_chart([], label="nothing"),
        histogram([1, 2], [0, 0.5, 1], UNIT, titles=(HOSTILE,) * 2, label=HOSTILE),
    ],
)
def test_charts_are_well_formed_and_labelled(svg):
    root = ElementTree.fromstring(svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] in (HOSTILE, "nothing")
    assert not root.findall(".//b")


def test_a_line_goes_from_corner_to_corner():
    line = Line("rising", DIAGONAL, DIAGONAL, 0)
    root = ElementTree.fromstring(line_chart([line], UNIT, UNIT, titles=("x", "y"), label="rising"))
    assert root.find(".//path[@class='line c0']").attrib["d"] == "M0,1000 1000,0"


def test_a_score_of_one_moment_is_no_curve():
    def run(name, *scores):
        seconds, nothing = np.arange(len(scores)) * 60.0, np.zeros(0)
        return LearningCurves(name, nothing, nothing, seconds, np.array(scores), "AP50", nothing, nothing)

    assert score_chart([run("base", 0.4), run("cooldown", 0.5)]) is None
    chart = score_chart([run("base", 0.4), run("a", 0.3, 0.5), run("b", 0.2, 0.6)])
    assert chart.legend == ("a", "b")
    assert ElementTree.fromstring(chart.svg).attrib["aria-label"].endswith("a ends at 0.500, b ends at 0.600")


def test_bars_are_as_long_as_their_values():
    root = ElementTree.fromstring(bar_chart([Bar("a", 4, "4"), Bar("b", 1, "1")], label="two"))
    longer, shorter = (attribute(bar, "width") for bar in root.findall("rect"))
    assert longer == pytest.approx(4 * shorter)


def test_histogram_bars_stand_on_their_edges():
    root = ElementTree.fromstring(histogram([4, 2], [0, 0.25, 1], UNIT, titles=("x", "y"), label="two"))
    first, second = root.findall(".//rect")
    assert (attribute(first, "x"), attribute(first, "width")) == (0, 250)
    assert (attribute(second, "x"), attribute(second, "width")) == (250, 750)
    assert attribute(first, "height") == 2 * attribute(second, "height")
    assert attribute(second, "y") + attribute(second, "height") == 1000


@pytest.mark.parametrize("label", [HOSTILE, "nothing"])
def test_lanes_are_well_formed_and_labelled(label):
    lane = Lane(HOSTILE, HOSTILE, (Span(HOSTILE, "train", 0, 3),), "f0")
    chart = lane_chart([lane] if label == HOSTILE else [], deadline=5, label=label)
    root = ElementTree.fromstring(f"<div>{chart}</div>")
    assert root.find("ul").attrib["aria-label"] == label
    assert not root.findall(".//b")


def test_lanes_share_one_time_axis():
    rows = [((0, 30), (40, 60)), ((30, 40),)]
    lanes = [Lane(str(i), "", tuple(Span("s", "train", *ends) for ends in row), f"f{i}") for i, row in enumerate(rows)]
    root = ElementTree.fromstring(f"<div>{lane_chart(lanes, deadline=100, label='two lanes')}</div>")
    first, second = (item.findall("svg/rect") for item in root.findall("ul/li"))
    widths = [attribute(block, "width") for block in (*first, *second)]
    assert math.isclose(widths[0] / widths[1], 30 / 20, rel_tol=1e-3)
    assert math.isclose(widths[0] / widths[2], 30 / 10, rel_tol=1e-3)
    deadlines = root.findall(".//line[@class='deadline']")
    assert len(deadlines) == 3, "in both lanes and below them"
    ends = [attribute(block, "x") + attribute(block, "width") for block in (*first, *second)]
    assert all(attribute(deadline, "x1") > max(ends) for deadline in deadlines)
