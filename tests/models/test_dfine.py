"""D-FINE: equal to transformers' own network with the same file, matched and scored as its loss does, at any size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch.utils._pytree import tree_map

from detr_samples import TARGETS, check_start, copy_heads, put_in_hub_cache
from foldfuse.errors import InputError
from foldfuse.inference.detector import detector_with_weights
from foldfuse.models import make_detector
from foldfuse.models.detection import detr, dfine, dfine_library
from foldfuse.models.detection.hungarian import CostWeights, match_layers
from foldfuse.models.pretrained.class_rows import load_by_class_name
from foldfuse.models.pretrained.coco import COCO_CLASSES
from foldfuse.recipes import load_recipe
from foldfuse.training.init_weights import load_init_weights

pytest.importorskip("transformers")
CLASSES = ("lid", "cell_phone", "Dog")
TINY = replace(
    dfine.SIZES["dfine_n"], stem=(3, 4, 4), stages=(8, 16, 16, 24), inner=(4, 4, 8, 8), width=32, ffn=32, layers=1
)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    """A network of the same parts in a fifth of a second."""
    monkeypatch.setattr(dfine, "SIZES", {"dfine_n": TINY})
    torch.manual_seed(0)


def random_library_model() -> torch.nn.Module:
    """transformers' network for COCO with random weights in every layer, also those that begin as zeros."""
    model = dfine_library.new_library_model(TINY, 80)
    for key, t in model.state_dict().items():
        if t.is_floating_point() and not key.endswith(("up", "reg_scale", "num_points_scale")):
            t.copy_(torch.rand(t.shape) * 0.1 + ("running_var" in key) + 0.5 * key.endswith(("normalization.weight",)))
    copy_heads(model, TINY.decoder_layers)
    return model.eval()


def with_old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names that transformers 4 gave, when the published files were made: each head once, inside the decoder."""
    renamed = {
        key.replace("o_proj", "out_proj")
        .replace("mlp.layers.0", "fc1")
        .replace("mlp.layers.1", "fc2")
        .replace("encoder.aifi", "encoder.encoder"): t
        for key, t in state.items()
        if not key.startswith(("class_embed", "bbox_embed")) and not key.endswith("num_batches_tracked")
    }
    return renamed | {"model.denoising_class_embed.weight": torch.zeros(81, TINY.width)}


@pytest.mark.parametrize("where", ["cache", "folder", "file", "old names"])
def test_the_weights_are_those_of_the_hubs_file_and_the_outputs_those_of_transformers(tmp_path, monkeypatch, where):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    theirs = random_library_model()
    folder = put_in_hub_cache(theirs, tmp_path, "ustc-community/dfine-nano-coco")
    start = {"cache": "coco", "folder": str(folder)}.get(where, str(folder / "model.safetensors"))
    if where == "old names":
        save_file(with_old_names({k: t.clone() for k, t in theirs.state_dict().items()}), start)
    ours = make_detector("dfine_n", 3, pretrained=False)
    before = {key: t.clone() for key, t in ours.state_dict().items()}
    recipe = load_recipe("dfine_n", [f"init_weights={start}"])
    said = load_init_weights(recipe, ours, CLASSES)
    assert said is not None
    assert "2 of 3 classes start from COCO's of the same name (cell_phone, Dog), the others from random values" in said
    heads = {part for layer in ours.class_layers() for part in layer.tensors}
    assert len(heads) == 2 * (1 + TINY.decoder_layers)
    check_start(ours, theirs, before)
    whole = make_detector("dfine_n", 80, pretrained=False)
    load_init_weights(recipe, whole, COCO_CLASSES)
    images = torch.rand(2, 3, 320, 256)
    with torch.no_grad():
        raw, found = whole.eval()(images), theirs(images)
    torch.testing.assert_close(raw.logits, found.logits)
    torch.testing.assert_close(raw.boxes_cxcywh, found.pred_boxes)


def test_a_file_of_another_network_is_refused(tmp_path):
    ours = make_detector("dfine_n", 3, pretrained=False)
    state = {k: t.clone() for k, t in with_old_names(random_library_model().state_dict()).items()}
    for change in (
        {"model.enc_score_head.weight": torch.zeros(5, TINY.width)},
        {"model.encoder_input_proj.0.0.weight": torch.zeros(3, 3, 1, 1)},
    ):
        save_file(state | change, tmp_path / "other.safetensors")
        with pytest.raises(InputError, match="another network"):
            ours.load_coco(tmp_path / "other.safetensors", CLASSES)
    del state["model.enc_output.0.bias"]
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="another network"):
        ours.load_coco(tmp_path / "other.safetensors", CLASSES)


def test_matches_are_those_of_transformers_matcher():
    from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

    config = dfine_library.new_library_model(TINY, 3).config
    wanted = detr.library_targets(TARGETS, (128, 96), torch.zeros(1))
    labels, objects = [w["class_labels"] for w in wanted], [w["boxes"] for w in wanted]
    logits, boxes = torch.randn(2, 3, 30, 3), torch.rand(2, 3, 30, 4) * 0.5 + 0.2
    matcher = RTDetrHungarianMatcher(config)
    found = match_layers(logits, boxes, labels, objects, CostWeights())
    for layer, pairs in enumerate(found):
        expected = matcher({"logits": logits[layer], "pred_boxes": boxes[layer]}, wanted)
        for (queries, rows), (their_queries, their_rows) in zip(pairs, expected, strict=True):
            assert torch.equal(queries, their_queries)
            assert torch.equal(rows, their_rows)


def test_the_loss_is_that_of_transformers_for_each_layer_with_its_own_distributions():
    from transformers.loss.loss_d_fine import DFineLoss

    model = make_detector("dfine_n", 3, pretrained=False)
    for head in model.body.decoder.bbox_embed:
        torch.nn.init.normal_(head.layers[-1].weight, std=0.05)  # else all distributions are alike
    model.freeze(0)
    raw = model(torch.rand(3, 3, 128, 96))
    terms = model.loss(raw, TARGETS)
    own = [{"logits": one, "pred_boxes": other} for one, other in zip(*_layers_of(raw), strict=True)]
    model._add_distributions(raw, own)
    last = TINY.decoder_layers
    output = own[last] | {"auxiliary_outputs": [layer for i, layer in enumerate(own) if i != last]}
    expected = DFineLoss(model.body.config)(output, detr.library_targets(TARGETS, raw.size, raw.boxes_cxcywh))
    names = {"loss_vfl": "class", "loss_bbox": "box", "loss_giou": "giou", "loss_fgl": "fine", "loss_ddf": "distill"}
    for theirs, ours in names.items():
        total = sum(value for key, value in expected.items() if key.startswith(theirs))
        torch.testing.assert_close(terms[ours], total, rtol=1e-5, atol=1e-6)
        assert terms[ours] > 0
    shares = model.loss(
        raw, TARGETS, batch_total=lambda counts: 2 * counts
    )  # of twice as many images with as many objects
    for name, term in terms.items():
        torch.testing.assert_close(2 * shares[name], term)


def _layers_of(raw: detr.DetrOutput) -> tuple[torch.Tensor, torch.Tensor]:
    assert raw.layer_logits is not None
    assert raw.layer_boxes is not None
    assert raw.encoder_logits is not None
    assert raw.encoder_boxes is not None
    logits = torch.cat([raw.layer_logits, raw.encoder_logits[:, None]], 1).transpose(0, 1)
    return logits, torch.cat([raw.layer_boxes, raw.encoder_boxes[:, None]], 1).transpose(0, 1).clamp(0, 1)


def test_half_precision_keeps_the_decoder_and_the_loss_in_single_precision():
    model = make_detector("dfine_n", 3, pretrained=False)
    model.freeze(0)
    images = torch.rand(2, 3, 128, 96)
    with torch.autocast("cpu", torch.bfloat16):
        raw = model(images)
    tensors = [t for t in raw if isinstance(t, torch.Tensor)]
    assert len(tensors) == 8
    assert {t.dtype for t in tensors} == {torch.float32}
    half = tree_map(lambda t: t.bfloat16() if isinstance(t, torch.Tensor) else t, raw)
    assert {term.dtype for term in model.loss(half, TARGETS[:2]).values()} == {torch.float32}


def test_a_larger_view_of_an_image_gives_the_same_boxes_in_proportion():
    """Anchors and positions are those of the input's size: on an image of one colour, a cell's box scales with the cell."""
    model = make_detector("dfine_n", 3, pretrained=False).eval()
    with torch.no_grad():
        for height, width in ((160, 128), (320, 256), (96, 352)):
            raw = model(torch.full((1, 3, height, width), 0.5))
            (found,) = model.decode(raw, max_detections=1000, pre_nms_topk=1000, score_threshold=0.0)
            centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
            cells = {(x, y) for x, y in (centres // 16).astype(int).tolist()}
            assert len(cells) > 0.8 * min(300, (height // 16) * (width // 16))
            sides = found.boxes[:, 2:] - found.boxes[:, :2]
            assert sides.max() < 0.3 * max(height, width)


def test_fewer_detections_and_overlaps_as_asked():
    model = make_detector("dfine_n", 3, pretrained=False).eval()
    with torch.no_grad():
        raw = model(torch.rand(1, 3, 128, 128))
    (whole,), (few,) = model.decode(raw, score_threshold=0.0), model.decode(raw, max_detections=7, score_threshold=0.0)
    assert (len(few), len(whole)) == (7, 240)
    assert (few.scores == whole.scores[:7]).all()
    (apart,) = model.decode(raw, nms_iou=0.0, score_threshold=0.0)
    assert 0 < len(apart) < len(whole)
    cut = float(np.median(whole.scores))
    (best,) = model.decode(raw, score_threshold=cut)
    assert best.scores.min() >= cut


def test_a_run_of_other_classes_starts_from_matching_rows(tmp_path):
    one, other = (make_detector("dfine_n", k, pretrained=False) for k in (2, 3))
    said = load_by_class_name(other, one.state_dict(), known=("Dog", "bag"), classes=CLASSES, source="run")
    assert "(1 of 3)" in said
    theirs, ours = one.body.decoder.class_embed[1].weight, other.body.decoder.class_embed[1].weight
    assert torch.equal(ours[2], theirs[0])
    save_file({k: t.contiguous() for k, t in other.state_dict().items()}, tmp_path / "w.safetensors")
    folded = detector_with_weights(load_recipe("dfine_n"), CLASSES, load_file(tmp_path / "w.safetensors"), device="cpu")
    images = torch.rand(1, 3, 128, 96)
    with torch.no_grad():
        torch.testing.assert_close(folded(images).logits, other.eval()(images).logits, rtol=1e-4, atol=1e-4)


def test_a_missing_package_and_imagenet_weights_are_named(monkeypatch):
    with pytest.raises(InputError, match=r"dfine_n has no ImageNet weights of its own.*init_weights=coco"):
        make_detector("dfine_n", 3)
    monkeypatch.setattr(detr.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'foldfuse\[transformers\]'"):
        make_detector("dfine_n", 3, pretrained=False)
