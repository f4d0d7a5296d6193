"""Training and prediction on the odd little datasets that people have."""

import json

import pytest

from foldfuse.commands.predict import predict
from foldfuse.commands.train import train
from foldfuse.data.folds import Folds
from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError
from foldfuse.formats.predictions import read_predictions
from foldfuse.storage.run import Run
from learning_samples import write_dataset

CHANGES = ("image_size=64", "batch_size=2")


def changed(folder, change):
    """A drawn dataset whose document `change` has changed in place."""
    path = write_dataset(folder / "d", 6)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def one_class(document):
    document["categories"] = [{"id": 0, "name": "only"}]
    for row in document["annotations"]:
        row["category_id"] = 0


def odd_ids(document):
    ids = {3: 2_000_000_011, 7: 0}
    for row in [*document["categories"], *document["annotations"]]:
        key = "category_id" if "category_id" in row else "id"
        row[key] = ids[row[key]]


def mostly_empty(document):
    document["annotations"] = document["annotations"][:1]


def a_class_that_nobody_drew(document):
    document["categories"].insert(1, {"id": 5, "name": "ghost"})


@pytest.mark.parametrize("change", [one_class, odd_ids, mostly_empty, a_class_that_nobody_drew])
def test_it_trains_and_predicts(change, tmp_path):
    data = changed(tmp_path, change)
    train(data, out=tmp_path / "run", changes=(*CHANGES, "mosaic=0.5"), steps=3)
    assert all(row["loss"] > 0 for row in Run(tmp_path / "run").log)
    predict(tmp_path / "run", data, out=tmp_path / "found.json", all_=True)
    ids = {row["id"] for row in json.loads(data.read_text())["categories"]}
    assert {row["category_id"] for row in json.loads((tmp_path / "found.json").read_text())} <= ids
    assert len(read_predictions(tmp_path / "found.json", read(data))) == 6


def test_a_fold_without_a_class_still_knows_the_class(tmp_path):
    data = write_dataset(tmp_path / "d", 6)
    dataset = read(data)
    with_blue = [s.id for s in dataset.samples if 1 in s.annotations.labels]
    split = tmp_path / "folds.json"
    Folds({s.id: int(s.id in with_blue) for s in dataset.samples}, 2).write(split)
    assert 0 < len(with_blue) < 6
    train(data, out=tmp_path / "run", changes=CHANGES, steps=2, folds=split, fold=1)  # what is left shows red alone
    assert Run(tmp_path / "run").metadata.classes == ("red", "blue")
    predict(tmp_path / "run", data, out=tmp_path / "found.parquet", all_=True)
    assert read_predictions(tmp_path / "found.parquet", dataset).classes == ("red", "blue")


def test_fewer_images_than_a_batch_are_shown_again(tmp_path):
    data = write_dataset(tmp_path / "d", 3)
    train(data, out=tmp_path / "run", changes=("image_size=64", "batch_size=8"), steps=2)
    assert Run(tmp_path / "run").metadata.steps == 2


def test_images_without_one_object_are_refused(tmp_path):
    with pytest.raises(InputError, match="not one object is annotated"):
        train(changed(tmp_path, lambda document: document.update(annotations=[])), out=tmp_path / "run", steps=1)
    assert not (tmp_path / "run").exists()
