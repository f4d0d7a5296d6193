"""RT-DETRv2: equal to transformers' own network with the same file, scored as its loss does; it learns an image by heart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from detr_samples import TARGETS, annotated, check_start, copy_heads, put_in_hub_cache
from foldfuse.errors import InputError
from foldfuse.models import make_detector
from foldfuse.models.cpu.fold_batch_norm import fold_batch_norms
from foldfuse.models.detection import detr, rtdetr
from foldfuse.models.detection.detr_export import ExportedDetr
from foldfuse.models.pretrained.coco import COCO_CLASSES
from foldfuse.recipes import load_recipe
from foldfuse.training.init_weights import load_init_weights

pytest.importorskip("transformers")
CLASSES = ("lid", "cell_phone", "Dog")
TINY = replace(
    rtdetr.SIZES["rtdetr_r18"], stem=8, stages=(8, 16, 16, 24), depths=(1, 1, 1, 1), width=32, ffn=32, decoder_layers=2
)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    """A network of the same parts in a fifth of a second."""
    monkeypatch.setattr(rtdetr, "SIZES", {"rtdetr_r18": TINY})
    torch.manual_seed(0)


def random_library_model():
    """transformers' network for COCO with random weights in every layer, also those that begin as zeros or ones."""
    model = rtdetr.new_library_model(TINY, 80)
    for key, t in model.state_dict().items():
        if t.is_floating_point() and not key.endswith("n_points_scale"):
            t.copy_(torch.rand(t.shape) * 0.1 + ("running_var" in key) + 0.5 * key.endswith("norm.weight"))
    copy_heads(model, TINY.decoder_layers)
    return model.eval()


def test_the_weights_are_those_of_the_hubs_file_and_the_outputs_those_of_transformers(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    theirs = random_library_model()
    put_in_hub_cache(theirs, tmp_path, "PekingU/rtdetr_v2_r18vd")
    recipe, ours = load_recipe("rtdetr_r18"), make_detector("rtdetr_r18", 3, pretrained=False)
    before = {key: t.clone() for key, t in ours.state_dict().items()}
    said = load_init_weights(recipe, ours, CLASSES)
    assert said is not None
    assert "2 of 3 classes start from COCO's of the same name (cell_phone, Dog)" in said
    check_start(ours, theirs, before)
    whole = make_detector("rtdetr_r18", 80, pretrained=False)
    load_init_weights(recipe, whole, COCO_CLASSES)
    images = torch.rand(2, 3, 256, 192)
    with torch.no_grad():
        raw, found = whole.eval()(images), theirs(images)
    torch.testing.assert_close(raw.logits, found.logits)
    torch.testing.assert_close(raw.boxes_cxcywh, found.pred_boxes)


def test_the_loss_is_that_of_transformers():
    model = make_detector("rtdetr_r18", 3, pretrained=False)
    model.freeze(0)
    raw = model(torch.rand(3, 3, 128, 96))
    terms = model.loss(raw, TARGETS)
    from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss

    wanted = detr.library_targets(TARGETS, raw.size, raw.boxes_cxcywh)
    total, each, _ = RTDetrForObjectDetectionLoss(
        raw.layer_logits[:, -1],
        wanted,
        "cpu",
        raw.layer_boxes[:, -1],
        model.body.config,
        raw.layer_logits,
        raw.layer_boxes,
        enc_topk_logits=raw.encoder_logits,
        enc_topk_bboxes=raw.encoder_boxes,
    )
    torch.testing.assert_close(sum(terms.values()), total, rtol=1e-5, atol=1e-6)
    for theirs, ours in {"loss_vfl": "class", "loss_bbox": "box", "loss_giou": "giou"}.items():
        torch.testing.assert_close(terms[ours], sum(value for key, value in each.items() if key.startswith(theirs)))
    sum(terms.values()).backward()
    assert not [key for key, p in model.named_parameters() if p.grad is None]


def test_new_batch_norms_begin_with_a_scale_of_one():
    model = make_detector("rtdetr_r18", 3, pretrained=False)
    norms = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert norms
    assert all((norm.weight == 1).all() for norm in norms)


@pytest.mark.slow
def test_it_overfits_one_image():
    want = annotated([[120, 30, 180, 60], [10, 40, 50, 120]], [1, 2])
    images = torch.rand(1, 3, 128, 192).repeat(2, 1, 1, 1)
    for box, colour in zip(want.boxes.astype(int), (0.0, 1.0), strict=True):
        images[:, :, box[1] : box[3], box[0] : box[2]] = colour
    model = make_detector("rtdetr_r18", 3, pretrained=False)
    model.freeze(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(150):
        loss = sum(model.loss(model(images), [want, want]).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    for norm in model.modules():  # statistics of this one image, not of earlier steps
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None
    with torch.no_grad():
        model(images)
        found = model.eval().decode(model(images))[0]
    best = found[np.argsort(-found.scores)[:2]]
    best = best[np.argsort(best.labels)]
    assert best.labels.tolist() == [1, 2]
    assert best.scores.min() > 0.4
    np.testing.assert_allclose(best.boxes, want.boxes, atol=8)  # pixels


@torch.no_grad()
def test_the_exported_network_has_the_outputs_of_the_network():
    net = fold_batch_norms(make_detector("rtdetr_r18", 3, pretrained=False))
    for height, width in ((64, 96), (256, 192)):
        images = torch.rand(2, 3, height, width)
        want, found = net(images), ExportedDetr(net)(images)
        torch.testing.assert_close(found.logits, want.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.boxes_cxcywh, want.boxes_cxcywh, rtol=1e-4, atol=1e-5)


def test_imagenet_weights_and_a_missing_package_are_named(monkeypatch):
    with pytest.raises(InputError, match=r"rtdetr_r18 has no ImageNet weights of its own.*init_weights=coco"):
        make_detector("rtdetr_r18", 3)
    monkeypatch.setattr(detr.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'foldfuse\[transformers\]'"):
        make_detector("rtdetr_r18", 3, pretrained=False)
