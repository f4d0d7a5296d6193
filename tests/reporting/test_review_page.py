"""The page of `review` in a real browser: answers by mouse and keys, kept, filtered, and downloaded as corrections that apply."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from browser_waits import drawn, wait_for
from foldfuse import cli
from foldfuse.commands.review import review
from foldfuse.data.readers.coco import read
from foldfuse.detections import Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.evaluation.label_errors import Suggestion
from foldfuse.formats.predictions import write_predictions
from foldfuse.reporting.review_data import cut_images, make_items
from foldfuse.reporting.review_page import write_review
from learning_samples import write_dataset

HOSTILE = '</script><img src=x onerror="window.hacked=1">'


@pytest.fixture
def data(tmp_path):
    """A dataset whose last class has a hostile name."""
    path = write_dataset(tmp_path / "d", 6)
    document = json.loads(path.read_text())
    document["categories"].append({"id": 9, "name": HOSTILE})
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def shown(data, tmp_path):
    """A page with one suggestion of each kind: (path, data)."""
    dataset = read(data)
    first = [s.annotations.boxes[0] for s in dataset.samples]
    suggestions = [
        Suggestion("missed", 0, 0.999, box=first[0] + 2, label=2, found=0.9),
        Suggestion("class", 1, 0.8, 0, label=2, found=0.7),
        Suggestion("place", 2, 0.6, 0, box=first[2] + 3, found=0.5),
        Suggestion("spurious", 3, 0.4, 0),
        Suggestion("duplicate", 4, 0.2, 0, other=len(dataset[4].annotations) - 1),
    ]
    samples = list(dataset.samples)
    samples[3] = replace(samples[3], missing="the file is broken.")
    items = make_items(suggestions, replace(dataset, samples=tuple(samples)))
    path = write_review(items, dataset, tmp_path / "review #1.html", title=HOSTILE, note="Some are left out.")
    return path, data


def status(page):
    drawn(page)
    return page.text_content("#status")


def answers(page):
    return page.evaluate("suggestions.map((_, n) => answerOf(n) || '')")


def test_answers_by_mouse_and_keys_are_kept_and_downloaded(shown, open_page, tmp_path, capsys):
    path, data = shown
    page = open_page(path)
    assert status(page) == "5 suggestions · 0 accepted · 0 rejected · 5 open"
    assert page.locator("#download").is_disabled()
    page.click(".card >> nth=1 >> .accept")
    page.click(".card >> nth=3 >> .reject")
    assert answers(page) == ["", "accept", "", "reject", ""]
    page.click(".card >> nth=3 >> .reject")
    assert answers(page)[3] == "", "a second click takes the answer back"
    page.keyboard.press("k")
    page.keyboard.press("a")
    assert answers(page)[2] == "accept"
    assert page.evaluate("app.current") == 3, "the next one follows"
    page.keyboard.press("r")
    page.keyboard.press("a")
    page.keyboard.press("u")
    assert answers(page) == ["", "accept", "accept", "reject", ""]
    page.evaluate("moveTo(0)")
    page.keyboard.press("Enter")
    assert page.locator("#large").is_visible()
    page.keyboard.press("a")
    assert page.evaluate("app.current") == 1
    assert "annotated as" in page.text_content("#large-text")
    assert page.locator("#large-accept").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    assert not page.locator("#large").is_visible()
    assert status(page) == "5 suggestions · 3 accepted · 1 rejected · 1 open"
    page.reload()
    wait_for(page, "typeof app !== 'undefined'")
    assert answers(page) == ["accept", "accept", "accept", "reject", ""], "kept by the browser"
    with page.expect_download() as download:
        page.click("#download")
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert file.name == "corrections.json"
    out = tmp_path / "d" / "corrected.json"
    assert cli.main(["check", str(data), "--fix", "--corrections", str(file), "--out", str(out), "--json-only"]) == 0
    assert "1 added, 2 changed, 0 removed" not in (err := capsys.readouterr().err)
    assert "3 corrections applied" in err
    assert read(out).num_boxes == read(data).num_boxes + 1
    assert read(out)[1].annotations.labels[0] == 2


def test_a_suggestion_is_accepted_with_another_class(shown, open_page, tmp_path, capsys):
    path, data = shown
    page = open_page(path)
    names = read(data).classes
    assert page.locator(".card:has(select)").count() == 2, (
        "where a class is proposed: the missed object, the wrong class"
    )
    select = page.locator(".card >> nth=0 >> select")
    assert select.input_value() == HOSTILE
    select.focus()
    assert select.locator("option").all_text_contents()[:2] == list(names[:2])
    select.select_option(names[0])
    other = page.locator(".card >> nth=1 >> select")
    other.focus()
    was = page.evaluate("suggestions[1].correction.annotation_class")
    assert was not in other.locator("option").all_text_contents(), "it is wrong"
    assert answers(page) == ["accept", "", "", "", ""]
    page.reload()
    wait_for(page, "typeof app !== 'undefined'")
    assert page.locator(".card >> nth=0 >> select").input_value() == names[0], "kept by the browser"
    page.select_option("#class", names[0])
    assert page.locator(".card >> nth=0").is_visible()
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "corrections.json")
    out = tmp_path / "d" / "corrected.json"
    words = ["--fix", "--corrections", str(tmp_path / "corrections.json"), "--out", str(out), "--json-only"]
    assert cli.main(["check", str(data), *words]) == 0
    assert read(out)[0].annotations.labels[-1] == 0


def test_filters_by_kind_class_and_answer(shown, open_page):
    page = open_page(shown[0])
    page.select_option("#kind", "place")
    assert status(page).startswith("1 shown of 5")
    page.keyboard.press("b")
    assert page.locator("#boxes").get_attribute("aria-pressed") == "false"
    page.click("#boxes")
    assert page.locator("#boxes").get_attribute("aria-pressed") == "true"
    page.select_option("#kind", "")
    page.select_option("#class", HOSTILE)
    assert status(page).startswith("2 shown of 5")
    page.select_option("#state", "accept")
    assert page.locator("#nothing").is_visible()
    page.click("#reset")
    assert page.locator(".card:visible").count() == 5
    page.click(".card >> nth=0 >> .accept")
    page.select_option("#state", "open")
    page.click(".card:visible >> nth=0 >> .reject")
    assert status(page) == "3 shown of 5 suggestions · 1 accepted · 1 rejected · 3 open"


def test_a_phone_has_no_sideways_scroll_and_hostile_names_are_text(shown, open_page):
    page = open_page(shown[0], width=390, height=844, has_touch=True, is_mobile=True)
    overflow = "document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate(overflow) <= 0
    page.tap(".card >> nth=0 >> .accept")
    assert answers(page)[0] == "accept"
    page.tap(".card >> nth=1 >> .cut")
    assert page.locator("#large").is_visible()
    assert page.evaluate(overflow) <= 0
    assert page.text_content("#title") == HOSTILE
    assert HOSTILE in page.text_content("#large-text")
    assert page.evaluate("[window.hacked, document.querySelectorAll('img[src=x]').length]") == [None, 0]
    page.tap("#next")
    page.tap("#next")
    assert page.text_content("#large-broken") == "the file is broken."
    nameless = """[...document.querySelectorAll('button, select, a')].filter((e) => !(e.getAttribute('aria-label') ||
        e.textContent.trim() || (e.labels && [...e.labels].some((l) => l.textContent.trim())))).map((e) => e.outerHTML)"""
    assert page.evaluate(nameless) == []


def test_the_command_ranks_learnt_images_out_and_writes_page_or_json(data, tmp_path, capsys):
    dataset = read(data)
    found = {
        s.id: Detections(s.annotations.boxes.copy(), np.full(len(s.annotations), 0.9), s.annotations.labels)
        for s in dataset.samples
    }
    predictions = replace(Predictions.of(found, dataset.classes), learnt_ids=frozenset({0}))
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    write_predictions(predictions.select_images([0, 1, 2]), files[0], dataset)
    write_predictions(replace(predictions, learnt_ids=frozenset()).select_images([3, 4]), files[1], dataset)
    out = review(data, tuple(files), out=tmp_path / "out.json", top=3)
    document = json.loads(out.read_text())
    assert (document["kind"], document["fingerprint"]) == ("foldfuse suggestions", dataset.fingerprint)
    assert len(document["suggestions"]) == 3
    assert 0 not in {one["image_id"] for one in document["suggestions"]}
    printed = capsys.readouterr()
    assert (
        "4 images of 6 have out-of-fold predictions. Left out: 1 that the networks have learnt from, 1 that"
        in printed.err
    )
    assert "missed object" in printed.out
    page = review(data, tuple(files), out=tmp_path / "out.html")
    assert "Foldfuse review" in page.read_text()
    assert cli.main(["review", str(data), str(files[0]), "--out", str(page)]) == 2
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(InputError, match="given twice"):
        review(data, (files[0], files[0]), out=tmp_path / "c.html")
    with pytest.raises(InputError, match="must end in"):
        review(data, tuple(files), out=tmp_path / "c.csv")


def test_a_campaign_brings_its_fused_predictions(data, tmp_path, capsys):
    dataset = read(data)
    found = {
        s.id: Detections(s.annotations.boxes, np.full(len(s.annotations), 0.9), s.annotations.labels) for s in dataset
    }
    fused = replace(Predictions.of(found, dataset.classes).select_images([2, 4]), learnt_ids=frozenset({0, 1, 3, 5}))
    campaign = tmp_path / "night1"
    (campaign / "members" / "a").mkdir(parents=True)
    (campaign / "campaign.sqlite").touch()
    with pytest.raises(InputError, match="no predictions yet"):
        review(data, (campaign,), out=tmp_path / "out.json")
    for name in ("fused_oof.parquet", "members/a/val@1.parquet"):
        write_predictions(fused, campaign / name, dataset)
    out = review(data, (campaign,), out=tmp_path / "out.json")
    assert {one["image_id"] for one in json.loads(out.read_text())["suggestions"]} == {2, 4}
    assert "2 images of 6 have out-of-fold predictions. Left out: 4 that the networks" in capsys.readouterr().err


def test_a_cut_shows_all_boxes_of_a_suggestion(data):
    dataset = read(data)
    Image.new("RGB", (96, 64)).save(data.parent / "images" / "000.png")
    (item,) = make_items(
        [Suggestion("place", 0, 0.5, 0, box=dataset[0].annotations.boxes[0] * 0 + [0, 0, 90, 60])], dataset
    )
    (cut,) = cut_images([item], lambda share: None)
    assert cut.window == (0, 0, 96, 64)
    assert cut.jpeg
