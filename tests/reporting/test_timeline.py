"""The timeline of a campaign: scores at their times, a lane for each segment, and the promotions of the ledger."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from foldfuse.ensemble.ranking import RankedRun, promoted
from foldfuse.reporting.records import CampaignRecord, read_campaign_record
from foldfuse.reporting.timeline import promotions, score_chart, segment_chart, step_line, timeline, work_chart
from foldfuse.storage import ledger

HOSTILE = "<script>alert(1)</script>"


def record_of(folder: Path, **facts: object) -> CampaignRecord:
    """The CampaignRecord of a campaign with these facts."""
    (folder / "campaign.json").write_text(json.dumps(facts))
    return read_campaign_record(folder)


def segment(
    name: str, started: float, ended: float | None, ap50: float | None, parent: str | None = None, role: str = "base"
) -> dict:
    state = "running" if ended is None else "done"
    result = {} if ap50 is None else {"ap50": ap50}
    times = {"started": started, "ended": ended}
    return {"name": name, "role": role, "parent": parent, "state": state, **times, "result": result}


def test_steps_keep_a_value_until_the_next_one():
    x, y = step_line([(10.0, 0.5), (30.0, 0.7)], 50.0)
    assert x.tolist() == [10, 30, 30, 50]
    assert y.tolist() == [0.5, 0.5, 0.7, 0.7]


def test_the_score_is_a_step_curve_over_time(tmp_path):
    record = record_of(
        tmp_path,
        deadline_seconds=100.0,
        seconds_used=90.0,
        history=[{"at": 20.0, "ap50": 0.5, "metric": "ap50"}, {"at": 60.0, "ap50": 0.8, "metric": "ap50"}],
        segments=[
            segment("base-64", 0, 18, 0.5),
            segment("cooldown1-64", 20, 58, 0.4),
            segment("cooldown2-64", 60, 85, 0.6),
        ],
    )
    chart = score_chart(record)
    assert chart is not None
    root = ElementTree.fromstring(chart.svg)
    single, fused = root.findall(".//path")  # the strong line lies above
    assert (single.attrib["class"], fused.attrib["class"]) == ("line c0", "line strong")
    assert (chart.lead, chart.legend) == ("fused", ("best single member",))
    places = np.array([[float(v) for v in pair.split(",")] for pair in fused.attrib["d"][1:].split()])
    np.testing.assert_allclose(places[:, 0], np.array([20, 60, 60, 90]) / 104 * 1000, atol=0.1)
    assert places[0, 1] == places[1, 1] > places[2, 1] == places[3, 1]
    best = [float(pair.split(",")[1]) for pair in single.attrib["d"][1:].split()]
    assert best[:4] == [best[0]] * 4  # a worse member does not lower the best so far
    assert best[-1] < best[0]
    assert len(root.findall(".//line[@class='deadline']")) == 1
    assert "fused ends at 0.800, best single member ends at 0.600" in root.attrib["aria-label"]


def test_the_history_comes_from_the_ledger(tmp_path):
    clock = iter(np.arange(0.0, 1000.0, 10.0).tolist())
    made = ledger.create(
        tmp_path, {"ranking": ["a", "b"], "gains": [["a", 0.5, 1.0], ["b", 0.6, 0.9]]}, deadline=600.0, start=0.0
    )
    made.clock = lambda: next(clock)
    made.log("First.")
    fused = {"ap50": 0.5, "metric": "ap50", "best_single": ["a@1", 0.45], "num_members": 1}
    made.add_submission(0.5, {"best_member": "a", "fused": fused})
    made.add_submission(0.6, {"best_member": "a"})
    made.close()
    facts = ledger.snapshot(tmp_path)
    assert facts["submission_scores"] == [0.5, 0.6]
    assert [row["at"] for row in facts["history"]] == sorted(row["at"] for row in facts["history"])
    record = read_campaign_record(tmp_path)
    first, second = record.history
    assert (first.ap50, first.best_single, first.num_members) == (0.5, ("a@1", 0.45), 1)
    assert (second.ap50, second.best_single, second.num_members) == (None, None, None)
    assert record.decisions[0].text == "First."
    assert record.decisions[0].at is not None
    assert record.decisions[0].at < first.at < second.at


def test_each_segment_has_a_lane_with_its_parent(tmp_path):
    names = ["base-lite0_fpn-256", "extended-lite0_fpn-320", f"cooldown1-{HOSTILE}"]
    record = record_of(
        tmp_path,
        deadline_seconds=200.0,
        seconds_used=150.0,
        segments=[
            segment(names[2], 100, None, None, names[1], role="cooldown"),
            segment(names[0], 10, 50, 0.5),
            segment(names[1], 50, 100, 0.6, names[0], role="extended"),
        ],
        timeline=[{"name": f"train {names[0]}", "kind": "train", "start": 10, "end": 40}],
    )
    chart = segment_chart(record)
    assert chart is not None
    root = ElementTree.fromstring(f"<div>{chart.svg}</div>")
    lanes = root.findall("./ul/li")
    assert [lane.find("span[@class='name']").text for lane in lanes] == names
    words = [lane.find("span[@class='aside']").text for lane in lanes]
    assert words == [
        "base run · trained 30 s · AP50 0.500",
        f"extended run · from {names[0]} · AP50 0.600",
        f"cooldown run · from {names[1]} · running",
    ]
    colours = [lane.find("svg/rect").attrib["class"] for lane in lanes]
    assert colours == ["block f1 faint", "block f4 faint", "block f2 faint"]
    whole, trained = lanes[0].findall("svg/rect")
    assert float(trained.attrib["width"][:-1]) == pytest.approx(30 / 208 * 100, abs=0.01)
    assert float(whole.attrib["width"][:-1]) == pytest.approx(40 / 208 * 100, abs=0.01)
    assert float(lanes[2].find("svg/rect").attrib["width"][:-1]) == pytest.approx(50 / 208 * 100, abs=0.01)


def test_promotions_agree_with_the_ranking(tmp_path):
    values = {"a": (0.60, 1.0), "b": (0.63, 0.99), "c": (0.62, 0.2), "d": (0.635, 0.97), "e": (0.66, 0.5)}
    ranked = [RankedRun(name, value, prob_better) for name, (value, prob_better) in values.items()]
    record = record_of(tmp_path, gains=ranked, ranking=promoted(ranked), segments=[segment("b", 0, 1, 0.5)])
    rows = promotions(record)
    assert [row.name for row in rows if row.promoted] == ["a", "b"]
    assert [row.gain for row in rows] == pytest.approx([0.60, 0.03, -0.01, 0.005, 0.025])
    assert [row.prob_better for row in rows] == [prob_better for _, prob_better in values.values()]
    assert [row.ap50 for row in rows] == [None, 0.5, None, None, None]
    assert promotions(record_of(tmp_path, gains=ranked[:1], ranking=["a"])) == ()


def test_a_campaign_that_has_just_started_has_no_timeline(tmp_path):
    record = record_of(tmp_path, notes=["Why."], note_times=[])
    course = timeline(record)
    assert (course.scores, course.segments, course.work, course.promotions) == (None, None, None, ())
    assert record.decisions == (("Why.", None),)


def test_each_kind_of_work_has_a_lane_with_its_share_of_the_time(tmp_path):
    rows = [("train", 0, 30), ("dream", 30, 40), ("train", 40, 60), ("predict", 60, None)]
    stages = [{"name": "x", "kind": kind, "start": start, "end": end} for kind, start, end in rows]
    chart = work_chart(record_of(tmp_path, timeline=stages))
    assert chart is not None
    root = ElementTree.fromstring(f"<div>{chart.svg}</div>")
    lanes = [[span.text for span in lane.findall("span")] for lane in root.findall("ul/li")]
    assert lanes == [["train", "50 s, 83%"], ["predict", "0.0 s, 0%"], ["dream", "10 s, 17%"]]
    assert [len(lane.findall("svg/rect")) for lane in root.findall("ul/li")] == [2, 1, 1]
