"""The detectors of torchvision give torchvision's own detections and losses, and start from its checkpoints by name."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import detection

from foldfuse.detections import Annotations
from foldfuse.errors import InputError
from foldfuse.models import make_detector
from foldfuse.models.pretrained.coco import COCO_ROWS
from foldfuse.models.pretrained.published import PUBLISHED, locate, published

OPTIONS = {  # of torchvision's functions, so that nothing but the network decides
    "ssdlite320": {"score_thresh": 0.4, "detections_per_img": 100, "topk_candidates": 1000},
    "retinanet_r50": {"score_thresh": 0.8, "detections_per_img": 100, "topk_candidates": 1000},
    "fcos_r50": {"score_thresh": 0.57, "detections_per_img": 100, "topk_candidates": 1000},
    "fasterrcnn_mobilenet": {"box_score_thresh": 0.005, "rpn_post_nms_top_n_test": 300},
}
MAKE = {
    "ssdlite320": detection.ssdlite320_mobilenet_v3_large,
    "retinanet_r50": detection.retinanet_resnet50_fpn_v2,
    "fcos_r50": detection.fcos_resnet50_fpn,
    "fasterrcnn_mobilenet": detection.fasterrcnn_mobilenet_v3_large_fpn,
}
WEIGHTS = {
    "ssdlite320": detection.SSDLite320_MobileNet_V3_Large_Weights,
    "retinanet_r50": detection.RetinaNet_ResNet50_FPN_V2_Weights,
    "fcos_r50": detection.FCOS_ResNet50_FPN_Weights,
    "fasterrcnn_mobilenet": detection.FasterRCNN_MobileNet_V3_Large_FPN_Weights,
}
SOFTMAX = ("ssdlite320", "fasterrcnn_mobilenet")  # with a class for the background
SIDE = {name: 320 if name == "ssdlite320" else 160 for name in MAKE}
each = pytest.mark.parametrize("name", MAKE)


@functools.cache
def theirs_and_ours(name):
    """torchvision's model for 3 classes with random weights and statistics, and ours with the same."""
    torch.manual_seed(0)
    background = name in SOFTMAX
    options = OPTIONS[name] | ({} if name == "ssdlite320" else {"min_size": SIDE[name], "max_size": SIDE[name]})
    theirs = MAKE[name](weights=None, weights_backbone=None, num_classes=3 + background, **options).eval()
    randomize(theirs)
    ours = make_detector(name, 3, pretrained=False).eval()
    ours.load_state_dict(theirs.state_dict())  # strict: no tensor is left over on either side
    return theirs, ours


def randomize(net):
    """Batch norm statistics of noise, so that features keep their size, and last layers that give different scores."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    for key, p in net.named_parameters():
        if p.ndim > 1 and any(word in key for word in ("cls_logits", "cls_score", "classification_head.module_list")):
            nn.init.normal_(p, std=0.02)
        elif key.endswith("cls_logits.bias"):
            nn.init.zeros_(p)
    net.train()
    with torch.no_grad():
        levels = net.backbone(torch.randn(4, 3, 160, 160))
        if hasattr(net, "head"):
            net.head(list(levels.values()))
    net.eval()
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def annotated(boxes, labels):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    return Annotations(boxes, np.array(labels, np.int64), np.zeros(len(boxes), bool), np.ones(len(boxes)))


@each
@torch.no_grad()
def test_same_weights_same_detections(name):
    theirs, ours = theirs_and_ours(name)
    side = SIDE[name]
    images = torch.rand(2, 3, side, side)
    raw = ours(images)
    if name == "fasterrcnn_mobilenet":
        found = ours.decode(raw)
    else:
        found = ours.decode(raw, score_threshold=OPTIONS[name]["score_thresh"], pre_nms_topk=10**6)
    for got, want in zip(found, theirs(list(images)), strict=True):
        assert len(want["scores"]) > 5
        n = min(len(got), len(want["scores"]))
        assert abs(len(got) - len(want["scores"])) <= (0 if n < 100 else 1)
        np.testing.assert_allclose(got.scores[:n], want["scores"][:n], atol=1e-4)
        labels = want["labels"].numpy() - (name in SOFTMAX)
        apart = np.abs(got.boxes[:, None] - want["boxes"].numpy()).max(-1) + (got.labels[:, None] != labels)
        assert max(apart.min(0).max(), apart.min(1).max()) < 1e-3, "equal scores may come in another order"


@each
def test_same_losses(name):
    theirs, ours = theirs_and_ours(name)
    side = SIDE[name]
    images = torch.rand(2, 3, side, side)
    targets = [
        annotated([[10, 20, 90, 100], [60, 60, 155, 150]], [0, 2]),
        annotated([[5, 5, 40, 140]], [1]),
    ]
    first = int(name in SOFTMAX)
    theirs.train()
    ours.train()
    if name == "fasterrcnn_mobilenet":  # all anchors and proposals instead of random samples of them
        for model in (theirs, ours):
            for part in (model.rpn, model.roi_heads):
                part.fg_bg_sampler.batch_size_per_image = 10**6
    for model in (theirs, ours):  # the statistics of eval mode, so that running means do not move
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    dicts = [
        {"boxes": torch.from_numpy(t.boxes).float(), "labels": torch.from_numpy(t.labels) + first} for t in targets
    ]
    torch.manual_seed(3)
    want = theirs(list(images), dicts)
    torch.manual_seed(3)
    got = ours.loss(ours(images), targets)
    theirs.eval()
    ours.eval()
    torch.testing.assert_close(sum(got.values()), sum(want.values()), rtol=1e-3, atol=1e-3)
    assert len(got) == len(want)


@pytest.mark.parametrize("name", ["retinanet_r50", "fcos_r50", "fasterrcnn_mobilenet"])
@pytest.mark.parametrize("frozen", [0, 2, 3])
def test_frozen_stages_change_nothing_and_are_not_trained(name, frozen):
    ours = theirs_and_ours(name)[1]
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        want = ours(images)
        ours.freeze(frozen)
        got = ours.eval()(images)
    for a, b in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
    ours.freeze(frozen)
    norms = [m for m in ours.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.training == (frozen == 0) for norm in norms)
    ours.freeze(0)
    ours.eval()


@each
@torch.no_grad()
def test_boxes_are_inside_views_of_other_sizes(name):
    ours = theirs_and_ours(name)[1]
    for height, width in ((32, 96), (192, 128)):
        for one in ours.decode(ours(torch.rand(1, 3, height, width))):
            assert len(one)
            assert (one.boxes >= 0).all()
            assert (one.boxes <= [width, height, width, height]).all()


@torch.no_grad()
def test_ssdlites_anchors_keep_their_sides_at_other_sizes():
    ours = make_detector("ssdlite320", 2, pretrained=False).eval()
    sides = []
    for side in (320, 480):
        anchors = ours.anchors(ours(torch.zeros(1, 3, side, side)))
        sides.append({tuple(np.round(pair, 2)) for pair in (anchors[:, 2:] - anchors[:, :2]).numpy()})
    assert sides[0] == sides[1]


@each
def test_the_table_of_published_weights_is_torchvisions(name):
    weights, row = WEIGHTS[name].COCO_V1, published(name, "coco")
    assert f"{row.source}/{row.file}" == weights.url
    names = [each if each not in ("N/A", "__background__") else "" for each in weights.meta["categories"]]
    assert tuple(names) == COCO_ROWS


@each
def test_published_weights_load_by_name_from_torchs_cache(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(1)
    theirs = MAKE[name](weights=None, weights_backbone=None, num_classes=91)
    state = {key: t for key, t in theirs.state_dict().items() if not key.endswith("num_batches_tracked")}
    if name == "fasterrcnn_mobilenet":  # published with the names of an older torchvision
        state = {
            key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
            .replace("inner_blocks.0.0.", "inner_blocks.0.")
            .replace("layer_blocks.1.0.", "layer_blocks.1."): t
            for key, t in state.items()
        }
    row = published(name, "coco")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "hub" / "checkpoints" / row.file)
    ours = make_detector(name, 3, pretrained=False)
    before = {key: t.clone() for key, t in ours.state_dict().items()}
    said = ours.load_coco(locate(row, offline=True), ("helmet", "Traffic_Light", "person"))
    assert "2 of 3 classes start from COCO's of the same name (Traffic_Light, person)" in said
    parts = {part: layer for layer in ours.class_layers() for part in layer.tensors}
    expected = theirs.state_dict()
    for key, t in ours.state_dict().items():
        if key not in parts:
            assert torch.equal(t, expected[key]), key
            continue
        layer = parts[key]
        now, was, of = (x.view(layer.groups, -1, layer.width, *x.shape[1:]) for x in (t, before[key], expected[key]))
        at = layer.first
        assert torch.equal(now[:, at + 1], of[:, 10]), f"{key}: traffic light has COCO's id 10"
        assert torch.equal(now[:, at + 2], of[:, 1]), f"{key}: person has COCO's id 1"
        assert torch.equal(now[:, at], was[:, at]), key
        assert torch.equal(now[:, :at], of[:, :at]), f"{key}: background"


def test_a_missing_file_says_which_and_where(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"ssdlite320_mobilenet_v3_large_coco-a79551df\.pth of .* is not in"):
        locate(published("ssdlite320", "coco"), offline=True)


def test_imagenet_weights_load_into_the_backbone_alone(tmp_path, monkeypatch):
    from torchvision.models import mobilenet_v3_large

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(1)
    network = mobilenet_v3_large()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(
        network.state_dict(), tmp_path / "hub" / "checkpoints" / published("fasterrcnn_mobilenet", "imagenet").file
    )
    ours = make_detector("fasterrcnn_mobilenet", 2)
    for key, t in ours.backbone.body.state_dict().items():
        assert torch.equal(t, network.features.state_dict()[key]), key
    with pytest.raises(InputError, match=r"no ImageNet weights of its backbone.*init_weights=coco"):
        make_detector("ssdlite320", 2)


def test_one_image_that_batch_norm_cannot_train_on_is_named():
    model = make_detector("ssdlite320", 2, pretrained=False)
    model.freeze(0)
    with pytest.raises(InputError, match=r"one image of 320 x 256.*2 or more"):
        model(torch.zeros(1, 3, 320, 256))


@pytest.mark.parametrize("name", ["efficientdet_lite0", "efficientdet_d0"])
def test_effdets_coco_weights_load_by_name(name, tmp_path):
    torch.manual_seed(1)
    theirs, ours = make_detector(name, 90, pretrained=False), make_detector(name, 2, pretrained=False)
    path = tmp_path / PUBLISHED[name, "coco"].file
    torch.save(theirs.state_dict(), path)
    before = ours.class_net.predict.conv_pw.bias.detach().clone().view(9, 2)
    said = ours.load_coco(path, ("fox", "cellphone"))
    assert "1 of 2 classes start from COCO's of the same name (cellphone)" in said
    rows = ours.class_net.predict.conv_pw.weight.view(9, 2, -1)
    assert torch.equal(rows[:, 1], theirs.class_net.predict.conv_pw.weight.view(9, 90, -1)[:, 77 - 1])
    assert torch.equal(ours.class_net.predict.conv_pw.bias.view(9, 2)[:, 0], before[:, 0])
    assert torch.equal(ours.backbone.conv_stem.weight, theirs.backbone.conv_stem.weight)
    other = make_detector(name, 2, pretrained=False, anchor_scale=2.0)
    with pytest.raises(InputError, match=r"anchor_scale is 2, .*--set anchor_scale="):
        other.load_coco(path, ("fox", "cellphone"))


def test_effdets_table_is_effdets():
    effdet_config = pytest.importorskip("effdet.config.model_config")
    rows = {name: row for (name, kind), row in PUBLISHED.items() if name.startswith("efficientdet") and kind == "coco"}
    assert len(rows) == 13
    for name, row in rows.items():
        assert f"{row.source}/{row.file}" == effdet_config.efficientdet_model_param_dict[f"tf_{name}"]["url"]
