"""ONNX files give what the networks give, at sizes that they were not exported at; what cannot be exported is named."""

import logging

import pytest
import torch
from torch import nn

from foldfuse.commands.models import export
from foldfuse.errors import InputError
from foldfuse.inference.cost import make_model
from foldfuse.inference.onnx_export import PACKAGES, largest_difference, named_tensors, write_onnx
from foldfuse.models import CLASSIFIERS, make_detector
from foldfuse.models.detection.dense_prediction import DenseOutput
from foldfuse.recipes import Recipe
from foldfuse.storage.run import Run, RunMetadata

SMALL = ["efficientdet_lite0", "efficientdet_d0", "yolov5n", "lite0_fpn", "swin_tiny_fpn", "vit_tiny_pyramid"]
SMALL += ["compose:timm:resnet18+bifpn+efficientdet"]
SMALL += [name for name in CLASSIFIERS if name.endswith("_tiny")]


@pytest.fixture(autouse=True)
def packages():
    for name in PACKAGES:
        pytest.importorskip(name, reason="pip install 'foldfuse[export]' brings it")
    torch.manual_seed(0)
    logging.disable(logging.DEBUG)  # torch traces in hundreds of thousands of records, which pytest would keep
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_file_has_the_networks_outputs(name, tmp_path):
    net = make_model(name, 3)
    nn.init.normal_(next(reversed(list(net.parameters()))), std=0.1)  # some heads begin at 0
    write_onnx(net, tmp_path / "m.onnx", image_size=64, metadata={"model": name}, fixed_size=True)
    assert largest_difference(net, tmp_path / "m.onnx", torch.rand(1, 3, 64, 64)) < 1e-4


@pytest.mark.slow
def test_a_run_is_exported_for_any_number_of_images_of_any_size_and_decoded_from_its_outputs(tmp_path, capsys):
    import onnxruntime

    model = make_detector("efficientdet_lite0", 2, pretrained=False).eval()
    run = Run.create(tmp_path / "run", Recipe("efficientdet_lite0", image_size=64), RunMetadata(("bottle", "can")))
    run.save_weights(model.state_dict())
    path = export(str(run.folder), out=tmp_path / "m.onnx")
    assert "any number of images with sides that are multiples of 32 px" in capsys.readouterr().out
    for shape in ((1, 3, 64, 64), (3, 3, 96, 224)):
        assert largest_difference(model, path, torch.rand(shape)) < 1e-4
    session = onnxruntime.InferenceSession(str(path))
    about = session.get_modelmeta().custom_metadata_map
    assert (about["classes"], about["stride"], about["anchor_scale"]) == ('["bottle", "can"]', "32", "3.0")
    images = torch.rand(1, 3, 96, 64)
    names = [output.name for output in session.get_outputs()]
    outputs = {key: torch.from_numpy(t) for key, t in zip(names, session.run(None, {"images": images.numpy()}))}
    with torch.no_grad():
        raw = model(images)
    torch.testing.assert_close(outputs["logits"], raw.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs["box_deltas"], raw.box_deltas, rtol=1e-4, atol=1e-4)
    assert len(model.decode(DenseOutput(outputs["logits"], outputs["box_deltas"], raw.sizes, raw.image))) == 1


class Stubborn(nn.Module):
    """A network that takes images of 8 px alone."""

    stride = 4

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 64, 2)

    def forward(self, images):
        return self.head(images.flatten(1))


def test_a_network_of_one_size_is_exported_at_that_size(tmp_path):
    taken = write_onnx(Stubborn(), tmp_path / "m.onnx", image_size=8, metadata={}, fixed_size=True)
    assert taken == "one image of 8 x 8 px"


class Unknown(nn.Module):
    """A network with an operation that ONNX does not have."""

    stride = 4

    def forward(self, images):
        return torch.linalg.eigvals(images[:, 0, :4, :4]).real


@pytest.mark.slow
def test_what_cannot_be_exported_is_told_in_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"m.onnx: this network cannot be written as ONNX .*'foldfuse bundle'"):
        write_onnx(Unknown(), tmp_path / "m.onnx", image_size=8, metadata={}, fixed_size=True)
    assert not list(tmp_path.iterdir())


class Grown(nn.Module):
    """A network whose outputs depend on a constant that tracing fixes: exported for other sizes it would be wrong."""

    stride = 4

    def forward(self, images):
        return images.sum() * float(images.shape[-1])


@pytest.mark.slow
def test_a_network_that_does_not_allow_other_sizes_is_exported_at_one(tmp_path):
    assert write_onnx(Grown(), tmp_path / "m.onnx", image_size=8, metadata={}) == "one image of 8 x 8 px"


def test_tensors_have_the_names_of_their_fields():
    x = torch.zeros(1)
    assert [name for name, _ in named_tensors(DenseOutput(x, x, ((1, 1),), (8, 8)))] == ["logits", "box_deltas"]
    assert [name for name, _ in named_tensors([x, x])] == ["output0", "output1"]
    assert [name for name, _ in named_tensors(x)] == ["output"]


@pytest.mark.parametrize(
    ("model", "out", "options", "message"),
    [
        ("vit_tiny", "m.pt", {}, r"must end in \.onnx"),
        ("vit-tiny", "m.onnx", {}, "Did you mean 'vit_tiny'"),
        ("efficientdet_lite0", "m.onnx", {"image_size": 100}, "multiple of 32"),
    ],
)
def test_an_export_that_is_not_possible_is_an_error(model, out, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        export(model, out=tmp_path / out, **options)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("foldfuse.commands.models.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnx, onnxruntime, onnxscript must be installed.*foldfuse\[export\]"):
        export("vit_tiny", out=tmp_path / "m.onnx")
