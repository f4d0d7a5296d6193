"""A campaign by a function of the user's own: its text is kept, and a resume runs only what the command names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from campaign_samples import noisy
from foldfuse import cli
from foldfuse.campaign.campaign import resume_campaign
from foldfuse.campaign.custom_metric import check_speed
from foldfuse.campaign.submissions import MemberPredictions, submit_best
from foldfuse.commands.campaign import campaign
from foldfuse.detections import Detections, Predictions
from foldfuse.ensemble.member_views import MemberView
from foldfuse.errors import InputError
from foldfuse.evaluation.custom_metric import load_custom_metric
from foldfuse.evaluation.metrics import measure
from foldfuse.formats.predictions import read_predictions
from foldfuse.storage import ledger as ledgers
from foldfuse.storage.segments import Role, SegmentRecord
from learning_samples import write_dataset

SHARE_FOUND = """
def share_found(truth, predictions):
    return sum(min(len(t), len(p)) for t, p in zip(truth, predictions)) / max(1, sum(map(len, truth)))
"""


@pytest.fixture
def metric(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SHARE_FOUND)
    return f"{path}:share_found"


def test_a_resume_needs_the_function_that_the_campaign_began_with(tmp_path, metric, monkeypatch, capsys):
    worked = []
    monkeypatch.setattr("foldfuse.campaign.campaign._work", lambda request, *_, **__: worked.append(request.metric))
    data, out, path = write_dataset(tmp_path / "d", 16), tmp_path / "out", tmp_path / "mine.py"
    campaign(data, out=out, metric=metric)
    facts = ledgers.snapshot(out)
    assert facts["custom_metric"]["source"] == SHARE_FOUND
    assert f"--metric {metric}" in facts["command"]
    assert cli.main(["campaign", "--resume", str(out)]) == 2
    again = f"Resume with: foldfuse campaign --resume {out} --metric {metric}"
    assert again in capsys.readouterr().err
    for other in ("f2", metric.replace("share_found", "other")):
        with pytest.raises(InputError, match="the campaign began with"):
            resume_campaign(out, metric=other)
    path.write_text(SHARE_FOUND + "# changed\n")
    load_custom_metric(metric)
    with pytest.raises(InputError, match="is not the text that the campaign began with"):
        resume_campaign(out, metric=metric)
    path.write_text(SHARE_FOUND)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["campaign", "--resume", str(out), "--metric", "mine.py:share_found"]) == 0
    assert worked == [metric, metric]


def test_a_metric_by_name_needs_no_word_in_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr("foldfuse.campaign.campaign._work", lambda *_, **__: None)
    out = tmp_path / "out"
    campaign(write_dataset(tmp_path / "d", 16), out=out, metric="f2")
    campaign(resume=out)
    with pytest.raises(InputError, match="has the metric f2, and continues with it"):
        campaign(resume=out, metric="ap")


def test_the_function_chooses_the_submission(workers, metric, caplog):
    task, ledger = replace(workers.task, metric=metric), workers.ledger
    check_speed(metric, task.val, ledger.deadline)
    val = {MemberView(name, "1"): noisy(task.val, seed) for name, seed in (("a", 1), ("b", 2))}
    for name in ("a", "b"):
        ledger.put_segment(
            SegmentRecord(name, Role.BASE, {}, None, 0, 0, "done", 1.0, 1.0, 0.0, 1.0, {"image_seconds": 0.01})
        )
    nothing = Predictions.of(dict.fromkeys(task.test.image_ids, Detections.empty()), task.test.classes)
    submit_best(task, ledger, MemberPredictions(val, dict.fromkeys(val, nothing), new_members=["a", "b"]), last=False)
    number, score, facts = ledger.latest_submission()
    fused = read_predictions(ledger.folder / "submissions" / str(number) / "fused_oof.parquet", task.val)
    assert score == facts["fused"]["value"] == pytest.approx(measure(fused, task.val, metric=metric))
    assert f"share_found {score:.3f} out-of-fold" in caplog.text


def test_a_function_that_is_too_slow_for_the_deadline_is_refused_at_the_start(workers, tmp_path):
    path = tmp_path / "slow.py"
    path.write_text("import time\n" + SHARE_FOUND.replace("    return", "    time.sleep(0.1)\n    return"))
    with pytest.raises(
        InputError, match=r"takes 0.1\d* s for the 6 held-out images, and a campaign calls it hundreds of times"
    ):
        check_speed(f"{path}:share_found", workers.task.val, 100.0)
