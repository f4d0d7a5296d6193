"""One place decides the device, and every network computes there."""

import traceback

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from foldfuse.campaign.planning.estimates import measure_candidate
from foldfuse.commands.predict import predict
from foldfuse.commands.train import sweep, train
from foldfuse.data.crops import object_crops
from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError
from foldfuse.inference.crop_encoder import features
from foldfuse.inference.crop_features import imagenet_encoder
from foldfuse.recipes import load_recipe
from foldfuse.storage.run import Run
from foldfuse.system.device import card_names, choose_device, devices_of, in_halves
from foldfuse.system.processes import open_world
from foldfuse.training import sweep as sweeping
from learning_samples import write_dataset

FAKE = "cpu:0"  # torch takes it for the CPU, but nobody asks for it by chance
SMALL = ("image_size=64", "batch_size=2")


@pytest.fixture
def unmoved(monkeypatch):
    """Names of networks that computed without having been moved to the chosen device."""
    moved, depth, found = "_moved_to_the_chosen_device", [0], []
    own = nn.Module.to

    def to(self, *args, **kwargs):
        made = own(self, *args, **kwargs)
        if FAKE in map(str, [*args, *kwargs.values()]) or torch.device(FAKE) in args:
            for module in made.modules():
                module.__dict__[moved] = True  # copies have it too
        return made

    def before(module, inputs):
        if type(module).__name__ == "InParts":
            return  # a training wraps its network, which is looked at itself
        if not depth[0] and moved not in module.__dict__:
            ours = [f.name for f in traceback.extract_stack() if "foldfuse" in f.filename]
            if "make_detector" not in ours:  # its constructor counts channels with an empty image
                found.append(f"{type(module).__name__} in {' > '.join(ours)}")
        depth[0] += 1

    def after(module, inputs, outputs):
        depth[0] -= type(module).__name__ != "InParts"

    monkeypatch.setattr(nn.Module, "to", to)
    hooks = register_module_forward_pre_hook(before), register_module_forward_hook(after, always_call=True)
    yield found
    for hook in hooks:
        hook.remove()


@pytest.fixture
def fake_device(monkeypatch):
    """`choose_device` finds the fake device wherever it is asked."""
    for room in (
        "inference.classifier",
        "inference.crop_features",
        "inference.detector",
        "system.processes",
        "training.step_cost",
        "training.sweep",
    ):
        monkeypatch.setattr(f"foldfuse.{room}.choose_device", lambda name="auto": FAKE)


@pytest.mark.usefixtures("fake_device")
def test_every_network_goes_to_the_chosen_device(tmp_path, unmoved, monkeypatch):
    data = write_dataset(tmp_path / "d", 6)
    run = train(data, out=tmp_path / "run", changes=SMALL, steps=1)
    assert Run(run).metadata.trained_on == FAKE
    predict(run, data, out=tmp_path / "a.parquet", view=("1", "1+hflip"), all_=True)
    classifier = train(data, out=tmp_path / "c", recipe="classify_lite0", changes=("image_size=32",), steps=1)
    predict(classifier, data, out=tmp_path / "c.csv", all_=True)
    monkeypatch.setattr(sweeping, "seconds_for_each", lambda recipes, val, left, device: 0.1)
    sweep(data, out=tmp_path / "s", image_size=(64,), batch_size=(2,), folds=2)
    dataset = read(data)
    measure_candidate("tiny", load_recipe("lite0_fpn", SMALL), dataset)
    features(object_crops(dataset), imagenet_encoder(size=32))
    assert not unmoved


def test_a_network_that_stays_behind_is_found(unmoved):
    nn.Linear(1, 1)(torch.zeros(1, 1))
    nn.Linear(1, 1).to(FAKE)(torch.zeros(1, 1))
    assert len(unmoved) == 1
    assert unmoved[0].startswith("Linear in ")


@pytest.mark.parametrize(("cards", "name", "want"), [(0, "auto", "cpu"), (2, "auto", "cuda"), (2, "cuda:1", "cuda:1")])
def test_the_device_by_its_name(monkeypatch, cards, name, want):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    assert choose_device(name) == want
    assert choose_device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("cards", "name", "message"),
    [
        (0, "cuda", "finds no CUDA device here. Take --device auto"),
        (1, "cuda:1", "finds 1 CUDA device here"),
        (2, "cuda:2", "finds 2 CUDA devices here"),
        (0, "cuda:x", "there is no such device. Expected auto, cpu, cuda, cuda:N or mps"),
        (0, "gpu", "there is no such device"),
    ],
)
def test_a_device_that_is_not_there_is_refused(monkeypatch, cards, name, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    with pytest.raises(InputError, match=message):
        choose_device(name)


def test_several_processes_cannot_share_one_card(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("foldfuse.system.processes.choose_device", lambda name: name)
    with pytest.raises(InputError, match="--device cuda:1: 2 processes cannot share it"), open_world("cuda:1"):
        pass


def test_cuda_stands_for_all_cards_and_a_number_for_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: f"a card ({name})")
    assert devices_of("cuda") == devices_of("auto") == ("cuda:0", "cuda:1")
    assert devices_of("cuda:1") == ("cuda:1",)
    assert devices_of("cpu") == ("cpu",)
    assert card_names("cuda:1") == ("a card (cuda:1)",)
    assert card_names("cpu") == ()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert devices_of("cuda") == ("cuda",)


def test_a_batch_that_does_not_fit_is_computed_in_halves():
    sizes = []

    def compute(images):
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(images))
        return [int(image.sum()) for image in images]

    batch = np.arange(7, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 6, 3), np.uint8)
    assert in_halves(compute, batch) == [int(image.sum()) for image in batch]
    assert sizes == [1, 2, 2, 2]


def test_one_image_that_does_not_fit_is_one_sentence_and_other_errors_stay():
    def full(images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(images):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(InputError, match=r"too small for one image of 6 x 4 px\. Take --device cpu"):
        in_halves(full, np.zeros((2, 4, 6, 3), np.uint8))
    with pytest.raises(RuntimeError, match="mat1"):
        in_halves(broken, np.zeros((2, 4, 6, 3), np.uint8))


@pytest.mark.parametrize(("name", "kind"), [("a.onnx", "an ONNX file"), ("run", "the run of a classifier")])
def test_what_predicts_in_one_process_is_refused_under_torchrun(tmp_path, monkeypatch, name, kind):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(Run, "is_classifier", property(lambda run: run.folder.name == "run"))
    with pytest.raises(InputError, match=f"is {kind}, which predicts in one process"):
        predict(tmp_path / name, (tmp_path,), out=tmp_path / "out.csv")
