"""ONNX files of the detectors of torchvision and transformers: the graph finds what the detectors find, without torch too."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from foldfuse import cli
from foldfuse.commands.models import export
from foldfuse.data.readers.coco import read
from foldfuse.detections import Detections
from foldfuse.errors import InputError
from foldfuse.formats.predictions import read_predictions
from foldfuse.inference import onnx_export, onnx_predictor
from foldfuse.inference.detector import detect
from foldfuse.inference.engine import MAX_TIES, without_partner
from foldfuse.inference.onnx_library_decoding import decoded_network
from foldfuse.inference.predictor import load
from foldfuse.models import make_detector
from foldfuse.models.cpu.fold_batch_norm import fold_batch_norms
from foldfuse.models.detection import dfine
from foldfuse.models.detection.detr_export import ExportedDetr
from foldfuse.recipes import Recipe
from foldfuse.storage.run import Run, RunMetadata
from learning_samples import write_dataset

LIBRARY = ["ssdlite320", "retinanet_r50", "fcos_r50", "fasterrcnn_mobilenet", "dfine_n"]
CLASS_HEADS = ("cls_logits", "classification_head", "cls_score", "class_embed", "enc_score_head")
BLOCKED = "import sys; sys.modules.update(dict.fromkeys(('torch', 'torchvision', 'timm', 'transformers')))\n"


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """D-FINE's parts in a fifth of a second."""
    row = dfine.SIZES["dfine_n"]
    tiny = replace(row, stem=(3, 4, 4), stages=(8, 16, 16, 24), inner=(4, 4, 8, 8), width=32, ffn=32, layers=1)
    monkeypatch.setattr(dfine, "SIZES", {"dfine_n": tiny})
    logging.disable(logging.DEBUG)  # torch traces in hundreds of thousands of records, which pytest would keep
    yield
    logging.disable(logging.NOTSET)


def noisy(name):
    """An untrained detector whose class heads are noisy, so that it finds boxes of all classes with scores that differ."""
    if name == "dfine_n":
        pytest.importorskip("transformers", reason="pip install 'foldfuse[transformers]' brings it")
    torch.manual_seed(1)
    net = make_detector(name, 2, pretrained=False).eval()
    with torch.no_grad():
        for norm in net.modules():  # else the features of all cells are alike
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.momentum = None
        net.train()(torch.rand(4, 3, 160, 128))
        net.eval()
        for key, weight in net.named_parameters():
            if any(part in key for part in CLASS_HEADS):
                weight.add_(torch.randn_like(weight) * 0.5 * weight.abs().mean().clamp(min=0.02))
    return net


def new_run(folder, name, image_size=64):
    net = noisy(name)
    run = Run.create(folder, Recipe(name, image_size=image_size), RunMetadata(("red", "blue"), (3, 7)))
    run.save_weights(net.state_dict())
    return run, net


@pytest.mark.parametrize("name", LIBRARY)
@pytest.mark.parametrize("shape", [(64, 96), (160, 128)])
@torch.no_grad()
def test_the_graph_decodes_as_the_detector_does(name, shape):
    net = fold_batch_norms(noisy(name))
    decoding = onnx_export.decoding_of(net)
    images = torch.rand(2, 3, *shape)
    *raw, boxes, scores, labels = decoded_network(onnx_export.for_export(net), decoding)(images)
    for (_, want), found in zip(onnx_export.named_tensors(net(images)), raw, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    for i, want in enumerate(net.decode(net(images))):
        own = labels[i] >= 0
        assert ((scores[i] > 0) == own).all(), "padding has no score"
        found = Detections(*(part[i, own].numpy() for part in (boxes, scores, labels)))
        assert len(found) == len(want) > 5
        np.testing.assert_allclose(found.scores, want.scores, atol=1e-4)
        assert without_partner(found, want) <= MAX_TIES


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARY)
def test_a_file_finds_what_pytorch_finds_at_sizes_that_it_was_not_exported_with(name, tmp_path, monkeypatch):
    for package in onnx_export.PACKAGES:
        pytest.importorskip(package, reason="pip install 'foldfuse[export]' brings it")
    monkeypatch.chdir(tmp_path)
    _, net = new_run(tmp_path / "run", name)
    export("run", out=tmp_path / "run.onnx")
    predictor = load(tmp_path / "run.onnx", device="cpu")
    assert predictor.fixed_size is None
    for shape in ((1, 64, 64, 3), (3, 160, 320, 3)):
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        for found, want in zip(predictor.detect(images), detect(net, images), strict=True):
            assert len(found) == len(want) > 5
            np.testing.assert_allclose(found.scores, want.scores, atol=1e-4)
            # some scores are almost equal; and single precision moves boxes from RetinaNet's anchors of 645 px by 0.01 px
            assert without_partner(found, want) <= (0.1 if name == "retinanet_r50" else 0.02)
    write_dataset(tmp_path / "d", 3)
    words = ["predict", "run.onnx", "d/images", "--view", "1,1+hflip", "--out", "onnx.parquet"]
    code = f"{BLOCKED}from foldfuse import cli; sys.exit(cli.main({words!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert cli.main(["predict", "run", *words[2:-1], "run.parquet", "--engine", "eager"]) == 0
    samples = read(tmp_path / "d" / "images", annotated=False).with_classes(("red", "blue"), (3, 7))
    a, b = (read_predictions(tmp_path / each, samples) for each in ("onnx.parquet", "run.parquet"))
    assert len(a.boxes) == len(b.boxes)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)


@torch.no_grad()
def test_the_exported_dfine_has_the_outputs_of_the_network_with_more_and_with_fewer_cells_than_queries():
    net = fold_batch_norms(noisy("dfine_n"))
    own = ExportedDetr(net)
    assert net.body.config._attn_implementation != "eager", "the network itself stays as it was"
    for height, width in ((64, 96), (352, 256)):
        images = torch.rand(2, 3, height, width)
        want, found = net(images), own(images)
        torch.testing.assert_close(found.logits, want.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.boxes_cxcywh, want.boxes_cxcywh, rtol=1e-4, atol=1e-5)
        assert found.size == want.size


def test_a_file_without_its_boxes_is_refused(tmp_path, monkeypatch):
    run, net = new_run(tmp_path / "run", "ssdlite320")
    (tmp_path / "m.onnx").write_bytes(b"x")

    class Session:
        """A file of the network's own outputs."""

        def get_modelmeta(self):
            return type(
                "Meta", (), {"custom_metadata_map": onnx_export.facts_entry(onnx_export.facts_of_run(run, net))}
            )

        def get_outputs(self):
            return [type("Output", (), {"name": name}) for name in ("logits", "box_deltas")]

    monkeypatch.setattr(onnx_predictor, "_session", lambda path, device: Session())
    with pytest.raises(InputError, match=r"lacks the outputs boxes, scores, labels"):
        load(tmp_path / "m.onnx")
