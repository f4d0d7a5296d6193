"""A comparison of campaigns has the numbers of `score`, on the images that both held out."""

import json
from contextlib import closing

import numpy as np
import pytest

from foldfuse import cli
from foldfuse.commands.campaign import note
from foldfuse.commands.report import compare
from foldfuse.data.readers import coco as data
from foldfuse.detections import Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.evaluation import bootstrap, metrics
from foldfuse.formats.predictions import read_predictions, write_predictions
from foldfuse.reporting.compare import compare_campaigns
from foldfuse.storage import ledger
from foldfuse.storage.segments import Role, SegmentRecord
from learning_samples import write_dataset


def noisy_predictions(dataset, *, noise, seed):
    """Every annotated box, shifted by some pixels, with a random score."""
    rng = np.random.default_rng(seed)
    found = {}
    for sample in dataset.samples:
        boxes = sample.annotations.boxes + rng.normal(0, noise, (len(sample.annotations), 2))[:, [0, 1, 0, 1]]
        scores = rng.random(len(boxes), dtype=np.float32)
        found[sample.id] = Detections(boxes.astype(np.float32), scores, sample.annotations.labels)
    return Predictions.of(found, dataset.classes)


def campaign(folder, path, *, held_out, noise):
    """The folder of a campaign with one submission that held out these images of the dataset."""
    dataset = data.read(path)
    facts = {"state": "finished", "data": str(path), "fingerprints": {"data": dataset.fingerprint}}
    folder.mkdir()
    with closing(ledger.create(folder, facts, deadline=600, start=0.0)) as book:
        result = {"name": "base-256", "ap50": 0.4, "ap": 0.2, "weight": 1.0}
        book.put_segment(SegmentRecord("base-256", Role.BASE, {}, None, 0, 0, "done", 9.0, 9.0, 0.0, 9.0, result))
        book.add_submission(
            0.5,
            {
                "fused": {"ap50": 0.5123, "ap": 0.25, "nested": 0.4777, "best_single": ["base-256@1", 0.4]},
                "best_member": "base-256",
                "rescoring": {"before": 0.48, "after": 0.5, "gain": {"value": 0.015, "low": 0.004, "high": 0.027}},
            },
        )
    seen = dataset.subset(held_out)
    write_predictions(noisy_predictions(seen, noise=noise, seed=0), folder / "fused_oof.parquet", seen)
    return folder


@pytest.fixture
def shapes(tmp_path):
    return write_dataset(tmp_path / "shapes", 16)


def test_the_difference_is_measured_on_the_images_that_both_held_out(shapes, tmp_path):
    a = campaign(tmp_path / "a", shapes, held_out=range(10), noise=4)
    b = campaign(tmp_path / "b", shapes, held_out=range(4, 14), noise=1)
    dataset = data.read(shapes)
    ap50, ap = compare_campaigns([a, b]).differences["b"]
    both = dataset.subset(range(4, 10))
    first, second = (read_predictions(f / "fused_oof.parquet", dataset).select_images(both.image_ids) for f in (a, b))
    assert ap50.num_images == ap.num_images == 6
    assert ap.difference == bootstrap.bootstrap_difference(second, first, both, "ap")
    assert ap50.difference == bootstrap.bootstrap_difference(second, first, both, "ap50")
    assert (ap.first, ap.second) == tuple(metrics.measure(p, both, metric="ap") for p in (first, second))
    f2, *rest = compare_campaigns([a, b], metric="f2").differences["b"]
    assert rest == [ap50, ap]
    assert f2.difference == bootstrap.bootstrap_difference(second, first, both, "f2")
    assert ap.difference.value > 0, "the second one is nearer to the annotations"


def test_the_terminal_and_the_page_show_the_same(shapes, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    folders = [
        campaign(tmp_path / name, shapes, held_out=held_out, noise=noise)
        for name, held_out, noise in (("a", range(10), 4), ("b", range(4, 14), 1), ("far", range(10, 16), 1))
    ]
    note(folders[0], "a <hunch>", leaderboard=0.61)
    note(folders[1], leaderboard=0.64)
    out = tmp_path / "c.html"
    assert cli.main(["compare", *map(str, folders), "--out", str(out)]) == 0
    printed, page = capsys.readouterr().out, out.read_text()
    facts = ("10 min", "1 of 1", "0.5123", "0.4777", "0.4000 base-256@1", "0.6100 (submission 1)")
    for text in (*facts, "+0.0150 (95 % interval +0.0040 to +0.0270)"):
        assert text in printed
        assert text in page
    assert "far and a held out no image in common (6 and 10 of their own)" in printed
    assert "far and a held out no image in common" in page
    assert "a &lt;hunch&gt;" in page
    assert "AP50 minus that of a" in page
    assert "AP minus that of a" in page
    assert "in 0 of 1 pairs" in page, "both have the same score out-of-fold"
    assert "<script" not in page
    assert "https://" not in page


@pytest.mark.parametrize("command", ["report", "compare"])
def test_an_existing_page_is_kept_without_overwrite(shapes, tmp_path, command, capsys):
    folders = [str(campaign(tmp_path / name, shapes, held_out=range(8), noise=1)) for name in "ab"]
    out = tmp_path / "page.html"
    out.write_text("mine")
    words = [command, *(folders if command == "compare" else folders[:1]), "--out", str(out)]
    assert cli.main(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert cli.main([*words, "--overwrite"]) == 0
    assert out.read_text().startswith("<!doctype html>")


def test_campaigns_of_different_data_are_refused_in_a_sentence_that_names_both(shapes, tmp_path):
    a = campaign(tmp_path / "a", shapes, held_out=range(8), noise=1)
    other = write_dataset(tmp_path / "other", 16, seed=1)
    b = campaign(tmp_path / "b", other, held_out=range(8), noise=1)
    with pytest.raises(InputError) as caught:
        compare((a, b), out=tmp_path / "c.html")
    for name in (a, b, shapes, other):
        assert str(name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "c.html").exists()


def test_a_campaign_that_does_not_name_its_data_is_refused(shapes, tmp_path):
    a = campaign(tmp_path / "a", shapes, held_out=range(8), noise=1)
    (tmp_path / "b").mkdir()
    ledger.create(tmp_path / "b", {"data": str(shapes)}, deadline=60, start=0.0).close()
    with pytest.raises(InputError, match="does not name its data"):
        compare_campaigns([a, tmp_path / "b"])


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", "gone"]])
def test_too_few_campaigns_or_none_are_status_2(shapes, tmp_path, names, capsys):
    campaign(tmp_path / "a", shapes, held_out=range(8), noise=1)
    assert cli.main(["compare", *(str(tmp_path / name) for name in names)]) == 2
    error = capsys.readouterr().err
    assert ("holds no campaign" if "gone" in names else "two or more") in error
    assert error.count("\n") == 1


def test_changed_data_leaves_out_the_intervals(shapes, tmp_path, capsys):
    a = campaign(tmp_path / "a", shapes, held_out=range(8), noise=4)
    b = campaign(tmp_path / "b", shapes, held_out=range(8), noise=1)
    assert set(compare_campaigns([a, b]).differences) == {"b"}
    document = json.loads(shapes.read_text())
    document["annotations"].pop()
    shapes.write_text(json.dumps(document))
    compare((a, b))
    printed = capsys.readouterr().out
    assert (
        "has changed since the campaigns started. Without the annotations the differences have no interval." in printed
    )
    assert "images in common" not in printed


def test_a_campaign_without_a_submission_is_shown_without_scores(shapes, tmp_path, capsys):
    a = campaign(tmp_path / "a", shapes, held_out=range(8), noise=1)
    (tmp_path / "b").mkdir()
    facts = {"data": str(shapes), "fingerprints": {"data": data.read(shapes).fingerprint}}
    ledger.create(tmp_path / "b", facts, deadline=60, start=0.0).close()
    compare((a, tmp_path / "b"))
    assert "b has no submission yet" in capsys.readouterr().out
