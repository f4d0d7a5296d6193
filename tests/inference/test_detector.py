"""Predictions: in pixels of the original images, whatever their shape, view and batch."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from foldfuse.commands.predict import predict
from foldfuse.commands.train import train
from foldfuse.data.readers.coco import read
from foldfuse.detections import Detections
from foldfuse.errors import InputError
from foldfuse.formats.predictions import read_predictions
from foldfuse.inference.detector import load_detector, predict_views
from foldfuse.inference.tta import View, parse_views
from foldfuse.models import make_detector
from foldfuse.storage.run import Run
from learning_samples import write_dataset

ALL_VIEWS = parse_views(["1", "1+hflip", "1+vflip", "1+hflip+vflip", "2", "0.5"])


class Finder(nn.Module):
    """A detector that finds the reddest rectangle of each image, by looking at its pixels."""

    stride = 32

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        return (images[:, 0] - images[:, 1:].amax(1)) > 0.4  # (B, H, W)

    def decode(self, raw):
        found = []
        for mask in raw:
            y, x = np.nonzero(mask.numpy())
            box = [[x.min(), y.min(), x.max() + 1, y.max() + 1]] if len(x) else []
            n = len(box)
            boxes = np.array(box, np.float32).reshape(-1, 4)
            found.append(Detections(boxes, np.full(n, 0.5, np.float32), np.zeros(n, np.int64)))
        return found


@pytest.fixture
def mixed(tmp_path):
    """Images of several shapes, each with one red rectangle; their Dataset and {id: box}."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(0)
    images, boxes = [], {}
    for i, (width, height) in enumerate([(200, 100), (100, 200), (128, 128), (90, 60), (300, 100)]):
        x, y = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
        boxes[10 + i] = (x, y, x + width // 3, y + height // 4)
        image = Image.new("RGB", (width, height), (60, 60, 60))
        ImageDraw.Draw(image).rectangle((x, y, boxes[10 + i][2] - 1, boxes[10 + i][3] - 1), fill=(255, 0, 0))
        image.save(tmp_path / f"{i}.png")
        images.append({"id": 10 + i, "file_name": f"{i}.png", "width": width, "height": height})
    path = tmp_path / "test.json"
    path.write_text(json.dumps({"images": images, "categories": [{"id": 1, "name": "red"}]}))
    return read(path, annotated=False), boxes


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_boxes_come_back_to_the_pixels_of_the_images(mixed, batch_size):
    dataset, boxes = mixed
    found = predict_views(
        Finder(), dataset.samples, dataset.classes, image_size=128, views=ALL_VIEWS, batch_size=batch_size
    )
    assert tuple(found) == ALL_VIEWS
    for predictions in found.values():
        assert predictions.image_ids.tolist() == list(dataset.image_ids), "in the order of the dataset"
        for image_id, box in boxes.items():
            one = predictions[image_id]
            assert one.boxes.shape == (1, 4)
            np.testing.assert_allclose(one.boxes[0], box, atol=5)  # a pixel of the smallest canvas is 4.7 of an image's


def test_a_scale_shows_the_network_another_canvas(mixed):
    dataset, _ = mixed
    model = Finder()
    predict_views(model, dataset.samples, dataset.classes, image_size=128, views=ALL_VIEWS, batch_size=1)
    longest = {max(shape[2:]) for shape in model.seen}
    assert longest == {64, 128, 256}
    assert (1, 3, 64, 128) in model.seen, "a wide image needs no square"


def test_progress_is_told_to_the_end(mixed):
    dataset, _ = mixed
    shares = []
    predict_views(
        Finder(), dataset.samples, dataset.classes, image_size=64, views=[View()], batch_size=2, progress=shares.append
    )
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    data = write_dataset(folder / "d", 6)
    return data, train(data, out=folder / "run", changes=("image_size=64", "batch_size=2"), steps=2)


def test_a_run_predicts_a_file_in_one_view_or_several(trained, tmp_path):
    data, run = trained
    dataset = read(data)
    one = read_predictions(predict(run, data, out=tmp_path / "one.parquet", all_=True), dataset)
    fused = read_predictions(predict(run, data, out=tmp_path / "two.json", view=("1", "1.5+hflip"), all_=True), dataset)
    assert set(one.image_ids) == set(fused.image_ids) == set(dataset.image_ids)
    assert len(one.boxes) > 0
    assert len(fused.boxes) > len(one.boxes) / 2
    assert (one.boxes <= [96, 64, 96, 64]).all()


def test_the_weights_of_a_run_are_its_averaged_ones(trained):
    _, run = trained
    model, classes = load_detector(Run(run))
    assert classes == ("red", "blue")
    assert not model.training
    plain = make_detector(Run(run).recipe.detector, 2, pretrained=False).eval()
    images = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        assert not torch.allclose(model(images).logits, plain(images).logits, atol=1e-3)
        plain.load_state_dict(Run(run).load_weights())  # what is loaded may be folded, but gives the same
        torch.testing.assert_close(model(images).logits, plain(images).logits, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_predicted_is_told_and_nothing_written(trained, tmp_path):
    data, run = trained
    out = tmp_path / "out.json"
    document = json.loads(data.read_text())
    document["categories"][0]["name"] = "crimson"
    (data.parent / "other.json").write_text(json.dumps(document))
    for arguments, message in [
        ((tmp_path / "gone", data), "the folder of a run"),
        ((run, tmp_path / "gone.json"), "no such file"),
        (
            (run, data.parent / "other.json"),
            r"other.json: has the class crimson, not among the classes of .*run.* \(red, blue\)",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            predict(*arguments, out=out)
    with pytest.raises(InputError, match="twice"):
        predict(run, data, out=out, view=("1", "1"))
    assert not out.exists()
