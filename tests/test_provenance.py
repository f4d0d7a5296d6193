"""Licences that are not permissive are named; each weight's origin travels through the runs that it started."""

import pytest
import timm

from foldfuse.errors import InputError
from foldfuse.models.pretrained import timm_source
from foldfuse.models.pretrained.timm_source import data_of_tag, default_weights
from foldfuse.provenance import UNKNOWN, WeightsOrigin, is_permissive, licence_notes, origins_page
from foldfuse.recipes import RECIPES, load_recipe
from foldfuse.storage.run import Run, RunMetadata
from foldfuse.training.weights_origin import origins_of


@pytest.mark.parametrize("licence", ["Apache-2.0", "mit", "BSD-3-Clause", "MIT, CC-BY-4.0", "public domain"])
def test_permissive_licences(licence):
    assert is_permissive(licence)


@pytest.mark.parametrize(
    "licence", ["cc-by-nc-4.0", "dinov3-license", "AGPL-3.0", "MIT, cc-by-nc-4.0", "fair-research"]
)
def test_other_licences_are_named_once(licence):
    origin = WeightsOrigin("net", "hf:a/net", licence)
    (note,) = licence_notes([origin, origin, WeightsOrigin("b", "hf:a/b"), WeightsOrigin("c", "hf:a/c", "MIT")])
    assert f"net (hf:a/net) are under the licence {licence}" in note


def test_no_recipe_starts_from_weights_under_another_licence():
    for name in RECIPES:
        assert not licence_notes(origins_of(load_recipe(name))), name


def test_weights_under_a_non_commercial_licence_are_taken_by_name_alone():
    assert timm.get_pretrained_cfg("convnextv2_atto").license == "cc-by-nc-4.0"
    with pytest.raises(InputError, match=r"never taken unasked. Name them, as in timm:convnextv2_atto\.fcmae"):
        default_weights("convnextv2_atto")
    assert default_weights("convnextv2_atto.fcmae") == "convnextv2_atto.fcmae"
    recipe = load_recipe("swin_tiny_fpn", ["detector=compose:timm:convnextv2_atto.fcmae+fpn+dense"])
    assert licence_notes(origins_of(recipe))


def test_data_of_tags():
    assert data_of_tag("augreg_in21k_ft_in1k") == "ImageNet-21k, ImageNet-1k"
    assert data_of_tag("ra_in1k") == "ImageNet-1k"
    for tag in ("", "openai", "fcmae", "seer"):  # names of methods and authors
        assert data_of_tag(tag) == UNKNOWN
    assert data_of_tag("swsl_ig1b_ft_in1k") == "unknown, ImageNet-1k"


def test_a_card_in_the_cache_tells_licence_and_data(monkeypatch, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\ndatasets:\n- imagenet-1k\n- laion\n---\n# A network\n")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(tmp_path / "README.md"))
    assert timm_source.card("a/b") == ("mit", "imagenet-1k, laion")


def test_a_run_that_started_from_a_run_names_the_chain(tmp_path):
    first = Run.create(tmp_path / "first", load_recipe("lite0_fpn", ["image_size=320"]), RunMetadata(data="/data/a"))
    start = load_recipe("lite0_fpn", [f"init_weights={first.folder}"])
    run, shipped, imagenet = origins_of(start)  # of a version that did not write weights into run.json
    assert (run.name, run.data, run.licence) == ("first", "/data/a", UNKNOWN)
    assert shipped.source == "this package"
    assert imagenet == WeightsOrigin("tf_efficientnet_lite0", imagenet.source, "Apache-2.0", "ImageNet-1k")
    first.write_metadata(RunMetadata(data="/data/a", weights=()))
    assert [each.name for each in origins_of(start)] == ["first"]
    assert "| member_a | first | run " in origins_page({"member_a": origins_of(start)})
    assert origins_of(load_recipe("yolov5n")) == ()


def test_a_file_is_unknown(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"")
    assert origins_of(load_recipe("lite0_fpn", [f"init_weights={tmp_path / 'a.pth'}"])) == (
        WeightsOrigin("lite0_fpn", "file a.pth"),
    )


def test_imagenet_weights_of_torchvision_have_their_origin():
    (origin,) = origins_of(load_recipe("fcos_r50", ["init_weights=imagenet"]))
    assert (origin.source, origin.data) == ("https://download.pytorch.org/models", "ImageNet-1k")
    assert not licence_notes([origin])
