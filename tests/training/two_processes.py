"""What tests/training/test_distributed.py starts with torchrun, and by itself: the losses of small trainings in float64.

    python two_processes.py train.json log.json

In float32, two runs that differ by rounding alone part ways within ten steps, because who answers for an object is a choice,
and Adam makes whole steps of what should be a gradient of 0.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from foldfuse.data.images import ImageCache
from foldfuse.data.readers.coco import read
from foldfuse.models import make_detector
from foldfuse.models.detection.normalizers import own_total
from foldfuse.recipes import load_recipe
from foldfuse.system.processes import open_world
from foldfuse.training.batches import Batches
from foldfuse.training.budget import Budget
from foldfuse.training.loop import fit
from foldfuse.training.session import TrainingSession

STEPS = 20


class Precise(nn.Module):
    """A detector that computes in float64."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner.double()
        self.backbone = inner.backbone
        self.loss, self.freeze = inner.loss, inner.freeze

    def forward(self, images):
        return self.inner(images.double())


class Counter(nn.Module):
    """The smallest network with what is hard to spread: it tells how many objects an image has. One weight is never used."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        self.backbone = nn.Sequential(*layers, nn.Conv2d(8, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.last, self.unused = nn.Linear(8, 1), nn.Linear(1, 1)

    def freeze(self, stages):
        self.train()

    def forward(self, images):
        return [self.last(self.backbone(images).mean((2, 3)))]

    def loss(self, raw, targets, *, batch_total=own_total):
        counts = torch.tensor([[float(len(t))] for t in targets])
        return {"count": (raw[0] - counts).square().sum() / batch_total(counts.sum())}


def losses(model, batches, world):
    """The loss of each step, as each process saw it."""
    log = []
    fit(model, batches, batches.recipe, TrainingSession(Budget(steps=STEPS), world), log=log)
    return world.all_gather([row["loss"] for row in log])


def main(data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    recipe = load_recipe("lite0_fpn", ["image_size=64", "batch_size=4", "frozen_stages=1"])
    samples = read(data).samples
    batches = Batches(samples, ImageCache.load(samples, longest=64), recipe, (64, 64), 0)
    in_parts = replace(batches, recipe=replace(recipe, micro_batch=1))
    with open_world() as world:
        found = {
            "lite0_fpn": losses(Precise(make_detector("lite0_fpn", 2)), batches, world),
            "yolov5n": losses(Precise(make_detector("yolov5n", 2, pretrained=False)), batches, world),
            "counter": losses(Precise(Counter()), batches, world),
        }
        if world.size == 2:
            found["in parts"] = losses(Precise(Counter()), in_parts, world)
        if world.is_main:
            out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
