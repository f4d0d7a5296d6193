"""A network as a CUDA graph; PyTorch's recording is replaced by a function that calls the network."""

import logging

import pytest
import torch
from torch.utils._pytree import tree_flatten

from foldfuse.models import make_detector
from foldfuse.training.cuda_graph import GraphedNetwork
from foldfuse.training.memory import InParts
from foldfuse.training.precision import ComputeConfig, config_for


@pytest.fixture
def recordings(monkeypatch):
    """Arguments of the recordings, each of which runs the network three times, as PyTorch does."""
    found = []

    def record(flat, args, *, allow_unused_input):
        found.append(args[0].shape)
        for _ in range(3):
            flat(*args)
        return flat

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    return found


@pytest.mark.parametrize("name", ["lite0_fpn", "yolov5n", "ssdlite320"])
def test_raw_outputs_keep_their_form_and_recording_moves_nothing(name, recordings):
    torch.manual_seed(0)
    model = make_detector(name, 5, pretrained=False).train()
    images = torch.rand(2, 3, 128, 128)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    network = GraphedNetwork(model)
    random = torch.get_rng_state()
    network.record(images)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    found, form = tree_flatten(network(images))
    model.load_state_dict(state)
    wanted, wanted_form = tree_flatten(model(images))
    assert form == wanted_form
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert recordings == [images.shape]


def test_half_precision_is_that_of_the_recording(recordings):
    model = torch.nn.Conv2d(3, 2, 1).train()
    network = GraphedNetwork(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.rand(1, 3, 4, 4)).dtype == torch.bfloat16


def test_a_network_that_cannot_be_recorded_trains_without(monkeypatch, caplog):
    def refuse(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    model = torch.nn.Conv2d(3, 2, 1).train()
    parts, images = InParts(model, graphed=True), torch.rand(1, 3, 4, 4)
    with caplog.at_level(logging.INFO):
        parts.record(images)
    assert "Training goes on without a CUDA graph: operation not permitted" in caplog.text
    assert torch.equal(parts(images), model(images))


def test_parts_of_a_batch_are_not_recorded(recordings):
    parts = InParts(torch.nn.Conv2d(3, 2, 1).train(), 1, graphed=True)
    parts.record(torch.rand(2, 3, 4, 4))
    assert parts(torch.rand(2, 3, 4, 4)).shape == (2, 2, 4, 4)
    assert not recordings


def test_a_run_that_goes_on_on_a_cpu_has_no_graph():
    stored = ComputeConfig("bfloat16", graphed=True)
    assert "as a CUDA graph" in str(stored)
    assert not config_for(stored, torch.device("cpu"), precision="auto").graphed
