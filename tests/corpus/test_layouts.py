"""Datasets as tools write them: what is read right, what is told, and what is refused."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_samples import Case, coco, parametrize, run, save_image, write_coco
from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError

Make = Callable[[Path], None]
NAMES = "names: [cat, dog, bird]\n"
LINE = "1 0.5 0.5 0.25 0.5\n"  # a dog, [36, 16, 24, 32] on 96 x 64
BOX = [36.0, 16.0, 60.0, 48.0]  # xyxy
XML = """<annotation><filename>{filename}</filename><size><width>96</width><height>64</height></size>
<object><name>dog</name><bndbox><xmin>37</xmin><ymin>17</ymin><xmax>60</xmax><ymax>48</ymax></bndbox></object></annotation>"""


def text(path: Path, words: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(words.encode(encoding))
    return path


def yolo(
    *,
    images: str = "images/train/{}.jpg",
    labels: str = "labels/train/{}.txt",
    stems: Sequence[str] = ("a", "b", "c", "d"),
    line: str = LINE,
    yaml: str | None = "train: images/train\n" + NAMES,
    also: Callable[[Path], Any] | None = None,
) -> Make:
    """A YOLO dataset with one label line an image."""

    def make(folder: Path) -> None:
        for seed, stem in enumerate(stems):
            save_image(folder / images.format(stem), seed=seed)
            text(folder / labels.format(stem), line)
        if yaml is not None:
            text(folder / "data.yaml", yaml)
        if also is not None:
            also(folder)

    return make


def voc(
    *,
    images: str = "JPEGImages/{}.jpg",
    xmls: str = "Annotations/{}.xml",
    stems: Sequence[str] = ("a", "b", "c", "d"),
    xml: str = XML,
    filename: str = "{}.jpg",
    encoding: str = "utf-8",
    also: Callable[[Path], Any] | None = None,
) -> Make:
    """A VOC dataset with one object an image."""

    def make(folder: Path) -> None:
        for seed, stem in enumerate(stems):
            if images:
                save_image(folder / images.format(stem), seed=seed)
            text(folder / xmls.format(stem), xml.replace("{filename}", filename.format(stem)), encoding)
        if also is not None:
            also(folder)

    return make


def coco_as(
    rename: Callable[[str], str], *, json_name: str = "train.json", image_name: Callable[[str], str] | None = None
) -> Make:
    """A COCO dataset whose file names and image files are changed: image 1 is called 1.jpg at first."""

    def make(folder: Path) -> None:
        document = coco()
        for seed, row in enumerate(document["images"]):
            plain = f"{row['id']}.jpg"
            row["file_name"] = rename(plain)
            save_image(folder / (image_name(plain) if image_name else f"images/{plain}"), seed=seed)
        write_coco(folder, document, json_name, with_images=False)

    return make


def has(
    data: str, num_images: int = 4, box: Sequence[float] | None = BOX, *, classes: str = "cat dog bird"
) -> Callable:
    """Checks that every image of a dataset has one dog with this box."""

    def right(folder: Path) -> None:
        dataset = read(folder / data)
        assert len(dataset) == num_images
        assert dataset.classes == tuple(classes.split())
        for sample in dataset.samples:
            assert sample.path.is_file()
            assert sample.annotations is not None
            np.testing.assert_allclose(sample.annotations.boxes, [box], atol=0.01)
            assert [dataset.classes[label] for label in sample.annotations.labels] == ["dog"]

    return right


def has_coco(data: str) -> Callable[[Path], None]:
    """Checks that a COCO dataset has its 4 images, each under its own name, and 8 boxes."""

    def right(folder: Path) -> None:
        dataset = read(folder / data)
        assert (len(dataset), dataset.num_boxes) == (4, 8)
        for sample in dataset.samples:
            assert str(sample.id) in sample.path.name

    return right


def nfd(name: str) -> str:
    return unicodedata.normalize("NFD", name)


def windows_paths(folder: Path) -> None:
    text(folder / "data.yaml", "path: D:\\sets\\pets\ntrain: images\\train\n" + NAMES)


def orphans(folder: Path) -> None:
    for stem in "xyz":
        text(folder / "labels/train" / f"{stem}.txt", LINE)
    save_image(folder / "images/train/e.jpg", seed=9)


POSE = "1 0.5 0.5 0.25 0.5 0.45 0.4 0.55 0.6\n"
TURNED = "1 0.5 0.25 0.66667 0.5 0.5 0.75 0.33333 0.5\n"

YOLO = [
    Case("yolo", yolo(), "check data.yaml", says=("no faults", "4 images, 4 boxes"), right=has("data.yaml")),
    Case("yolo_folder", yolo(), "check .", says=("no faults",), right=has(".")),
    Case("yolo_split_folder", yolo(), "check images/train", says=("no faults",), right=has("images/train")),
    Case("pose", yolo(line=POSE, yaml="train: images/train\nkpt_shape: [2, 2]\n" + NAMES), "check .", right=has(".")),
    Case(
        "pose_17",
        yolo(line=LINE.strip() + " 0.5 0.5 2" * 17 + "\n", yaml="train: images\nkpt_shape: [17, 3]\n" + NAMES),
        "check .",
        right=has("."),
    ),
    Case("pose_unsaid", yolo(line=POSE), "split . --out f.json --folds 2", 2, ("kpt_shape: [2, 2]", "keypoints")),
    Case("pose_unsaid_check", yolo(line=POSE), "check .", 1, ("the numbers seem to be keypoints",)),
    Case(
        "pose_other_count",
        yolo(line=POSE, yaml="train: images/train\nkpt_shape: [3, 2]\n" + NAMES),
        "split . --out f.json --folds 2",
        2,
        ("has 8 numbers after the class, expected 10",),
    ),
    Case("polygon", yolo(line="1 0.375 0.25 0.625 0.25 0.625 0.75 0.5 0.75 0.375 0.5\n"), "check .", right=has(".")),
    Case("polygon_of_4", yolo(line="1 0.375 0.25 0.625 0.25 0.625 0.75 0.375 0.75\n"), "check .", right=has(".")),
    Case("oriented", yolo(line=TURNED), "split . --out f.json", 2, ("oriented boxes", "--fix")),
    Case(
        "oriented_said",
        yolo(yaml="train: images/train\ntask: obb\n" + NAMES),
        "check .",
        1,
        ("the boxes are oriented",),
    ),
    Case("dota", yolo(line="30 20 60 20 60 40 30 40 dog 0\n"), "split . --out f.json", 2, ("Oriented boxes (DOTA)",)),
    Case("sixth_number", yolo(line="1 0.5 0.5 0.25 0.5 0.93\n"), "check .", says=("the sixth number",), right=has(".")),
    Case("class_float", yolo(line="1.0 0.5 0.5 0.25 0.5\n"), "check .", right=has(".")),
    Case("class_name", yolo(line="dog 0.5 0.5 0.25 0.5\n"), "check .", right=has(".")),
    Case("class_fraction", yolo(line="0.5 0.5 0.5 0.25 0.5\n"), "check .", 1, ("label file is broken",)),
    Case("class_unknown", yolo(line="7 0.5 0.5 0.25 0.5\n"), "split . --out f.json", 2, ("the class is 7",)),
    Case("commas", yolo(line="1,0.5,0.5,0.25,0.5\n"), "check .", right=has(".")),
    Case("decimal_commas", yolo(line="1 0,5 0,5 0,25 0,5\n"), "check .", right=has(".")),
    Case("tabs_crlf_bom", yolo(line="\ufeff1\t0.5\t0.5\t0.25\t0.5\r\n\r\n"), "check .", right=has(".")),
    Case("pixels", yolo(line="1 48 32 24 32\n"), "split . --out f.json", 2, ("look like pixels",)),
    Case(
        "corners",
        yolo(line="1 0.375 0.25 0.9 0.75\n1 0.6 0.6 0.95 0.95\n"),
        "split . --out f.json",
        2,
        ("x1 y1 x2 y2",),
    ),
    Case("negative_size", yolo(line="1 0.5 0.5 -0.25 0.5\n"), "split . --out f.json", 2, ("the box has the size",)),
    Case("nan", yolo(line="1 0.5 nan 0.25 0.5\n"), "split . --out f.json", 2, ("expected finite numbers",)),
    Case("too_few", yolo(line="1 0.5 0.5\n"), "split . --out f.json", 2, ("has 3 numbers, expected 5",)),
    Case("binary_labels", yolo(also=lambda f: (f / "labels/train/a.txt").write_bytes(b"\0\1\2\0")), "check .", 1),
    Case("labels_beside", yolo(labels="images/train/{}.txt"), "check .", right=has(".")),
    Case(
        "labels_beside_in_images",
        yolo(images="images/{}.jpg", labels="images/{}.txt", yaml="train: .\n" + NAMES),
        "check data.yaml",
        right=has("data.yaml"),
    ),
    Case(
        "images_twice_in_path",
        yolo(images="images/set/images/{}.jpg", labels="images/set/labels/{}.txt", yaml="train: images\n" + NAMES),
        "check .",
        right=has("."),
    ),
    Case(
        "labels_below",
        yolo(images="train/{}.jpg", labels="train/labels/{}.txt", yaml="train: train\n" + NAMES),
        "check .",
        right=has("."),
    ),
    Case(
        "labels_mirrored",
        yolo(images="img/train/{}.jpg", labels="labels/train/{}.txt", yaml="train: img\n" + NAMES),
        "check .",
        right=has("."),
    ),
    Case(
        "labels_misnamed",
        yolo(labels="lables/train/{}.txt"),
        "split . --out f.json",
        2,
        ("has a label file", "lables/train holds 4 of these"),
    ),
    Case("labels_missing", yolo(labels="gone/{}.md"), "check .", 1, ("no image has a label file",)),
    Case(
        "orphans",
        yolo(also=orphans),
        "check .",
        1,
        ("the label file has no image │ 3", "the image has no label file │ 1"),
    ),
    Case("labels_nfc", yolo(stems=[nfd("für_1"), nfd("für_2")], also=None), "check .", right=has(".", 2)),
    Case(
        "labels_nfd",
        yolo(
            stems=["ä", "ö"],
            labels="gone/{}.x",
            also=lambda f: [text(f / "labels/train" / nfd(f"{s}.txt"), LINE) for s in "äö"],
        ),
        "check .",
        says=("another spelling",),
        right=has(".", 2),
    ),
    Case(
        "labels_percent",
        yolo(
            stems=["a b", "ö"],
            labels="gone/{}.x",
            also=lambda f: [text(f / "labels/train" / s, LINE) for s in ("a%20b.txt", "%C3%B6.txt")],
        ),
        "check .",
        says=("another spelling",),
        right=has(".", 2),
    ),
    Case(
        "labels_upper",
        yolo(labels="gone/{}.x", also=lambda f: [text(f / "labels/train" / f"{s}.TXT", LINE) for s in "ABCD"]),
        "check .",
        right=has("."),
    ),
    Case("labels_full_names", yolo(labels="labels/train/{}.jpg.txt"), "check .", right=has(".")),
    Case(
        "labels_two_fit",
        yolo(
            also=lambda f: (
                (f / "labels/train/a.txt").rename(f / "labels/train/A.TXT") and text(f / "labels/train/%61.txt", LINE)
            )
        ),
        "check .",
        1,
        ("the label file has no image",),
        right=has("."),
    ),
    Case(
        "two_images_one_label",
        yolo(also=lambda f: save_image(f / "images/train/a.png", seed=8)),
        "check .",
        1,
        ("two images share one label file",),
    ),
    Case("jfif", yolo(images="images/train/{}.jfif"), "check .", right=has(".")),
    Case("upper_endings", yolo(images="images/train/{}.JPG"), "check .", right=has(".")),
    Case(
        "mac_files",
        yolo(
            also=lambda f: (
                [text(f / "images/train" / n, "x") for n in ("._a.jpg", ".DS_Store", "Thumbs.db")]
                + [text(f / "images/train/__MACOSX/a.jpg", "x")]
                + [text(f / "labels/train/._a.txt", "x")]
            )
        ),
        "check .",
        says=("no faults",),
        right=has("."),
    ),
    Case(
        "one_empty_image",
        yolo(also=lambda f: text(f / "images/train/e.jpg", "")),
        "check .",
        1,
        ("cannot be decoded │ 1", "4 images, 4 boxes"),
    ),
    Case(
        "long_numbers",
        yolo(stems=["12345678901234567890", "12345678901234567891"]),
        "check .",
        right=lambda f: ids_are(f, [1, 2]),
    ),
    Case("numbers", yolo(stems=["0007", "0012"]), "check .", right=lambda f: ids_are(f, [7, 12])),
    Case(
        "names_bool",
        yolo(yaml="train: images\nnames: [yes, dog, off]\n"),
        "check .",
        right=has(".", classes="yes dog off"),
    ),
    Case(
        "names_str_keys",
        yolo(yaml="train: images\nnames: {'0': cat, '1': dog}\n"),
        "check .",
        right=has(".", classes="cat dog"),
    ),
    Case(
        "names_dict",
        yolo(yaml="train: images\nnames:\n  0: cat\n  1: dog\n"),
        "check .",
        right=has(".", classes="cat dog"),
    ),
    Case(
        "names_file",
        yolo(yaml="train: images\nnames: my.names\n", also=lambda f: text(f / "my.names", "cat\ndog\n")),
        "check .",
        right=has(".", classes="cat dog"),
    ),
    Case("nc_differs", yolo(yaml="train: images\nnc: 5\n" + NAMES), "check .", 1, ("'nc' is '5'", "3 classes")),
    Case("windows", yolo(also=windows_paths), "check .", says=("path of another machine",), right=has(".")),
    Case(
        "other_machine",
        yolo(yaml="path: /home/someone/pets\ntrain: /home/someone/pets/images/train\n" + NAMES),
        "check .",
        says=("path of another machine",),
        right=has("."),
    ),
    Case(
        "list",
        yolo(
            yaml="train: train.txt\n" + NAMES,
            also=lambda f: text(f / "train.txt", "./images/train/a.jpg\nimages\\train\\b.jpg\n"),
        ),
        "check .",
        right=has(".", 2),
    ),
    Case(
        "list_from_path",
        yolo(
            images="set/images/{}.jpg",
            labels="set/labels/{}.txt",
            yaml="path: set\ntrain: lists/train.txt\n" + NAMES,
            also=lambda f: text(f / "set/lists/train.txt", "images/a.jpg\nimages/b.jpg\n"),
        ),
        "check data.yaml",
        right=has("data.yaml", 2),
    ),
    Case(
        "list_other_machine",
        yolo(yaml="train: train.txt\n" + NAMES, also=lambda f: text(f / "train.txt", "/data/x/images/train/a.jpg\n")),
        "check .",
        right=has(".", 1),
    ),
    Case(
        "list_missing",
        yolo(
            yaml="train: train.txt\n" + NAMES,
            also=lambda f: text(f / "train.txt", "images/train/a.jpg\nimages/train/q.jpg\n"),
        ),
        "check .",
        1,
        ("the listed image is missing",),
    ),
    Case(
        "several_folders",
        yolo(
            yaml="train: [images/train, images/more]\n" + NAMES,
            also=lambda f: (save_image(f / "images/more/z.jpg", seed=9), text(f / "labels/more/z.txt", LINE)),
        ),
        "check .",
        right=has(".", 5),
    ),
    Case(
        "roboflow",
        yolo(
            images="train/images/{}.jpg",
            labels="train/labels/{}.txt",
            yaml="train: ../train/images\nval: ../valid/images\n" + NAMES,
        ),
        "check .",
        right=has("."),
    ),
    Case("only_val", yolo(yaml="val: images/train\n" + NAMES), "check data.yaml", 2, ("has no 'train'", "'val'")),
    Case(
        "args_yaml",
        yolo(
            yaml=None,
            also=lambda f: (
                text(f / "args.yaml", "task: detect\nlr: 1\n"),
                text(f / "pets.yaml", "train: images\n" + NAMES),
            ),
        ),
        "check .",
        right=has("."),
    ),
    Case(
        "two_yamls",
        yolo(yaml=None, also=lambda f: [text(f / f"{n}.yaml", "train: images\n" + NAMES) for n in "xy"]),
        "check .",
        2,
        ("x.yaml, y.yaml", "Give the path of one"),
    ),
    Case(
        "label_studio",
        yolo(
            images="images/{}.jpg",
            labels="labels/{}.txt",
            yaml=None,
            also=lambda f: text(f / "classes.txt", "cat\ndog\nbird\n"),
        ),
        "check .",
        right=has("."),
    ),
    Case(
        "label_img",
        yolo(images="{}.jpg", labels="{}.txt", yaml=None, also=lambda f: text(f / "classes.txt", "cat\ndog\nbird\n")),
        "check .",
        right=has("."),
    ),
    Case(
        "cvat_yolo",
        yolo(
            images="obj_train_data/{}.jpg",
            labels="obj_train_data/{}.txt",
            yaml=None,
            also=lambda f: (
                text(f / "obj.names", "cat\ndog\nbird\n"),
                text(f / "obj.data", "classes = 3\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"),
                text(f / "train.txt", "".join(f"data/obj_train_data/{s}.jpg\n" for s in "abcd")),
            ),
        ),
        "check .",
        right=lambda f: (has(".")(f), has("obj.data")(f), has("train.txt")(f)),
    ),
    Case(
        "images_elsewhere",
        yolo(images="far/pets/{}.jpg", labels="far/pets/{}.txt", yaml="train: images/train\n" + NAMES),
        "check data.yaml --images far",
        says=("4 images, 4 boxes",),
    ),
    Case(
        "images_nowhere",
        yolo(images="far/pets/{}.jpg"),
        "check data.yaml",
        2,
        ("there is no images/train", "--images DIR"),
    ),
]


def ids_are(folder: Path, ids: Sequence[int]) -> None:
    assert [sample.id for sample in read(folder).samples] == list(ids)


ZERO = XML.replace("37", "0").replace("17", "0")
POLYGON = XML.replace(
    "<bndbox><xmin>37</xmin><ymin>17</ymin><xmax>60</xmax><ymax>48</ymax></bndbox>",
    "<polygon><x1>37</x1><y1>17</y1><x2>60</x2><y2>17</y2><x3>50</x3><y3>48</y3></polygon>",
)
PARTS = XML.replace(
    "</bndbox>",
    "</bndbox><part><name>nose</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>",
)


def stale(folder: Path) -> None:
    """XML files and images renamed together: each <filename> names the neighbour."""
    for stem, other in zip("abcd", "bcda", strict=True):
        text(folder / "Annotations" / f"{stem}.xml", XML.replace("{filename}", f"{other}.jpg"))


def image_set(words: str) -> Callable[[Path], Path]:
    return lambda folder: text(folder / "ImageSets/Main/dog_train.txt", words)


VOC = [
    Case("voc", voc(), "check .", says=("no faults", "4 images, 4 boxes"), right=has(".", classes="dog")),
    Case(
        "voc_stale", voc(also=stale), "split . --out f.json", 2, ("its <filename> is 'b.jpg', but a.jpg is there too",)
    ),
    Case("voc_stale_check", voc(also=stale), "check .", 1, ("<filename> contradicts the name of the XML file │ 4",)),
    Case(
        "voc_gone_filename",
        voc(filename="IMG_0001.jpg"),
        "check .",
        says=("the image with the name of the XML",),
        right=has(".", classes="dog"),
    ),
    Case(
        "voc_filename_alone",
        voc(images="JPEGImages/i{}.jpg", filename="i{}.jpg"),
        "check .",
        right=has(".", classes="dog"),
    ),
    Case(
        "voc_one_image",
        voc(images="JPEGImages/x{}.jpg", filename="xa.jpg"),
        "check .",
        1,
        ("two XML files are of one image",),
    ),
    Case("voc_path_filename", voc(filename="C:\\pets\\{}.JPG"), "check .", right=has(".", classes="dog")),
    Case("voc_no_ending", voc(images="JPEGImages/{}.JPEG", filename="{}"), "check .", right=has(".", classes="dog")),
    Case("voc_other_ending", voc(images="JPEGImages/{}.png"), "check .", right=has(".", classes="dog")),
    Case("voc_flat", voc(images="train/{}.jpg", xmls="train/{}.xml"), "check train", right=has("train", classes="dog")),
    Case("voc_lower", voc(images="images/{}.jpg", xmls="annotations/{}.xml"), "check .", right=has(".", classes="dog")),
    Case("voc_upper_xml", voc(xmls="Annotations/{}.XML"), "check .", right=has(".", classes="dog")),
    Case(
        "voc_split_folders",
        voc(images="images/train/{}.jpg", xmls="annotations/train/{}.xml"),
        "check .",
        right=has(".", classes="dog"),
    ),
    Case(
        "voc_masks",
        voc(also=lambda f: save_image(f / "SegmentationClass/a.png")),
        "check .",
        right=has(".", classes="dog"),
    ),
    Case(
        "voc_nfd",
        voc(
            stems=["ä", "ö"],
            images="",
            also=lambda f: [save_image(f / "JPEGImages" / nfd(f"{s}.jpg"), seed=i) for i, s in enumerate("äö")],
        ),
        "check .",
        right=has(".", 2, classes="dog"),
    ),
    Case(
        "voc_gb2312",
        voc(xml="<?xml version='1.0' encoding='gb2312'?>" + XML.replace("dog", "狗"), encoding="gb2312"),
        "check .",
        says=("狗",),
    ),
    Case("voc_polygon", voc(xml=POLYGON), "check .", right=has(".", classes="dog")),
    Case(
        "voc_no_box",
        voc(
            also=lambda f: text(
                f / "Annotations/a.xml",
                "<annotation><filename>a.jpg</filename><object><name>dog</name></object></annotation>",
            )
        ),
        "check .",
        1,
        ("the object has no usable box",),
    ),
    Case("voc_part", voc(xml=PARTS), "check .", says=("4 images, 4 boxes",), right=has(".", classes="dog")),
    Case(
        "voc_floats",
        voc(xml=XML.replace("37", "37.0").replace("48<", " 48.00 <")),
        "check .",
        right=has(".", classes="dog"),
    ),
    Case(
        "voc_from_zero",
        voc(xml=ZERO),
        "check .",
        says=("corners count from 0",),
        right=has(".", box=[0, 0, 60, 48], classes="dog"),
    ),
    Case(
        "voc_difficult", voc(xml=XML.replace("<bndbox>", "<difficult>1</difficult><bndbox>")), "split . --out f.json", 2
    ),
    Case(
        "voc_difficult_odd",
        voc(xml=XML.replace("<bndbox>", "<difficult>maybe</difficult><bndbox>")),
        "check .",
        1,
        ("no usable box",),
    ),
    Case(
        "voc_oriented",
        voc(xml=XML.replace("bndbox", "robndbox")),
        "split . --out f.json",
        2,
        ("oriented boxes are not supported",),
    ),
    Case(
        "voc_one_broken",
        voc(also=lambda f: text(f / "Annotations/a.xml", "<annotation>")),
        "check .",
        1,
        ("the XML file cannot be read", "3 images, 3 boxes"),
    ),
    Case(
        "voc_images_without_xml",
        voc(also=lambda f: save_image(f / "JPEGImages/z.jpg", seed=9)),
        "check .",
        0,
        ("the image has no XML file",),
    ),
    Case(
        "voc_image_set",
        voc(also=image_set("a 1\nb -1\nc.jpg  1\n")),
        "check ImageSets/Main/dog_train.txt",
        says=("marked -1",),
        right=has("ImageSets/Main/dog_train.txt", 2, classes="dog"),
    ),
    Case(
        "voc_image_set_gone",
        voc(also=image_set("a\nq\n")),
        "check ImageSets/Main/dog_train.txt",
        1,
        ("has no XML file",),
    ),
    Case("voc_single_xml", voc(), "check Annotations/a.xml", 2, ("Give the folder of the dataset",)),
    Case(
        "voc_score_without_images",
        voc(images="", also=lambda f: text(f / "p.json", "[]")),
        "score p.json .",
        right=None,
    ),
]


COCO = [
    Case(
        "coco_cvat",
        coco_as(str, json_name="annotations/instances_default.json"),
        "check annotations/instances_default.json",
        right=has_coco("annotations/instances_default.json"),
    ),
    Case(
        "coco_cvat_folder", coco_as(str, json_name="annotations/instances_default.json"), "check .", right=has_coco(".")
    ),
    Case(
        "coco_cvat_default",
        coco_as(str, json_name="annotations/instances_default.json", image_name="images/default/{}".format),
        "check .",
        right=has_coco("."),
    ),
    Case(
        "coco_2017",
        coco_as(str, json_name="annotations/instances_train2017.json", image_name="train2017/{}".format),
        "check .",
        right=has_coco("."),
    ),
    Case(
        "coco_fiftyone",
        coco_as(str, json_name="labels.json", image_name="data/{}".format),
        "check .",
        right=has_coco("labels.json"),
    ),
    Case(
        "coco_roboflow",
        coco_as(str, json_name="train/_annotations.coco.json", image_name="train/{}".format),
        "check train",
        right=has_coco("train"),
    ),
    Case(
        "coco_roboflow_above",
        coco_as(str, json_name="train/_annotations.coco.json", image_name="train/{}".format),
        "check .",
        2,
        ("Its folders train hold datasets",),
    ),
    Case(
        "coco_backslash",
        coco_as("images\\{}".format),
        "check .",
        says=("no faults",),
        never=("another",),
        right=has_coco("."),
    ),
    Case(
        "coco_percent",
        coco_as(lambda n: "a%20b%C3%A9" + n, image_name=lambda n: "images/a bé" + n),
        "check .",
        says=("another spelling",),
        right=has_coco("."),
    ),
    Case(
        "coco_nfd",
        coco_as(lambda n: "é" + n, image_name=lambda n: "images/" + nfd("é" + n)),
        "check .",
        right=has_coco("."),
    ),
    Case("coco_upper", coco_as(lambda n: n.replace("jpg", "JPG")), "check .", right=has_coco(".")),
    Case("coco_no_ending", coco_as(lambda n: n.removesuffix(".jpg")), "check .", right=has_coco(".")),
    Case(
        "coco_label_studio",
        coco_as("/data/upload/7/1f2e-{}".format, image_name="images/1f2e-{}".format),
        "check .",
        says=("in another folder",),
        right=has_coco("."),
    ),
    Case(
        "coco_local_files",
        coco_as("/data/local-files/?d=set/{}".format, image_name="images/{}".format),
        "check .",
        right=has_coco("."),
    ),
    Case("coco_other_machine", coco_as("D:\\work\\pets\\{}".format), "check .", right=has_coco(".")),
    Case(
        "coco_two_fit", coco_as("/x/{}".format, image_name="p/{}".format), "check . --json-only", 0, right=has_coco(".")
    ),
    Case(
        "coco_images_option",
        coco_as(str, image_name="far/away/{}".format, json_name="set/train.json"),
        "check set --images far",
        says=("no faults", "4 images, 8 boxes"),
    ),
    Case(
        "coco_images_option_gone",
        coco_as(str),
        "check . --images nowhere",
        2,
        ("--images nowhere: there is no such folder",),
    ),
    Case("coco_two_jsons", coco_as(str, json_name="a.json"), "check .", right=has_coco(".")),
]


def table(
    words: str,
    *,
    name: str = "train.csv",
    images: str = "train/{}.jpg",
    stems: Sequence[str] = ("a", "b"),
    also: Callable[[Path], Any] | None = None,
) -> Make:
    """A CSV file, and its images."""

    def make(folder: Path) -> None:
        for seed, stem in enumerate(stems):
            save_image(folder / images.format(stem), seed=seed)
        text(folder / name, words)
        if also is not None:
            also(folder)

    return make


def has_dogs(
    num_images: int = 2, *, data: str = "train.csv", classes: str = "dog", empty: int = 0
) -> Callable[[Path], None]:
    """Checks that the images of a CSV have one dog each with the box BOX, `empty` of them none."""

    def right(folder: Path) -> None:
        dataset = read(folder / data)
        assert dataset.classes == tuple(classes.split())
        assert len(dataset) == num_images
        boxes = [sample.annotations.boxes for sample in dataset.samples if sample.annotations is not None]
        assert sum(not len(each) for each in boxes) == empty
        for each in boxes:
            if len(each):
                np.testing.assert_allclose(each, [BOX], atol=0.01)

    return right


WHEAT = 'image_id,width,height,bbox,source\na,96,64,"[36.0, 16.0, 24.0, 32.0]",x\nb,96,64,"[36, 16, 24, 32]",x\n'
CORNERS = "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,96,64,dog,36,16,60,48\nb.jpg,96,64,dog,36,16,60,48\n"

CSV = [
    Case(
        "csv_wheat",
        table(WHEAT),
        "check train.csv",
        says=("called object", "2 boxes"),
        right=has_dogs(classes="object"),
    ),
    Case("csv_folder", table(WHEAT), "check .", right=has_dogs(data=".", classes="object")),
    Case("csv_corners", table(CORNERS), "check train.csv", says=("no faults",), right=has_dogs()),
    Case(
        "csv_semicolons", table(CORNERS.replace(",", ";").replace("36;", "36,0;")), "check train.csv", right=has_dogs()
    ),
    Case(
        "csv_tabs_bom",
        table("\ufeff" + CORNERS.replace(",", "\t"), name="train.tsv"),
        "check train.tsv",
        right=has_dogs(data="train.tsv"),
    ),
    Case("csv_xywh", table("Image,Label,x,y,w,h\na,dog,36,16,24,32\nb,dog,36,16,24,32\n"), "check .", right=has_dogs()),
    Case(
        "csv_centres",
        table("image_id,label,x_center,y_center,width,height\na,dog,48,32,24,32\nb,dog,48,32,24,32\n"),
        "check .",
        right=has_dogs(),
    ),
    Case(
        "csv_shares",
        table("ImageID,LabelName,XMin,XMax,YMin,YMax\na,dog,0.375,0.625,0.25,0.75\nb,dog,0.375,0.625,0.25,0.75\n"),
        "check .",
        says=("read as shares",),
        right=has_dogs(),
    ),
    Case(
        "csv_bbox_corners",
        table(WHEAT.replace("24.0, 32.0", "60.0, 48.0").replace("24, 32", "90, 60")),
        "check train.csv",
        says=("2 boxes",),
    ),
    Case(
        "csv_bbox_either",
        table('image_id,bbox\na,"[8, 8, 16, 16]"\nb,"[4, 4, 20, 20]"\n'),
        "check train.csv",
        2,
        ("may be corners or sizes", "bbox_xywh or bbox_xyxy"),
    ),
    Case(
        "csv_bbox_said",
        table('image_id,class,bbox_xywh\na,dog,"[36, 16, 24, 32]"\nb,dog,"36 16 24 32"\n'),
        "check train.csv",
        right=has_dogs(),
    ),
    Case(
        "csv_wrong_names",
        table("image,class,x,y,w,h\na,dog,36,16,90,60\nb,dog,36,16,90,60\n"),
        "check train.csv",
        2,
        ("they look like xyxy",),
    ),
    Case(
        "csv_empty_rows",
        table(CORNERS + "c.jpg,96,64,,,,,\n", stems="abc"),
        "check train.csv",
        right=has_dogs(3, empty=1),
    ),
    Case(
        "csv_nan_rows",
        table(
            "image_id,class_name,class_id,x_min,y_min,x_max,y_max\na,dog,7,36,16,60,48\nb,No finding,14,nan,nan,nan,nan\n"
        ),
        "check train.csv",
        right=lambda f: (has_dogs(2, empty=1)(f), ids_of(f, (7,))),
    ),
    Case(
        "csv_strings",
        table("id,PredictionString\na,dog 1 36 16 60 48\nb,none 1 0 0 1 1\n"),
        "check train.csv",
        right=has_dogs(2, empty=1),
    ),
    Case(
        "csv_strings_14",
        table("image_id,PredictionString\na,3 1 36 16 60 48\nb,14 1 0 0 1 1\n"),
        "check train.csv",
        right=lambda f: (has_dogs(2, empty=1, classes="3")(f), ids_of(f, (3,))),
    ),
    Case(
        "csv_boxes_string",
        table("image_name,BoxesString,domain\na.jpg,36 16 60 48,1\nb.jpg,no_box,1\n"),
        "check train.csv",
        right=has_dogs(2, empty=1, classes="object"),
    ),
    Case(
        "csv_retinanet",
        table("train/a.jpg,36,16,60,48,dog\ntrain/b.jpg,,,,,\n"),
        "check train.csv",
        right=has_dogs(2, empty=1),
    ),
    Case(
        "csv_two_classes",
        table(CORNERS.replace("a.jpg,96,64,dog", "a.jpg,96,64,cat")),
        "check train.csv",
        says=("cat", "dog"),
    ),
    Case("csv_images_option", table(CORNERS, images="far/{}.jpg"), "check train.csv --images far", says=("no faults",)),
    Case("csv_no_images", table(CORNERS, stems=""), "check train.csv --json-only", right=lambda f: None),
    Case(
        "csv_no_images_no_size",
        table("image_id,class,x,y,w,h\na,dog,36,16,24,32\n", stems=""),
        "split train.csv --out f.json",
        2,
        ("there is no image",),
    ),
    Case(
        "csv_no_box_columns",
        table("image_id,patient\na,1\nb,2\n"),
        "split train.csv --out f.json",
        2,
        ("and no boxes", "'image_id, patient'"),
    ),
    Case(
        "csv_no_image_column",
        table("xmin,ymin,xmax,ymax\n1,2,3,4\n"),
        "split train.csv --out f.json",
        2,
        ("none of them names images",),
    ),
    Case(
        "csv_broken_row",
        table(CORNERS + "a.jpg,96,64,dog,x,16,60,48\n"),
        "check train.csv",
        1,
        ("the row of the CSV is broken │ 1",),
    ),
    Case(
        "csv_short_row",
        table(CORNERS + "a.jpg,96\n"),
        "split train.csv --out f.json",
        2,
        ("line 4: has 2 cells, expected 8",),
    ),
    Case("csv_empty", table(""), "check train.csv", 2, ("is empty",)),
    Case(
        "csv_two",
        table(CORNERS, name="x.csv", also=lambda f: text(f / "y.csv", CORNERS)),
        "check .",
        2,
        ("x.csv, y.csv",),
    ),
]


def ids_of(folder: Path, ids: tuple[int, ...]) -> None:
    assert read(folder / "train.csv").category_ids == ids


def no_categories(folder: Path) -> None:
    document = coco()
    write_coco(folder, document)
    write_coco(folder, {"images": document["images"]}, "test.json")
    write_coco(folder, {"images": document["images"], "categories": []}, "empty.json")
    rows = [{"image_id": i, "category_id": 1 + i % 3, "bbox": [8, 8, 24, 16], "score": 0.5} for i in range(1, 5)]
    text(folder / "p.json", json.dumps(rows))


def submitted(folder: Path) -> None:
    lines = (folder / "s.csv").read_text().splitlines()
    assert len(lines) == 5
    assert any(line.startswith("1 0.5") for line in lines)


TESTS = [
    Case(
        "test_no_categories",
        no_categories,
        "submit p.json test.json --classes-from train.json --out s.csv",
        right=submitted,
    ),
    Case(
        "test_empty_categories",
        no_categories,
        "submit p.json empty.json --classes-from train.json --out s.csv",
        right=submitted,
    ),
    Case(
        "test_classes_unknown",
        no_categories,
        "submit p.json test.json --out s.csv",
        2,
        ("has no categories", "--classes-from"),
    ),
    Case(
        "test_classes_contradict",
        no_categories,
        "submit p.json train.json --classes-from train.json --out s.csv",
        right=submitted,
    ),
    Case("test_folder", no_categories, "submit p.json images --classes-from train.json --out s.csv", right=submitted),
    Case("test_folder_check", no_categories, "check images", says=("4 images, 0 boxes",)),
    Case("test_folder_split", no_categories, "split images --out f.json", 2, ("holds images, but no annotations",)),
    Case(
        "test_list",
        lambda f: (no_categories(f), text(f / "list.txt", "images/1.jpg\nimages/2.jpg\nimages/3.jpg\nimages/4.jpg\n")),
        "submit p.json list.txt --classes-from train.json --out s.csv",
        right=submitted,
    ),
    Case("test_json_check", no_categories, "check test.json", says=("4 images, 0 boxes",)),
]


def refuses(folder: Path, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(folder)


def images_are(path: Path, names: Sequence[str]) -> None:
    assert [sample.path.name for sample in read(path, annotated=False).samples] == list(names)


def list_outside(folder: Path) -> None:
    yolo(yaml=None)(folder)
    text(folder / "set/data.yaml", "train: train.txt\n" + NAMES)
    text(folder / "set/train.txt", f"../images/train/a.jpg\n{folder}/images/train/b.jpg\n")


def two_splits(folder: Path) -> None:
    """Different images of one name in the folders of both splits that the JSON's name mentions."""
    for part in ("train", "val"):
        coco_as(str, json_name="train_val.json", image_name=lambda name, part=part: f"{part}/{name}")(folder)


def two_names(folder: Path) -> None:
    """Image 2 is called as if another machine had image 1 in another folder, where there is one file of that name."""
    document = coco()
    document["images"][1]["file_name"] = "/other/1.jpg"
    write_coco(folder, {**document, "images": [row for row in document["images"] if row["id"] != 2]})
    write_coco(folder, document, with_images=False)


def two_vocs(folder: Path) -> None:
    """A dataset without images beside one that has images of the same names."""
    voc(images="", xmls="one/Annotations/{}.xml")(folder)
    voc(images="two/JPEGImages/{}.jpg", xmls="two/Annotations/{}.xml")(folder)


def foreign(words: str) -> Make:
    def make(folder: Path) -> None:
        text(folder / "x.json", words)

    return make


def leaving(folder: Path) -> None:
    """A JSON whose first two images lie outside of its folder, by `..` and by an absolute path."""
    document = coco()
    document["images"][0]["file_name"] = "../other/1.jpg"
    document["images"][1]["file_name"] = str(folder / "other" / "2.jpg")
    for i in (1, 2):
        save_image(folder / "other" / f"{i}.jpg", seed=i)
    for i in (3, 4):
        save_image(folder / "set" / "images" / f"{i}.jpg", seed=i)
    write_coco(folder / "set", document, with_images=False)


def ambiguous(folder: Path) -> None:
    document = coco()
    for row in document["images"]:
        row["file_name"] = f"{row['id']}.jpg"
        for seed, part in enumerate("pq"):
            save_image(folder / part / row["file_name"], seed=10 * row["id"] + seed)
    write_coco(folder, document, with_images=False)


def also_unlisted(folder: Path) -> None:
    write_coco(folder, coco())
    save_image(folder / "images" / "z.jpg", seed=9)


def annotated_twice(folder: Path) -> None:
    document = coco()
    document["annotations"].append(document["annotations"][0] | {"id": 99})
    write_coco(folder / "set", document)


def fixed_is_usable(folder: Path) -> None:
    fixed = read(folder / "copy" / "fixed.json", images=folder / "set")
    assert (len(fixed), fixed.num_boxes) == (4, 8)
    assert all(sample.path.is_file() for sample in fixed.samples)
    assert [sample.file_name for sample in fixed.samples] == [f"images/{i}.jpg" for i in range(1, 5)]


CVAT = """<annotations><version>1.1</version><meta><job><labels><label><name>cat</name></label><label><name>dog</name></label>
</labels></job></meta>{images}</annotations>"""
CVAT_IMAGE = """<image id="0" name="{name}" width="96" height="64"><box label="dog" xtl="36.0" ytl="16.0" xbr="60.0" ybr="48.0"
occluded="0" z_order="0"{also}></box><tag label="cat"></tag></image>"""


def cvat(*, also: str = "", words: str = CVAT) -> Make:
    def make(folder: Path) -> None:
        for seed, stem in enumerate("abcd"):
            save_image(folder / "images" / f"{stem}.jpg", seed=seed)
        images = "".join(CVAT_IMAGE.replace("{name}", f"{stem}.jpg").replace("{also}", also) for stem in "abcd")
        text(folder / "annotations.xml", words.replace("{images}", images))

    return make


SQUARE = {"x": 37.5, "y": 25.0, "width": 25.0, "height": 50.0, "rotation": 0, "rectanglelabels": ["dog"]}  # BOX
SIZE = {"original_width": 96, "original_height": 64}
REGION = {"id": "r", "type": "rectanglelabels", "to_name": "img", "from_name": "tag", "value": SQUARE, **SIZE}


def label_studio(
    *regions: dict[str, Any],
    image: str = "/data/upload/3/0a1b2c3d-{}.jpg",
    also: Sequence[dict[str, Any]] = (),
    more: Callable[[list[Any]], Any] | None = None,
) -> Make:
    """A JSON export of Label Studio with images under the names that it gives to uploads."""

    def make(folder: Path) -> None:
        tasks = []
        for number, stem in enumerate("abcd"):
            save_image(folder / "images" / f"{stem}.jpg", seed=number)
            annotations = [{"id": 7, "result": list(regions or [REGION]), "was_cancelled": False}, *also]
            tasks.append({"id": 50 + number, "data": {"image": image.format(stem)}, "annotations": annotations})
        if more is not None:
            more(tasks)
        text(folder / "project.json", json.dumps(tasks))

    return make


def label_studio_min(folder: Path) -> None:
    rows = []
    for number, stem in enumerate("abcd"):
        save_image(folder / "images" / f"{stem}.jpg", seed=number)
        region = SQUARE | SIZE
        rows.append({"image": f"s3://bucket/{stem}.jpg", "id": number, "label": [region], "annotation_id": 1})
    text(folder / "project.json", json.dumps(rows))


POINTS = [[37.5, 25.0], [62.5, 30.0], [40.0, 75.0]]
LABEL_STUDIO = [
    Case("studio", label_studio(), "check .", says=("no faults", "spelling"), right=has(".", classes="dog")),
    Case("studio_min", label_studio_min, "check project.json", right=has("project.json", classes="dog")),
    Case(
        "studio_polygon",
        label_studio(REGION | {"type": "polygonlabels", "value": {"points": POINTS, "polygonlabels": ["dog"]}}),
        "check .",
        right=has(".", classes="dog"),
    ),
    Case(
        "studio_ellipse",
        label_studio(
            REGION
            | {
                "value": {
                    "x": 50.0,
                    "y": 50.0,
                    "radiusX": 12.5,
                    "radiusY": 25.0,
                    "rotation": 0,
                    "ellipselabels": ["dog"],
                }
            }
        ),
        "check .",
        right=has(".", classes="dog"),
    ),
    Case(
        "studio_mask",
        label_studio(REGION, REGION | {"type": "brushlabels", "value": {"rle": [1], "brushlabels": ["dog"]}}),
        "check .",
        says=("regions that are no boxes are left out", "4 brushlabels"),
        right=has(".", classes="dog"),
    ),
    Case(
        "studio_turned",
        label_studio(REGION | {"value": SQUARE | {"rotation": 20.0}}),
        "split . --out f.json",
        2,
        ("a region is turned by 20 degrees: oriented boxes are not supported",),
    ),
    Case(
        "studio_two_annotators",
        label_studio(
            REGION | {"value": SQUARE | {"x": 1.0}},
            also=[{"id": 8, "result": [REGION], "updated_at": "2026-02-01T10:00:00Z"}],
        ),
        "check .",
        says=("the ground truth counts, else the newest",),
        right=has(".", classes="dog"),
    ),
    Case(
        "studio_ground_truth",
        label_studio(
            also=[{"id": 8, "result": [], "updated_at": "2026-02-01T10:00:00Z"}],
            more=lambda tasks: [task["annotations"][0].update(ground_truth=True) for task in tasks],
        ),
        "check .",
        right=has(".", classes="dog"),
    ),
    Case(
        "studio_skipped_tasks",
        label_studio(more=lambda tasks: tasks[3]["annotations"][0].update(was_cancelled=True)),
        "check .",
        says=("tasks without an annotation are left out", "1 of 4, such as"),
        right=has(".", 3, classes="dog"),
    ),
    Case(
        "studio_two_labels",
        label_studio(REGION | {"value": SQUARE | {"rectanglelabels": ["dog", "cat"]}}),
        "split . --out f.json",
        2,
        ("a region has the labels ['dog', 'cat'], expected one",),
    ),
    Case(
        "studio_no_size",
        label_studio({key: value for key, value in REGION.items() if key not in SIZE}),
        "split project.json --out f.json",
        2,
        ("does not state the size of its image",),
    ),
    Case(
        "studio_text_project",
        label_studio(more=lambda tasks: [task.update(data={"text": "a tale"}) for task in tasks]),
        "check project.json",
        2,
        ("task 1 names no image",),
    ),
    Case(
        "studio_broken_number",
        label_studio(REGION | {"value": SQUARE | {"x": "left"}}),
        "split . --out f.json",
        2,
        ("a region holds 'left', expected a number of percent",),
    ),
]

OTHERS = [
    Case("cvat_images", cvat(), "check .", says=("shapes that are no boxes",), right=has(".", classes="cat dog")),
    Case("cvat_file", cvat(), "check annotations.xml", right=has("annotations.xml", classes="cat dog")),
    Case(
        "cvat_turned", cvat(also=' rotation="30.0"'), "split . --out f.json", 2, ("oriented boxes are not supported",)
    ),
    Case(
        "cvat_video", cvat(words="<annotations><track></track></annotations>"), "check annotations.xml", 2, ("a video",)
    ),
    Case(
        "no_class_names",
        yolo(images="images/{}.jpg", labels="labels/{}.txt", yaml=None),
        "check . --json-only",
        1,
        ("nothing names the classes",),
        right=lambda folder: refuses(folder, "nothing names the classes"),
    ),
    Case(
        "roboflow_split",
        yolo(images="train/images/{}.jpg", labels="train/labels/{}.txt", yaml="train: ../train/images\n" + NAMES),
        "check train",
        right=has("train"),
    ),
    Case("voc_any_folder", voc(images="pics/{}.jpg", xmls="labelled/{}.xml"), "check .", right=has(".", classes="dog")),
    *(
        Case(f"json_{name}", foreign(words), "check x.json", 2, (f"is the JSON of {name}",))
        for name, words in {
            "Datumaro": '{"info": {}, "categories": {"label": {}}, "items": []}',
            "labelme": '{"shapes": [], "imagePath": "a.jpg"}',
            "VIA": '{"a.jpg1": {"filename": "a.jpg", "regions": []}}',
            "CreateML": '[{"image": "a.jpg", "annotations": []}]',
        }.items()
    ),
    Case(
        "label_studio_images_elsewhere",
        yolo(
            images="far/{}.jpg",
            labels="set/labels/1a2b3c4d-{}.txt",
            yaml=None,
            also=lambda f: text(f / "set/classes.txt", "cat\ndog\nbird\n"),
        ),
        "check set --images far",
        says=("4 images, 4 boxes", "another spelling"),
    ),
    Case(
        "label_studio_no_images",
        yolo(
            images="far/{}.jpg",
            labels="set/labels/{}.txt",
            yaml=None,
            also=lambda f: text(f / "set/classes.txt", "a\nb\n"),
        ),
        "check set",
        2,
        ("names no image to read", "--images"),
    ),
    Case(
        "voc_test_list",
        voc(also=lambda f: (save_image(f / "JPEGImages/t.jpg", seed=9), text(f / "ImageSets/Main/test.txt", "t\n"))),
        "submit p.csv ImageSets/Main/test.txt --out s.csv",
        2,
        right=lambda f: images_are(f / "ImageSets/Main/test.txt", ["t.jpg"]),
    ),
    Case(
        "voc_list_counts_from_zero_as_all_do",
        voc(also=lambda f: (image_set("a\n")(f), text(f / "Annotations/d.xml", ZERO.replace("{filename}", "d.jpg")))),
        "check ImageSets/Main/dog_train.txt",
        right=has("ImageSets/Main/dog_train.txt", 1, box=[37, 17, 60, 48], classes="dog"),
    ),
    Case("colon_in_name", coco_as("a:{}".format, image_name="images/a:{}".format), "check .", right=has_coco(".")),
    Case(
        "oriented_fixed",
        yolo(line=TURNED),
        "check . --fix --out fixed.json",
        1,
        right=lambda f: np.testing.assert_allclose(
            read(f / "fixed.json").samples[0].annotations.boxes, [[32, 16, 64, 48]], atol=0.01
        ),
    ),
    Case("pose_fixed", yolo(line=POSE), "check . --fix --out fixed.json", 2, ("Say which: add 'kpt_shape: [2, 2]'",)),
    Case(
        "polygons_said", yolo(line=POSE, yaml="train: images\ntask: segment\n" + NAMES), "check .", says=("no faults",)
    ),
    Case(
        "corners_said",
        yolo(line="1 0.375 0.25 0.625 0.75\n", yaml="train: images\nbox_format: xyxy\n" + NAMES),
        "check .",
        right=has("."),
    ),
    Case(
        "left_top_said",
        yolo(line="1 0.375 0.25 0.25 0.5\n", yaml="train: images\nbox_format: xywh\n" + NAMES),
        "check .",
        right=has("."),
    ),
    Case(
        "unclear_labels_fixed",
        yolo(
            also=lambda f: [
                (f / "labels/train/a.txt").rename(f / "labels/train/%61.txt"),
                text(f / "labels/train/%61.TXT", LINE),
            ]
        ),
        "check . --fix --out fixed.json",
        1,
        ("two label files fit one image │ 1",),
        right=has("fixed.json", 3),
    ),
    Case(
        "list_outside",
        list_outside,
        "check set",
        says=("outside the folder of the dataset's description", "2 of 2 listed images"),
        right=has("set", 2),
    ),
    Case(
        "yaml_outside",
        yolo(yaml=None, also=lambda f: text(f / "set/data.yaml", "train: ../images/train\n" + NAMES)),
        "split set --out f.json --folds 2",
        says=("outside the folder of the dataset's description",),
    ),
    Case("voc_xml_folder", voc(), "check Annotations", right=has("Annotations", classes="dog")),
    Case("voc_image_folder", voc(), "split JPEGImages --out f.json", 2, ("XML files lie in",)),
    Case(
        "label_img_names_in_labels",
        yolo(
            images="images/{}.jpg",
            labels="labels/{}.txt",
            yaml=None,
            also=lambda f: text(f / "labels/classes.txt", "cat\ndog\nbird\n"),
        ),
        "check images",
        right=lambda f: (has("images")(f), has(".")(f)),
    ),
    Case(
        "dicom",
        yolo(stems=(), also=lambda f: [text(f / "images/train" / f"{s}.dcm", "x") for s in "ab"]),
        "check .",
        2,
        ("names no image to read. There are 2 .dcm files",),
    ),
    Case(
        "stem_of_two_files",
        table(CORNERS.replace(".jpg", ""), also=lambda f: save_image(f / "train/a.png", seed=7)),
        "split train.csv --out f.json --folds 2",
        2,
        ("may be train/a.jpg and train/a.png",),
    ),
    Case(
        "case_of_two_files",
        coco_as(
            lambda n: "a.JPG" if n == "1.jpg" else n, image_name=lambda n: f"images/{'A.jpg' if n == '1.jpg' else n}"
        ),
        "check .",
        says=("another spelling",),
    ),
    Case(
        "two_splits_in_the_name",
        coco_as(str, json_name="train_val.json", image_name="train/{}".format),
        "check train_val.json",
        right=has_coco("train_val.json"),
    ),
    Case(
        "two_splits_fit",
        two_splits,
        "split train_val.json --out f.json --folds 2",
        2,
        ("may be train/1.jpg and val/1.jpg",),
    ),
    Case(
        "one_file_for_two", two_names, "split . --out f.json --folds 2", 2, ("both seem to be the image images/1.jpg",)
    ),
    Case(
        "one_file_for_two_fixed",
        two_names,
        "check . --fix --out fixed.json",
        1,
        ("two images of the list seem to be one file │ 1",),
        right=lambda f: images_are(f / "fixed.json", ["1.jpg", "3.jpg", "4.jpg"]),
    ),
    Case(
        "csv_spelling_told",
        table(CORNERS.replace("a.jpg", "C:\\x\\a.jpg")),
        "check train.csv",
        says=("in another folder than its name says │ 1",),
        right=has_dogs(),
    ),
    Case(
        "voc_images_of_another_dataset",
        two_vocs,
        "check one",
        1,
        ("the image is missing │ 4",),
    ),
    Case("coco_outside", leaving, "check set", 1, ("the image is missing │ 2",)),
    Case("coco_outside_split", leaving, "split set --out f.json", 2, ("leads out of the folder", "--images")),
    Case("coco_outside_allowed", leaving, "check set --images .", 0),
    Case("coco_ambiguous", ambiguous, "check .", 1, ("the image is missing │ 4",)),
    Case("coco_ambiguous_split", ambiguous, "split . --out f.json", 2, ("may be p/1.jpg and q/1.jpg",)),
    Case("coco_ambiguous_settled", ambiguous, "check . --images q", says=("no faults",)),
    Case("coco_unlisted", also_unlisted, "check .", says=("1 files, such as z.jpg",), right=has_coco(".")),
    Case(
        "coco_fixed_copy",
        annotated_twice,
        "check set --fix --out copy/fixed.json",
        1,
        ("give --images",),
        right=fixed_is_usable,
    ),
]


@parametrize([*YOLO, *VOC, *COCO, *CSV, *TESTS, *LABEL_STUDIO, *OTHERS])
def test_layouts(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(case, tmp_path, monkeypatch, capsys)
