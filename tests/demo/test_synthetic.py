"""The drawn dataset: the contest's layout, boxes that fit what is drawn, the same pictures from the same seed."""

import json

import numpy as np
import pytest
from PIL import Image

from foldfuse.data.readers import coco as data
from foldfuse.demo import synthetic as scenes
from foldfuse.demo.objects import KINDS
from foldfuse.errors import InputError

CONTEST = ["General trash", "Paper", "Paper pack", "Metal", "Glass", "Plastic", "Styrofoam", "Plastic bag", "Battery",
           "Clothing"]  # fmt: skip
SMALL = {"num_images": 5, "num_test_images": 3, "image_size": 96, "seed": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return scenes.make_dataset(tmp_path_factory.mktemp("scenes") / "trash", **SMALL)


def document(folder, name):
    return json.loads((folder / name).read_text())


def test_it_has_the_layout_of_the_contest(made):
    for name, split, count in (("train.json", "train", 5), ("test.json", "test", 3), ("test_truth.json", "test", 3)):
        found = document(made, name)
        assert [c["name"] for c in sorted(found["categories"], key=lambda c: c["id"])] == CONTEST
        assert sorted(c["id"] for c in found["categories"]) == list(range(10))
        assert [i["id"] for i in found["images"]] == list(range(count))
        assert [i["file_name"] for i in found["images"]] == [f"{split}/{n:04d}.jpg" for n in range(count)]
        for row in found["images"]:
            with Image.open(made / row["file_name"]) as picture:
                assert picture.size == (row["width"], row["height"]) == (96, 96)
    assert document(made, "test.json")["annotations"] == []
    assert document(made, "test_truth.json")["annotations"]
    assert sorted(p.name for p in made.iterdir()) == ["test", "test.json", "test_truth.json", "train", "train.json"]


def test_it_is_read_as_a_dataset(made):
    train, truth = data.read(made), data.read(made / "test_truth.json")
    assert train.classes == truth.classes == tuple(CONTEST) == scenes.CLASSES
    assert len(train) == 5
    assert train.num_boxes == len(document(made, "train.json")["annotations"]) > 0


def test_a_seed_gives_the_same_files_and_another_seed_gives_others(made, tmp_path):
    again = scenes.make_dataset(tmp_path / "again", **SMALL)
    other = scenes.make_dataset(tmp_path / "other", **SMALL | {"seed": 5})
    for file in (p.relative_to(made) for p in made.rglob("*") if p.is_file()):
        assert (again / file).read_bytes() == (made / file).read_bytes(), file
        assert (other / file).read_bytes() != (made / file).read_bytes(), file


def test_the_test_pictures_are_not_the_training_pictures(made):
    assert (made / "train/0000.jpg").read_bytes() != (made / "test/0000.jpg").read_bytes()


@pytest.mark.parametrize("seed", range(12))
def test_boxes_are_tight_around_what_is_seen(seed):
    _, masks, labels, whole = scenes._compose(np.random.default_rng(seed), 160)
    picture, boxes, kept = scenes.draw(np.random.default_rng(seed), 160)
    assert picture.size == (160, 160)
    seen = [i for i, mask in enumerate(masks) if mask.sum() >= max(1, 0.25 * whole[i])]
    assert kept.tolist() == labels[seen].tolist()
    assert len(boxes) == len(seen)
    for i, box in zip(seen, boxes):
        x1, y1, x2, y2 = box.astype(int)
        assert (box == (x1, y1, x2, y2)).all()
        assert 0 <= x1 < x2 <= 160
        assert 0 <= y1 < y2 <= 160
        inside = masks[i, y1:y2, x1:x2]
        assert inside.sum() == masks[i].sum(), "something of it lies outside its box"
        assert all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


def test_what_is_labelled_is_what_changed_the_picture():
    # The masks above could all be shifted by a pixel against the picture; this looks at the picture itself.
    picture = np.zeros((60, 60, 3), np.float32)
    thing = Image.new("RGBA", (10, 20), (255, 255, 255, 255))
    window, _ = scenes._lay(picture, thing, np.array([30.0, 25.0]), 0.0)
    rows, columns = np.flatnonzero(picture.any((1, 2))), np.flatnonzero(picture.any((0, 2)))
    assert window == (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    assert (len(rows), len(columns)) == (20, 10)


def test_a_thing_wholly_outside_changes_nothing():
    picture = np.ones((20, 20, 3), np.float32)
    scenes._lay(picture, Image.new("RGBA", (6, 6), (255, 0, 0, 255)), np.array([-90.0, 5.0]), 1.0)
    assert (picture == 1).all()


def test_every_class_occurs_and_the_common_ones_more_often():
    labels = np.concatenate([scenes.draw(np.random.default_rng([1, i]), 64)[2] for i in range(150)])
    count = np.bincount(labels, minlength=10)
    assert (count > 0).all()
    assert count[CONTEST.index("Paper")] > 2 * count[CONTEST.index("Battery")]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_thing_is_drawn_on_a_clear_sheet_and_varies(kind):
    for drawing in set(kind.draws):
        one, two = (drawing(np.random.default_rng(seed), 96) for seed in (0, 1))
        assert one.mode == "RGBA"
        assert one.size == (96, 96)
        cover = np.asarray(one.getchannel("A")) > scenes._EDGE
        assert 0.02 < cover.mean() < 0.95
        assert one.tobytes() != two.tobytes()


def test_a_set_made_with_the_same_arguments_is_used_again(made):
    before = (made / "train.json").stat().st_mtime_ns
    assert scenes.make_dataset(made, **SMALL) == made
    assert (made / "train.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("change", [{"num_images": 6}, {"num_test_images": 2}, {"image_size": 128}, {"seed": 5}])
def test_a_set_made_with_other_arguments_is_refused(made, change):
    with pytest.raises(InputError, match="holds scenes made with"):
        scenes.make_dataset(made, **SMALL | change)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "train.json").write_text('{"images": []}')
    with pytest.raises(InputError, match=r"has no train\.json of drawn scenes"):
        scenes.make_dataset(tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["train.json"]


def test_a_set_that_lost_a_picture_is_refused(tmp_path):
    out = scenes.make_dataset(tmp_path / "trash", num_images=1, num_test_images=1, image_size=64)
    (out / "test/0000.jpg").unlink()
    with pytest.raises(InputError, match=r"test/0000\.jpg is missing"):
        scenes.make_dataset(out, num_images=1, num_test_images=1, image_size=64)


def test_nothing_is_left_when_drawing_is_broken_off(tmp_path, monkeypatch):
    def interrupted(rng, size):
        raise KeyboardInterrupt

    monkeypatch.setattr(scenes, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scenes.make_dataset(tmp_path / "trash", **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"), [("num_images", 0), ("num_test_images", -1), ("image_size", 32), ("seed", -1)]
)
def test_a_number_out_of_range_is_named(tmp_path, name, value):
    with pytest.raises(InputError, match=f"^{name} is {value}, and must be at least"):
        scenes.make_dataset(tmp_path / "trash", **SMALL | {name: value})
    assert list(tmp_path.iterdir()) == []
