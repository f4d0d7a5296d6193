"""The drawn dataset: the contest's layout, boxes that fit the drawn things, the same pictures from the same seed."""

import json

import numpy as np
import pytest
from PIL import Image

from foldfuse.data.readers.coco import read
from foldfuse.demo import synthetic
from foldfuse.demo.synthetic import THINGS, compose, draw_scene, draw_thing, make_dataset, paste
from foldfuse.errors import InputError

CONTEST = ["General trash", "Paper", "Paper pack", "Metal", "Glass", "Plastic", "Styrofoam", "Plastic bag", "Battery",
           "Clothing"]  # fmt: skip
SMALL = {"num_images": 5, "num_test_images": 3, "image_size": 96, "seed": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("scenes") / "trash", **SMALL)


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
            with Image.open(made / row["file_name"]) as image:
                assert image.size == (row["width"], row["height"]) == (96, 96)
    assert document(made, "test.json")["annotations"] == []
    assert document(made, "test_truth.json")["annotations"]
    assert sorted(p.name for p in made.iterdir()) == ["test", "test.json", "test_truth.json", "train", "train.json"]


def test_it_is_read_as_a_dataset(made):
    train, truth = read(made), read(made / "test_truth.json")
    assert train.classes == truth.classes == tuple(CONTEST) == tuple(THINGS)
    assert len(train) == 5
    assert train.num_boxes == len(document(made, "train.json")["annotations"]) > 0


def test_a_seed_gives_the_same_files_and_another_seed_gives_others(made, tmp_path):
    again = make_dataset(tmp_path / "again", **SMALL)
    other = make_dataset(tmp_path / "other", **SMALL | {"seed": 5})
    for file in (p.relative_to(made) for p in made.rglob("*") if p.is_file()):
        assert (again / file).read_bytes() == (made / file).read_bytes(), file
        assert (other / file).read_bytes() != (made / file).read_bytes(), file


def test_the_test_images_are_not_the_training_images(made):
    assert (made / "train/0000.jpg").read_bytes() != (made / "test/0000.jpg").read_bytes()


@pytest.mark.parametrize("seed", range(12))
def test_boxes_are_tight_around_the_visible_pixels(seed):
    _, masks, labels, full_area = compose(np.random.default_rng(seed), 160)
    image, boxes, kept = draw_scene(np.random.default_rng(seed), 160)
    assert image.size == (160, 160)
    visible = [i for i, mask in enumerate(masks) if mask.sum() >= max(1, 0.25 * full_area[i])]
    assert kept.tolist() == labels[visible].tolist()
    assert len(boxes) == len(visible)
    for i, box in zip(visible, boxes):
        x1, y1, x2, y2 = box.astype(int)
        assert (box == (x1, y1, x2, y2)).all()
        assert 0 <= x1 < x2 <= 160
        assert 0 <= y1 < y2 <= 160
        inside = masks[i, y1:y2, x1:x2]
        assert inside.sum() == masks[i].sum(), "a visible pixel lies outside the box"
        assert all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


@pytest.mark.parametrize(("x", "rows", "columns"), [(30.0, 20, 10), (3.0, 20, 8), (-90.0, 0, 0)])
def test_the_annotated_pixels_are_the_changed_pixels(x, rows, columns):
    # The masks above could all be shifted by a pixel against the image; this test looks at the image itself.
    scene = Image.new("RGB", (60, 60))  # black, so that a shadow changes nothing
    alpha = paste(scene, Image.new("RGBA", (10, 20), (255, 255, 255, 255)), np.array([x, 25.0]), 0.0)
    changed = np.asarray(scene).any(-1)
    np.testing.assert_array_equal(changed, alpha == 255)
    assert (changed.any(1).sum(), changed.any(0).sum()) == (rows, columns)


def test_every_class_occurs_and_the_common_classes_more_often():
    labels = np.concatenate([draw_scene(np.random.default_rng([1, i]), 64)[2] for i in range(150)])
    count = np.bincount(labels, minlength=10)
    assert (count > 0).all()
    assert count[CONTEST.index("Paper")] > 2 * count[CONTEST.index("Battery")]


@pytest.mark.parametrize("name", THINGS)
def test_each_thing_is_drawn_on_a_transparent_sheet_and_varies(name):
    for draw in THINGS[name][2]:
        one, two = (draw_thing(np.random.default_rng(seed), draw, 96.0) for seed in (0, 1))
        assert one.mode == "RGBA"
        cover = np.asarray(one.getchannel("A")) > synthetic.EDGE_ALPHA
        assert 0.1 < cover.mean() < 1
        assert max(one.size) <= 96 * 2**0.5
        assert one.tobytes() != two.tobytes()


def test_a_dataset_made_with_the_same_arguments_is_used_again(made):
    before = (made / "train.json").stat().st_mtime_ns
    assert make_dataset(made, **SMALL) == made
    assert (made / "train.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("change", [{"num_images": 6}, {"num_test_images": 2}, {"image_size": 128}, {"seed": 5}])
def test_a_dataset_made_with_other_arguments_is_refused(made, change):
    with pytest.raises(InputError, match="holds scenes made with"):
        make_dataset(made, **SMALL | change)


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "train.json").write_text('{"images": []}')
    with pytest.raises(InputError, match=r"has no train\.json of drawn scenes"):
        make_dataset(tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["train.json"]


def test_a_dataset_that_lost_an_image_is_refused(tmp_path):
    out = make_dataset(tmp_path / "trash", num_images=1, num_test_images=1, image_size=64)
    (out / "test/0000.jpg").unlink()
    with pytest.raises(InputError, match=r"test/0000\.jpg is missing"):
        make_dataset(out, num_images=1, num_test_images=1, image_size=64)


def test_nothing_is_left_when_drawing_is_interrupted(tmp_path, monkeypatch):
    def interrupted(rng, size):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "draw_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_dataset(tmp_path / "trash", **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"), [("num_images", 0), ("num_test_images", -1), ("image_size", 32), ("seed", -1)]
)
def test_a_number_out_of_range_is_named(tmp_path, name, value):
    with pytest.raises(InputError, match=f"^{name} is {value}, and must be at least"):
        make_dataset(tmp_path / "trash", **SMALL | {name: value})
    assert list(tmp_path.iterdir()) == []
