"""Folds balance images, boxes and classes, and keep groups and near-duplicates together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foldfuse.commands.data import split
from foldfuse.data.dataset import Dataset
from foldfuse.data.folds import Folds, divide, fit_folds, groups_of, make_folds, read_folds
from foldfuse.data.near_duplicates import near_duplicates
from foldfuse.data.readers.coco import read
from foldfuse.detections import Array
from foldfuse.errors import InputError


def boxes_per_fold(dataset: Dataset, made: Folds) -> Array:
    """(num_folds, classes) boxes."""
    counts = np.zeros((made.num_folds, len(dataset.classes)), int)
    for sample in dataset.samples:
        assert sample.annotations is not None
        counts[made.fold_of[sample.id]] += np.bincount(sample.annotations.labels, minlength=len(dataset.classes))
    return counts


@pytest.fixture
def dataset(make_dataset: Callable[..., Path]) -> Dataset:
    return read(make_dataset(images=30))


def test_each_image_is_held_out_once(dataset: Dataset) -> None:
    made = make_folds(dataset, num_folds=4)
    held_out = [image_id for fold in range(4) for image_id in made.val_ids(fold)]
    assert sorted(held_out) == sorted(dataset.image_ids)
    for fold in range(4):
        assert sorted(made.train_ids(fold) + made.val_ids(fold)) == sorted(dataset.image_ids)
        assert len(made.val_ids(fold)) in (7, 8)


def test_every_fold_has_its_share_of_each_class(dataset: Dataset) -> None:
    counts = boxes_per_fold(dataset, make_folds(dataset, num_folds=3))
    fair = counts.sum(0) / 3
    assert (np.abs(counts - fair) <= 1.5).all(), counts


@pytest.mark.parametrize("name", ["bccd", "aquatrash", "playing_cards"])
def test_real_data_is_shared_out_evenly(shared_data: Path, name: str) -> None:
    dataset = read(shared_data / name)
    counts = boxes_per_fold(dataset, make_folds(dataset))
    assert (np.abs(counts / (counts.sum(0) / 5) - 1) < 0.15).all(), counts


def test_the_seed_decides(dataset: Dataset) -> None:
    assert make_folds(dataset, seed=1).fold_of == make_folds(dataset, seed=1).fold_of
    assert make_folds(dataset, seed=1).fold_of != make_folds(dataset, seed=2).fold_of


def test_groups_stay_together(dataset: Dataset) -> None:
    groups = {image_id: f"scene {image_id % 7}" for image_id in dataset.image_ids}
    made = make_folds(dataset, num_folds=3, groups=groups)
    for scene in set(groups.values()):
        assert len({made.fold_of[i] for i in groups if groups[i] == scene}) == 1


def test_near_duplicates_stay_together(make_dataset: Callable[..., Path]) -> None:
    dataset = read(make_dataset(images=12))
    with Image.open(dataset.samples[0].path) as first:
        copy = first.resize((60, 40)).point(lambda v: v * 0.9 + 10)  # smaller, paler, and compressed again
    for i in (4, 8):
        copy.save(dataset.samples[i].path, quality=70)
    paths = [s.path for s in dataset.samples]
    assert near_duplicates(paths) == [(0, 4), (0, 8)]
    for seed in range(5):
        fold_of = make_folds(dataset, num_folds=5, seed=seed).fold_of
        assert fold_of[0] == fold_of[4] == fold_of[8]


def test_flat_images_are_duplicates_by_their_bytes_alone(tmp_path: Path) -> None:
    shade = np.linspace(198, 210, 160)  # light from one side, as on blank pages of one scanner
    for i in range(2):
        Image.new("RGB", (40, 40), (200, 200, 200 + i)).save(tmp_path / f"flat{i}.png")
        page = np.repeat(shade.round()[None], 160, 0).astype(np.uint8)
        page[40 + 50 * i : 43 + 50 * i, 20:60] = 190  # a line of text on each, elsewhere
        Image.fromarray(page).save(tmp_path / f"page{i}.png")
        dotted = Image.new("RGB", (160, 160), (200, 200, 200))
        dotted.paste((30, 30, 30), (20 + 60 * i, 40, 40 + 60 * i, 60))
        dotted.save(tmp_path / f"dotted{i}.png")  # other images, though most of them is the same
        (tmp_path / f"broken{i}.jpg").write_bytes(b"no image" * (1 + i))
    paths = sorted(tmp_path.iterdir())
    assert near_duplicates([*paths, tmp_path / "gone.png"]) == []
    for name in ("flat1", "page1"):
        shutil.copy(tmp_path / f"{name}.png", tmp_path / f"{name}_copy.png")
    paths = sorted(tmp_path.iterdir())
    assert [(paths[i].stem, paths[j].stem) for i, j in near_duplicates(paths)] == [
        ("flat1", "flat1_copy"),
        ("page1", "page1_copy"),
    ]


def test_a_class_with_fewer_boxes_than_folds_is_folded(make_dataset: Callable[..., Path]) -> None:
    path = make_dataset(images=12, classes=2)
    document = json.loads(path.read_text())
    for i, row in enumerate(document["annotations"]):
        row["category_id"] = int(i == 0)
    path.write_text(json.dumps(document))
    made = make_folds(read(path), num_folds=4)
    assert [len(made.val_ids(fold)) for fold in range(4)] == [3] * 4


@pytest.mark.parametrize("seed", range(5))
def test_every_fold_holds_an_object_even_where_few_images_do(make_dataset: Callable[..., Path], seed: int) -> None:
    path = make_dataset(images=30, classes=1)
    document = json.loads(path.read_text())
    document["annotations"] = [row for row in document["annotations"] if row["image_id"] in (0, 2, 3)]
    path.write_text(json.dumps(document))
    dataset = read(path)
    assert (boxes_per_fold(dataset, make_folds(dataset, num_folds=3, seed=seed)).sum(1) > 0).all()
    with pytest.raises(
        InputError, match=r"3 of its 30 images hold objects, fewer than 4 folds.*Ask for at most 3 folds"
    ):
        make_folds(dataset, num_folds=4, seed=seed)
    document["annotations"] = document["annotations"][:1]
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"1 of its 30 images hold objects.*Annotate objects on more images"):
        make_folds(read(path), num_folds=2)


def all_alike(path: Path) -> Dataset:
    """The dataset with copies of its first image in place of all images, as of a fixed camera."""
    dataset = read(path)
    for sample in dataset.samples[1:]:
        sample.path.write_bytes(dataset.samples[0].path.read_bytes())
    return dataset


def test_a_fixed_camera_is_cut_into_blocks_and_told(
    make_dataset: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    dataset = all_alike(make_dataset(images=12))
    made = make_folds(dataset, num_folds=3)
    for fold in range(3):
        ids = sorted(made.val_ids(fold))
        assert len(ids) in (3, 4, 5)
        assert ids == list(range(ids[0], ids[-1] + 1))
    assert "12 of 12 images are near-duplicates of each other" in caplog.text
    caplog.clear()
    groups = {i: f"scene {i % 4}" for i in dataset.image_ids}
    made = make_folds(dataset, num_folds=2, groups=groups)
    assert len({(groups[i], made.fold_of[i]) for i in groups}) == 4, "a group given by the user stays whole"
    make_folds(dataset, num_folds=3, keep_near_duplicates=False)
    assert caplog.text.count("near-duplicates") == 1


def test_folds_of_other_data_are_refused(
    dataset: Dataset, make_dataset: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    made = make_folds(dataset, num_folds=3)
    assert fit_folds(made, dataset, where="f").fold_of == made.fold_of
    fewer = dataset.subset(range(20))
    assert fit_folds(made, fewer, where="f").fold_of == {i: made.fold_of[i] for i in range(20)}
    assert "f: names 10 images that" in caplog.text
    old = make_folds(fewer, num_folds=3)
    with pytest.raises(
        InputError, match=r"f: gives a fold to only 20 of the 30 images.*image id 20 \(train/0020.jpg\) has none"
    ):
        fit_folds(old, dataset, where="f")
    with pytest.raises(InputError, match="f: gives a fold to none of the 30 images"):
        fit_folds(Folds({900: 0, 901: 1}, 2), dataset, where="f")
    shifted = replace(made, file_names={i: f"elsewhere/{i + 1:04}.jpg" for i in made.fold_of})
    with pytest.raises(
        InputError, match=r"f: was made for other data: image id 0 \(train/0000.jpg\).* is called elsewhere/0001.jpg"
    ):
        fit_folds(shifted, dataset, where="f")
    moved = replace(made, file_names={i: f"elsewhere/{i:04}.jpg" for i in made.fold_of})
    assert fit_folds(moved, dataset, where="f").fold_of == made.fold_of


def test_a_part_without_an_object_is_refused(dataset: Dataset) -> None:
    empty = next(s.id for s in dataset.samples if s.annotations is not None and not len(s.annotations))
    alone = Folds({i: int(i == empty) for i in dataset.image_ids}, 2)
    with pytest.raises(InputError, match=r"f: fold 1 of .* has 1 images and no object to score"):
        divide(dataset, alone, 1, where="f")
    with pytest.raises(InputError, match=r"f: the rest besides fold 0 of .* has 1 images and no object to learn from"):
        divide(dataset, alone, 0, where="f")
    train, val = divide(dataset, make_folds(dataset, num_folds=3), 1, where="f")
    assert len(train) == 20
    assert len(val) == 10


def test_a_pattern_that_never_ends_is_stopped(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foldfuse.system.regular_expressions.SECONDS", 0.5)
    long = replace(dataset, samples=(replace(dataset.samples[0], file_name="a" * 60 + "!"),))
    with pytest.raises(InputError, match=r"took longer than 0\.5 s"):
        groups_of(long, "^(a+)+$")


def test_folds_are_read_as_written(dataset: Dataset, tmp_path: Path) -> None:
    made = make_folds(dataset, num_folds=3)
    made.write(tmp_path / "folds.json")
    again = read_folds(tmp_path / "folds.json")
    assert dict(again.fold_of) == dict(made.fold_of)
    assert again.num_folds == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"num_folds": 2, "fold_of": {"1": 2}}', "image 1 is in fold 2, expected 0..1"),
        ('{"num_folds": 2}', "is not a file of folds"),
        ('{"format": 3, "num_folds": 2, "fold_of": {}}', "is a file of folds of format 3.*Update Foldfuse"),
        ("[1, 2]", "expected the JSON object of a file of folds"),
        ("{", "is not JSON"),
    ],
)
def test_a_broken_folds_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "folds.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_folds(tmp_path / "folds.json")


def test_wrong_numbers_of_folds_are_refused(dataset: Dataset) -> None:
    with pytest.raises(InputError, match="the number of folds is 1, and must be 2 or more"):
        make_folds(dataset, num_folds=1)
    with pytest.raises(
        InputError, match=r"29 of its 30 images hold objects, fewer than 31 folds.*Ask for at most 29 folds"
    ):
        make_folds(dataset, num_folds=31)
    with pytest.raises(InputError, match=r"no fold 5: the folds are 0..4"):
        make_folds(dataset).val_ids(5)


def test_groups_come_from_file_names(dataset: Dataset) -> None:
    assert groups_of(dataset, r"(\d)\.jpg$")[23] == "3"
    assert groups_of(dataset, r"002\d") == {i: f"00{i}" for i in range(20, 30)}
    with pytest.raises(InputError, match=r"matches none of the file names.*train/0000.jpg"):
        groups_of(dataset, "video")
    with pytest.raises(InputError, match="is not a regular expression"):
        groups_of(dataset, "(")


def test_the_command_shows_the_folds(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = split(dataset.source, out=tmp_path / "folds.json", folds=2, group=r"(\d)\.jpg$")
    made = read_folds(out)
    assert len({made.fold_of[i] for i in (3, 13, 23)}) == 1
    printed = capsys.readouterr().out
    assert "class 2" in printed
    assert str(dataset.num_boxes - boxes_per_fold(dataset, made)[0].sum()) in printed
