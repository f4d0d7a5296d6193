"""Predictors: a run and an ensemble on images in every form, in Python and from the command line."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from foldfuse import cli
from foldfuse.commands.drawn_images import drawn_names
from foldfuse.commands.train import train
from foldfuse.data.dataset import Sample
from foldfuse.data.image_inputs import read_paths
from foldfuse.data.readers.coco import read
from foldfuse.ensemble.ensemble import Ensemble, apply_ensemble
from foldfuse.errors import InputError
from foldfuse.formats.predictions import read_predictions
from foldfuse.inference import ensemble_predictor as module
from foldfuse.inference.predictor import load
from foldfuse.inference.run_predictor import RunPredictor
from learning_samples import write_dataset


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with run1, trained for two steps on d/train.json, and photos/ of two folders with new images."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_dataset(folder / "d", 6)
    train(data, out=folder / "run1", changes=("image_size=64", "batch_size=2"), steps=2)
    write_dataset(folder / "new", 4, seed=5)
    (folder / "photos" / "a").mkdir(parents=True)
    for i, place in enumerate(("x.png", "y.png", "a/x.png", "a/z.png")):
        shutil.copy(folder / "new" / "images" / f"00{i}.png", folder / "photos" / place)
    return folder


@pytest.fixture(scope="module")
def predictor(trained):
    return load(str(trained / "run1"))


def same(a, b):
    np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-3)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
    assert a.labels.tolist() == b.labels.tolist()


def test_one_image_gives_the_same_detections_in_every_form(trained, predictor):
    path = trained / "photos" / "x.png"
    image = Image.open(path)
    one = predictor(str(path))
    assert len(one)
    assert (one.classes, predictor.classes) == (("red", "blue"), ("red", "blue"))
    assert (np.diff(one.scores) <= 0).all()
    assert one.plot().size == (96, 64)
    for form in (path, image, np.asarray(image), image.convert("RGBA"), str(trained / "photos" / "x.pn*")):
        same(predictor(form), one)
    assert "lite0_fpn at 64 px, 2 classes: red, blue" in repr(predictor)


def test_many_images_in_every_form(trained, predictor):
    photos = trained / "photos"
    folder = predictor.predict(str(photos))
    assert folder.image_ids.tolist() == [1, 2, 3, 4]
    names = [folder.images[i].file_name for i in folder.image_ids]
    assert names == ["a/x.png", "a/z.png", "x.png", "y.png"]
    glob = predictor.predict(f"{photos}/**/*.png")
    paths = [photos / name for name in names]
    listed = predictor.predict([paths[0], str(paths[1]), Image.open(paths[2]), np.asarray(Image.open(paths[3]))])
    assert listed.image_ids.tolist() == [0, 1, 2, 3]
    opened = predictor.predict(read_paths([photos]).dataset, batch_size=1)
    for found in (glob, listed, opened):
        for i, j in zip(folder.image_ids, found.image_ids, strict=True):
            same(folder[i], found[j])
    assert not folder.learnt_ids
    assert len(predictor.predict(trained / "d" / "train.json").learnt_ids) == 6
    assert len(predictor.predict(photos, views=("1", "1+hflip")).boxes) != len(folder.boxes)


def test_a_turned_image_has_boxes_in_its_upright_pixels(trained, predictor, tmp_path, caplog):
    image = Image.open(trained / "photos" / "x.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    from_file, upright = predictor(tmp_path / "turned.png"), predictor(image)
    apart = np.abs(from_file.boxes[:5, None] - upright.boxes).max(-1).min(1)
    assert (apart < 1.5).all(), "a file is shrunk before it is turned, so close scores may change places"
    same(predictor(Image.open(tmp_path / "turned.png")), predictor(image))
    caplog.clear()
    predictor.predict([tmp_path / "turned.png", tmp_path / "turned.png"])
    assert caplog.text.count("their boxes are in pixels of the upright image") == 1


def test_16_bit_values_in_memory_are_shown_as_those_of_a_file(trained, predictor, tmp_path):
    gray = np.asarray(Image.open(trained / "photos" / "x.png").convert("L")).astype(np.uint16)
    image = Image.fromarray(gray * 4 + 100)
    image.save(tmp_path / "deep.png")
    for ranges in ({"16-bit": (100.0, 1120.0)}, {"16-bit": (0.0, 65535.0)}, {}):
        own = replace(predictor, value_ranges=ranges)
        expected = own(tmp_path / "deep.png")
        for form in (image, Image.open(tmp_path / "deep.png"), [image]):
            found = own(form)
            same(found, expected)
            assert (np.asarray(found.image) == np.asarray(expected.image)).all()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no image is given"),
        ("no/*.png", "no image has a name of this pattern"),
        ("gone.png", "there is no such image"),
        (5, "5 is no image"),
        (np.zeros((4, 4), np.float32), "uint8"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
    ],
)
def test_what_is_no_image_is_refused(predictor, images, message):
    with pytest.raises(InputError, match=message):
        predictor.predict(images)


def test_what_was_not_trained_is_refused(trained, tmp_path):
    for path, message in (
        (tmp_path / "gone", "the folder of a run"),
        (trained / "run1" / "weights.safetensors", "a file that nothing is predicted with"),
    ):
        with pytest.raises(InputError, match=message):
            load(path)
    with pytest.raises(InputError, match="is 4 images, expected one"):
        load(trained / "run1")(trained / "photos")
    with pytest.raises(InputError, match="is no ensemble"):
        load(trained / "run1", members={"a": "b"})


def test_an_ensemble_finds_its_runs_or_is_told_them(trained, predictor, tmp_path):
    Ensemble({"run1@1": 2.0, "b_oof": 1.0}, score_exponents={"b_oof": 0.5}).write(tmp_path / "ensemble.json")
    photos = trained / "photos"
    with pytest.raises(InputError, match=r"members run1@1, b_oof is not beside .* --member run1@1=RUN"):
        load(tmp_path / "ensemble.json")
    with pytest.raises(InputError, match="no member of the ensemble is called 'c'"):
        load(tmp_path / "ensemble.json", members={"c": trained / "run1"})
    (tmp_path / "run1").symlink_to(trained / "run1")
    ensemble = load(tmp_path, members={"b_oof": f"{trained / 'run1'}@1+hflip"})
    plain, flipped = (predictor.predict(photos, views=[view]) for view in ("1", "1+hflip"))
    expected = apply_ensemble(ensemble.ensemble, {"run1@1": plain, "b_oof": flipped})
    found = ensemble.predict(photos)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert "ensemble of 2 networks in 2 views by WBF" in repr(ensemble)
    with pytest.raises(InputError, match="Leave out --view"):
        ensemble.predict(photos, views=["1"])
    words = ["predict", str(tmp_path / "ensemble.json"), str(photos), "--out", str(tmp_path / "p.parquet")]
    assert cli.main(words) == 2
    assert cli.main([*words, "--member", f"b_oof={trained / 'run1'}@1+hflip"]) == 0
    written = read_predictions(
        tmp_path / "p.parquet", read(photos, annotated=False).with_classes(("red", "blue"), (3, 7))
    )
    np.testing.assert_allclose(written.boxes, found.boxes, atol=1e-3)


def test_networks_without_room_on_a_card_wait_in_the_hosts_memory(trained, tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / name).symlink_to(trained / "run1")
    Ensemble({"a": 1.0, "b": 2.0, "c": 1.0}).write(tmp_path / "ensemble.json")
    ensemble, photo, moved = load(tmp_path), trained / "photos" / "x.png", []
    expected = ensemble(photo)
    monkeypatch.setattr(RunPredictor, "move", lambda self, device: moved.append((self.source.name, device)))
    same(ensemble(photo), expected)
    assert not moved, "a CPU has one memory"
    card = replace(ensemble, device="cuda")
    each = card._loaded[tmp_path / "a"].num_bytes
    on_card = 2 * each  # beside the wanted one
    monkeypatch.setattr(module, "free_bytes", lambda device: 2.5 * each / module.NETWORKS_SHARE - on_card)
    same(card(photo), expected)
    assert moved == [("c", "cpu"), ("b", "cpu"), ("c", "cuda")]
    moved.clear()
    monkeypatch.setattr(module, "free_bytes", lambda device: 100 * each)
    same(card(photo), expected)
    same(card(photo), expected)
    assert moved == [("b", "cuda")], "where there is room, they stay"


def test_the_command_draws_writes_and_tells(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    out, drawn = tmp_path / "found.csv", tmp_path / "drawn"
    words = ["predict", "run1", "photos", "photos/x.png", "new/images/*3.png", "d/images/000.png"]
    assert (
        cli.main([*words, "--out", str(out), "--draw", str(drawn), "--score-threshold", "0", "--max-detections", "2"])
        == 0
    )
    told = capsys.readouterr().err
    assert "1 image given more than once" in told
    assert "has learnt from 1 of the 6 images of photos and 3 other paths." in told
    assert "foldfuse submit" in told
    assert "5 images, 10 boxes" in told
    assert f"images/s: {out}, {drawn}" in told
    files = sorted(p.relative_to(drawn).as_posix() for p in drawn.rglob("*.jpg"))
    assert files == ["new/images/003.jpg", "photos/a/x.jpg", "photos/a/z.jpg", "photos/x.jpg", "photos/y.jpg"]
    with Image.open(drawn / files[0]) as image:
        assert image.size == (96, 64)
    assert len(out.read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run1 photos", "neither --out nor --draw is given"),
        ("run1 photos --out found.txt", "predictions are written as .parquet"),
        ("run1 photos --draw d", "holds files already"),
        ("run1 d/train.json --draw d --overwrite", "holds the images or the network"),
        ("run1 new/train.json --draw new/images --overwrite", "holds images that are given, such as"),
        ("run1 photos --draw new1 --member a", "is no NAME=RUN"),
        ("run1 photos --draw new1 --member a=b", "is no ensemble"),
        ("run1 nothing*.png --draw new1", "no image has a name of this pattern"),
        ("run1 photos --draw new1 --score-threshold 2", "is not in 0..1"),
    ],
)
def test_refusals_have_status_2_and_leave_nothing(trained, monkeypatch, capsys, words, message):
    monkeypatch.chdir(trained)
    assert cli.main(["predict", *words.split()]) == 2
    assert message in capsys.readouterr().err
    assert not (trained / "new1").exists()


def test_drawn_images_have_names_of_their_own(tmp_path):
    names = ["a/x.png", "a/x.jpg", "a/X.JPG", "../../etc/y.png", "C:\\z?.png"]
    samples = [Sample(i, tmp_path / n, n, 4, 4, None) for i, n in enumerate(names)]
    drawn = [str(name) for name in drawn_names(samples).values()]
    assert drawn == ["a/x.jpg", "a/x.jpg.jpg", "a/X.JPG_2.jpg", "etc/y.jpg", "C_/z_.jpg"]
