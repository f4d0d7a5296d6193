"""The autotuner takes the faster configuration that computes the same, remembers it, and leaves nothing else behind."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

from foldfuse.commands.train import train
from foldfuse.storage.run import Run
from foldfuse.training import autotune as module
from foldfuse.training.autotune import AutotuneResult, affordable, autotune
from foldfuse.training.precision import ComputeConfig, default_config
from learning_samples import write_dataset

LATE = [0.0]  # seconds by which the clock of these tests is ahead
BATCH = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), []


class Network(nn.Module):
    """Fast in bfloat16, slow otherwise; `wrong` is added to its loss there."""

    def __init__(self, wrong=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.wrong = wrong
        self.register_buffer("calls", torch.zeros(()))

    def freeze(self, stages):
        self.train()

    def forward(self, images):
        half = torch.is_autocast_enabled("cpu")
        self.calls += 1
        torch.rand(1)
        LATE[0] += 0.1 if half else 0.3
        return self.weight.sum() + (self.wrong if half else 0.0)

    def loss(self, raw, targets):
        return {"all": raw}


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock that `Network` alone puts forward: a busy machine changes nothing."""
    monkeypatch.setattr(module.time, "perf_counter", lambda: LATE[0])


def found(tmp_path, model, seconds=1000.0):
    return autotune(model, BATCH, frozen_stages=0, seconds=seconds, key="network", memory=tmp_path / "autotune.json")


@pytest.mark.parametrize(("capability", "precision"), [((8, 0), "bfloat16"), ((7, 5), "float16")])
def test_a_card_that_only_emulates_bfloat16_computes_in_float16(monkeypatch, capability, precision):
    def is_supported(including_emulation=True):
        return including_emulation or capability >= (8, 0)

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert default_config(torch.device("cuda")).precision == precision


def test_the_faster_setting_is_taken_and_remembered(tmp_path, monkeypatch):
    made = found(tmp_path, Network())
    assert made.config.precision == "bfloat16"
    assert made.speedup > 2
    assert "x the default speed" in str(made)
    monkeypatch.setattr(module, "_measure", lambda *_: pytest.fail("measured again"))
    again = found(tmp_path, Network())
    assert again == made


def test_results_of_another_way_to_measure_are_measured_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "METHOD", "one after the other")
    found(tmp_path, Network())
    monkeypatch.undo()
    monkeypatch.setattr(module.time, "perf_counter", lambda: LATE[0])
    found(tmp_path, Network())
    assert len(json.loads((tmp_path / "autotune.json").read_text())["results"]) == 2


def test_a_setting_that_computes_something_else_is_left_out(tmp_path):
    made = found(tmp_path, Network(wrong=0.1))
    assert made.config.precision == "float32"
    assert any(str(told).startswith("its loss is") for name, told in made.tried.items() if "bfloat16" in name)


def test_what_a_busy_machine_shows_is_not_remembered(tmp_path, monkeypatch):
    times = iter([0.3] * 3 + [0.3, 0.1, 0.9, 0.3, 0.3, 0.1] * 9)  # other work slows every third pair of steps
    monkeypatch.setattr(module._Steps, "__call__", lambda self: setattr(self, "loss", 1.0) or next(times))
    made = found(tmp_path, Network())
    assert made.config != default_config(torch.device("cpu")), "each turn shows a gain"
    assert not (tmp_path / "autotune.json").exists()


def test_where_a_busy_machine_shows_no_gain_the_process_does_not_measure_again(tmp_path, monkeypatch):
    times = iter([0.3] * 3 + [0.3, 0.3, 0.9, 0.3, 0.3, 0.3] * 9)
    monkeypatch.setattr(module._Steps, "__call__", lambda self: setattr(self, "loss", 1.0) or next(times))
    made = found(tmp_path, Network())
    assert made.config == default_config(torch.device("cpu"))
    assert not (tmp_path / "autotune.json").exists(), "another process measures"
    monkeypatch.setattr(module, "_measure", lambda *_: pytest.fail("measured again"))
    assert found(tmp_path, Network()) == made
    with pytest.raises(pytest.fail.Exception):
        autotune(Network(), BATCH, frozen_stages=0, seconds=1000.0, key="another", memory=tmp_path / "autotune.json")


def test_a_change_must_be_faster_in_each_turn(tmp_path, monkeypatch):
    seconds = {"float32": 0.3, "bfloat16": 0.1}
    turns = []

    def step(self):
        self.loss = 1.0
        turns.append(self._config.precision)
        hit = turns.count("bfloat16") == 3 and self._config.precision == "bfloat16"
        return 0.4 if hit else seconds[self._config.precision]

    monkeypatch.setattr(module._Steps, "__call__", step)
    assert found(tmp_path, Network()).config.precision == "float32"


def test_the_model_and_the_random_state_stay_as_they_were(tmp_path):
    model, threads, before = Network(), torch.get_num_threads(), torch.get_rng_state()
    found(tmp_path, model)
    assert model.calls == 0
    assert model.weight.grad is None
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("step", "wanted"), [(0.1, (8, 3)), (0.14, (8, 2)), (0.2, (2, 3)), (1.5, (2, 1)), (2.0, None)], ids=str
)
def test_where_steps_are_slow_a_few_images_must_do(step, wanted):
    assert affordable(step, 8, 300.0) == wanted
    if wanted is not None:
        count, rounds = wanted
        assert (4 + 6 * rounds) * step * count / 2 <= 0.06 * 300


def test_a_slow_network_is_autotuned_with_a_part_of_its_batch(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Network, "forward", lambda self, images: seen.append(len(images)) or self.weight.sum())
    monkeypatch.setattr(module, "affordable", lambda *_: (2, 1))
    batch = torch.zeros(8, 3, 32, 32, dtype=torch.uint8), [[] for _ in range(8)]
    autotune(Network(), batch, frozen_stages=0, seconds=1.0, key="network", memory=tmp_path / "autotune.json")
    assert set(seen) == {2}


def test_one_step_tells_that_the_budget_does_not_repay_a_measurement(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(Network, "loss", lambda self, raw, targets: steps.append(raw) or {"all": raw})
    assert found(tmp_path, Network(), seconds=0.5) is None
    assert len(steps) == 1
    assert not (tmp_path / "autotune.json").exists()


def test_a_broken_memory_is_measured_anew(tmp_path):
    (tmp_path / "autotune.json").write_text("[{")
    assert found(tmp_path, Network()) is not None
    assert len(json.loads((tmp_path / "autotune.json").read_text())["results"]) == 1


def test_a_run_keeps_its_configuration_and_a_run_of_steps_is_not_autotuned(tmp_path, monkeypatch):
    data, changes = write_dataset(tmp_path / "d", 4), ("image_size=64", "batch_size=2")
    monkeypatch.setattr("foldfuse.training.detector.autotune", lambda *_, **__: pytest.fail("autotuned"))
    train(data, out=tmp_path / "steps", changes=changes, steps=1)
    assert Run(tmp_path / "steps").metadata.compute == asdict(default_config(torch.device("cpu")))
    chosen = AutotuneResult(ComputeConfig("bfloat16", channels_last=False), 1.5, {"x": 1.0})
    monkeypatch.setattr("foldfuse.training.detector.autotune", lambda *_, **__: chosen)
    train(data, out=tmp_path / "timed", changes=changes, budget=0.3)
    run = Run(tmp_path / "timed")
    assert run.metadata.compute == asdict(chosen.config)
    assert run.metadata.autotune["speedup"] == 1.5
    monkeypatch.setattr("foldfuse.training.detector.autotune", lambda *_, **__: pytest.fail("autotuned again"))
    train(resume=tmp_path / "timed", steps=run.metadata.steps + 1)
    assert run.metadata.compute == asdict(chosen.config)


def test_a_run_in_bfloat16_learns_nearly_the_same(tmp_path):
    data, changes = write_dataset(tmp_path / "d", 4), ("image_size=64", "batch_size=2")
    for precision in ("float32", "bfloat16"):
        train(data, out=tmp_path / precision, changes=(*changes, f"precision={precision}"), steps=2)
    one, other = ([row["loss"] for row in Run(tmp_path / name).log] for name in ("float32", "bfloat16"))
    assert one != other
    np.testing.assert_allclose(one, other, rtol=0.05)
