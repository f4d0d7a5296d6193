"""ONNX files predict what their runs predict, without torch; what a file does not say is told."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from foldfuse import cli
from foldfuse.commands.models import export
from foldfuse.data.readers.coco import read
from foldfuse.detections import Detections
from foldfuse.errors import InputError
from foldfuse.formats.predictions import read_predictions
from foldfuse.inference import onnx_export
from foldfuse.inference.detector import detect
from foldfuse.inference.engine import without_partner
from foldfuse.inference.numpy_decoding import decode
from foldfuse.inference.onnx_decoding import DecodedNetwork
from foldfuse.inference.onnx_predictor import KEY, _facts
from foldfuse.inference.predictor import load
from foldfuse.models import make_detector
from foldfuse.recipes import Recipe
from foldfuse.storage.run import Run, RunMetadata
from learning_samples import write_dataset

BLOCKED = "import sys; sys.modules.update(dict.fromkeys(('torch', 'torchvision', 'timm')))\n"


def new_run(folder, detector, image_size=64):
    """A run of an untrained detector whose last layers are noisy, so that it finds boxes; and the network."""
    torch.manual_seed(1)
    net = make_detector(detector, 2, pretrained=False).eval()
    with torch.no_grad():
        for weight in list(net.parameters())[-6:]:
            weight.add_(torch.randn_like(weight) * 0.3)
    run = Run.create(folder, Recipe(detector, image_size=image_size), RunMetadata(("red", "blue"), (3, 7)))
    run.save_weights(net.state_dict())
    return run, net


@pytest.mark.parametrize("detector", ["lite0_fpn", "efficientdet_lite0", "yolov5n"])
@pytest.mark.parametrize("shape", [(64, 96), (160, 128)])
def test_numpy_decodes_as_torch_does(tmp_path, detector, shape):
    run, net = new_run(tmp_path / "run", detector)
    facts = _facts(run.folder, onnx_export.facts_entry(onnx_export.facts_of_run(run, net)))
    assert (facts.detector, facts.classes, facts.image_size, facts.stride) == (
        detector,
        ("red", "blue"),
        64,
        net.stride,
    )
    with torch.no_grad():
        raw = net(torch.rand(2, 3, *shape))
        expected = net.decode(raw)
    outputs = [tensor.numpy() for _, tensor in onnx_export.named_tensors(raw)]
    found = decode(outputs, facts.decoding, shape)
    for a, b in zip(found, expected, strict=True):
        assert len(a) == len(b) > 5
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-6)
        apart = np.abs(a.boxes[:, None] - b.boxes).max(-1) + (a.labels[:, None] != b.labels)
        assert max(apart.min(0).max(), apart.min(1).max()) < 1e-3, "equal scores may come in another order"


@pytest.mark.parametrize("detector", ["lite0_fpn", "efficientdet_lite0", "yolov5n"])
@pytest.mark.parametrize("shape", [(64, 96), (160, 128)])
def test_the_graph_decodes_as_numpy_does(tmp_path, detector, shape):
    run, net = new_run(tmp_path / "run", detector)
    decoding = onnx_export.facts_of_run(run, net).decoding
    with torch.no_grad():
        *raw, boxes, scores, labels = (x.numpy() for x in DecodedNetwork(net, decoding)(torch.rand(2, 3, *shape)))
    expected = decode(raw, decoding, shape)
    assert boxes.shape[1] == decoding.max_detections
    for i, want in enumerate(expected):
        own = labels[i] >= 0
        assert (scores[i] > 0).tolist() == own.tolist(), "padding has no score"
        found = Detections(boxes[i, own], scores[i, own], labels[i, own])
        assert len(found) == len(want) > 5
        np.testing.assert_allclose(found.scores, want.scores, atol=1e-6)
        assert without_partner(found, want) <= (0.1 if detector == "yolov5n" else 0), "its scores are almost equal"


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["efficientdet_lite0", "yolov5n"])
def test_a_file_of_any_size_decodes_at_sizes_that_it_was_not_exported_with(tmp_path, detector):
    for name in onnx_export.PACKAGES:
        pytest.importorskip(name, reason="pip install 'foldfuse[export]' brings it")
    run, net = new_run(tmp_path / "run", detector)
    export(str(run.folder), out=tmp_path / "run.onnx")
    predictor = load(tmp_path / "run.onnx", device="cpu")
    assert predictor.fixed_size is None
    for shape in ((1, 64, 64, 3), (3, 160, 320, 3)):
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        for found, want in zip(predictor.detect(images), detect(net, images), strict=True):
            assert len(found) == len(want) > 5
            np.testing.assert_allclose(found.scores, want.scores, atol=1e-4)
            assert without_partner(found, want) <= (0.2 if detector == "yolov5n" else 0.02), (
                "some scores are almost equal"
            )


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [False, True])
def test_an_exported_run_predicts_the_same_without_torch(tmp_path, monkeypatch, fixed):
    for name in onnx_export.PACKAGES:
        pytest.importorskip(name, reason="pip install 'foldfuse[export]' brings it")
    monkeypatch.chdir(tmp_path)
    new_run(tmp_path / "run", "lite0_fpn")
    write_dataset(tmp_path / "d", 3)
    export("run", out=tmp_path / "run.onnx", fixed_size=fixed)
    words = ["predict", "run.onnx", "d/images", "--view", "1,1+hflip", "--out", "onnx.parquet"]
    code = f"{BLOCKED}from foldfuse import cli; sys.exit(cli.main({words!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert cli.main(["predict", "run", *words[2:-1], "run.parquet"]) == 0
    images = read(tmp_path / "d" / "images", annotated=False).with_classes(("red", "blue"), (3, 7))
    a, b = (read_predictions(tmp_path / name, images) for name in ("onnx.parquet", "run.parquet"))
    if not fixed:  # the gray around an image on a larger canvas reaches into it
        assert len(a.boxes) == len(b.boxes)
        np.testing.assert_allclose(a.boxes, b.boxes, atol=0.01)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
    assert len(a) == 3
    predictor = load("run.onnx")
    assert repr(predictor) == "Predictor(ONNX file of lite0_fpn at 64 px, 2 classes: red, blue)"
    assert len(predictor(tmp_path / "d" / "images" / "000.png"))
    if fixed:
        with pytest.raises(InputError, match="takes images of 64 px alone"):
            predictor.predict("d/images", views=["1.5"])


def test_a_file_that_does_not_say_enough_is_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(InputError, match=r"does not say its classes .* Export the run again"):
        _facts(tmp_path, {"model": "lite0_fpn"})
    run, net = new_run(tmp_path / "run", "yolov5n")
    facts = json.loads(onnx_export.facts_entry(onnx_export.facts_of_run(run, net))[KEY])
    facts["decoding"]["anchors"] = []
    with pytest.raises(InputError, match="lack the anchors"):
        _facts(tmp_path, {KEY: json.dumps(facts)})
    with pytest.raises(InputError, match="there is nothing of that name"):
        load(tmp_path / "gone.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"x" * 50)
    with pytest.raises(InputError, match="cannot be read as an ONNX file"):
        load(tmp_path / "broken.onnx")
