"""Costs of networks, compared with counts by hand; `profile` and its page."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from torch import nn

from foldfuse.commands.models import profile
from foldfuse.errors import InputError
from foldfuse.inference.cost import (
    CostPoint,
    ForwardCost,
    activation_bytes,
    check_image_size,
    forward_cost,
    latency,
    make_model,
    scaling_exponents,
)
from foldfuse.reporting.profile_page import cost_chart, page


class Small(nn.Module):
    """A convolution of 3x3 from 3 to 4 channels, and a product of its output with itself."""

    stride = 2

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images):
        x = self.conv(images).flatten(2)  # (B, 4, H W)
        return x @ x.transpose(1, 2)


def test_flops_by_hand():
    with torch.device("meta"):
        net = Small()
    got = forward_cost(net, 10)
    assert got.num_parameters == 4 * 3 * 9 + 4
    assert got.attention_flops == 2 * 4 * 100 * 4
    assert got.flops == 2 * 100 * 4 * 27 + got.attention_flops


def test_a_vits_flops_are_those_of_its_layers():
    net = make_model("vit_tiny", 10, device="meta")
    tokens, width, layers = 14 * 14 + 1, 192, 12
    attention = layers * 2 * 2 * tokens * tokens * width
    rest = layers * 2 * tokens * width * (3 * width + width + 8 * width)
    patches, head = 2 * 196 * 3 * 16 * 16 * width, 2 * width * 10
    got = forward_cost(net, 224)
    assert got.attention_flops == attention
    assert got.flops == attention + rest + patches + head


def test_activation_bytes_by_hand():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return ((x * self.weight).relu() * self.weight).sum()

    # the first product keeps the image, relu its output, which the second product keeps too; the weight is no activation
    assert activation_bytes(Scaled(), 8) == 2 * 3 * 8 * 8 * 4


def test_latency_is_the_time_of_a_run(monkeypatch):
    now = [0.0]

    class Slow(nn.Module):
        def forward(self, x):
            now[0] += 0.25

    monkeypatch.setattr("foldfuse.inference.cost.time.perf_counter", lambda: now[0])
    assert latency(Slow(), 4, seconds=0.0) == 0.25


def test_a_size_or_name_that_does_not_fit_is_an_error():
    net = make_model("efficientdet_lite0", 2, device="meta")
    with pytest.raises(InputError, match=r"is 100, and must be a multiple of 32.*nearest are 96 and 128"):
        check_image_size(net, 100)
    with pytest.raises(InputError, match="nearest are 32 and 64"):
        check_image_size(net, 0)
    with pytest.raises(InputError, match="Did you mean 'vit_tiny'"):
        make_model("vit-tiny", 2)


def test_exponents_are_those_of_the_powers_in_the_costs():
    points = [CostPoint(s, ForwardCost(7, s**2, s**4), 5 * s**2, 1e-9 * s**3) for s in (64, 96, 160)]
    got = scaling_exponents(points)
    assert got == pytest.approx(
        {"parameters": 0, "attention FLOPs": 2, "FLOPs": 1, "activation memory": 1,
         "latency": 1.5}, abs=1e-3
    )  # fmt: skip


def test_a_vits_parameters_stay_while_attention_grows_with_the_square_and_a_swins_with_the_patches():
    grown = {
        name: {
            what: np.log(getattr(large, what) / getattr(small, what)) / np.log(4)
            for net in [make_model(name, 10, device="meta")]
            for small, large in [(forward_cost(net, 448), forward_cost(net, 896))]
            for what in ("num_parameters", "attention_flops", "flops")
        }
        for name in ("vit_tiny", "swin_tiny")
    }
    assert grown["vit_tiny"]["num_parameters"] == grown["swin_tiny"]["num_parameters"] == 0
    assert grown["vit_tiny"]["attention_flops"] == pytest.approx(2, abs=0.01)
    assert grown["swin_tiny"]["attention_flops"] == pytest.approx(1, abs=0.02)
    assert grown["vit_tiny"]["flops"] > 1.4
    assert grown["swin_tiny"]["flops"] == pytest.approx(1, abs=0.02)


def test_profile_prints_the_costs_and_writes_a_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    profile(("vit_tiny", "efficientdet_lite0"), image_size=(96, 64), out=tmp_path / "p.html", budget=0.0)
    shown = capsys.readouterr().out
    assert "vit_tiny: parameters ~ patches^0.00, attention FLOPs ~ patches^1." in shown
    assert "efficientdet_lite0: parameters ~ patches^0.00, FLOPs ~" in shown  # it has no attention
    text = (tmp_path / "p.html").read_text()
    assert text.count('<svg class="chart"') == 2
    assert "attention FLOPs ~ patches^1." in text


def test_a_chart_starts_every_curve_at_one_and_escapes_the_name():
    points = [CostPoint(s, ForwardCost(7, s**2, 0), 5 * s**2, 1e-9 * s**3) for s in (64, 96)]
    chart = cost_chart("a<b", points)
    root = ET.fromstring(str(chart.svg))
    curves = [e.get("d") for e in root.iter("path") if e.get("class", "").startswith("line")]
    assert len(curves) == len(chart.legend) == 4  # no attention
    assert len({d.split(" ")[0] for d in curves}) == 1
    assert "a<b" not in page({"a<b": points})


@pytest.mark.parametrize(
    ("sizes", "out", "message"),
    [
        ((224,), None, "two or more"),
        ((224, 224), None, "two or more"),
        ((100, 128), None, "multiple of 32"),
        ((96, 128), "p.png", r"must end in \.html"),
    ],
)
def test_a_size_or_file_that_does_not_fit_is_an_error(sizes, out, message, tmp_path):
    with pytest.raises(InputError, match=message):
        profile(("efficientdet_lite0",), image_size=sizes, out=tmp_path / out if out else None)
    assert not list(tmp_path.iterdir())
