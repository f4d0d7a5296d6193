"""Published weights: found in the hub's cache or PyTorch's, downloaded where allowed, and a class layer matched by names."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from torch import nn

from foldfuse.errors import InputError
from foldfuse.models.pretrained import published as module
from foldfuse.models.pretrained.class_layer import ClassLayer
from foldfuse.models.pretrained.coco import COCO_CLASSES, COCO_IDS, load_coco_state, name_pairs
from foldfuse.models.pretrained.published import PUBLISHED, PublishedWeights, file_in, locate, published

HUB = PublishedWeights(
    "net", "hf:someone/net", "model.safetensors", "MIT", "COCO", "https://huggingface.co/someone/net"
)
WEB = PublishedWeights("net", "https://example.org/models", "net.pth", "MIT", "COCO", "https://example.org")


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches of the hub and of PyTorch."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


@pytest.fixture
def no_network(monkeypatch):
    def fails(*_, **__):
        raise AssertionError("the network was tried")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fails)
    monkeypatch.setattr(module.urllib.request, "urlopen", fails)


def put_in_hub_cache(folder: Path, weights: PublishedWeights, content: bytes) -> Path:
    """Lay a file out as the hub's cache does."""
    at = folder / "hub" / f"models--{weights.source.removeprefix('hf:').replace('/', '--')}"
    (at / "refs").mkdir(parents=True)
    (at / "refs" / "main").write_text("abc123")
    (at / "snapshots" / "abc123").mkdir(parents=True)
    path = at / "snapshots" / "abc123" / weights.file
    path.write_bytes(content)
    return path


@pytest.mark.usefixtures("no_network")
def test_a_file_in_a_cache_is_found_without_a_network(caches):
    path = put_in_hub_cache(caches, HUB, b"weights")
    assert locate(HUB) == path
    kept = caches / "torch" / "hub" / "checkpoints" / "net.pth"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"weights")
    assert locate(WEB) == kept


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("weights", [HUB, WEB], ids=["hub", "web"])
@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_never_tries_the_network_and_says_how_to_go_on(caches, monkeypatch, weights, how):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "environment")
    with pytest.raises(InputError) as error:
        locate(weights, offline=how == "argument")
    said = str(error.value)
    assert "offline" in said
    assert weights.file in said
    assert weights.address in said
    assert str(caches) in said
    assert "foldfuse fetch net" in said
    assert "--set init_weights=PATH" in said


@pytest.mark.parametrize("weights", [HUB, WEB], ids=["hub", "web"])
def test_a_network_that_does_not_answer_is_named(caches, monkeypatch, weights):
    def fails(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fails)
    monkeypatch.setattr(module.urllib.request, "urlopen", fails)
    with pytest.raises(InputError, match="cannot be reached"):
        locate(weights)
    assert not list(caches.rglob("*.pth"))


def test_a_download_is_kept_and_a_damaged_one_is_not(caches, monkeypatch):
    content = b"weights" * 1000
    monkeypatch.setattr(module.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(content))
    good = PublishedWeights("net", WEB.source, f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth", "MIT", "COCO", "")
    path = locate(good)
    assert path == caches / "torch" / "hub" / "checkpoints" / good.file
    assert path.read_bytes() == content
    bad = PublishedWeights("net", WEB.source, "net-00000000.pth", "MIT", "COCO", "")
    with pytest.raises(InputError, match="damaged"):
        locate(bad)
    assert [p.name for p in path.parent.iterdir()] == [good.file]


def test_a_users_path_is_the_file_or_a_folder_that_holds_it(tmp_path):
    with pytest.raises(InputError, match="neither the folder of a run nor a folder with model"):
        file_in(tmp_path, HUB)
    with pytest.raises(InputError, match="no such file"):
        file_in(tmp_path / "gone", HUB)
    path = tmp_path / HUB.file
    path.touch()
    assert file_in(tmp_path, HUB) == file_in(path, HUB) == path


def test_every_entry_is_under_its_own_name_and_an_unknown_one_is_named():
    for (name, kind), weights in PUBLISHED.items():
        assert (weights.name, kind in ("coco", "imagenet")) == (name, True)
        assert weights.source.startswith(("hf:", "https://"))
        assert weights.licence
        assert weights.data
        assert weights.url.startswith("https://")
    with pytest.raises(InputError, match="init_weights is coco, and no published weights of 'lite0_fpn'"):
        published("lite0_fpn", "coco")


def test_classes_are_matched_by_name_whatever_case_spaces_and_underscores():
    assert (len(COCO_CLASSES), len(COCO_IDS), COCO_IDS[-1]) == (80, 80, 90)
    pairs = name_pairs(("Cell_Phone", "plastic bag", "TRAFFIC LIGHT", "hotdog", "cell phone"))
    assert [(label, COCO_CLASSES[i]) for label, i in pairs] == [
        (0, "cell phone"),
        (2, "traffic light"),
        (3, "hot dog"),
        (4, "cell phone"),
    ]


class _Net(nn.Sequential):
    def class_layers(self) -> list[ClassLayer]:
        return [ClassLayer("1")]


def test_rows_of_matched_classes_are_carried_over_and_the_others_keep_their_values():
    theirs, ours = (_Net(nn.Linear(4, 3), nn.Linear(3, k)) for k in (80, 2))
    before = ours[1].weight.detach().clone()
    said = load_coco_state(ours, theirs.state_dict(), classes=("lid", "Dog"), source="net.safetensors")
    assert said == (
        "net.safetensors: all weights were loaded; 1 of 2 classes start from COCO's of the same name (Dog), the others from "
        "random values."
    )
    assert torch.equal(ours[0].weight, theirs[0].weight)
    assert torch.equal(ours[1].weight[0], before[0])
    assert torch.equal(ours[1].weight[1], theirs[1].weight[COCO_CLASSES.index("dog")])
    with pytest.raises(InputError, match="another network"):
        load_coco_state(ours, nn.Linear(4, 3).state_dict(), classes=("lid", "Dog"), source="other")
