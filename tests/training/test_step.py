"""The steps of the training loop: how often the host waits, float16's skipped steps, batches in parts, running elsewhere."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from foldfuse.errors import InputError
from foldfuse.recipes import Recipe, load_recipe
from foldfuse.system.processes import SINGLE_PROCESS
from foldfuse.training import loop
from foldfuse.training.autotune import candidates, compiling_repays
from foldfuse.training.budget import Budget
from foldfuse.training.gradients import Gradients
from foldfuse.training.loop import fit
from foldfuse.training.memory import InParts, half_micro_batch
from foldfuse.training.precision import ComputeConfig, config_for
from foldfuse.training.readback import Readback
from foldfuse.training.session import TrainingSession
from foldfuse.training.state import check_state

RECIPE = Recipe("lite0_fpn", image_size=64, batch_size=4, init_weights="none", frozen_stages=0)


class Sample:
    file_name = "a.jpg"


class Images:
    """Batches of random images, each with a number to be told."""

    mosaic_until = 0.0
    samples = (Sample(),)

    def indices(self, step):
        return [0]

    def batch(self, step, shard=None, *, mosaic=True):
        made = torch.Generator().manual_seed(step)
        return torch.randint(0, 255, (4, 3, 8, 8), dtype=torch.uint8, generator=made), [1.0, 2.0, 3.0, 4.0]


class Teller(nn.Module):
    """Tells a number for each image; its loss divides by a count over the batch. `poison` holds {call: factor of the loss}."""

    def __init__(self, *, norm=False, poison=None):
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU(), nn.Dropout(0.1)]
        self.backbone, self.last = nn.Sequential(*layers), nn.Linear(4, 1)
        self.poison, self.calls = poison or {}, 0

    def freeze(self, stages):
        self.train()

    def forward(self, images):
        return {"told": self.last(self.backbone(images.to(self.last.weight)).mean((2, 3)))}

    def loss(self, raw, targets):
        self.calls += 1
        wanted = raw["told"].new_tensor(targets)[:, None]
        return {"error": (raw["told"] - wanted).square().sum() / wanted.sum() * self.poison.get(self.calls, 1.0)}


FLOAT32 = ComputeConfig()


def trained(model, *, steps=4, config=FLOAT32, recipe=RECIPE, checkpoint=None):
    log = []
    session = TrainingSession(Budget(steps=steps), checkpoint=checkpoint)
    return fit(model, Images(), recipe, session, log=log, config=config), log


# waiting for the device


class Waits(TorchDispatchMode):
    """Counts the operations that make the host wait for one number."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_host_reads_once_a_step(monkeypatch, precision):
    monkeypatch.setattr(loop, "_looks_first", lambda *_: False)  # as on a card
    read, reads = Readback.read, []
    monkeypatch.setattr(Readback, "read", lambda self: reads.append(self) or read(self))
    counts = []
    for steps in (2, 6):
        with Waits() as waits:
            trained(Teller(norm=True), steps=steps, config=ComputeConfig(precision))
        counts.append(waits.count)
    assert counts[0] == counts[1], "a step waits for single numbers"  # the state at the end holds the scaler's
    assert len(reads) == 8 * (2 if precision == "float16" else 1)  # float16's two numbers are ready at the same time


# steps without finite gradients


def poisoned(model, calls):
    """The model, with gradients that hold NaN in these calls of its loss, though the loss is finite."""
    weight = model.last.weight
    weight.register_hook(lambda gradient: gradient * math.nan if model.calls in calls else gradient)
    return model


def test_a_step_without_finite_gradients_is_skipped_on_a_cpu():
    recipe = replace(RECIPE, lr_decay_start=1.0)
    good, _ = trained(Teller(norm=True), recipe=recipe)
    state, log = trained(poisoned(Teller(norm=True), {5}), steps=5, recipe=recipe)
    assert [row.get("skipped") for row in log] == [None] * 4 + [1]
    assert math.isfinite(log[4]["loss"])
    for part in ("model", "ema"):
        assert all(torch.equal(t, state[part][key]) for key, t in good[part].items())
    assert (state["ema_steps"], state["step"], state["skipped"]) == (good["ema_steps"], 5, 1)
    state, log = trained(poisoned(Teller(norm=True), {5}), steps=6, recipe=recipe)
    assert (log[5].get("skipped"), state["skipped"]) == (None, 0)
    assert all(t.isfinite().all() for t in state["model"].values())


def test_gradients_that_stay_without_bounds_are_an_error():
    with pytest.raises(
        FloatingPointError,
        match=r"step 22: the gradients have not been finite for 20 .*\(loss: error [0-9.e-]+\).*a lower lr\.$",
    ):
        trained(poisoned(Teller(), range(4, 100)), steps=50)


# float16


def test_steps_that_float16_skips_leave_model_and_average_alone():
    half, recipe = ComputeConfig("float16"), replace(RECIPE, lr_decay_start=1.0)
    good, usual = trained(Teller(norm=True), config=half, recipe=recipe)  # its first steps look for the scale
    state, log = trained(Teller(norm=True, poison={5: math.inf}), steps=5, config=half, recipe=recipe)
    assert [row.get("skipped") for row in log] == [*(row.get("skipped") for row in usual), 1]
    assert usual[3].get("skipped") is None
    assert log[4]["loss"] is None
    for part in ("model", "ema"):
        assert all(torch.equal(t, state[part][key]) for key, t in good[part].items())
    assert (state["ema_steps"], state["step"], state["skipped"]) == (good["ema_steps"], 5, 1)
    assert state["scaler"]["scale"] == good["scaler"]["scale"] / 2
    assert [row["lr"] for row in log] == [row["lr"] for row in trained(Teller(), steps=5, recipe=recipe)[1]], (
        "the schedule goes on"
    )


def test_a_loss_that_stays_infinite_in_float16_is_an_error():
    never = dict.fromkeys(range(1, 100), math.inf)
    with pytest.raises(
        FloatingPointError, match=r"step 19: in float16 .* for 20 steps in a row \(loss: error inf\).*a\.jpg"
    ):
        trained(Teller(poison=never), steps=50, config=ComputeConfig("float16"))
    with pytest.raises(FloatingPointError, match="step 0: the loss is not finite"):
        trained(Teller(poison=never), steps=50)


def test_float16_is_a_recipes_precision_and_goes_on_in_another():
    assert load_recipe("lite0_fpn", ["precision=float16"]).precision == "float16"
    with pytest.raises(InputError, match="float8"):
        load_recipe("lite0_fpn", ["precision=float8"])
    for first, second in (("float16", "float32"), ("float32", "float16")):
        state, _ = trained(Teller(), steps=2, config=ComputeConfig(first))
        assert trained(Teller(), steps=4, config=ComputeConfig(second), checkpoint=state)[0]["step"] == 4


def test_a_configuration_follows_the_run_to_another_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    made_there = ComputeConfig("float16", "high", compiled=True)
    assert config_for(made_there, cpu, precision="auto") == ComputeConfig()
    assert config_for(made_there, cpu, precision="float16").precision == "float16"
    assert config_for(ComputeConfig("bfloat16", "high"), cpu, precision="auto") == ComputeConfig()
    assert config_for(ComputeConfig("bfloat16", "high"), cpu, precision="bfloat16").precision == "bfloat16"
    assert config_for(ComputeConfig("bfloat16", threads=2), cuda, precision="auto") == ComputeConfig("float16", "high")
    made_here = ComputeConfig("bfloat16", "medium", threads=1)
    assert config_for(made_here, cpu, precision="auto") == made_here


# batches in parts


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_batch_in_parts_has_the_gradients_of_the_whole(precision):
    found, tolerance = [], 1e-12 if precision == "float32" else 0.02
    for micro_batch in (0, 1, 3):
        model = Teller().double() if precision == "float32" else Teller()
        model.backbone[3].p = 0.0
        config = ComputeConfig(precision)
        scaler = config.scaler(torch.device("cpu"))
        gradients = Gradients(model, RECIPE, config, scaler, world=SINGLE_PROCESS, micro_batch=micro_batch)
        images, targets = Images().batch(0)
        losses = gradients.compute(images / 255, targets).read()
        found.append([torch.tensor(losses["loss"]), *(p.grad for p in model.parameters())])
    for other in found[1:]:
        for whole, part in zip(found[0], other, strict=True):
            torch.testing.assert_close(part, whole, rtol=tolerance, atol=tolerance)


def test_parts_that_are_computed_twice_move_statistics_once():
    model, other = Teller(norm=True), Teller(norm=True)
    scaler = ComputeConfig().scaler(torch.device("cpu"))
    images, targets = Images().batch(0)
    gradients = Gradients(model, RECIPE, ComputeConfig(), scaler, world=SINGLE_PROCESS, micro_batch=2)
    gradients.compute(images / 255, targets)
    for part in (images / 255).split(2):
        other(part)
    norm, wanted = model.backbone[1], other.backbone[1]
    assert norm.num_batches_tracked == 2
    torch.testing.assert_close(norm.running_mean, wanted.running_mean, rtol=0, atol=0)


def test_a_resumed_training_in_parts_has_the_same_bits_and_old_states_fit():
    recipe, kept = replace(RECIPE, micro_batch=2), []
    session = TrainingSession(Budget(steps=4), checkpoint_seconds=-1.0)
    whole = fit(
        Teller(norm=True),
        Images(),
        recipe,
        session,
        log=[],
        config=ComputeConfig(),
        save=lambda state: kept.append(copy.deepcopy(state)),
    )
    assert whole["micro_batch"] == 2
    assert kept[1]["step"] == 2
    resumed, _ = trained(Teller(norm=True), checkpoint=kept[1])
    assert all(torch.equal(t, resumed["model"][key]) for key, t in whole["model"].items())
    old = {key: value for key, value in kept[1].items() if key not in ("micro_batch", "skipped")}
    model = Teller(norm=True)
    check_state(old, model, loop.make_detector_optimizer(model, recipe))
    assert trained(model, checkpoint=old)[0]["micro_batch"] == 0


@pytest.mark.parametrize(
    ("batch_size", "micro_batch", "image_size", "wanted"),
    [
        (8, 0, 640, 4),
        (8, 4, 640, 2),
        (8, 1, 640, None),
        (8, 2, 64, None),
        (6, 0, 64, 3),
        (3, 0, 64, None),
        (3, 0, 640, 2),
    ],
)
def test_a_micro_batch_is_halved(batch_size, micro_batch, image_size, wanted):
    assert half_micro_batch(batch_size, micro_batch, image_size=image_size) == wanted


def test_outputs_that_cannot_be_joined_are_an_error():
    class Ragged(nn.Module):
        def forward(self, images):
            return [torch.zeros(5, requires_grad=True) for _ in images]

    with pytest.raises(InputError, match="Take a smaller batch_size"):
        InParts(Ragged(), 2)(torch.zeros(4, 3, 8, 8))


# compiling


def test_compiling_is_tried_on_cuda_where_the_budget_is_long():
    def walk(device, seconds):
        trials = candidates(ComputeConfig(), torch.device(device), budget_seconds=seconds)
        found, trial = [], next(trials, None)
        while trial is not None:
            found.append(trial.compiled)
            try:
                trial = trials.send(ComputeConfig())
            except StopIteration:
                break
        return any(found)

    assert not walk("cpu", 1e6)
    assert not walk("cuda", 600)
    assert walk("cuda", 7200)
    usual = {"step_seconds": 0.1, "compiled_seconds": 0.08}
    assert compiling_repays(60, **usual, budget_seconds=3600)
    assert not compiling_repays(60, **usual, budget_seconds=500)
    assert not compiling_repays(1, step_seconds=0.1, compiled_seconds=0.11, budget_seconds=3600)
