"""Classifiers: what they learn from, what they leave behind, and what they say."""

import csv
import json

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from foldfuse import cli
from foldfuse.data.crops import CropCache, object_crops
from foldfuse.data.folds import make_folds
from foldfuse.data.readers.coco import read
from foldfuse.data.readers.image_folder import read_classification
from foldfuse.errors import InputError
from foldfuse.models import make_classifier
from foldfuse.models.classifiers import ClassifierWithLoss, layer_indices
from foldfuse.recipes import CLASSIFIER_RECIPES, ClassifierRecipe, load_classifier_recipe
from foldfuse.storage.run import Run, RunMetadata
from foldfuse.training.batches import CropBatches
from foldfuse.training.budget import Budget
from foldfuse.training.classifier import train_classifier
from foldfuse.training.optimizers import classifier_groups
from foldfuse.training.session import TrainingSession
from learning_samples import write_dataset


class Tiny(nn.Module):
    """Mean colour -> logits; the stem sees nothing of places."""

    stride = 4

    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)])
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images):
        x = self.stem(images * 2 - 1)
        for block in self.blocks:
            x = x + block(x).relu()
        return self.head(self.norm(x.mean((2, 3))))


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    """A classifier and a recipe that take no time."""
    monkeypatch.setattr("foldfuse.models.CLASSIFIERS", {"tiny": lambda k, *, pretrained: Tiny(k)})
    recipe = ClassifierRecipe("tiny", image_size=16, batch_size=16, lr=0.03, ema_decay=0.9, init_weights="none")
    monkeypatch.setitem(CLASSIFIER_RECIPES, "classify_tiny", lambda: recipe)


@pytest.fixture
def photos(tmp_path):
    """A folder of noisy images, most of them of their class's colour: train/ and val/, each with red/ and blue/."""
    rng = np.random.default_rng(0)
    for part, number in (("train", 24), ("val", 8)):
        for name, colour in (("red", (200, 60, 60)), ("blue", (60, 60, 200))):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(number):
                noise = rng.integers(-50, 50, (20, 26, 3))
                Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(
                    tmp_path / part / name / f"{i}.png"
                )
    return tmp_path


def test_a_folder_of_images_trains_a_classifier(photos, capsys):
    words = ["train", str(photos / "train"), "--out", str(photos / "run"), "--recipe", "classify_tiny", "--steps", "60"]
    assert cli.main(words) == 0
    assert {p.name for p in (photos / "run").iterdir()} >= {
        "recipe.json",
        "run.json",
        "log.jsonl",
        "weights.safetensors",
    }
    assert len(Run(photos / "run").log) == 60
    assert cli.main(["predict", str(photos / "run"), str(photos / "val"), "--out", str(photos / "said.csv")]) == 0
    assert "accuracy 1.0000 of 16" in capsys.readouterr().out
    with (photos / "said.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows][:2] == ["blue/0.png", "blue/1.png"]
    for row in rows:
        assert row["class"] == row["predicted"]
        assert float(row["p(blue)"]) + float(row["p(red)"]) == pytest.approx(1, abs=1e-5)


def test_images_of_no_known_class_are_classified_in_any_view(photos, capsys):
    run = photos / "run"
    assert (
        cli.main(["train", str(photos / "train"), "--out", str(run), "--recipe", "classify_tiny", "--steps", "30"]) == 0
    )
    capsys.readouterr()
    words = [
        "predict",
        str(run),
        str(photos / "val" / "red"),
        "--out",
        str(photos / "a.parquet"),
        "--view",
        "1",
        "--view",
        "1+hflip",
    ]
    assert cli.main(words) == 0
    assert "accuracy" not in capsys.readouterr().out
    table = pyarrow.parquet.read_table(photos / "a.parquet").to_pydict()
    assert table["class"] == [""] * 8
    assert set(table["predicted"]) == {"red"}


def test_crops_of_a_detection_dataset_train_a_classifier_with_held_out_images(tmp_path, capsys):
    data = write_dataset(tmp_path / "data", 30)
    make_folds(read(data), num_folds=3).write(tmp_path / "folds.json")
    words = ["train", str(data), "--out", str(tmp_path / "run"), "--recipe", "classify_tiny", "--steps", "60"]
    assert cli.main([*words, "--folds", str(tmp_path / "folds.json"), "--fold", "1"]) == 0
    metadata, last = Run(tmp_path / "run").metadata, Run(tmp_path / "run").log[-1]
    assert len(metadata.val_ids) == 10
    assert last["accuracy"] > 0.8
    assert cli.main(["predict", str(tmp_path / "run"), str(data), "--all", "--out", str(tmp_path / "said.csv")]) == 0
    with (tmp_path / "said.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == read(data).num_boxes
    assert float(rows[0]["x2"]) == read(data).samples[0].annotations.boxes[0, 2]


def test_a_stopped_run_ends_as_if_it_had_not_been_stopped(photos):
    dataset, _ = read_classification(photos / "train")
    runs = [Run(photos / name) for name in ("whole", "parts")]
    for run in runs:
        metadata = RunMetadata(dataset.classes, seed=3, crop_context=1.0)
        Run.create(run.folder, load_classifier_recipe("classify_tiny", ["lr_decay_start=1"]), metadata)
    train_classifier(runs[0], dataset, TrainingSession(Budget(steps=20)))
    # A constant rate after the warmup, so that both parts see the same rates as the whole.
    runs[1].folder.joinpath("recipe.json").write_text(runs[0].folder.joinpath("recipe.json").read_text())
    recipe = json.loads((runs[0].folder / "recipe.json").read_text()) | {"warmup_fraction": 0.0}
    for run in runs:
        (run.folder / "recipe.json").write_text(json.dumps(recipe))
    train_classifier(runs[0], dataset, TrainingSession(Budget(steps=20)))
    train_classifier(runs[1], dataset, TrainingSession(Budget(steps=9)))
    state, trouble = runs[1].load_checkpoint()
    assert trouble is None
    train_classifier(runs[1], dataset, TrainingSession(Budget(steps=20), checkpoint=state))
    whole, parts = (run.load_weights() for run in runs)
    for key, tensor in whole.items():
        torch.testing.assert_close(parts[key], tensor, rtol=0, atol=0)
    assert [row["step"] for row in runs[1].log] == list(range(20))


def test_the_command_resumes_and_refuses_other_data(photos, capsys):
    words = ["train", str(photos / "train"), "--out", str(photos / "run"), "--recipe", "classify_tiny", "--steps"]
    assert cli.main([*words, "5"]) == 0
    resume = ["train", "--resume", str(photos / "run"), "--steps"]
    assert cli.main([*resume, "12"]) == 0
    assert Run(photos / "run").metadata.steps == 12
    (photos / "train" / "red" / "0.png").unlink()
    assert cli.main([*resume, "14"]) == 2
    assert "was trained on other data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ("classifier=tinny", "no classifier is called 'tinny'. Did you mean 'tiny'"),
        ("classifier=timm:resnett18", "timm has no network called 'resnett18'. Did you mean 'resnet18'"),
        ("classifier=timm:vit_tiny_patch16_224", "takes images of 224 px alone"),
        ("image_size=18", "must be a multiple of 4"),
        ("label_smoothing=2", "label_smoothing is 2.0, and must be in 0..1"),
        ("crop_context=0", "crop_context is 0.0, and must be a number above 0"),
        ("image_size=4", "image_size is 4, and must be in 8..4096"),
        ("init_weights=mine", "Is mine the folder of a run?"),
    ],
)
def test_a_recipe_that_cannot_be_is_told_and_no_folder_is_left(photos, change, hint, capsys):
    words = ["train", str(photos / "train"), "--out", str(photos / "run"), "--recipe", "classify_tiny", "--set", change]
    assert cli.main(words) == 2
    assert hint in capsys.readouterr().err
    assert not (photos / "run").exists()


def test_predicting_what_cannot_be_is_told(photos, tmp_path_factory, capsys):
    run, other = photos / "run", write_dataset(tmp_path_factory.mktemp("other"), 4)
    assert (
        cli.main(["train", str(photos / "train"), "--out", str(run), "--recipe", "classify_tiny", "--steps", "2"]) == 0
    )
    capsys.readouterr()
    for words, hint in (
        ([str(photos / "val"), "--out", "out.json"], "are written as .csv or .parquet"),
        ([str(photos / "val"), "--out", "out.csv", "--view", "1.5"], "no view of a classifier is called '1.5'"),
        ([str(other), "--out", "out.csv"], "has the classes red, blue, but the run was trained for blue, red"),
    ):
        assert cli.main(["predict", str(run), *words]) == 2
        assert hint in capsys.readouterr().err


def test_layers_are_counted_from_the_pixels():
    assert layer_indices(Tiny(2)) == {
        **dict.fromkeys(("stem.weight", "stem.bias"), 0),
        **dict.fromkeys(("blocks.0.weight", "blocks.0.bias"), 1),
        **dict.fromkeys(("blocks.1.weight", "blocks.1.bias"), 2),
        **dict.fromkeys(("norm.weight", "norm.bias", "head.weight", "head.bias"), 3),
    }


@pytest.mark.parametrize(
    ("name", "first", "blocks", "last"),
    [
        ("timm:resnet18", "net.conv1.weight", 8, "net.fc.weight"),
        ("timm:tf_efficientnet_lite0", "net.conv_stem.weight", 16, "net.classifier.weight"),
        ("timm:vit_tiny_patch16_224", "net.pos_embed", 12, "net.head.weight"),
    ],
)
def test_layers_of_timms_networks(name, first, blocks, last):
    found = layer_indices(make_classifier(name, 3, pretrained=False))
    assert found[first] == 0
    assert found[last] == blocks + 1 == max(found.values())
    assert set(found.values()) == set(range(blocks + 2))


def test_rates_fall_towards_the_pixels_and_vectors_are_not_decayed():
    recipe = ClassifierRecipe("tiny", lr=1.0, layer_decay=0.5, weight_decay=0.1)
    model = ClassifierWithLoss(Tiny(2), 0.0)
    model.freeze(0)
    rate = {id(p): g for g in classifier_groups(model, recipe) for p in g["params"]}
    net = model.net
    assert rate[id(net.stem.weight)]["base_lr"] == 0.125
    assert rate[id(net.blocks[1].weight)]["base_lr"] == 0.5
    assert rate[id(net.head.weight)]["base_lr"] == 1.0
    assert rate[id(net.head.weight)]["weight_decay"] == 0.1
    assert rate[id(net.head.bias)]["weight_decay"] == rate[id(net.norm.weight)]["weight_decay"] == 0


def test_frozen_layers_get_no_gradient_and_keep_their_statistics():
    model = ClassifierWithLoss(Tiny(2), 0.0)
    model.freeze(2)
    assert not model.net.stem.weight.requires_grad
    assert not model.net.blocks[0].weight.requires_grad
    assert model.net.blocks[1].weight.requires_grad
    assert not model.net.blocks[0].training
    assert model.net.norm.training
    assert model.training


def test_the_loss_is_the_smoothed_cross_entropy():
    logits, target = torch.tensor([[2.0, 0.0, 1.0]]), [0]
    log_p = logits.log_softmax(1)[0]
    want = -(0.9 * log_p[0] + 0.1 * log_p.mean())
    torch.testing.assert_close(ClassifierWithLoss(Tiny(3), 0.1).loss(logits, target)["class"], want)


def test_a_batch_is_a_function_of_seed_and_step(photos):
    dataset, _ = read_classification(photos / "train")
    crops = object_crops(dataset)
    recipe = load_classifier_recipe("classify_tiny")
    images = CropCache.load(crops, context=1.0, size=20)
    one, other = (CropBatches(dataset.samples, images, crops.labels, recipe, seed) for seed in (0, 1))
    images, labels = one.batch(2)
    again, same = one.batch(2)
    assert images.shape == (16, 3, 16, 16)
    assert images.equal(again)
    assert labels == same == crops.labels[one.indices(2)].tolist()
    assert sorted(i for step in range(3) for i in one.indices(step)) == list(range(48))
    assert not images.equal(other.batch(2)[0])
    part, _ = one.batch(2, range(4, 8))
    assert part.equal(images[4:8])


def test_a_network_that_is_not_there_is_named_with_its_neighbours():
    with pytest.raises(InputError, match="Known: timm:NAME, tiny"):
        make_classifier("nothing like it", 2)


def test_a_classifier_starts_from_a_run_of_the_same_network(photos, tmp_path, capsys, caplog):
    words = ["train", str(photos / "train"), "--recipe", "classify_tiny"]
    assert cli.main([*words, "--out", str(photos / "a"), "--steps", "9"]) == 0
    start = ["train", str(photos / "train"), "--init-from", str(photos / "a"), "--steps", "1", "--set", "lr=1e-9"]
    assert cli.main([*start, "--set", "ema_decay=0", "--out", str(photos / "b")]) == 0
    assert "all weights were loaded" in caplog.text
    a, b = (Run(photos / name).load_weights() for name in "ab")
    for key in ("net.stem.weight", "net.head.weight"):
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=1e-6)
    data = write_dataset(tmp_path / "detection", 4)
    other = ["train", str(data), "--init-from", str(photos / "a"), "--steps", "1", "--out", str(photos / "c")]
    assert cli.main([*other, "--recipe", "lite0_fpn"]) == 2
    assert "is a run of tiny, and lite0_fpn cannot start from its weights" in capsys.readouterr().err
    assert not (photos / "c").exists()


def test_a_classifier_keeps_nothing_that_is_not_finite_and_resumes_with_its_own_options(photos, capsys):
    run = Run(photos / "run")
    words = ["train", str(photos / "train"), "--out", str(run.folder), "--recipe", "classify_tiny"]
    assert cli.main([*words, "--steps", "4", "--seed", "3"]) == 0
    before = {p.name: p.read_bytes() for p in run.folder.iterdir()}
    resume = ["train", "--resume", str(run.folder), "--steps", "5"]
    less = [*resume[:-1], "2"]
    for words, hint in (
        ([*resume, "--seed", "0"], "the run has --seed 3"),
        ([*resume, "--set", "label_smoothing=0"], "label_smoothing=0.1"),
        ([*resume, "--recipe", "lite0_fpn"], "is a run of a classifier"),
        (less, "4 steps of training are done"),
    ):
        assert cli.main(words) == 2
        assert hint in capsys.readouterr().err
    with run.exclusive():
        assert cli.main(resume) == 2
    assert "another process is training this run" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in run.folder.iterdir()} == before
    state = run.load_checkpoint()[0]
    (run.folder / "checkpoint.previous.pt").unlink(missing_ok=True)
    state["model"]["net.norm.running_var"][0] = float("inf")
    torch.save(state, run.folder / "checkpoint.pt")
    assert cli.main(resume) == 2
    assert "model.net.norm.running_var holds NaN or infinity" in capsys.readouterr().err
    weights = run.load_weights()
    weights["net.head.weight"][0] = float("nan")
    save_file(weights, run.folder / "weights.safetensors")
    assert cli.main(["predict", str(run.folder), str(photos / "val"), "--out", str(photos / "c.csv")]) == 2
    assert "the tensor net.head.weight holds NaN or infinity" in capsys.readouterr().err
