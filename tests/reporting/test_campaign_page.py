"""The page on a campaign shows its folder, opens without network, and is written whatever the folder lacks."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError
from foldfuse.evaluation.thresholds import choose_thresholds, write_thresholds
from foldfuse.formats.predictions import read_predictions
from foldfuse.reporting.campaign_page import INTERVALS_HELD, INTERVALS_MEASURED, summary, write_campaign_page
from foldfuse.reporting.records import read_campaign_record
from foldfuse.reporting.run_page import write_run_page
from foldfuse.storage import ledger
from page_samples import CLASSES, draw_dataset, read_page, write_campaign

HONESTY = Path(__file__).parents[2] / "benchmarks" / "honesty.jsonl"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished campaign's folder, for tests that only read it."""
    root = tmp_path_factory.mktemp("report")
    train = draw_dataset(root / "shapes", num_images=24, seed=0)
    test = draw_dataset(root / "unseen", num_images=9, seed=1)
    return write_campaign(root / "out", train, test)


@pytest.fixture
def campaign(finished, tmp_path):
    """A copy of the finished campaign, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def change(folder: Path, **values: object) -> None:
    """Replace values in the folder's campaign.json."""
    path = folder / "campaign.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_page_is_in_the_folder_and_shows_its_facts(finished):
    path = write_campaign_page(finished)
    assert path == finished / "report.html"
    text = " ".join(" ".join(read_page(path).text).split())
    for words in (
        "4 members fused and rescored by their crops reach AP50 0.664",
        "over the best single member, lite0-320-s1@1, with 0.628; better than chance",
        "Most AP50 is lost to errors of the type",
        "--leaderboard SCORE",
        "left out of the fusion: with it the fused AP50 fell by 0.002",
        "9 min 30 s",
        "submission.csv",
        "It covers 9 test images",
        "broken.jpg",
        "--deadline 10m",
        "24 images with",
        "Worst, F1",
        "Promotion of base runs",
        "+0.023 98 % yes",
        "+0.004 71 % no",
        "Members by TTA view",
        "1+hflip",
        "cooldown run · from lite0-256-s0 · trained 1 min 29 s · AP50 0.628",
        "24 s Three image sizes were tried",
        "all classes",
        "IoU threshold 0.55",
        "at IoU 0.50; nested 0.652 before crop rescoring",
        f"before crop rescoring): AP50 0.652. In {INTERVALS_HELD} of {INTERVALS_MEASURED} measured campaigns on six datasets,",
        "that no member had seen lay in the stated 95 % interval. Crop rescoring lifts AP50 from 0.652 to 0.664",
        "AP50 gained if all errors of one type were fixed",
    ):
        assert words in text


def test_the_record_of_the_intervals_is_that_of_the_measured_campaigns():
    rows = [json.loads(line) for line in HONESTY.read_text(encoding="utf-8").splitlines()]
    told = [row for row in rows if row.get("baseline") == "nested" and row["interval"] is not None]
    within = sum(row["interval"][0] <= row["unseen_gain"] <= row["interval"][1] for row in told)
    assert (len(told), within) == (INTERVALS_MEASURED, INTERVALS_HELD)


def test_every_section_that_is_linked_is_there(finished):
    page = read_page(write_campaign_page(finished))
    linked = {a.removeprefix("#") for a in page.addresses if a.startswith("#") and "-" not in a}  # images have a "-"
    assert linked == {
        "submit",
        "decisions",
        "progress",
        "members",
        "learning",
        "classes",
        "errors",
        "images",
        "time",
        "data",
        "reproduce",
    }
    assert linked <= set(page.ids)
    assert "warnings" not in page.ids
    assert len(page.ids) == len(set(page.ids))


def test_the_page_requests_nothing_from_outside(finished):
    path = write_campaign_page(finished)
    page = read_page(path)
    outside = [a for a in page.addresses if not a.startswith(("#", "data:image/jpeg;base64,"))]
    assert outside == ["submission.csv", "submission.json"]
    assert not {"script", "link", "iframe", "object"} & page.elements
    text = path.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert "url(" not in text
    assert "@import" not in text


def test_images_are_embedded_and_the_page_stays_small(finished):
    path = write_campaign_page(finished)
    embedded = [a for a in read_page(path).addresses if a.startswith("data:")]
    assert len(embedded) == 6 + 6  # held-out and test images
    assert len(set(embedded)) == 12
    assert path.stat().st_size < 3e6


def test_text_from_the_folder_is_escaped(campaign):
    hostile = "<script>alert('x')</script>"
    row = json.loads((campaign / "campaign.json").read_text())
    change(
        campaign,
        notes=[hostile],
        command=hostile,
        left_out=[{"file_name": hostile, "reason": hostile}],
        segments=[{"name": hostile, "parent": hostile, "state": hostile, "started": 0, "ended": 9}],
        timeline=[{"name": f"train {hostile}", "kind": "train", "start": 1, "end": 8}],
        gains=[[hostile, 0.5, 1], [hostile, 0.6, 1]],
        ranking=[hostile],
        history=[{"at": 5, "ap50": 0.5, "best_single": [hostile, 0.4]}],
        fused=row["fused"] | {"parts": [{"name": hostile, "view": hostile}] * 2},
    )
    page = read_page(write_campaign_page(campaign))
    assert not {"script", "b"} & page.elements
    text = "".join(page.text)
    assert (
        text.count(hostile) == 4 + 3 + 3 + 2 + 1 + 4 + 1
    )  # as above, a lane and its blocks, base runs, a submission, views, a segment that is no member
    assert CLASSES[2] in text


def test_writing_the_page_again_changes_nothing(finished, tmp_path):
    once, again = (
        write_campaign_page(finished, out=tmp_path / "a.html"),
        write_campaign_page(finished, out=tmp_path / "b.html"),
    )
    assert once.read_bytes() == again.read_bytes()


def test_links_of_a_page_elsewhere_lead_to_the_folder(finished, tmp_path):
    path = write_campaign_page(finished, out=tmp_path / "pages" / "report.html")
    address = next(a for a in read_page(path).addresses if a.endswith("submission.csv"))
    assert (path.parent / address).resolve() == (finished / "submission.csv").resolve()


def test_a_running_campaign_reloads_and_a_finished_one_does_not(campaign):
    assert 'http-equiv="refresh"' not in write_campaign_page(campaign).read_text()
    change(campaign, state="running", fused=None, best_member=None, finished=None)
    text = write_campaign_page(campaign).read_text()
    assert 'http-equiv="refresh"' in text
    assert "it has no fused predictions yet" in text


def test_the_worst_images_name_their_errors_while_the_campaign_runs(campaign):
    change(campaign, state="running", finished=None)
    text = " ".join(read_page(write_campaign_page(campaign)).text)
    worst = text.split("Worst, F1")[1:]
    assert len(worst) == 2 * 2  # each small and large
    assert all(re.search(r"; (mostly|as often) [a-z ]+ \(\d+ (each )?of \d+ errors?\)", part[:200]) for part in worst)
    assert "Errors by type" in text


KEYS = [
    *("command", "data", "test", "deadline_seconds", "started", "finished", "state", "seconds_used", "seed", "machine"),
    *("left_out", "timeline", "members", "fused", "best_member", "notes"),
    *("segments", "gains", "ranking", "history", "note_times", "plan", "rescoring"),
]


@pytest.mark.parametrize("key", KEYS)
def test_any_value_may_be_missing_or_of_the_wrong_type(campaign, key):
    if key not in ("data", "test"):
        for path in campaign.glob("fused_*.parquet"):
            path.unlink()  # only these two decide the images, which take most of the time
    row = json.loads((campaign / "campaign.json").read_text())
    (campaign / "campaign.json").write_text(json.dumps({k: v for k, v in row.items() if k != key}))
    read_page(write_campaign_page(campaign))
    for odd in (None, "odd", -3.5, float("nan"), [], [{}], [[1]], {}, {"per_class": [{}], "parts": [{}, {}]}):
        change(campaign, **{key: odd})
        read_page(write_campaign_page(campaign))


@pytest.mark.parametrize(
    "name", ["campaign.json", "folds.json", "fused_oof.parquet", "fused_test.parquet", "submission.csv", "members"]
)
def test_any_file_may_be_missing(campaign, name):
    path = campaign / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "warnings" not in read_page(write_campaign_page(campaign)).ids


@pytest.mark.parametrize("name", ["campaign.json", "folds.json", "fused_oof.parquet", "fused_test.parquet"])
def test_a_broken_file_is_named(campaign, name):
    (campaign / name).write_text("broken")
    page = read_page(write_campaign_page(campaign))
    assert "warnings" in page.ids
    assert name in "".join(page.text).split("could not show everything")[1]


def test_an_unfinished_line_of_a_log_is_ignored(campaign):
    log = campaign / "members" / "lite0-256-s0" / "log.jsonl"
    whole = read_campaign_record(campaign).curves[0]
    with log.open("a") as file:
        file.write('{"step": 300, "seco')
    cut = read_campaign_record(campaign)
    assert np.array_equal(cut.curves[0].loss, whole.loss)
    assert not cut.warnings
    with log.open("a") as file:
        file.write("\n")
    assert "1 of 306 lines" in read_campaign_record(campaign).warnings[0]


def test_an_unreadable_image_is_named(finished, campaign, tmp_path):
    moved = Path(shutil.copytree(finished.parent / "unseen", tmp_path / "unseen"))
    change(campaign, test=str(moved / "train.json"))
    (moved / "000.jpg").write_bytes(b"no image")
    page = read_page(write_campaign_page(campaign))
    assert "000.jpg: cannot be decoded" in "".join(page.text)
    assert sum(a.startswith("data:") for a in page.addresses) == 6 + 5


@pytest.mark.parametrize("write_page", [write_campaign_page, write_run_page])
def test_another_folder_is_refused(tmp_path, write_page):
    with pytest.raises(InputError, match=r"holds neither a campaign\.json nor a run\.json"):
        write_page(tmp_path)
    with pytest.raises(InputError, match="there is no such folder"):
        write_page(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ([0.01, 0.09], "a gain of +0.024 (95 % interval +0.010 to +0.090) over the best single member, lite0-320-s1@1"),
        (
            [-0.01, 0.09],
            "(95 % interval -0.010 to +0.090) over the best single member, lite0-320-s1@1, with 0.628; it may be",
        ),
        ([0.03, 0.09], "a gain of +0.024 (95 % interval +0.024 to +0.090)"),  # of a ledger of an earlier version
        (None, "reach AP50 0.664 on held-out images."),
    ],
)
def test_the_summary_states_the_gain_and_its_interval(campaign, interval, words):
    row = json.loads((campaign / "campaign.json").read_text())
    change(campaign, fused=row["fused"] | {"interval": interval})
    assert words in summary(read_campaign_record(campaign))
    assert ("gain" in summary(read_campaign_record(campaign))) == (interval is not None)


def test_the_page_says_what_was_left_out_stopped_and_resumed_and_where_it_ran(campaign):
    row = json.loads((campaign / "campaign.json").read_text())
    row["members"][0] |= {"device": "cuda:1", "resumed": 3}
    failed = {"state": "failed", "started": 1, "ended": 2}
    segments = [
        {"name": "diverged", "seconds": 12.0, "result": {"reason": "the loss is NaN."}, **failed},
        {"name": "early", "result": {}, **failed},
        {"name": "cut", "state": "running", "started": 3},
    ]
    notes = ["early is left out: no time is left to train it."]
    change(campaign, members=row["members"], segments=segments, notes=notes, state="interrupted", resumed=2)
    page = read_page(write_campaign_page(campaign))
    text = " ".join(" ".join(page.text).split())
    for words in (
        "stopped early",
        "resumed 2 times",
        "on cpu, a laptop, 2 cores",
        "cuda:1 3",
        "diverged left out: the loss is NaN. Trained 12 s.",
        "early left out: no time is left to train it.",
        "cut the campaign was stopped before its training ended",
        "2 left out",
        f"foldfuse campaign --resume {campaign}",
    ):
        assert words in text


def test_the_title_is_the_campaigns(campaign):
    assert "<title>out on " in write_campaign_page(campaign).read_text()


def test_an_image_is_enlarged_without_script(finished):
    page = write_campaign_page(finished).read_text()
    ids = read_page(finished / "report.html").ids
    opened = re.findall(r'class="enlarge" popovertarget="([^"]+)"', page)
    assert len(opened) == 12
    shown = re.findall(r'<use href="#([^"]+)"/>', page)
    assert {*opened, *shown} <= set(ids)
    assert len(set(shown)) == 12


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("ap", ("reach AP 0.700", "a gain of +0.024")),
        ("f2", ("reach F2 0.700 on held-out images",)),
    ],
)
def test_the_page_leads_with_the_metric_of_the_campaign(campaign, metric, words):
    row = json.loads((campaign / "campaign.json").read_text())
    members = [m | ({"ap": 0.6} if m["name"] == "lite0-320-s1" else {}) for m in row["members"]]
    fused = row["fused"] | {"metric": metric, "value": 0.7, "interval": [0.0, 0.15]}
    change(campaign, members=members, fused=fused)
    text = " ".join(read_page(write_campaign_page(campaign)).text)
    assert all(one in text for one in words)
    assert f"the {metric.upper()} that the ensemble loses without the member" in text
    assert ("Fused F2" in text) == (metric == "f2")


def test_a_ledger_takes_precedence_over_campaign_json(campaign):
    record = json.loads((campaign / "campaign.json").read_text())
    part = {"name": "base-256", "image_size": 256, "batch_size": 8, "state": "running", "seconds": 211.0}
    record |= {"state": "interrupted", "plan": {"segments": [part], "reserved": {"choose the ensemble": 7.0}}}
    record["image_size_choice"] = {"size": 256, "reason": "The image size is 256 px: the smallest that is chosen."}
    made = ledger.create(campaign, record, deadline=600.0, start=0.0)
    with made.timed("train base-256", "train"):
        made.log("A base run is trained.")
    made.close()
    (campaign / "campaign.json").write_text("{}")
    page = write_campaign_page(campaign).read_text()
    assert "A base run is trained." in page
    assert (
        '<th scope="row">train base-256</th><td>256</td><td>8</td><td class="word">running</td><td>3 min 31 s</td>'
        in page
    )
    assert "choose the ensemble" in page
    assert "<p>The image size is 256 px: the smallest that is chosen.</p>" in page
    assert record["command"].split(" --out")[0] in page
    (campaign / ledger.NAME).write_bytes(b"broken" * 200)
    assert "cannot be read as a campaign&#39;s ledger" in write_campaign_page(campaign).read_text()


def test_the_page_shows_the_thresholds_with_their_cross_validated_f(campaign):
    dataset = read(read_campaign_record(campaign).data)
    predictions = read_predictions(campaign / "fused_oof.parquet", dataset)
    chosen = choose_thresholds(predictions, dataset.subset(predictions))
    write_thresholds(campaign / "thresholds.json", chosen)
    text = " ".join(" ".join(read_page(write_campaign_page(campaign)).text).split())
    assert "Score thresholds" in text
    assert (
        f"F1 of all boxes is {chosen.one.all_boxes:.3f} at one threshold (cross-validated {chosen.one_cv.all_boxes:.3f})"
        in text
    )
    assert all(f"{one.score:.3g}" in text for one in chosen.by_class if one.objects)
    (campaign / "thresholds.json").write_text('{"format": 1, "beta": "much"}')
    text = " ".join(" ".join(read_page(write_campaign_page(campaign)).text).split())
    assert "thresholds.json" in text.split("could not show everything")[-1]
