"""The browser page, in a real browser: filters, sliders, keys, links, phones, hostile names, and the same errors as scoring."""

from __future__ import annotations

import re
from dataclasses import replace
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from browser_waits import drawn, wait_for
from foldfuse.commands.browse import browse
from foldfuse.data.readers import coco
from foldfuse.detections import Annotations, Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.evaluation.coco import evaluate
from foldfuse.evaluation.matching import ground_truth, match_predictions
from foldfuse.reporting.browser import MARKER, images_folder, original_addresses, write_browser
from foldfuse.reporting.browser_data import column
from foldfuse.system.files import read_json
from learning_samples import write_dataset
from score_samples import CLASSES, dataset, noisy, predictions, random_dataset

HOSTILE = '</script><img src=x onerror="window.hacked=1">'
A, B, C = [10, 10, 60, 60], [200, 200, 300, 300], [400, 20, 500, 90]


@pytest.fixture
def shown(tmp_path):
    """A small page: (path, dataset). Image 0 has one error of each kind but two, image 1 none, image 2 a background error."""
    truth = dataset(
        [[*A, 0], [*B, 1], [*C, 2], [10, 400, 90, 480, 0]], [[*A, 1]], [[*B, 2]], [], classes=("cat", "dog", HOSTILE)
    )
    names = ("a one.jpg", "b #2?%20.jpg", "c ü.jpg", HOSTILE)
    samples = []
    for sample, name in zip(truth.samples, names, strict=True):
        path = tmp_path / f"{sample.id} #?.png"
        Image.new("RGB", (640, 640), (90, 140, 90)).save(path)
        samples.append(replace(sample, path=path, file_name=name))
    truth = replace(truth, samples=tuple(samples))
    shifted = [C[0] + 50, C[1], C[2] + 50, C[3]]
    found = predictions(
        [[*A, 0.9, 0], [*A, 0.5, 0], [*B, 0.8, 0], [*shifted, 0.7, 2]], [[*A, 0.9, 1]], [[*B, 0.9, 2], [*A, 0.4, 1]], [],
        classes=truth.classes,
    )  # fmt: skip
    path = write_browser(
        truth,
        {"run": found.filter(np.ones(len(found.boxes), bool)), HOSTILE: found},
        tmp_path / "page #1.html",
        title=HOSTILE,
    )
    return path, truth


def status(page):
    drawn(page)
    return page.text_content("#status")


def set_slider(page, name, value):
    page.evaluate("([id, v]) => {const e = byId(id); e.value = v; e.dispatchEvent(new Event('input'))}", [name, value])
    drawn(page)


@pytest.mark.parametrize("values", [[0, 1, 255], [0, 65535], [1e5], [0.5, 1.25], [0.1, 2.0], [-1, 3], []])
def test_a_column_holds_each_number_exactly(values):
    import base64

    got = column(np.array(values))
    assert np.frombuffer(base64.b64decode(got["data"]), f"<{got['type']}").tolist() == values


def test_errors_are_those_of_scoring_at_every_threshold(tmp_path, open_page):
    truth = random_dataset(3, images=30)
    found = noisy(truth, 3, digits=2, wrong=0.3, jitter=0.2)
    seen = found.select_images(found.image_ids[:-4])  # as out-of-fold predictions, of some images alone
    page = open_page(write_browser(truth, {"some": seen}, tmp_path / "page.html", title="t"))
    judged = truth.subset(set(seen))
    for score, iou in ((0, 0.5), (0.3, 0.5), (0.51, 0.75), (0.2, 0.95), (1, 0.5)):
        set_slider(page, "score", score)
        set_slider(page, "iou", iou)
        above = seen.filter(seen.scores >= score)
        want = dict.fromkeys(("Cls", "Loc", "Both", "Dupe", "Bkg"), 0) | {"Miss": ground_truth(judged).objects[0].size}
        if len(above.boxes):
            want = evaluate(above, judged).tide_errors(pos_thr=iou, bg_thr=0.1)["counts"]
        status_of = match_predictions(above, ground_truth(judged), ious=(iou,)).status
        kinds = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
        assert page.evaluate("app.totals") == [int((status_of == 1).sum()), *(want[k] for k in kinds)], (score, iou)


def test_the_starting_score_has_the_best_f1(shown, open_page):
    page = open_page(shown[0])
    assert page.evaluate("app.choices.score") == 0.9
    assert status(page) == "4 images · 6 objects · 3 predicted boxes · 3 errors"


def test_filters_of_error_class_and_name(shown, open_page):
    page = open_page(shown[0], fragment="#score=0")
    page.click("#kinds button:has-text('duplicate')")
    assert status(page).startswith("1 of 4 images")
    assert page.locator(".cell:visible").get_attribute("aria-label").startswith("a one.jpg: 4 objects")
    page.click("#reset")
    page.click("#classes button:has-text('dog')")
    assert status(page).startswith("3 of 4 images"), "of annotations and of predictions"
    page.click("#kinds button:has-text('background')")
    assert status(page).startswith("1 of 4 images")
    page.click("#reset")
    page.fill("#search", "Ü.JPG")
    assert status(page).startswith("1 of 4 images")
    page.fill("#search", "none such")
    assert status(page).startswith("0 of 4 images")
    assert page.locator("#nothing").is_visible()
    page.click("#reset-too")
    page.select_option("#sort", "errors")
    page.wait_for_function("app.images.join() === '0,2,1,3'")  # drawn at the next frame


def test_the_score_slider_changes_errors_and_boxes(shown, open_page):
    page = open_page(shown[0])
    missed = page.locator("#kinds button:has-text('missed') .count")
    assert missed.text_content() == "3"
    set_slider(page, "score", 0.95)
    assert missed.text_content() == "6"
    assert "0 predicted boxes" in status(page)
    page.click("#best")
    drawn(page)
    assert missed.text_content() == "3"
    set_slider(page, "score", 0)
    set_slider(page, "iou", 0.3)
    assert page.locator("#kinds button:has(:text-is('localisation')) .count").text_content() == "0"


def test_keys_open_turn_zoom_toggle_and_close(shown, open_page):
    page = open_page(shown[0])
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    name = page.locator("#viewer-name")
    assert name.text_content() == "b #2?%20.jpg"
    page.keyboard.press("j")
    assert name.text_content() == "c ü.jpg"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("k")
    assert name.text_content() == "a one.jpg"
    page.keyboard.press("+")
    assert page.evaluate("viewer.zoom") > 1
    page.keyboard.press("0")
    assert page.evaluate("viewer.zoom") == 1
    page.keyboard.press("3")
    page.keyboard.press("s")
    wait_for(page, "document.querySelectorAll('.pane').length === 3")
    page.keyboard.press("1")
    wait_for(page, "document.querySelectorAll('.pane').length === 2")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()
    wait_for(page, "document.activeElement.dataset.image === '0'")  # the focus is back on the image
    page.keyboard.press("/")
    page.keyboard.type("a one")
    assert status(page).startswith("1 of 4 images"), "letters are typed, not taken as keys"


def test_a_link_holds_image_filters_and_thresholds(shown, open_page):
    page = open_page(shown[0])
    page.click("#classes button:has-text('cat')")
    page.click("#errors button:has-text('classification')")
    set_slider(page, "score", 0.33)
    page.click(".cell:visible")
    page.click("#sides")
    wait_for(page, "location.hash.includes('view=sides')")
    again = open_page(shown[0], fragment=page.evaluate("location.hash"))
    assert again.text_content("#viewer-name") == "a one.jpg"
    choices = "({...app.choices, kinds: [...app.choices.kinds], classes: [...app.choices.classes]})"
    assert again.evaluate(choices) == page.evaluate(choices)
    again.go_back() if again.evaluate("history.length") > 2 else again.keyboard.press("Escape")
    open_page(shown[0], fragment="#image=gone&score=x&judge=none&layers=9&errors=odd&class=odd")


def test_a_click_names_a_box_and_the_list_zooms_to_it(shown, open_page):
    page = open_page(shown[0], fragment="#score=0&image=a+one.jpg")
    rows = page.locator("#panel-list button")
    assert rows.count() == 8
    assert "annotated as dog, IoU 1.00" in page.text_content("#panel-list")
    rows.filter(has_text=re.compile("(?<!and )localisation error")).click()
    assert page.evaluate("viewer.zoom") > 1
    page.click("#zoom-fit")
    view = page.evaluate(
        "(() => {const f = viewer.panes[0].frame.getBoundingClientRect(); return [f.left, f.top, f.width, f.height]})()"
    )
    scale = min(view[2], view[3]) / 640
    page.mouse.click(view[0] + view[2] / 2 + (50 - 320) * scale, view[1] + view[3] / 2 + (440 - 320) * scale)
    assert "missed" in page.locator("#panel-list button[aria-pressed=true]").text_content()
    page.mouse.move(view[0] + 200, view[1] + 200)
    page.mouse.wheel(0, -500)
    wait_for(page, "viewer.zoom > 1.5")


def test_a_phone_has_no_sideways_scroll_and_filters_in_a_drawer(shown, open_page):
    page = open_page(shown[0], width=390, height=844, has_touch=True, is_mobile=True)
    overflow = "document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate(overflow) <= 0
    page.tap("#open-filters")
    assert page.evaluate(overflow) <= 0
    page.tap("#kinds button:has-text('missed')")
    page.tap("#close-filters")
    assert status(page).startswith("1 of 4 images")
    page.tap(".cell:visible")
    assert page.locator("#viewer").is_visible()
    assert page.evaluate(overflow) <= 0
    small = "[...document.querySelectorAll('#viewer .bar button')].filter((b) => b.offsetHeight < 40).map((b) => b.id)"
    assert page.evaluate(small) == []


def test_hostile_names_are_text_and_controls_have_names(shown, open_page):
    page = open_page(shown[0], fragment="#score=0&layers=111")
    page.click(".cell:visible >> nth=3")
    assert page.text_content("#viewer-name") == HOSTILE
    page.keyboard.press("k")
    assert HOSTILE in page.text_content("#panel-list")
    assert page.text_content("#title") == HOSTILE
    assert page.evaluate("[window.hacked, document.querySelectorAll('img[src=x]').length]") == [None, 0]
    nameless = """[...document.querySelectorAll('button, input, select')].filter((e) => !(e.getAttribute('aria-label') ||
        e.textContent.trim() || (e.labels && [...e.labels].some((l) => l.textContent.trim())))).map((e) => e.outerHTML)"""
    assert page.evaluate(nameless) == []


def test_large_sets_lie_in_a_folder_and_only_cells_in_sight_exist(tmp_path, open_page):
    (sample,) = dataset([[*A, 0]]).samples
    path = tmp_path / "one.png"
    Image.new("RGB", (640, 640), (200, 30, 30)).save(path)
    truth = replace(
        dataset([]), samples=tuple(replace(sample, id=i, path=path, file_name=f"{i}.png") for i in range(400))
    )
    out = write_browser(truth, {}, tmp_path / "page #1 ü.html", title="many")
    assert (images_folder(out) / MARKER).is_file()
    assert len(list((images_folder(out) / "previews").iterdir())) == 400
    page = open_page(out)
    wait_for(page, "[...document.images].some((i) => i.naturalWidth === 256)")
    assert page.locator(".cell").count() < 60
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.dataset.image") == "399"
    assert page.locator(".cell").count() < 80
    assert status(page) == "400 images · 400 objects"


def test_images_that_cannot_be_used_are_shown_without_pixels_or_left_out(tmp_path, open_page, capsys, monkeypatch):
    data = write_dataset(tmp_path / "d", 6)
    images = tmp_path / "d" / "images"
    (images / "000.png").unlink()
    Image.new("RGB", (31, 17)).save(images / "001.png")
    (images / "002.png").write_bytes((images / "002.png").read_bytes()[:600])
    parsed = []
    monkeypatch.setattr(coco, "read_json", lambda path, **words: parsed.append(path) or read_json(path, **words))
    page = open_page(browse(data, out=tmp_path / "page.html"))
    assert parsed == [data], "the JSON is read once"
    assert "2 images of 6 are shown without pixels: " in capsys.readouterr().err, (
        "the third is found when it is decoded"
    )
    page.click("#states button:has-text('without pixels')")
    assert status(page).startswith("3 of 6 images")
    reasons = page.locator(".cell:visible .broken:visible").all_text_contents()
    assert "31 x 17 pixels, and the annotations say 96 x 64" in reasons[1]
    assert reasons[0] == "the file is missing"
    assert not any(str(tmp_path) in reason for reason in reasons)
    again = open_page(tmp_path / "page.html", fragment=page.evaluate("location.hash") + "&image=000.png")
    assert again.evaluate("app.images") == [0, 1, 2]
    assert not again.locator("#original").is_visible()
    (images / "001.png").write_text("no image")
    page = open_page(browse(images, out=tmp_path / "folder.html"))
    assert status(page) == "4 images · 1 more image left out"
    assert "001.png" in page.text_content("#left-out")
    assert "1 image is left out, since nothing tells the size: " in capsys.readouterr().err
    for path in images.iterdir():
        path.unlink()
    with pytest.raises(InputError, match="6 of 6 images are missing"):
        browse(data, out=tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


def test_the_original_file_is_a_link_beside_the_image(shown, open_page):
    path, truth = shown
    page = open_page(path, fragment="#image=" + quote(HOSTILE))
    link = page.locator("#original")
    assert page.evaluate("document.querySelector('#original').href") == truth.samples[3].path.as_uri()
    with page.context.expect_page() as opened:
        link.click()
    opened.value.wait_for_load_state()
    assert opened.value.evaluate("document.images[0].naturalWidth") == 640


def test_addresses_of_files_stay_paths_whatever_their_names(tmp_path):
    truth = dataset([], [], [])
    names = ("javascript:alert(1).png", '"><b>.png')
    paths = [tmp_path / "page" / name for name in names] + [tmp_path / "gone.png"]
    (tmp_path / "page").mkdir()
    for path in paths[:2]:
        path.write_bytes(b"")
    samples = tuple(replace(s, path=path) for s, path in zip(truth.samples, paths, strict=True))
    addresses = original_addresses(replace(truth, samples=samples), tmp_path / "page")
    assert addresses == {"base": "", "rest": ["javascript%3Aalert%281%29.png", "%22%3E%3Cb%3E.png", None]}
    addresses = original_addresses(replace(truth, samples=samples), tmp_path / "other" / "a")
    assert (addresses["base"], addresses["rest"][1]) == ("../../page/", "%22%3E%3Cb%3E.png")


def test_images_with_predictions_come_first_and_the_others_can_be_filtered(tmp_path, open_page):
    truth = dataset([[*A, 0]], [[*A, 1]], [[*B, 2]], [])
    found = predictions([[*B, 0.9, 2]], [], ids=(2, 1))
    page = open_page(write_browser(truth, {"campaign": found}, tmp_path / "page.html", title="t"))
    assert page.evaluate("app.images") == [1, 2, 0, 3]
    assert "not predicted" not in page.locator(".cell:visible").first.get_attribute("aria-label")
    page.select_option("#sort", "objects")
    wait_for(page, "app.images.join() === '1,2,0,3'")
    page.click("#states button:has-text('not predicted')")
    assert status(page).startswith("2 of 4 images")
    page.click("#reset")
    assert status(page).startswith("4 images")


def test_a_drag_goes_on_while_the_panes_are_made_anew(shown, open_page):
    page = open_page(shown[0], fragment="#score=0&image=a+one.jpg")
    page.keyboard.press("+")
    page.keyboard.press("+")
    page.mouse.move(300, 300)
    page.mouse.down()
    page.mouse.move(320, 300)
    page.keyboard.press("s")
    wait_for(page, "document.querySelectorAll('.pane').length === 2")
    before = page.evaluate("viewer.x")
    page.mouse.move(330, 300)
    assert page.evaluate("[viewer.x, viewer.y].every(Number.isFinite)")
    assert page.evaluate("viewer.x") < before
    page.mouse.up()


def test_images_without_annotations_show_predictions_alone(tmp_path, open_page, caplog):
    truth = dataset([[*A, 0]], []).without_annotations()
    found = Predictions.of({0: Detections(np.array([A], float), np.array([0.9]), np.array([1]))}, CLASSES)
    page = open_page(write_browser(truth, {"run": found}, tmp_path / "page.html", title="t"))
    assert status(page) == "2 images · 1 predicted box"
    assert not page.locator("#errors").is_visible()
    assert page.locator(".cell .broken:visible").count() == 2
    assert "It is shown without its pixels" in caplog.text
    some = replace(truth, samples=(replace(truth.samples[0], annotations=Annotations.empty()), truth.samples[1]))
    page = open_page(write_browser(some, {"run": found}, tmp_path / "page.html", title="t"))
    assert re.search("0 objects · 1 predicted box · 1 error", status(page))


def test_notes_stand_with_the_thumbnail_and_beside_the_image(tmp_path, open_page):
    truth = dataset([[*A, 0]], []).without_annotations()
    found = Predictions.of({0: Detections(np.array([A], float), np.array([0.9]), np.array([1]))}, CLASSES)
    notes = [("1. 2.5 bits", f"1. to label: {HOSTILE}"), ("2. 0.1 bits", "2. to label: nothing is found")]
    page = open_page(write_browser(truth, {"run": found}, tmp_path / "page.html", title="t", notes=notes))
    status(page)
    assert [cell.text_content() for cell in page.locator(".cell .facts").all()] == [
        "1. 2.5 bits1 box",
        "2. 0.1 bitsnot predicted",
    ]
    page.locator(".cell").first.click()
    assert page.text_content("#panel-text").endswith(f"1. to label: {HOSTILE}")
    assert not page.evaluate("window.hacked")
