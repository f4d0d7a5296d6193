"""Predictions go to FiftyOne, CVAT and Label Studio, and come back as annotations with the same boxes."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from campaign_samples import noisy
from foldfuse import cli
from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError
from foldfuse.formats.predictions import read_predictions, write_predictions
from learning_samples import write_dataset

WITHIN = 0.01  # pixels


@pytest.fixture
def made(tmp_path):
    """A dataset, predictions of its images within them, and their file."""
    data = write_dataset(tmp_path / "my data" / "d", 5)
    dataset = read(data)
    predictions = noisy(dataset, 1)
    inside = np.clip(predictions.boxes, 0, [96, 64, 96, 64]).astype(np.float32)
    keep = (inside[:, 2:] - inside[:, :2] > 1).all(1)
    predictions = replace(predictions, boxes=inside).filter(keep)
    file = write_predictions(predictions, tmp_path / "found.parquet", dataset)
    return data, predictions, file


def convert(made, format: str, out: Path, *words: str) -> Path:
    data, _, file = made
    assert cli.main(["convert", str(file), str(data), "--format", format, "--out", str(out), *words]) == 0
    return out


def same_boxes(dataset, predictions) -> None:
    """Asserts that the annotations of a dataset are the predicted boxes, image by image."""
    assert {s.id for s in dataset.samples} == set(predictions)
    for sample in dataset.samples:
        found = predictions[sample.id]
        np.testing.assert_allclose(sample.annotations.boxes, found.boxes, atol=WITHIN)
        names = [dataset.classes[k] for k in sample.annotations.labels]
        assert names == [predictions.classes[k] for k in found.labels]


def annotate(folder: Path, **changes) -> Path:
    """What Label Studio exports once a person has accepted every pre-annotation of a folder."""
    tasks = json.loads((folder / "tasks.json").read_text())
    for number, task in enumerate(tasks, 1):
        regions = [{k: v for k, v in each.items() if k != "score"} for each in task["predictions"][0]["result"]]
        one = {"id": number, "result": regions, "was_cancelled": False, "ground_truth": False, "completed_by": 1}
        task |= {"id": 100 + number, "annotations": [one | {"updated_at": "2026-01-01T00:00:00Z"} | changes]}
    path = folder.parent / "project-1.json"
    path.write_text(json.dumps(tasks))
    return path


def test_a_coco_document_keeps_images_classes_and_scores(made, tmp_path):
    data, predictions, _ = made
    out = convert(made, "coco_dataset", tmp_path / "labels.json")
    document = json.loads(out.read_text())
    assert {"images", "categories", "annotations"} <= document.keys()
    assert {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "score"} == document[
        "annotations"
    ][0].keys()
    found = read_predictions(out, read(data))
    np.testing.assert_allclose(found.boxes, predictions.boxes, atol=WITHIN)
    np.testing.assert_array_equal(np.float32(found.scores), predictions.scores)
    same_boxes(read(out, images=data.parent / "images"), predictions)


def test_cvat_gets_boxes_with_scores_and_gives_them_back(made, tmp_path):
    data, predictions, _ = made
    out = convert(made, "cvat", tmp_path / "cvat")
    root = ET.parse(out / "annotations.xml").getroot()
    assert [image.get("name") for image in root.iter("image")] == [f"{i:03}.png" for i in range(5)]
    scores = [float(box.findtext("attribute[@name='score']")) for box in root.iter("box")]
    np.testing.assert_array_equal(np.float32(scores), predictions.scores)
    labels = json.loads((out / "labels.json").read_text())
    assert [label["name"] for label in labels] == ["red", "blue"]
    assert {label["attributes"][0]["name"] for label in labels} == {"score"}
    back = read(out / "annotations.xml", images=data.parent / "images")
    assert back.classes == ("red", "blue")
    numbered = {sample.id: int(sample.file_name[:3]) for sample in back.samples}
    same_boxes(replace(back, samples=tuple(replace(s, id=numbered[s.id]) for s in back.samples)), predictions)


def test_label_studio_gets_boxes_with_scores_and_gives_them_back(made, tmp_path, capsys):
    data, predictions, _ = made
    out = convert(made, "label_studio", tmp_path / "studio")
    assert f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={data.parent}," in capsys.readouterr().err
    tasks = json.loads((out / "tasks.json").read_text())
    assert tasks[2]["data"] == {"image": "/data/local-files/?d=images/002.png", "image_id": 2}
    (prediction,) = tasks[2]["predictions"]
    assert prediction["model_version"] == "found"
    scores = [region["score"] for region in prediction["result"]]
    np.testing.assert_array_equal(np.float32(scores), predictions[2].scores)
    assert prediction["score"] == pytest.approx(np.mean(scores))
    view = ET.parse(out / "config.xml").getroot()
    assert [label.get("value") for label in view.iter("Label")] == ["red", "blue"]
    region = prediction["result"][0]
    assert region["from_name"] == view.find("RectangleLabels").get("name")
    assert region["to_name"] == view.find("Image").get("name") == view.find("RectangleLabels").get("toName")
    with pytest.raises(InputError, match="none of its 5 tasks is annotated"):
        read(out / "tasks.json")
    assert len(read(out / "tasks.json", annotated=False, images=data.parent)) == 5
    same_boxes(read(annotate(out), images=data.parent), predictions)


def test_a_score_threshold_leaves_out_boxes_and_keeps_images(made, tmp_path):
    _, predictions, _ = made
    out = convert(made, "label_studio", tmp_path / "studio", "--score-threshold", "0.6")
    tasks = json.loads((out / "tasks.json").read_text())
    assert len(tasks) == 5
    number = sum(len(task["predictions"][0]["result"]) for task in tasks)
    assert number == (predictions.scores >= 0.6).sum()
    assert all(("score" in task["predictions"][0]) == bool(task["predictions"][0]["result"]) for task in tasks)


def test_boxes_are_clipped_for_tools_and_names_are_escaped(made, tmp_path):
    data, predictions, _ = made
    document = json.loads(data.read_text())
    document["categories"][0]["name"] = 'a "red" <b> & é'
    data.write_text(json.dumps(document))
    dataset = read(data)
    wide = replace(predictions, boxes=predictions.boxes + np.float32([-200, 0, 200, 0]), classes=dataset.classes)
    write_predictions(wide, tmp_path / "cvat", dataset, format="cvat")
    back = read(tmp_path / "cvat", images=data.parent / "images")
    assert back.classes == dataset.classes
    assert all((s.annotations.boxes[:, [0, 2]] == [0, 96]).all() for s in back.samples)
    document["categories"][0]["name"] = "bell\x07"
    data.write_text(json.dumps(document))
    bell = replace(predictions, classes=("bell\x07", "blue"))
    for format in ("cvat", "label_studio"):
        with pytest.raises(InputError, match="which XML cannot hold"):
            write_predictions(bell, tmp_path / f"{format}_bell", replace(dataset, classes=bell.classes), format=format)
        assert not (tmp_path / f"{format}_bell").exists()


def test_images_of_several_folders_keep_their_places(tmp_path):
    whole = read(write_dataset(tmp_path / "d", 2))
    names = ("a/1 #.png", "b/1 #.png")
    for sample, name in zip(whole.samples, names, strict=True):
        target = tmp_path / "all" / name
        target.parent.mkdir(parents=True)
        sample.path.rename(target)
    samples = [
        replace(s, path=tmp_path / "all" / name, file_name=name) for s, name in zip(whole.samples, names, strict=True)
    ]
    dataset = replace(whole, samples=tuple(samples))
    predictions = noisy(dataset, 2).filter(np.zeros(len(noisy(dataset, 2).boxes), bool))
    write_predictions(predictions, tmp_path / "studio", dataset, format="label_studio")
    tasks = json.loads((tmp_path / "studio" / "tasks.json").read_text())
    assert [t["data"]["image"] for t in tasks] == [f"/data/local-files/?d=all/{x}/1%20%23.png" for x in "ab"]
    back = read(annotate(tmp_path / "studio"), annotated=False)
    assert [s.path for s in back.samples] == [s.path for s in dataset.samples]


def test_corrections_are_made_in_a_copy_of_a_label_studio_export(made, tmp_path):
    data, *_ = made
    export = annotate(convert(made, "label_studio", tmp_path / "studio"))
    dataset = read(export, images=data.parent)
    sample = next(s for s in dataset.samples if len(s.annotations))
    x1, y1, x2, y2 = sample.annotations.boxes[0].tolist()
    removal = {
        "action": "remove",
        "image": sample.file_name,
        "image_id": sample.id,
        "annotation_class": dataset.classes[sample.annotations.labels[0]],
        "annotation_box": [x1, y1, x2 - x1, y2 - y1],
    }
    document = {"format": 1, "kind": "foldfuse corrections", "fingerprint": dataset.fingerprint, "data": str(export)}
    corrections = tmp_path / "corrections.json"
    corrections.write_text(json.dumps(document | {"corrections": [removal]}))
    out = tmp_path / "fixed.json"
    words = ["check", str(export), "--images", str(data.parent), "--fix", "--corrections", str(corrections)]
    assert cli.main([*words, "--out", str(out), "--json-only"]) == 0
    assert read(out, images=data.parent).num_boxes == dataset.num_boxes - 1
