"""Our EfficientDet with effdet's weights gives effdet's outputs: backbone, BiFPN, both heads, and the anchors.

effdet 0.4.1 (Ross Wightman, Apache-2.0) is the implementation that reproduces the paper's published scores.
"""

import argparse
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from foldfuse.errors import InputError
from foldfuse.models import make_detector
from foldfuse.models.detection import anchors as A
from foldfuse.models.detection.efficientdet import FAMILY, SCALINGS, EfficientDet
from foldfuse.models.pretrained.effdet import load_effdet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # effdet calls torch.jit.script, which torch has deprecated
    effdet = pytest.importorskip("effdet")
    from effdet.anchors import Anchors


def theirs_and_ours(name: str, image_size: int, *, num_classes: int = 7) -> tuple[nn.Module, EfficientDet, Any]:
    """effdet's model with random weights and batch-norm statistics, ours with the same, and effdet's settings."""
    torch.manual_seed(0)
    config = effdet.get_efficientdet_config(f"tf_{name}")
    config.image_size, config.num_classes = (image_size, image_size), num_classes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = effdet.EfficientDet(config, pretrained_backbone=False).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    for key, p in theirs.named_parameters():
        if key.endswith("edge_weights"):  # some below 0: the fusion must cut them
            nn.init.uniform_(p, -0.5, 1.5)
    ours = make_detector(name, num_classes, pretrained=False).eval()
    ours.load_state_dict(theirs.state_dict())  # strict: no tensor is left over on either side
    return theirs, ours, config


def same_outputs(name: str, image_size: int, num_images: int) -> None:
    theirs, ours, _ = theirs_and_ours(name, image_size)
    images = torch.rand(num_images, 3, image_size, image_size)
    logits, deltas = theirs((images - ours.mean) / ours.std)
    raw = ours(images)
    for want, got, outputs in ((logits, raw.logits, 7), (deltas, raw.box_deltas, 4)):
        flat = torch.cat([level.permute(0, 2, 3, 1).reshape(num_images, -1, outputs) for level in want], 1)
        assert flat.std() > 0.01, "outputs that hardly differ would agree whatever the wiring"
        torch.testing.assert_close(got, flat, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FAMILY)
@torch.no_grad()
def test_same_weights_same_outputs(name):
    same_outputs(name, 128, num_images=1)


@pytest.mark.parametrize("image_size", [64, 96, 160, 224, 320, 352, 512])
@pytest.mark.parametrize("name", ["efficientdet_lite0", "efficientdet_d0"])
@torch.no_grad()
def test_at_any_multiple_of_the_stride_as_effdet_built_for_that_size(name, image_size):
    same_outputs(name, image_size, num_images=2 if image_size < 512 else 1)


@pytest.mark.parametrize("name", FAMILY)
def test_the_table_is_effdets_own(name):
    config, ours = effdet.get_efficientdet_config(f"tf_{name}"), SCALINGS[name]
    assert ours.backbone == config.backbone_name
    assert [ours.image_size] * 2 == list(config.image_size)
    assert (ours.width, ours.repeats, ours.head_repeats) == (
        config.fpn_channels,
        config.fpn_cell_repeats,
        config.box_class_repeats,
    )
    assert (ours.fusion == "sum") == (config.fpn_name == "bifpn_sum")
    assert (ours.anchor_scale, ours.drop_path) == (config.anchor_scale, config.backbone_args.drop_path_rate)


@torch.no_grad()
def test_an_exchange_of_two_nodes_would_be_noticed():
    # A check of the test above: the two nodes have tensors of the same shapes.
    theirs, ours, _ = theirs_and_ours("efficientdet_lite0", 128)
    state = theirs.state_dict()
    swapped = {key.replace("cell.1.fnode.0.", "cell.1.fnode.9."): t for key, t in state.items()}
    swapped = {key.replace("cell.1.fnode.1.", "cell.1.fnode.0."): t for key, t in swapped.items()}
    swapped = {key.replace("cell.1.fnode.9.", "cell.1.fnode.1."): t for key, t in swapped.items()}
    images = torch.rand(1, 3, 128, 128)
    before = ours(images).logits
    ours.load_state_dict(swapped)
    assert (ours(images).logits - before).abs().max() > 1e-3


def as_xyxy(anchors):
    return torch.cat([anchors[:, :2] - anchors[:, 2:] / 2, anchors[:, :2] + anchors[:, 2:] / 2], 1)


@pytest.mark.parametrize(
    ("height", "width"),
    [(512, 512), (640, 640), (320, 320), (352, 352), (448, 448), (608, 608), (352, 480), (256, 416)],
)
def test_same_anchors_at_any_size(height, width):
    config = effdet.get_efficientdet_config("tf_efficientdet_lite0")
    config.image_size = (height, width)
    want = Anchors.from_config(config).boxes[:, [1, 0, 3, 2]]  # theirs are yxyx
    sizes = tuple((-(-height // 2**level), -(-width // 2**level)) for level in range(3, 8))
    got = as_xyxy(A.make_anchors(sizes, (height, width), config.anchor_scale))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-3)


def test_a_run_of_an_earlier_version_keeps_its_anchors():
    now, before = (make_detector("efficientdet_lite0", 2, pretrained=False, numerics=n).eval() for n in (2, 1))
    with torch.no_grad():
        raw = now(torch.rand(1, 3, 352, 352))
    (cell, nominal), finest = (model.priors(raw)[:, 2:] for model in (now, before)), 9 * 44 * 44
    assert torch.equal(cell[:finest], nominal[:finest])
    assert nominal[-9:, 0].min() == pytest.approx(3 * 128 * 0.7)
    assert cell[-9:, 0].min() == pytest.approx(3 * 352 / 3 * 0.7)


def test_same_boxes_from_the_same_deltas():
    from effdet.anchors import decode_box_outputs

    torch.manual_seed(0)
    deltas, anchor = torch.randn(50, 4), torch.rand(50, 4) * 60 + torch.tensor([100.0, 50, 1, 1])
    want = decode_box_outputs(deltas, as_xyxy(anchor)[:, [1, 0, 3, 2]], output_xyxy=True)
    torch.testing.assert_close(A.decode_boxes(deltas, anchor), want, rtol=1e-5, atol=1e-3)


@torch.no_grad()
def test_a_checkpoint_file_gives_the_outputs_of_the_model_that_it_was_saved_from(tmp_path):
    theirs, ours, _ = theirs_and_ours("efficientdet_d0", 128)
    images = torch.rand(1, 3, 128, 128)
    want = ours(images)
    bench = {f"model.{key}": t for key, t in theirs.state_dict().items()} | {"anchors.boxes": torch.zeros(9, 4)}
    for held in (theirs.state_dict(), {"state_dict": bench, "epoch": 3}, {"state_dict_ema": bench, "state_dict": {}}):
        torch.save(held, tmp_path / "model.pth")
        model = make_detector("efficientdet_d0", 7, pretrained=False).eval()
        assert "all weights were taken." in load_effdet(tmp_path / "model.pth", model)
        got = model(images)
        assert torch.equal(got.logits, want.logits)
        assert torch.equal(got.box_deltas, want.box_deltas)


@torch.no_grad()
def test_a_checkpoint_of_other_classes_gives_all_but_the_last_layer_of_the_class_head(tmp_path):
    theirs, ours, _ = theirs_and_ours("efficientdet_lite0", 128)
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    model = make_detector("efficientdet_lite0", 3, pretrained=False).eval()
    initial = model.class_net.predict.conv_pw.weight.clone()
    sentence = load_effdet(tmp_path / "model.pth", model)
    assert "starts from random values: the checkpoint knows 7 classes, this model 3" in sentence
    assert torch.equal(model.class_net.predict.conv_pw.weight, initial)
    images = torch.rand(1, 3, 128, 128)
    assert torch.equal(model(images).box_deltas, ours(images).box_deltas)
    assert model(images).logits.shape[-1] == 3


def test_a_state_dict_of_another_model_is_refused(tmp_path):
    theirs, ours, _ = theirs_and_ours("efficientdet_lite0", 128)
    torch.save(theirs.state_dict() | {"Layer1.weight": torch.zeros(1)}, tmp_path / "model.pth")
    with pytest.raises(InputError, match=r"1 of its tensors do not fit, such as Layer1\.weight"):
        load_effdet(tmp_path / "model.pth", ours)


def test_a_checkpoint_with_the_arguments_of_a_training_is_read_without_running_anything(tmp_path):
    theirs, ours, _ = theirs_and_ours("efficientdet_lite0", 128)
    held = {"state_dict": theirs.state_dict(), "args": argparse.Namespace(lr=0.1), "arch": "tf_efficientdet_lite0"}
    torch.save(held, tmp_path / "model.pth.tar")
    assert "all weights were taken." in load_effdet(tmp_path / "model.pth.tar", ours)
