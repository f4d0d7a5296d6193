"""ViT and Swin give the outputs of timm's and torchvision's with the same weights; timm's load by name."""

import re

import numpy as np
import pytest
import timm
import torch
from torchvision.models import swin_t

from foldfuse.models.backbones.swin import swin
from foldfuse.models.backbones.vit import vit
from foldfuse.models.pretrained.vit_swin import TIMM_NAMES, load_matching, read_vit_npz
from vit_samples import jax_checkpoint

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def random_start(model):
    """No weight at zero or one, so that none is left out of the comparison."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.02)
    return model.eval()


def normalised(model, images):
    return (images - model.mean) / model.std


@pytest.mark.parametrize(
    ("name", "size"), [("vit_tiny", (224, 224)), ("vit_tiny", (160, 320)), ("vit_small", (224, 224))]
)
@torch.no_grad()
def test_vit_is_timms(name, size):
    theirs = random_start(timm.create_model(f"{name}_patch16_224", num_classes=7, dynamic_img_size=True))
    ours = vit(name, 7).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(images), theirs(normalised(ours, images)), **CLOSE)
    (features,) = ours.features(images)
    tokens = theirs.forward_features(normalised(ours, images))[:, 1:]
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), tokens, **CLOSE)


@pytest.mark.parametrize("size", [(224, 224), (448, 224)])
@torch.no_grad()
def test_swin_is_timms_where_windows_fit(size):
    theirs = random_start(timm.create_model("swin_tiny_patch4_window7_224", num_classes=7, img_size=size))
    ours = swin("swin_tiny", 7).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(images), theirs(normalised(ours, images)), **CLOSE)


def from_torchvision(state):
    """Our state dict from that of torchvision's Swin."""
    found = {}
    for key, tensor in state.items():
        if key.endswith("relative_position_index"):
            continue
        key = re.sub(r"^features\.0\.0\.", "patch_embed.proj.", key)
        key = re.sub(r"^features\.0\.2\.", "patch_embed.norm.", key)
        key = re.sub(r"^features\.(\d)\.(norm|reduction)", lambda m: f"layers.{int(m[1]) // 2}.downsample.{m[2]}", key)
        key = re.sub(r"^features\.(\d)\.(\d+)", lambda m: f"layers.{int(m[1]) // 2}.blocks.{m[2]}", key)
        key = key.replace("mlp.0", "mlp.fc1").replace("mlp.3", "mlp.fc2")
        found[re.sub(r"^head\.", "head.fc.", key)] = tensor
    return found


@pytest.mark.parametrize("size", [(224, 224), (256, 320), (288, 416), (160, 96)])
@torch.no_grad()
def test_swin_is_torchvisions_at_any_size(size):
    theirs = random_start(swin_t(weights=None, num_classes=7))
    ours = swin("swin_tiny", 7).eval()
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(images), theirs(normalised(ours, images)), **CLOSE)


@pytest.mark.parametrize(("ours", "theirs"), [*TIMM_NAMES.items(), ("vit_huge14", "vit_huge_patch14_224")])
def test_every_size_has_timms_tensors(ours, theirs):
    make = vit if ours.startswith("vit") else swin
    with torch.device("meta"):
        mine, other = make(ours, 1000), timm.create_model(theirs, num_classes=1000)
    assert {key: t.shape for key, t in mine.state_dict().items()} == {
        key: t.shape for key, t in other.state_dict().items()
    }


@torch.no_grad()
def test_older_files_of_timms_with_computed_buffers_load():
    theirs = random_start(timm.create_model("swin_tiny_patch4_window7_224", num_classes=7))
    state = theirs.state_dict() | {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49)}
    assert load_matching(swin("swin_tiny", 7), state, source="timm") == []
    (note,) = load_matching(swin("swin_tiny", 3), state, source="timm")
    assert note == "timm: was trained for 7 classes, not 3: the head starts from random values."


@torch.no_grad()
def test_timm_reads_the_same_npz(tmp_path):
    model = random_start(vit("vit_tiny", 7))
    np.savez(tmp_path / "vit.npz", **jax_checkpoint(model))
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    theirs.load_pretrained(str(tmp_path / "vit.npz"))
    want = theirs.state_dict()
    for key, tensor in read_vit_npz(tmp_path / "vit.npz").items():
        torch.testing.assert_close(tensor, want[key])
