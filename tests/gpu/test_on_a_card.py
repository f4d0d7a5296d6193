"""Trainings, predictions and rescoring on a CUDA card, compared with the CPU's: `make test-gpu`, in a minute or two."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from campaign_samples import campaign_state
from foldfuse.boxes import pairwise_iou
from foldfuse.campaign.execution.jobs import predict_held_out, train_segment
from foldfuse.commands.predict import predict
from foldfuse.commands.train import train
from foldfuse.data.crops import object_crops
from foldfuse.data.images import ImageCache
from foldfuse.data.readers.coco import read
from foldfuse.formats.predictions import read_predictions
from foldfuse.inference.crop_encoder import features
from foldfuse.inference.crop_features import imagenet_encoder
from foldfuse.models import make_detector
from foldfuse.models.card.depthwise import use_card_layers
from foldfuse.recipes import load_recipe
from foldfuse.storage.run import Run
from foldfuse.system.device import devices_of
from foldfuse.training.cuda_graph import GraphedNetwork
from foldfuse.training.session import run_metadata
from foldfuse.training.step_cost import measure_step
from learning_samples import write_dataset

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA card here"),
]
SMALL = ("image_size=96", "batch_size=4")
TOLERANCE = 0.02  # of a loss and of a score: half precision and TF32 round otherwise


@pytest.fixture
def data(tmp_path):
    return write_dataset(tmp_path / "d", 12)


def agreement(one, other):
    """The share of the boxes of `one`, of its 50 best, with a partner of the same class in `other`."""
    floor = np.sort(one.scores)[::-1][min(len(one.scores), 50) - 1]
    found = total = 0
    for i in one.image_ids:
        a, b = one[i], other[i]
        a = a[a.scores >= floor]
        total += len(a)
        alike = (pairwise_iou(a.boxes, b.boxes) >= 0.9) & (a.labels[:, None] == b.labels)
        found += int((alike & (np.abs(a.scores[:, None] - b.scores) <= TOLERANCE)).any(1).sum())
    return found / total


@pytest.mark.parametrize("name", ["lite0_fpn", "efficientdet_d0", "yolov5n", "swin_tiny_fpn"])
def test_a_loss_and_its_gradients_are_those_of_the_cpu(name, data):
    targets = [sample.annotations for sample in read(data).samples[:2]]
    torch.manual_seed(0)
    model = make_detector(name, 2, pretrained=False).eval()
    images = torch.rand(2, 3, 128, 128)
    losses = {}
    for device in ("cpu", "cuda"):
        model.to(device).zero_grad()
        loss = sum(model.loss(model(images.to(device)), targets).values())
        loss.backward()
        losses[device] = loss.item()
        assert all(
            p.grad is None or (p.grad.isfinite().all() and p.grad.device.type == device) for p in model.parameters()
        )
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=TOLERANCE)


def test_a_run_made_on_a_card_is_resumed_and_predicted_on_a_cpu_and_the_other_way_round(data, tmp_path):
    for first, second in (("cuda", "cpu"), ("cpu", "cuda")):
        run = train(data, out=tmp_path / first, changes=SMALL, steps=4, device=first)
        assert Run(run).metadata.trained_on == first
        train(resume=run, steps=6, device=second)
        assert Run(run).metadata.trained_on == second
        assert [row["step"] for row in Run(run).log] == list(range(6))
        found = []
        for device in (first, second):
            out = tmp_path / f"{first}-{device}.parquet"
            predict(run, data, out=out, device=device, all_=True)
            found.append(read_predictions(out, read(data)))
        assert agreement(*found) >= 0.95


def test_a_segment_of_a_campaign_and_its_predictions(data, tmp_path):
    dataset = read(data)
    recipe = load_recipe("lite0_fpn", [*SMALL, "frozen_stages=0"])
    run = Run.create(tmp_path / "run", recipe, run_metadata(dataset, data="d", seed=0))
    images = ImageCache.load(dataset.samples, longest=140)
    last = devices_of("cuda")[-1]  # the second card where there are two
    values = {"images": images, "state": None, "parent": None, "checkpoint_seconds": 60.0, "device": last}
    assert train_segment(run, dataset, 3.0, **values) >= 3.0
    assert predict_held_out(run, dataset, campaign_state(), device=last).image_seconds > 0
    assert measure_step(recipe, dataset, device=last).step_seconds > 0


def test_features_of_crops_are_those_of_the_cpu(data):
    crops = object_crops(read(data))
    on_card, on_cpu = (features(crops, imagenet_encoder(size=64, device=device)) for device in ("cuda", "cpu"))
    assert np.allclose(on_card, on_cpu, atol=0.05)


@pytest.mark.parametrize(("side", "stride"), [(3, 1), (5, 2), (4, 2)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_depthwise_convolutions_are_those_of_the_cpu(side, stride, layout):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(32, 32, side, stride, (side - 1) // 2, groups=32)
    images, found = torch.randn(2, 32, 24, 32), []
    for device in ("cpu", "cuda"):
        on_device = use_card_layers(torch.nn.Sequential(copy.deepcopy(conv))).to(device, memory_format=layout)
        x = images.to(device, memory_format=layout).requires_grad_()
        out = on_device(x)
        out.square().sum().backward()
        found.append([each.cpu() for each in (out, x.grad, *(p.grad for p in on_device.parameters()))])
    for expected, own in zip(*found, strict=True):
        assert torch.allclose(own, expected, rtol=1e-3, atol=1e-3 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("name", ["lite0_fpn", "efficientdet_d0", "swin_tiny_fpn"])
def test_a_cuda_graph_has_the_loss_and_the_gradients_of_the_network(name, data):
    targets = [sample.annotations for sample in read(data).samples[:2]]
    torch.manual_seed(0)
    model = make_detector(name, 2, pretrained=False).to("cuda")
    model.freeze(0)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    images, losses = torch.rand(2, 3, 128, 128, device="cuda"), {}
    for kind, network in (("eager", model), ("graph", GraphedNetwork(model))):
        model.load_state_dict(state)
        losses[kind] = []
        for _ in range(3):  # the first one records
            model.zero_grad()
            with torch.autocast("cuda", torch.float16):
                raw = network(images)
            loss = sum(model.loss(raw, targets).values())
            loss.backward()
            norm = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None) ** 0.5
            losses[kind].append([loss.item(), norm])
    assert np.allclose(losses["graph"], losses["eager"], rtol=TOLERANCE)
