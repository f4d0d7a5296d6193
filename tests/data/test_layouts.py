"""YOLO and VOC datasets are read as COCO documents with the same boxes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foldfuse.commands.data import check
from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError

CORNERS = "<xmin>x</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>"


def image(path: Path, width: int = 40, height: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path)


def text(path: Path, words: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(words, encoding="utf-8")
    return path


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        image(tmp_path / "images" / split / f"{split}1.png")
        image(tmp_path / "images" / split / f"{split}2.png", 10, 10)
        text(tmp_path / "labels" / split / f"{split}1.txt", "1 0.5 0.5 0.5 0.5\n\n0 0.25 0.25 0.5 0.1 0.75 0.75\n")
    return text(
        tmp_path / "data.yaml", "path: .\ntrain: images/train\nval: images/val\nnames: {0: cup, 1: can}\n"
    ).parent


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    xml = """<annotation><filename>a.jpg</filename><size><width>40</width><height>20</height></size>
    <object><name>dog</name><difficult>0</difficult>
    <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>10</ymax></bndbox></object>
    <object><name>cat</name><difficult>1</difficult>
    <bndbox><xmin>11</xmin><ymin>6</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>
    </annotation>"""
    image(tmp_path / "JPEGImages" / "a.jpg")
    image(tmp_path / "JPEGImages" / "b.jpg")
    text(tmp_path / "Annotations" / "a.xml", xml)
    text(tmp_path / "Annotations" / "b.xml", "<annotation><filename>b.jpg</filename></annotation>")
    text(tmp_path / "ImageSets" / "Main" / "train.txt", "a 1\n")
    return tmp_path


def test_yolo_folder_yaml_and_split_agree(yolo: Path):
    by_folder, by_yaml = read(yolo), read(yolo / "data.yaml")
    split = read(yolo / "images" / "train")
    assert by_folder.fingerprint == by_yaml.fingerprint == split.fingerprint
    assert [s.path.name for s in read(yolo / "images" / "val").samples] == ["val1.png", "val2.png"]


def test_yolo_boxes_are_in_pixels(yolo: Path):
    dataset = read(yolo)
    assert dataset.classes == ("cup", "can")
    first, second = dataset.samples
    assert (first.width, first.height) == (40, 20)
    np.testing.assert_allclose(first.annotations.boxes, [[10, 5, 30, 15], [10, 2, 30, 15]], atol=1e-5)
    assert first.annotations.labels.tolist() == [1, 0]
    assert len(second.annotations) == 0


def test_yolo_list_of_images(yolo: Path):
    text(yolo / "train.txt", "images/train/train1.png\n")
    text(yolo / "data.yaml", "train: train.txt\nnames: [cup, can]\n")
    assert [s.path.name for s in read(yolo).samples] == ["train1.png"]


def test_ids_are_the_numbers_in_the_names(tmp_path: Path):
    for name in ("000139", "000285"):
        image(tmp_path / "images" / f"{name}.jpg")
    text(tmp_path / "data.yaml", "train: images\nnames: [cup]\n")
    assert [s.id for s in read(tmp_path, annotated=False).samples] == [139, 285]


def test_voc_counts_from_one_and_difficult_is_crowd(voc: Path):
    dataset = read(voc)
    assert dataset.classes == ("cat", "dog")
    first, second = dataset.samples
    np.testing.assert_allclose(first.annotations.boxes, [[0, 0, 40, 10], [10, 5, 20, 20]])
    assert first.annotations.labels.tolist() == [1, 0]
    assert first.annotations.crowd.tolist() == [False, True]
    assert len(second.annotations) == 0


def test_voc_list_chooses_images_but_keeps_all_classes(voc: Path):
    dataset = read(voc / "ImageSets" / "Main" / "train.txt")
    assert [s.path.name for s in dataset.samples] == ["a.jpg"]
    assert dataset.classes == ("cat", "dog")


def test_check_writes_a_coco_copy(yolo: Path, tmp_path: Path):
    check(yolo, fix=True, out=tmp_path / "coco.json", json_only=True)
    fixed = read(tmp_path / "coco.json")
    assert fixed.classes == ("cup", "can")
    np.testing.assert_allclose(fixed.samples[0].annotations.boxes, read(yolo).samples[0].annotations.boxes)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("1 0.5 0.5 0.5", "has 4 numbers"),
        ("cat 0.5 0.5 0.5 0.5", "expected numbers"),
        ("7 0.5 0.5 0.5 0.5", "the class is 7"),
        ("0 0.5 0.5 0.5 0.5 0.5 0.5 0.5", "has 8 numbers"),
    ],
)
def test_a_broken_yolo_line_is_named(yolo: Path, line: str, says: str):
    text(yolo / "labels" / "train" / "train1.txt", f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(InputError, match=f"train1.txt: line 2.*{says}"):
        read(yolo)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ("train: images/train\n", "has no 'names'"),
        ("names: [cup]\n", "has no 'train'"),
        ("names: [cup]\ntrain: nowhere\n", "there is no"),
        ("names: {cup: 0}\ntrain: images/train\n", "whole numbers"),
        ("names: [cup\n", "is not YAML"),
        ("names: !!python/object/apply:os.system ['true']\n", "has the tag"),
    ],
)
def test_a_broken_yaml_is_named(yolo: Path, facts: str, says: str):
    text(yolo / "data.yaml", facts)
    with pytest.raises(InputError, match=says):
        read(yolo)


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        ("<annotation>", "is not XML"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotation/>", "entities"),
        ("<annotation><object><name>dog</name></object></annotation>", "no <bndbox>"),
        ("<annotation><object><bndbox/></object></annotation>", "no <name>"),
        (
            f"<annotation><object><name>a</name><bndbox>{CORNERS}</bndbox></object></annotation>",
            "something else than numbers",
        ),
    ],
)
def test_a_broken_xml_is_named(voc: Path, xml: str, says: str):
    text(voc / "Annotations" / "b.xml", xml)
    with pytest.raises(InputError, match=rf"b\.xml: .*{says}"):
        read(voc)


def test_missing_images_and_annotations_are_named(voc: Path):
    text(voc / "ImageSets" / "Main" / "train.txt", "a\nc\n")
    with pytest.raises(InputError, match=r"no c\.xml"):
        read(voc / "ImageSets" / "Main" / "train.txt")
    (voc / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(InputError, match=r"no image .*b\.jpg"):
        read(voc)


def test_a_folder_of_neither_layout_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="holds no dataset"):
        read(tmp_path)


def test_images_without_annotations_are_refused(tmp_path: Path):
    image(tmp_path / "a" / "b" / "c" / "d" / "x.jpg")
    with pytest.raises(InputError, match="holds images, but no annotations"):
        read(tmp_path / "a" / "b" / "c" / "d")
