"""The forward pass of every detector and the loss of images without objects stay on one device.

`FakeTensorMode` holds tensors of a CUDA device that is not there: they have a shape and a device but no values, and an operation
on tensors of two devices raises. What depends on values, such as matching and decoding, cannot be run so:
`tests/gpu` runs it on a card.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from device_samples import move_to_fake
from foldfuse.detections import Annotations
from foldfuse.models import make_detector

NAMES = ["lite0_fpn", "efficientdet_d0", "swin_tiny_fpn", "vit_tiny_pyramid"]


def fake_step(name: str, device: str, *, stray: bool = False) -> dict[str, torch.device]:
    """{term of the loss: its device} of a step on a device that need not exist; `stray` leaves the images on the CPU."""
    targets = [Annotations.empty()] * 2
    model = make_detector(name, 3, pretrained=False)
    model.freeze(0)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        move_to_fake(model, device, mode)
        images = torch.rand(2, 3, 128, 128, device="cpu" if stray else device)
        raw = model(images)
        terms = model.loss(raw, targets)
        return {name: term.device for name, term in terms.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_step_computes_on_the_device_alone(name):
    assert set(map(str, fake_step(name, "cuda:0").values())) == {"cuda:0"}


def test_a_tensor_that_stays_on_the_cpu_is_found():
    with pytest.raises(RuntimeError, match="cuda"):
        fake_step("lite0_fpn", "cuda:0", stray=True)
