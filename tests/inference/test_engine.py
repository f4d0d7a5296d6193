"""OpenVINO and ONNX Runtime give PyTorch's detections; what differs, fails or does not repay leaves the prediction to PyTorch."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch

from foldfuse.detections import Detections
from foldfuse.errors import InputError
from foldfuse.inference import onnxruntime_network, openvino_network
from foldfuse.inference.detector import detect
from foldfuse.inference.engine import MAX_TIES, Engine, like, without_partner
from foldfuse.inference.openvino_network import OpenVINONetwork
from foldfuse.models import make_detector
from foldfuse.models.cpu.fold_batch_norm import fold_batch_norms

IMAGES = np.random.default_rng(0).integers(0, 255, (2, 96, 64, 3), np.uint8)


def noisy(name="lite0_fpn", seed=1):
    """An untrained detector whose last layers are noisy, so that it finds boxes."""
    torch.manual_seed(seed)
    net = make_detector(name, 2, pretrained=False).eval()
    with torch.no_grad():
        for weight in list(net.parameters())[-6:]:
            weight.add_(torch.randn_like(weight) * 0.3)
    return fold_batch_norms(net)


@pytest.fixture(scope="module")
def net():
    return noisy()


@pytest.fixture
def installed():
    pytest.importorskip("openvino_telemetry", reason="pip install 'foldfuse[openvino]' brings openvino")


def engine(net, name, cache):
    return Engine(net, functools.partial(detect, net), name, cache=cache)


def same(a, b):
    return all(without_partner(x, y) <= MAX_TIES for x, y in zip(a, b, strict=True))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["lite0_fpn", "efficientdet_lite0", "yolov5n"])
def test_detections_are_those_of_pytorch_at_any_size_and_batch(name, tmp_path):
    net = noisy(name)
    ours = engine(net, "openvino", tmp_path)
    ours(IMAGES)
    assert ours.name == "openvino"
    for images in (IMAGES, IMAGES[:1], np.ascontiguousarray(IMAGES.transpose(0, 2, 1, 3))):
        found = ours(images)
        assert sum(len(one.scores) for one in found) > 10
        assert same(found, detect(net, images))
        assert ours.name == "openvino"


@pytest.mark.usefixtures("installed")
def test_a_converted_network_is_kept_and_other_weights_get_their_own(net, tmp_path, monkeypatch):
    engine(net, "openvino", tmp_path)(IMAGES)
    (kept,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(OpenVINONetwork, "convert", None)
        again = engine(net, "openvino", tmp_path)
        again(IMAGES)
        assert again.name == "openvino"
    engine(noisy(seed=2), "openvino", tmp_path)(IMAGES)
    assert len(list(tmp_path.iterdir())) == 2
    (kept / "network.xml").write_text("<cut")  # as no kill leaves it: the folder appears whole
    broken = engine(net, "openvino", tmp_path)
    broken(IMAGES)
    assert broken.name == "openvino"


@pytest.mark.usefixtures("installed")
def test_other_outputs_or_a_failure_leave_the_prediction_to_pytorch(net, tmp_path, monkeypatch, caplog):
    call = OpenVINONetwork.__call__
    with monkeypatch.context() as patch:
        patch.setattr(OpenVINONetwork, "__call__", lambda self, images: [t + 0.1 for t in call(self, images)])
        ours = engine(net, "openvino", tmp_path)
        assert same(ours(IMAGES), detect(net, IMAGES))
    assert ours.name == "eager"
    assert "differ from PyTorch's" in caplog.text
    assert not list(tmp_path.iterdir())

    def fails(*arguments, **options):
        raise RuntimeError("no such operation")

    with monkeypatch.context() as patch:
        patch.setattr(OpenVINONetwork, "convert", fails)
        ours = engine(net, "openvino", tmp_path)
        assert same(ours(IMAGES), detect(net, IMAGES))
        assert ours.name == "eager"
    ours = engine(net, "openvino", tmp_path)
    ours(IMAGES)
    monkeypatch.setattr(OpenVINONetwork, "__call__", fails)
    assert same(ours(IMAGES), detect(net, IMAGES))
    assert ours.name == "eager"


@pytest.mark.usefixtures("installed")
def test_a_failure_in_the_first_timed_batch_leaves_the_prediction_to_pytorch(net, tmp_path, monkeypatch, caplog):
    call, images = OpenVINONetwork.__call__, np.concatenate([IMAGES] * 3)

    def fails_on_large_batches(self, images):
        if len(images) > 4:  # more than are compared
            raise RuntimeError("out of memory")
        return call(self, images)

    monkeypatch.setattr(OpenVINONetwork, "__call__", fails_on_large_batches)
    ours = engine(net, "openvino", tmp_path)
    assert same(ours(images), detect(net, images))
    assert ours.name == "eager"
    assert caplog.text.count("out of memory") == 1


def test_a_short_prediction_stays_in_pytorch_and_a_long_one_converts(net, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_network, "is_installed", lambda: True)
    monkeypatch.setattr(openvino_network, "version", lambda: "1")
    ours, begun = engine(net, "auto", tmp_path), []
    monkeypatch.setattr(ours, "_begin", lambda runtime, _: begun.append(runtime.name))
    ours.expect(IMAGES.size)
    ours(IMAGES)
    assert not begun
    ours.expect(IMAGES.size * 100_000)
    ours(IMAGES)
    assert begun == ["openvino"]


def test_another_runtime_is_tried_where_the_first_is_no_faster(net, tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime_network, "is_installed", lambda: True)
    monkeypatch.setattr(openvino_network, "is_installed", lambda: True)
    monkeypatch.setattr(Engine, "_own_path", lambda self, runtime: tmp_path / runtime.name)
    ours, tried = engine(net, "auto", tmp_path), []
    monkeypatch.setattr(ours, "_converted_network", lambda runtime, _: tried.append(runtime.name))
    for _ in range(4):
        ours.expect(IMAGES.size * 100_000)
        ours(IMAGES)
    assert tried == ["openvino", "onnxruntime"]
    assert ours.name == "eager"


@pytest.mark.slow
def test_onnx_runtime_gives_the_same_detections_at_any_size_and_batch(net, tmp_path):
    if not onnxruntime_network.is_installed():
        pytest.skip("pip install 'foldfuse[export]' brings onnxruntime")
    net = net.to(memory_format=torch.channels_last)
    before = [weight.stride() for weight in net.parameters()]
    ours = engine(net, "onnxruntime", tmp_path)
    ours(IMAGES)
    assert ours.name == "onnxruntime"
    assert [weight.stride() for weight in net.parameters()] == before
    for images in (IMAGES, IMAGES[:1], np.ascontiguousarray(IMAGES.transpose(0, 2, 1, 3))):
        assert same(ours(images), detect(net, images))
        assert ours.name == "onnxruntime"
    (kept,) = tmp_path.iterdir()
    assert [file.name for file in kept.iterdir()] == ["network.onnx"]


def test_bfloat16_computes_in_half_precision_and_is_never_chosen_unasked(net, tmp_path):
    ours, seen = engine(net, "bfloat16", tmp_path), []
    hook = net.backbone.register_forward_hook(lambda _, __, out: seen.append(out[0].dtype))
    found = ours(IMAGES)
    hook.remove()
    assert (ours.name, seen) == ("bfloat16", [torch.bfloat16])
    assert sum(len(one.scores) for one in found) > 10
    assert not same(found, detect(net, IMAGES))
    for mine, eager in zip(found, detect(net, IMAGES), strict=True):
        assert abs(mine.scores[:20].mean() - eager.scores[:20].mean()) < 0.05
    assert engine(net, "auto", tmp_path).name == "eager"


def test_what_is_not_installed_is_told(net, tmp_path, monkeypatch):
    for module, name, extra in (
        (openvino_network, "openvino", "openvino"),
        (onnxruntime_network, "onnxruntime", "export"),
    ):
        monkeypatch.setattr(module, "is_installed", lambda: False)
        with pytest.raises(InputError, match=rf"pip install 'foldfuse\[{extra}\]'"):
            engine(net, name, tmp_path)
    with pytest.raises(InputError, match="engine"):
        engine(net, "openvinno", tmp_path)
    assert engine(net, "auto", tmp_path).name == "eager"


def test_boxes_without_a_partner_are_counted():
    boxes = np.array([[0, 0, 9, 9], [20, 20, 40, 40], [1, 2, 3, 4]], np.float32)
    a = Detections(boxes, np.array([0.9, 0.5, 0.1], np.float32), np.array([0, 1, 0]))
    assert without_partner(a, a) == 0
    assert without_partner(a, Detections(boxes + 0.005, a.scores, a.labels)) == 0
    assert without_partner(a, Detections(boxes + 0.05, a.scores, a.labels)) > 0.5
    assert without_partner(a, Detections(boxes, a.scores - 0.001, a.labels)) > 0.5
    assert without_partner(a, Detections(boxes, a.scores, 1 - a.labels)) > 0.5
    assert without_partner(a, Detections.empty()) == 1
    assert without_partner(Detections.empty(), Detections.empty()) == 0


def test_a_raw_output_that_may_hide_tensors_is_refused():
    one, two = torch.zeros(2), torch.ones(2)
    assert like((one, (3, 4)), iter([two])) == (two, (3, 4))
    with pytest.raises(TypeError, match="dict"):
        like((one, {"boxes": one}), iter([two]))


@pytest.mark.usefixtures("installed")
def test_telemetry_is_never_loaded():
    code = (
        "import sys; from foldfuse.inference.openvino_network import import_openvino; import_openvino();"
        "from openvino.tools.ovc import telemetry_utils;"
        "assert telemetry_utils.tm.__name__ == 'openvino.tools.ovc.telemetry_stub';"
        "assert 'openvino_telemetry' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.DEBUG)  # OpenVINO writes the whole graph into the log
    yield
    logging.disable(logging.NOTSET)
