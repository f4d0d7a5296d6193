"""A training that diverges keeps its last good checkpoint, names what is not finite, and resumes with a lower learning rate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from foldfuse import cli
from foldfuse.errors import InputError
from foldfuse.storage.run import Run
from foldfuse.storage.run_tensors import NotFinite
from foldfuse.system.finite import first_not_finite
from foldfuse.training import loop
from learning_samples import write_dataset

WORDS = ("--recipe", "yolov5n", "--image-size", "64", "--batch-size", "2", "--checkpoint-every", "0.001s")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", 6)


def poisoned(monkeypatch: pytest.MonkeyPatch, step: int, where: str) -> None:
    """Makes a training diverge from a step on: a tensor of the model becomes infinite, or gradients become NaN."""
    monkeypatch.setattr(loop, "MAX_SKIPPED", 1)
    usual, done = torch.nn.utils.clip_grad_norm_, 0

    def clip_grad_norm_(parameters, max_norm):
        nonlocal done
        done += 1
        if done >= step:
            parameters[0].grad.fill_(float("nan"))
        return usual(parameters, max_norm)

    class Ema(loop.Ema):
        def update(self, model):
            if self.steps == step - 1 and where != "gradient":
                model.backbone.stem[1].running_var.fill_(float("inf"))
            super().update(model)

    monkeypatch.setattr(loop, "Ema", Ema)
    if where == "gradient":
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_grad_norm_)


@pytest.mark.parametrize("where", ["gradient", "statistics"])
def test_the_last_good_checkpoint_stays_and_a_lower_rate_goes_on(data, tmp_path, monkeypatch, capsys, where):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        poisoned(patch, 3, where)
        assert cli.main(["train", str(data), "--out", str(out), *WORDS, "--steps", "6"]) == 1
    said = capsys.readouterr().err
    if where == "statistics":
        assert "running_var holds NaN or infinity" in said
    else:
        assert "step 2: the gradients have not been finite for 1 steps in a row" in said
    again = f"foldfuse train --resume {out} --lr 0.00033"
    assert f"The checkpoint after 2 steps is kept; resume from it with a lower learning rate: {again}" in said
    run = Run(out)
    state, trouble = run.load_checkpoint()
    assert state is not None
    assert (state["step"], trouble, first_not_finite(state)) == (2, None, None)
    assert not run.is_trained
    assert cli.main(["train", "--resume", str(out), "--lr", "0.00033"]) == 0
    assert [row["step"] for row in run.log] == list(range(6))
    assert run.recipe.lr == 0.00033
    assert [(change.step, change.lr) for change in run.metadata.lr_changes] == [(2, 0.00033)]
    state = run.load_checkpoint()[0]
    assert state is not None
    assert {group["base_lr"] for group in state["optimizer"]["param_groups"]} == {0.00033}
    assert first_not_finite(run.load_weights()) is None


def test_a_loss_that_is_not_finite_says_what_is_kept(data, tmp_path, monkeypatch, capsys):
    poisoned(monkeypatch, 1, "gradient")
    words = [*WORDS[:-2], "--steps", "6"]  # a minute between checkpoints
    assert cli.main(["train", str(data), "--out", str(tmp_path / "run"), *words]) == 1
    said = capsys.readouterr().err
    assert "step 0: the gradients have not been finite" in said
    assert "No checkpoint was written before; begin again with a lower learning rate" in said
    monkeypatch.undo()
    assert cli.main(["train", "--resume", str(tmp_path / "run"), "--lr", "1e-4"]) == 0
    assert Run(tmp_path / "run").metadata.steps == 6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_that_is_not_finite_is_written(tmp_path, value):
    run = Run(tmp_path)
    run.save_checkpoint({"step": 1, "model": {"w": torch.ones(2)}})
    run.save_weights({"w": torch.ones(2)})
    bad = torch.tensor([1.0, value])
    for state in (
        {"step": 2, "model": {"w": bad}},
        {"step": 2, "optimizer": {"state": {0: {"exp_avg": bad}}}},
        {"step": 2, "seconds": value},
    ):
        with pytest.raises(NotFinite, match="holds NaN or infinity"):
            run.save_checkpoint(state)
    with pytest.raises(NotFinite, match="w holds NaN or infinity, so the weights are not written"):
        run.save_weights({"w": bad})
    state, trouble = run.load_checkpoint()
    assert state is not None
    assert (state["step"], trouble) == (1, None)
    assert torch.equal(run.load_weights()["w"], torch.ones(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "weights.safetensors"]


def test_the_first_tensor_that_is_not_finite_is_named():
    large = torch.full((100,), 3e38)  # its sum overflows
    state = {"a": large, "b": {"c": [torch.ones(1), torch.tensor([0.0, float("-inf")])]}, "n": torch.tensor([1, 2])}
    assert first_not_finite({"a": large, "h": torch.full((9,), 6e4, dtype=torch.float16), "t": "nan"}) is None
    assert first_not_finite(state) == "b.c.1"
    assert first_not_finite({"x": [1.0, float("nan")]}) == "x.1"
    assert first_not_finite({}) is None


def test_weights_that_are_not_finite_are_refused(data, tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.tensor([float("inf")])}, tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="the tensor w holds NaN or infinity"):
        Run(tmp_path).load_weights()


def test_a_refused_resume_changes_nothing(data, tmp_path):
    out = Path(tmp_path / "run")
    assert cli.main(["train", str(data), "--out", str(out), *WORDS, "--steps", "2"]) == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    for words in (["--steps", "1"], ["--seed", "4"], ["--set", "lr=x"], ["--budget", "10m", "--set", "hflip=0"]):
        assert cli.main(["train", "--resume", str(out), *words]) == 2
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before, words
    assert json.loads(before["run.json"])["budget"] == {"steps": 2.0}
