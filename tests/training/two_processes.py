"""What tests/test_distributed.py starts with torchrun, and by itself: the losses of two small trainings.

    python two_processes.py train.json log.json

The detector takes few steps, in float64: two runs of it that differ by rounding alone part ways within ten steps, because
who answers for an object is a choice, and Adam makes whole steps of what should be a gradient of 0. The counter, which has
batch norms and divides by the whole batch's objects too, but makes no choices, takes twenty.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from foldfuse.data.images import ImageCache
from foldfuse.data.readers.coco import read
from foldfuse.models import make_detector
from foldfuse.recipes import load_recipe
from foldfuse.system.processes import open_world
from foldfuse.training.batches import Batches
from foldfuse.training.budget import Budget
from foldfuse.training.loop import fit
from foldfuse.training.session import TrainingSession


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
    """The smallest network with what is hard to spread: it tells how many objects an image has."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        self.backbone = nn.Sequential(*layers, nn.Conv2d(8, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Linear(8, 1)

    def freeze(self, stages):
        self.train()

    def forward(self, images):
        return [self.last(self.backbone(images).mean((2, 3)))]

    def loss(self, raw, targets):
        counts = torch.tensor([[float(len(t))] for t in targets])
        return {"count": (raw[0] - counts).square().sum() / counts.sum()}


def losses(model, steps, batches, world):
    """The loss of each step, as each process saw it."""
    log = []
    fit(model, batches, batches.recipe, TrainingSession(Budget(steps=steps), world), log=log)
    return world.all_gather([row["loss"] for row in log])


def main(data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    recipe = load_recipe("efficientdet_lite0", ["image_size=64", "batch_size=4", "frozen_stages=0", "lr=1e-3"])
    samples = read(data).samples
    batches = Batches(samples, ImageCache.load(samples, longest=64), recipe, (32, 32), 0)
    with open_world() as world:
        found = {
            "detector": losses(Precise(make_detector(recipe.detector, 2)), 5, batches, world),
            "counter": losses(Counter(), 20, batches, world),
        }
        if world.is_main:
            out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
