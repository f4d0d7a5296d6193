"""Loss curves that must not change unnoticed: 20 steps of each detector with a file in tests/training/golden.

    python tests/training/test_golden.py NAME ...     writes the curve of a detector, to be committed with the change it is due to

Another CPU rounds otherwise, and after a few steps choices (who answers for an object) differ: hence the tolerances.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from foldfuse.data.images import ImageCache
from foldfuse.data.readers.coco import read
from foldfuse.models import make_detector
from foldfuse.recipes import Recipe
from foldfuse.training.batches import Batches
from foldfuse.training.budget import Budget
from foldfuse.training.loop import fit
from foldfuse.training.session import TrainingSession
from learning_samples import write_dataset

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))
STEPS, NUM_EXACT = 20, 3  # steps in all, and those in which nothing has been chosen otherwise yet


def curve(name: str, folder: Path) -> list[float]:
    """The loss of each step, from random weights, on drawn images."""
    recipe = Recipe(name, image_size=64, batch_size=4, lr=2e-4, init_weights="none", frozen_stages=0)
    samples = read(write_dataset(folder / "d", 8)).samples
    batches = Batches(samples, ImageCache.load(samples, longest=96), recipe, (64, 64), 0)
    torch.manual_seed(0)
    model = make_detector(name, 2, pretrained=False)
    torch.manual_seed(0)
    log = []
    fit(model, batches, recipe, TrainingSession(Budget(steps=STEPS)), log=log)
    return [row["loss"] for row in log]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_curve_is_the_one_on_file(name, tmp_path):
    want = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    found = curve(name, tmp_path)
    assert len(found) == len(want) == STEPS
    np.testing.assert_allclose(found[:NUM_EXACT], want[:NUM_EXACT], rtol=2e-3)
    np.testing.assert_allclose(found, want, rtol=0.15)
    np.testing.assert_allclose(np.mean(found), np.mean(want), rtol=0.03)


def test_the_first_detector_is_on_file():
    assert "efficientdet_lite0" in NAMES


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    for chosen in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as place:
            text = json.dumps([round(loss, 6) for loss in curve(chosen, Path(place))], indent=1)
        (GOLDEN / f"{chosen}.json").write_text(text + "\n", encoding="utf-8")
