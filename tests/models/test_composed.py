"""Composed detectors, beyond the contract of all detectors. Parts that fit and parts that do not, freezing, weights by name."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from foldfuse.detections import Annotations
from foldfuse.errors import InputError
from foldfuse.models import make_detector
from foldfuse.models.backbones.factory import make_timm_backbone
from foldfuse.models.backbones.timm_cnn import TimmBackbone
from foldfuse.models.backbones.timm_features import TimmFeatures
from foldfuse.models.cpu.fold_batch_norm import fold_batch_norms
from foldfuse.models.detection.heads import DenseHead
from foldfuse.models.detection.necks import FPN, PlainPyramid
from foldfuse.models.pretrained import imagenet
from foldfuse.recipes import load_recipe

CONVOLUTIONAL = (
    "mobilenetv4_conv_small",
    "resnet10t",
    "convnext_atto",
    "tf_efficientnet_lite0",
    "mobilenetv3_small_050",
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def annotated(boxes, labels):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    return Annotations(boxes, np.array(labels, np.int64), np.zeros(len(boxes), bool), np.ones(len(boxes)))


TARGETS = [annotated([[10, 12, 50, 40]], [1]), annotated([], [])]


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@torch.no_grad()
def test_a_backbone_has_timms_outputs(name):
    ours = TimmBackbone(name, pretrained=False).eval()
    theirs = timm.create_model(name, features_only=True).eval()
    state = list(ours.parts.state_dict().values())
    theirs.load_state_dict(dict(zip(theirs.state_dict(), state, strict=True)))
    images = torch.rand(2, 3, 64, 96)
    by_stride = {64 // x.shape[-2]: x for x in theirs((images - ours.mean) / ours.std)}
    for stride, channels, got in zip((8, 16, 32), ours.channels, ours(images), strict=True):
        assert got.shape == (2, channels, 64 // stride, 96 // stride)
        torch.testing.assert_close(got, by_stride[stride], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@torch.no_grad()
def test_frozen_and_folded_backbones_give_the_same(name):
    model = TimmBackbone(name, pretrained=False).eval()
    images = torch.rand(1, 3, 64, 64)
    want = model(images)
    for stages in (1, 2, 3):
        model.freeze(stages)
        frozen = model.eval()(images)
        for got, expected in zip(frozen, want, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    model.freeze(0)
    for got, expected in zip(fold_batch_norms(model)(images), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["lite0_fpn", "efficientdet_lite0", "yolov5n", "compose:timm:resnet10t+bifpn+dense"])
@torch.no_grad()
def test_a_whole_network_folds_and_gives_the_same(name):
    model = make_detector(name, 3, pretrained=False).eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):  # as after training: each level has its own statistics
            part.running_mean.normal_(std=0.3)
            part.running_var.uniform_(0.5, 2)
            part.weight.uniform_(0.5, 1.5)
            part.bias.normal_(std=0.3)
    images = torch.rand(2, 3, 64, 96)
    folded = fold_batch_norms(model)
    assert name.startswith("compose") or not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    for got, want in zip(folded(images), model(images), strict=True):
        if isinstance(want, torch.Tensor):
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def test_freezing_more_trains_less_of_a_convolutional_backbone():
    model = TimmBackbone("mobilenetv4_conv_small", pretrained=False)
    trained = []
    for stages in (0, 1, 2, 3):
        model.freeze(stages)
        trained.append(sum(p.requires_grad for p in model.parameters()))
    assert trained == sorted(set(trained), reverse=True)


@pytest.mark.parametrize("parts", ["vit_tiny+vitdet+dense", "swin_tiny+fpn+dense", "vit_tiny+vitdet+yolov5"])
def test_transformers_freeze_and_the_rest_learns(parts):
    model = make_detector(f"compose:{parts}", 3, pretrained=False)
    model.freeze(3)
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    assert any(key.startswith("backbone.net.patch_embed") for key in frozen)
    sum(model.loss(model(torch.rand(2, 3, 64, 96)), TARGETS).values()).backward()
    for key, p in model.named_parameters():
        assert (p.grad is None) == (key in frozen), key
        assert p.grad is None or p.grad.isfinite().all()
    model.freeze(0)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("neck", ["fpn", "bifpn", "pan"])
@pytest.mark.parametrize("head", ["dense", "efficientdet", "yolov5"])
def test_every_neck_goes_with_every_head(neck, head):
    model = make_detector(f"compose:timm:mobilenetv4_conv_small+{neck}+{head}", 3, pretrained=False)
    model.freeze(3)
    terms = model.loss(model(torch.rand(2, 3, 64, 96)), TARGETS)
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.neck.parameters())
    assert ("head.anchors" in model.state_dict()) == (head == "yolov5")
    found = model.eval().decode(model(torch.rand(1, 3, 96, 64)))[0]
    assert (found.boxes <= [64, 96, 64, 96]).all()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("compose:swin_tinny+fpn+dense", "Did you mean 'swin_tiny'"),
        ("compose:swin_tiny+fpm+dense", "Did you mean 'fpn'"),
        ("compose:swin_tiny+fpn+dens", "Did you mean 'dense'"),
        ("compose:timm:resnet81+fpn+dense", "timm has no network called 'resnet81'. Did you mean"),
        ("compose:timm:resnet18.a1_in2k+fpn+dense", "no weights of that tag. Its tags: .*a1_in1k"),
        ("compose:timm:test_maxvit+fpn+dense", "timm:test_maxvit: does not take images of any shape"),
        ("compose:timm:shvit_s4+fpn+efficientdet+dense", "compose:BACKBONE"),
        ("compose:timm:efficientvim_m1+fpn+dense", "has features of stride 16, 32, 64; a detector needs"),
        ("compose:timm:test_vit+fpn+dense", "the neck fpn does not fit timm:test_vit, which has 1 level"),
        ("compose:vit_tiny+fpn+dense", "the neck fpn does not fit vit_tiny, which has 1 level.*Take vitdet"),
        ("compose:swin_tiny+vitdet+dense", "the neck vitdet does not fit swin_tiny, which has 3 level.*Take fpn"),
        ("compose:swin_tiny+fpn", "compose:BACKBONE"),
    ],
)
def test_parts_that_do_not_exist_or_do_not_fit_are_named(name, words):
    with pytest.raises(InputError, match=words):
        make_detector(name, 3, pretrained=False)


def test_a_recipe_takes_a_composed_detector_by_name():
    name = "compose:timm:mobilenetv4_conv_small+fpn+dense"
    assert load_recipe("lite0_fpn", [f"detector={name}"]).detector == name


def test_weights_of_a_network_whose_parts_timm_renames_are_all_loaded(monkeypatch):
    whole = timm.create_model("convnext_atto")
    monkeypatch.setattr(imagenet, "hub_weights", lambda name: whole.state_dict())
    loaded = TimmBackbone("convnext_atto", pretrained=True)
    theirs = [t for key, t in whole.state_dict().items() if not key.startswith("head.")]
    ours = list(loaded.parts.state_dict().values())
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


OTHERS = {
    "test_vit": ("vitdet", 1),
    "pvt_v2_b0": ("fpn", 3),
    "test_mambaout": ("fpn", 3),
    "swinv2_cr_tiny_ns_224": ("fpn", 3),
}


@pytest.mark.parametrize("name", OTHERS)
def test_networks_that_are_no_stack_of_stages_are_backbones_too(name):
    neck, levels = OTHERS[name]
    model = make_detector(f"compose:timm:{name}+{neck}+dense", 3, pretrained=False)
    assert isinstance(model.backbone, TimmFeatures)
    images = torch.rand(1, 3, 64, 96)
    strides = (8, 16, 32) if levels == 3 else (16,)
    with torch.no_grad():
        found = model.backbone.eval()(images)
    want = [(1, c, 64 // s, 96 // s) for s, c in zip(strides, model.backbone.channels, strict=True)]
    assert [tuple(x.shape) for x in found] == want
    trained = []
    for stages in (0, 3):
        model.freeze(stages)
        trained.append(sum(p.requires_grad for p in model.backbone.parameters()))
    assert trained[0] > trained[1] > 0
    sum(model.loss(model(torch.rand(2, 3, 64, 96)), TARGETS).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.neck.parameters())


def test_a_vit_with_other_patches_gets_patches_of_16_px_and_its_weights_with_them(monkeypatch):
    whole = timm.create_model("vit_small_patch32_224", depth=3)
    monkeypatch.setattr(imagenet.timm, "create_model", lambda name, **more: create(name, **{"depth": 3} | more))
    monkeypatch.setattr(imagenet, "hub_weights", lambda name: whole.state_dict())
    model = make_timm_backbone("vit_small_patch32_224", pretrained=True)
    state = model.net.state_dict()
    assert state["model.patch_embed.proj.weight"].shape[-2:] == (16, 16)
    assert torch.equal(state["model.blocks.0.mlp.fc1.weight"], whole.state_dict()["blocks.0.mlp.fc1.weight"])


create = timm.create_model


def test_a_network_without_weights_is_a_sentence():
    with pytest.raises(
        InputError, match=r"timm:convnext_atto_rms: timm has no weights of this network.*init_weights=none"
    ):
        make_timm_backbone("convnext_atto_rms", pretrained=True)


def test_lite0_fpn_leaves_out_the_last_stage():
    model = make_detector("lite0_fpn", 3, pretrained=False)
    assert model.backbone.channels == (40, 112, 192)


# the dense head


def test_cells_and_boxes_by_hand():
    head = DenseHead(2, width=8, num_levels=1, anchor_scale=3.0)
    raw = head([torch.zeros(1, 8, 2, 3)], (16, 24))
    priors = head.priors(raw)
    assert priors[:, :2].tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    deltas = torch.tensor([0.0, float(np.log(0.5)), float(np.log(2)), 0.0])
    np.testing.assert_allclose(
        head.decode_boxes(deltas, priors[4]), [0, 6, 36, 24], rtol=1e-6
    )  # half a side is 12 pixels
    assert head.decode_boxes(torch.full((4,), 1e4), priors[0]).isfinite().all()


@torch.no_grad()
def test_an_untrained_head_gives_the_prior_everywhere():
    raw = DenseHead(2, width=8).eval()(
        [torch.rand(1, 8, 4, 4), torch.rand(1, 8, 2, 2), torch.rand(1, 8, 1, 1)], (32, 32)
    )
    assert raw.logits.shape == (1, 21, 2)
    torch.testing.assert_close(raw.logits.sigmoid(), torch.full((1, 21, 2), 0.01), rtol=0, atol=0.005)


# necks


@torch.no_grad()
def test_fpn_adds_the_coarser_level():
    neck = FPN((1, 1), width=1).eval()
    for conv in neck.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.dirac_(conv.weight)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
    fine, coarse = torch.rand(1, 1, 5, 4), torch.rand(1, 1, 3, 2)
    below, above = neck([fine, coarse])
    torch.testing.assert_close(above, coarse, rtol=0, atol=5e-3)  # batch norms' epsilon
    rows, columns = (torch.arange(5) * 3 // 5)[:, None], torch.arange(4) * 2 // 4
    torch.testing.assert_close(below, fine + coarse[:, :, rows, columns], rtol=0, atol=5e-3)


@torch.no_grad()
def test_the_plain_pyramid_has_three_strides():
    found = PlainPyramid((6,), width=4)([torch.rand(2, 6, 4, 6)])
    assert [tuple(x.shape) for x in found] == [(2, 4, 8, 12), (2, 4, 4, 6), (2, 4, 2, 3)]
