"""Weights from other programs: positions of another size are resampled, wrappers are taken off, all else is named or refused."""

from __future__ import annotations

import argparse
import os
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from foldfuse.errors import InputError
from foldfuse.models.backbones.swin import WINDOW, swin
from foldfuse.models.backbones.vit import ViT
from foldfuse.models.detection.efficientdet import EfficientDet
from foldfuse.models.pretrained.effdet import load_effdet
from foldfuse.models.pretrained.imagenet import load_features
from foldfuse.models.pretrained.vit_swin import load_matching

State = dict[str, torch.Tensor]


def small_vit(side: int = 64, **changes: Any) -> ViT:
    return ViT(3, **({"width": 32, "depth": 2, "heads": 2, "patch": 16, "image_size": (side, side)} | changes))


def test_the_positions_of_a_larger_grid_are_resampled_as_timm_does():
    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=96, embed_dim=32, depth=2, num_heads=2, num_classes=3, mlp_ratio=4
    )
    theirs.pos_embed.data.normal_()
    ours = small_vit(64)
    (said,) = load_matching(ours, theirs.state_dict(), source="timm")
    assert said == "timm: the positions were resampled from 6 x 6 patches to 4 x 4."
    theirs.set_input_size((64, 64))
    torch.testing.assert_close(ours.pos_embed.data, theirs.pos_embed.data)
    images = torch.rand(2, 3, 64, 64)
    normalized = (images - ours.mean) / ours.std
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(normalized), rtol=1e-4, atol=1e-4)


def test_the_tables_of_larger_windows_are_resampled_as_timm_does():
    theirs = timm.create_model("swin_tiny_patch4_window7_224", window_size=12, img_size=384, num_classes=3)
    blocks = [(i, j) for i, layer in enumerate(theirs.layers) for j in range(len(layer.blocks))]
    for i, j in blocks:
        theirs.layers[i].blocks[j].attn.relative_position_bias_table.data.normal_()
    ours = swin("swin_tiny", 3)
    (said,) = load_matching(ours, theirs.state_dict(), source="timm")
    assert said == "timm: the relative positions were resampled from windows of 12 tokens to windows of 7."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, on the speed of a lookup
        theirs.set_input_size((224, 224), window_size=(WINDOW, WINDOW))
    for i, j in blocks:
        torch.testing.assert_close(
            ours.layers[i].blocks[j].attn.relative_position_bias_table.data,
            theirs.layers[i].blocks[j].attn.relative_position_bias_table.data,
        )


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module.model."])
def test_the_prefix_of_a_wrapper_is_taken_off(prefix):
    one, other = small_vit(), small_vit()
    load_matching(other, {f"{prefix}{key}": t for key, t in one.state_dict().items()}, source="file")
    assert all(torch.equal(t, one.state_dict()[key]) for key, t in other.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"blocks.0.ls1.gamma": torch.ones(32)}), r"it has 'blocks\.0\.ls1\.gamma'"),
        (lambda s: s.update({"blocks.1.attn.q_norm.weight": torch.ones(16)}), "q_norm"),
        (lambda s: s.pop("blocks.1.norm2.bias"), r"blocks\.1\.norm2\.bias is .* here and not there at all"),
        (
            lambda s: s.update({"pos_embed": torch.zeros(1, 12, 32)}),
            r"pos_embed is \(1, 17, 32\) here and \(1, 12, 32\) there",
        ),
        (lambda s: s["norm.weight"].fill_(float("nan")), r"the tensor 'norm\.weight' holds NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    state = {key: t.clone() for key, t in small_vit().state_dict().items()}
    change(state)
    with pytest.raises(InputError, match=message.replace("'", "'?")):
        load_matching(small_vit(), state, source="file")


def test_a_feature_extractor_takes_a_whole_network_and_nothing_else():
    whole = timm.create_model("tf_efficientnet_lite0").state_dict()
    features = timm.create_model("tf_efficientnet_lite0", features_only=True)
    load_features(features, whole, source="file")
    assert torch.equal(features.state_dict()["conv_stem.weight"], whole["conv_stem.weight"])
    with pytest.raises(InputError, match=r"has a tensor that the network does not have, blocks\.1\.0\.ls\.gamma"):
        load_features(features, whole | {"blocks.1.0.ls.gamma": torch.ones(3)}, source="file")
    del whole["blocks.0.0.bn1.running_var"]
    with pytest.raises(InputError, match=r"lacks the tensor blocks\.0\.0\.bn1\.running_var"):
        load_features(features, whole, source="file")


def trainer_checkpoint(state: State, **more: Any) -> dict[str, Any]:
    """What effdet's own trainer saves: the network inside a bench, its anchors, its options."""
    args = argparse.Namespace(model="d0", lr=0.1, root=Path("data"), device=torch.device("cpu"), decay=None)
    bench = OrderedDict({f"model.{key}": t for key, t in state.items()} | {"anchors.boxes": torch.zeros(9, 4)})
    return {"epoch": 3, "arch": "d0", "state_dict": bench, "version": 2, "args": args, "metric": 0.3} | more


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before_1.6"])
def test_a_checkpoint_of_effdets_trainer_is_read_inertly(tmp_path, is_zip):
    one, other = EfficientDet(3), EfficientDet(3)
    torch.save(trainer_checkpoint(one.state_dict()), tmp_path / "a.pth.tar", _use_new_zipfile_serialization=is_zip)
    assert "all weights were taken" in load_effdet(tmp_path / "a.pth.tar", other)
    assert all(torch.equal(t, one.state_dict()[key]) for key, t in other.state_dict().items())


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before_1.6"])
@pytest.mark.parametrize("function", [os.system, os.mkdir, eval, timm.create_model])
def test_no_checkpoint_runs_code(tmp_path, monkeypatch, is_zip, function):
    monkeypatch.chdir(tmp_path)
    net, path = EfficientDet(2), tmp_path / "a.pth"
    words = {os.system: "touch RAN", eval: "open('RAN', 'w')"}.get(function, "RAN")
    saved = trainer_checkpoint(net.state_dict(), args=Calls(function, words))
    torch.save(saved, path, _use_new_zipfile_serialization=is_zip)
    if function is timm.create_model:  # of another package: a stand-in takes its place, and the weights are read
        assert "all weights were taken" in load_effdet(path, EfficientDet(2))
    else:
        with pytest.raises(InputError, match=r"refused|cannot be read"):
            load_effdet(path, EfficientDet(2))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_weights_of_effdet_that_are_not_finite_are_named(tmp_path):
    state = EfficientDet(2).state_dict()
    name = next(key for key in state if key.endswith("running_var") and key.startswith("fpn."))
    state[name] = torch.full_like(state[name], float("inf"))
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=f"a.safetensors: the tensor .*{name}.* holds NaN"):
        load_effdet(tmp_path / "a.safetensors", EfficientDet(2))


def test_a_pipe_in_place_of_a_checkpoint_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(InputError, match="is no regular file"):
        load_effdet(tmp_path / "a.pth", EfficientDet(2))
