"""Training under a budget: the clock, the schedules, resuming, and what goes wrong."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foldfuse.commands.train import train
from foldfuse.data.folds import make_folds
from foldfuse.data.images import ImageCache
from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError
from foldfuse.models import make_detector
from foldfuse.models.detection.composed import ComposedDetector
from foldfuse.recipes import Recipe, load_recipe
from foldfuse.storage.run import Run, RunMetadata
from foldfuse.system.device import is_out_of_memory
from foldfuse.training.batches import Batches
from foldfuse.training.budget import Budget, lr_scale
from foldfuse.training.loop import fit
from foldfuse.training.optimizers import Ema, detector_groups
from foldfuse.training.session import TrainingSession
from learning_samples import write_dataset

TINY = load_recipe("lite0_fpn", ["image_size=64", "batch_size=2"])
TINY_CHANGES = ("image_size=64", "batch_size=2")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", 6)


def batches_of(data, recipe=TINY, seed=0):
    samples = read(data).samples
    return Batches(samples, ImageCache.load(samples, longest=96), recipe, (64, 64), seed)


class Clock:
    """A clock that only moves when somebody works."""

    now = 0.0

    def __call__(self):
        return self.now


class Line(nn.Module):
    """The least that `fit` can train: one weight, pulled towards 3. A step takes 10 seconds of its clock."""

    def __init__(self, clock=None):
        super().__init__()
        self.backbone = nn.Linear(1, 1, bias=False)
        self.clock = clock or Clock()

    def freeze(self, stages):
        self.train()

    def forward(self, images):
        self.clock.now += 10
        return self.backbone.weight.sum() + 0 * images.sum()

    def loss(self, raw, targets):
        return {"near": (raw - 3) ** 2, "none": raw * 0}


class NoImages:
    """Batches for a model that does not look at them."""

    mosaic_until = 0.7

    def batch(self, step, shard=None, *, mosaic=True):
        return torch.zeros(1, 3, 32, 32, dtype=torch.uint8), []


# the budget and the schedule


def test_training_stops_when_the_time_is_gone():
    clock, log = Clock(), []
    fit(Line(clock), NoImages(), TINY, TrainingSession(Budget(seconds=60, clock=clock)), log=log)
    assert [row["spent"] for row in log] == [round(i / 6, 6) for i in range(6)]
    assert clock.now == 60


def test_training_stops_after_its_steps():
    log = []
    state = fit(Line(), NoImages(), TINY, TrainingSession(Budget(steps=4)), log=log)
    assert [row["step"] for row in log] == [0, 1, 2, 3]
    assert state["step"] == 4


def test_a_resumed_budget_remembers_what_is_gone():
    clock = Clock()
    budget = Budget(seconds=60, clock=clock, elapsed_before=45)
    assert budget.spent(0) == 0.75
    clock.now = 15
    assert budget.spent(1) == 1


@settings(deadline=None, derandomize=True)
@given(st.floats(0, 1), st.floats(0, 0.5), st.floats(0, 1))
def test_the_learning_rate_stays_within_its_base_rate_and_never_rises_after_warmup(
    spent, warmup_fraction, lr_decay_start
):
    now, later = (
        lr_scale(spent, warmup_fraction, lr_decay_start),
        lr_scale(min(1, spent + 0.01), warmup_fraction, lr_decay_start),
    )
    assert 0 <= now <= 1
    assert later <= now or spent < warmup_fraction


def test_the_schedule_by_hand():
    assert [lr_scale(x, 0.2, 0.6) for x in (0, 0.1, 0.2, 0.6)] == [0, 0.5, 1, 1]
    assert lr_scale(0.8, 0.2, 0.6) == pytest.approx(0.5)
    assert lr_scale(1.0, 0.2, 0.6) == pytest.approx(0)
    assert lr_scale(1.0, 0.2, 1.0) == 1  # a base run keeps its rate


# the average


def test_ema_by_hand():
    model = Line()
    with torch.no_grad():
        model.backbone.weight.fill_(0.0)
    ema = Ema(model, 0.5)
    for value in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0):
        with torch.no_grad():
            model.backbone.weight.fill_(value)
        ema.update(model)
    want = 0.0
    for n, value in enumerate(range(1, 11), 1):
        decay = min(0.5, (1 + n) / (10 + n))
        want = decay * want + (1 - decay) * value
    assert ema.weights["backbone.weight"].item() == pytest.approx(want)


def test_ema_counts_batches_as_the_model_does():
    model = nn.BatchNorm1d(2)
    ema = Ema(model, 0.9)
    model(torch.rand(4, 2))
    ema.update(model)
    assert ema.weights["num_batches_tracked"].item() == 1


# what a step sees


def test_batches_are_a_function_of_seed_and_step(data):
    one, same, other = batches_of(data), batches_of(data), batches_of(data, seed=1)
    one.batch(0)  # having looked at other steps changes nothing
    images, targets = one.batch(5)
    again, its_targets = same.batch(5)
    assert torch.equal(images, again)
    assert all(np.array_equal(a.boxes, b.boxes) for a, b in zip(targets, its_targets, strict=True))
    assert not torch.equal(images, other.batch(5)[0])
    assert not torch.equal(images, one.batch(6)[0])
    assert images.shape == (2, 3, 64, 64)
    assert images.dtype == torch.uint8


def test_each_epoch_sees_every_image_once_in_an_order_of_its_own(data):
    batches = batches_of(data, replace(TINY, batch_size=4))
    seen = [i for step in range(6) for i in batches.indices(step)]
    epochs = [seen[start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_crowd_regions_are_not_taught(tmp_path):
    path = write_dataset(tmp_path / "d", 3)
    document = json.loads(path.read_text())
    for row in document["annotations"]:
        row["iscrowd"] = 1
    path.write_text(json.dumps(document))
    batches = batches_of(path)
    assert all(len(batches.labeled_image(i).annotations) == 0 for i in range(3))


def test_boxes_are_in_the_pixels_of_the_shrunk_image(data):
    samples = read(data).samples
    batches = Batches(samples, ImageCache.load(samples, longest=48), TINY, (64, 64), 0)
    np.testing.assert_allclose(batches.labeled_image(2).annotations.boxes, samples[2].annotations.boxes / 2)


def test_mosaics_end_when_the_recipe_says(data):
    recipe = replace(TINY, mosaic=1.0, mosaic_until=0.5)
    batches = batches_of(data, recipe)
    early, late = batches.batch(0)[0], batches.batch(0, mosaic=False)[0]
    assert not torch.equal(early, late)


class Watched:
    """Batches that note which steps may have mosaics."""

    mosaic_until = 0.5

    def __init__(self):
        self.mosaic = {}

    def batch(self, step, shard=None, *, mosaic=True):
        self.mosaic[step] = mosaic
        return torch.zeros(1, 3, 32, 32, dtype=torch.uint8), []


def test_mosaics_end_once_under_a_budget_of_time_and_a_resumed_training_keeps_the_step():
    clock, whole = Clock(), Watched()
    budget = Budget(seconds=100, clock=clock)
    last = fit(Line(clock), whole, TINY, TrainingSession(budget), log=[])
    assert last["mosaic_end"] == 6  # the first step that is prefetched when half of the budget is spent
    assert [step for step, mosaic in whole.mosaic.items() if mosaic] == [0, 1, 2, 3, 4, 5]

    for after, slow in ((5, 0), (5, 40)):  # the resumed part meets a busy machine, or not
        clock, states, parts = Clock(), [], Watched()
        session = TrainingSession(Budget(seconds=100, clock=clock), checkpoint_seconds=-1.0)

        def keep(state, after=after, states=states):
            states.append(state)
            if state["step"] == after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(Line(clock), parts, TINY, session, log=[], save=keep)
        prefetched = dict(parts.mosaic)
        clock = Clock()
        clock.now = float(slow)
        budget = Budget(seconds=100, clock=clock, elapsed_before=float(slow))
        fit(Line(clock), parts, TINY, TrainingSession(budget, checkpoint=states[-1]), log=[])
        assert {step: parts.mosaic[step] for step in prefetched} == prefetched


# resuming


def test_a_resumed_run_is_bit_equal_to_the_uninterrupted_one(data, tmp_path):
    batches, run = batches_of(data), Run.create(tmp_path / "run", TINY, RunMetadata())
    torch.manual_seed(0)
    whole_log, log = [], []
    model = make_detector(TINY.detector, 2)
    begin = {key: t.clone() for key, t in model.state_dict().items()}
    whole = fit(model, batches, TINY, TrainingSession(Budget(steps=5)), log=whole_log)

    def stop_after_two(state):
        run.save_checkpoint(state)
        if state["step"] == 2:
            raise KeyboardInterrupt

    model = make_detector(TINY.detector, 2)
    model.load_state_dict(begin)
    with pytest.raises(KeyboardInterrupt):
        fit(
            model,
            batches,
            TINY,
            TrainingSession(Budget(steps=5), checkpoint_seconds=-1.0),
            log=log,
            save=stop_after_two,
        )
    state, trouble = run.load_checkpoint()
    assert trouble is None
    assert state["step"] == 2
    torch.manual_seed(99)
    model = make_detector(TINY.detector, 2, pretrained=False)  # all must come from the state
    resumed = fit(model, batches, TINY, TrainingSession(Budget(steps=5), checkpoint=state), log=log)

    assert [row["loss"] for row in log] == [row["loss"] for row in whole_log]
    for part in ("model", "ema"):
        assert all(torch.equal(resumed[part][key], t) for key, t in whole[part].items())
    assert any(not torch.equal(whole["model"][key], t) for key, t in begin.items())


def test_train_goes_on_where_it_was_stopped(data, tmp_path):
    out = tmp_path / "run"
    train(data, out=out, changes=TINY_CHANGES, steps=2)
    assert Run(out).metadata.steps == 2
    train(resume=out, steps=3)
    assert Run(out).metadata.steps == 3
    assert [row["step"] for row in Run(out).log] == [0, 1, 2]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(data, tmp_path):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(data, out=tmp_path / name, changes=TINY_CHANGES, steps=2, seed=seed)
        weights.append(Run(tmp_path / name).load_weights())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert any(not torch.equal(weights[0][key], weights[2][key]) for key in weights[0])


# what goes wrong


def test_a_loss_that_is_not_finite_names_step_terms_and_images(data):
    class Bad(Line):
        def loss(self, raw, targets):
            self.calls = getattr(self, "calls", 0) + 1
            return {"near": raw**2, "far": raw * (math.nan if self.calls == 3 else 0)}

    batches = batches_of(data)
    names = ", ".join(batches.samples[i].file_name for i in batches.indices(2))
    with pytest.raises(FloatingPointError, match=rf"step 2: .*near [\d.e-]+, far nan.*{names}\. Try a lower lr"):
        fit(Bad(), batches, TINY, TrainingSession(Budget(steps=9)), log=[])


def test_nothing_is_written_where_the_input_is_bad(data, tmp_path):
    empty = tmp_path / "empty.json"
    document = json.loads(data.read_text()) | {"annotations": []}
    (data.parent / "bare.json").write_text(json.dumps(document))
    split = tmp_path / "folds.json"
    make_folds(read(data), num_folds=2).write(split)
    for arguments, message in [
        ({"data": empty}, "no such file"),
        ({"data": data.parent / "bare.json"}, "not one object is annotated"),
        ({"changes": ("lr=x",)}, "not a number"),
        ({"steps": 0}, "steps is 0"),
        ({"recipe": "yolo"}, "no recipe"),
        ({"folds": tmp_path / "gone.json"}, "no such file"),
        ({"folds": split, "fold": 2}, "there is no fold 2"),
        ({"changes": ("detector=lite0_fpm",)}, "Did you mean 'lite0_fpn'"),
        ({"changes": (f"init_weights={tmp_path / 'gone.pth'}",)}, "gone.pth: there is no such file"),
    ]:
        with pytest.raises(InputError, match=message):
            train(**({"data": data, "out": tmp_path / "run", "steps": 1} | arguments))
        assert not (tmp_path / "run").exists(), message


def test_what_cannot_be_resumed_is_refused(data, tmp_path):
    run = Run.create(tmp_path / "imported", TINY, RunMetadata(("red", "blue")))
    for arguments, message in [
        ({"resume": tmp_path / "gone"}, "there is no such file"),
        ({"resume": run.folder}, "holds imported weights. Start a training from them with --init-from"),
        ({"resume": run.folder, "data": data, "lr": 0.1}, "holds imported weights"),
        ({"data": data}, "a new training needs DATA and --out"),
        ({"data": data, "out": run.folder, "overwrite": True, "device": "cuda:9"}, "finds"),
    ]:
        with pytest.raises(InputError, match=message):
            train(**arguments)
    assert run.exists, "a refused command removes nothing"


def test_a_folder_in_use_is_refused(data, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="exists already"):
        train(data, out=tmp_path, steps=1)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


# what is left behind


def test_a_run_tells_what_it_was_trained_on(data, tmp_path):
    split = tmp_path / "folds.json"
    made = make_folds(read(data), num_folds=2)
    made.write(split)
    train(data, out=tmp_path / "run", changes=TINY_CHANGES, steps=2, folds=split, fold=1)
    run = Run(tmp_path / "run")
    assert run.metadata.val_ids == tuple(made.val_ids(1))
    assert run.metadata.classes == ("red", "blue")
    assert run.metadata.canvas == (64, 64)
    assert run.recipe == TINY
    *rows, score = run.log
    assert [row["step"] for row in rows] == [0, 1]
    assert (score["step"], {"ap", "ap50"} <= score.keys()) == (2, True)
    assert all({"loss", "class", "box", "lr", "seconds", "spent", "data_wait"} <= row.keys() for row in rows)
    assert not list(run.folder.glob(".*")), "a temporary file was left"


def test_biases_and_norms_are_not_decayed_and_the_backbone_has_its_own_rate():
    recipe = Recipe("efficientdet_lite0", lr=1e-3, backbone_lr_mult=0.1, weight_decay=0.05)
    model = make_detector("efficientdet_lite0", 2, pretrained=False)
    model.freeze(2)
    groups = detector_groups(model, recipe)
    assert len(groups) == 4
    backbone = {id(p) for p in model.backbone.parameters()}
    seen = [p for group in groups for p in group["params"]]
    assert {id(p) for p in seen} == {id(p) for p in model.parameters() if p.requires_grad}
    for group in groups:
        for p in group["params"]:
            assert group["weight_decay"] == (0.05 if p.ndim > 1 else 0)
            assert group["base_lr"] == pytest.approx(1e-4 if id(p) in backbone else 1e-3)


# memory


@pytest.fixture
def room(monkeypatch):
    """A memory that holds a batch of so many images; sizes of the batches that were tried."""
    tried, own = [], ComposedDetector.forward

    def limited(most):
        def forward(self, images):
            tried.append(len(images))
            if len(images) > most:
                torch.empty(2**60, dtype=torch.uint8)  # the allocator's own complaint
            return own(self, images)

        monkeypatch.setattr(ComposedDetector, "forward", forward)
        return tried

    return limited


def test_a_batch_that_does_not_fit_is_computed_in_parts(data, tmp_path, room, caplog):
    changes = ("image_size=64", "batch_size=8", "lr=4e-3")
    tried = room(2)
    train(data, out=tmp_path / "run", changes=changes, steps=2)
    run = Run(tmp_path / "run")
    assert tried[:3] == [8, 4, 2]
    assert set(tried[3:]) == {2}
    assert (run.recipe.batch_size, run.recipe.lr, run.metadata.micro_batch) == (8, 4e-3, 2)
    assert [row["step"] for row in run.log] == [0, 1]
    assert "8 images at 64 px do not fit in memory. A step computes 4 at a time from now on" in caplog.text
    train(data, out=tmp_path / "asked", changes=(*changes, "micro_batch=2"), steps=2)
    asked = Run(tmp_path / "asked").load_weights()
    assert all(torch.equal(t, asked[key]) for key, t in run.load_weights().items()), "an attempt left something behind"


def test_an_image_that_does_not_fit_is_an_error(data, tmp_path, room):
    room(0)
    with pytest.raises(InputError, match=r"2 images at 64 px does not fit.* Take a smaller image_size"):
        train(data, out=tmp_path / "run", changes=TINY_CHANGES, steps=1)
    assert not (tmp_path / "run").exists()


def test_a_part_of_one_image_that_batch_norms_cannot_train_on_is_refused(data, tmp_path):
    changes = ("image_size=64", "batch_size=3", "micro_batch=2")
    with pytest.raises(InputError, match=r"micro_batch is 2: a part of one image has one pixel .* Take a larger"):
        train(data, out=tmp_path / "run", recipe="efficientdet_lite0", changes=changes, steps=1)
    assert not (tmp_path / "run").exists()
    train(data, out=tmp_path / "run", changes=changes, steps=1)  # a network without such a level


def test_a_step_late_in_a_training_may_be_too_large(data, tmp_path, room):
    changes = ("image_size=64", "batch_size=4")
    train(data, out=tmp_path / "run", changes=changes, steps=1)
    room(2)
    train(resume=tmp_path / "run", steps=2)
    assert Run(tmp_path / "run").load_checkpoint()[0]["micro_batch"] == 2
    tried = room(100)
    tried.clear()
    train(resume=tmp_path / "run", steps=3)
    assert set(tried) == {2}, "a resumed run computes as before"


def test_other_errors_are_raised_as_they_are(data, tmp_path, monkeypatch):
    def broken(self, images):
        raise RuntimeError("a shape is wrong")

    monkeypatch.setattr(ComposedDetector, "forward", broken)
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        train(data, out=tmp_path / "run", changes=TINY_CHANGES, steps=1)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
