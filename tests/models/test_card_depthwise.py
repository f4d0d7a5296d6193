"""Depthwise convolutions on a card: same numbers as PyTorch's, without cuDNN."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from device_samples import move_to_fake
from foldfuse.models import make_detector
from foldfuse.models.card import depthwise as module
from foldfuse.models.card.depthwise import DepthwiseConv, depthwise, use_card_layers
from foldfuse.models.cpu.fold_batch_norm import fold_batch_norms


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("side", "stride", "multiple", "bias"), [(3, 1, 1, False), (5, 2, 1, True), (4, 2, 2, True)])
def test_outputs_gradients_and_layout_are_those_of_a_convolution(side, stride, multiple, bias, layout):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6 * multiple, side, stride, (side - 1) // 2, groups=6, bias=bias).double()
    conv.to(memory_format=layout)
    images = torch.rand(2, 6, 12, 16, dtype=torch.double).to(memory_format=layout)
    found = []
    for compute in (conv, lambda x: depthwise(x, conv.weight, conv.bias, conv.stride, conv.padding)):
        x = images.clone().requires_grad_()
        conv.zero_grad()
        out = compute(x)
        assert out.is_contiguous(memory_format=layout)
        out.square().sum().backward()
        found.append([out, x.grad, *(p.grad.clone() for p in conv.parameters())])
    for expected, own in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-10)


def test_cudnn_is_off_meanwhile_and_on_again_after_an_error(monkeypatch):
    seen = []

    def conv2d(*_):
        seen.append(torch.backends.cudnn.enabled)
        raise RuntimeError("as CUDA may say")

    before = torch.backends.cudnn.enabled
    monkeypatch.setattr(F, "conv2d", conv2d)
    with pytest.raises(RuntimeError):
        depthwise(torch.zeros(1, 2, 4, 4), torch.zeros(2, 1, 3, 3), None, (1, 1), (1, 1))
    assert seen == [False]
    assert torch.backends.cudnn.enabled == before


def test_only_depthwise_convolutions_become_ones_of_the_card():
    whole = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4, padding="same"),
        nn.Conv2d(4, 4, 3, groups=4, padding_mode="reflect"),
        nn.Conv2d(1, 4, 3),
    )
    names = list(whole.state_dict())
    assert [type(part) is DepthwiseConv for part in use_card_layers(whole)] == [True, True, *[False] * 4]
    assert list(whole.state_dict()) == names


@pytest.mark.parametrize("name", ["lite0_fpn", "efficientdet_d0"])
def test_a_detector_on_a_card_takes_them_in_training_and_prediction(name, monkeypatch):
    calls = []
    real = module._Depthwise.apply
    monkeypatch.setattr(module._Depthwise, "apply", lambda *args: (calls.append(args[0].device.type), real(*args))[1])
    plain = []
    conv2d = F.conv2d

    def counted(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        if groups > 1 and torch.backends.cudnn.enabled:
            plain.append(weight.shape)
        return conv2d(x, weight, bias, stride, padding, dilation, groups)

    model = make_detector(name, 3, pretrained=False).train()
    folded = fold_batch_norms(model)
    monkeypatch.setattr(F, "conv2d", counted)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for network in (model, folded):
            move_to_fake(network, "cuda", mode)
        model(torch.empty(2, 3, 128, 128, device="cuda"))
        in_training = len(calls)
        folded(torch.empty(2, 3, 128, 128, device="cuda"))
    assert in_training > 5
    assert len(calls) >= 2 * in_training - 2
    assert set(calls) == {"cuda"}
    assert not plain, "depthwise convolutions with cuDNN"
