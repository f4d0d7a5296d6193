"""A training that is killed at any moment and resumed ends with the very weights of one that never was."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from foldfuse.commands.train import train
from foldfuse.storage.run import Run
from foldfuse.training.budget import Budget
from learning_samples import write_dataset
from waiting import wait_until

CHANGES = ("image_size=64", "batch_size=2", "mosaic=0.9", "mosaic_until=0.5")
STEPS = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", 6)


def start(data, out, *, checkpoint="0.001s", steps=STEPS):
    """A real process that trains, leaving a checkpoint after about every step."""
    command = [sys.executable, "-m", "foldfuse", "train", "--checkpoint-every", checkpoint]
    if Run(out).exists:
        command += ["--resume", str(out)]
    else:
        command += [str(data), "--out", str(out), *(word for change in CHANGES for word in ("--set", change))]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    quiet["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here
    return subprocess.Popen([*command, "--steps", str(steps)], **quiet)


def kill_after_checkpoints(process, run, checkpoints):
    """kill -9 once so many more checkpoints are written."""
    path = run.folder / "checkpoint.pt"
    for _ in range(checkpoints):
        seen = path.stat().st_mtime_ns if path.exists() else 0
        wait_until(
            lambda seen=seen: process.poll() is not None or (path.exists() and path.stat().st_mtime_ns != seen),
            what="a checkpoint",
        )
    assert process.poll() is None, "it ended before it was killed"
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_killed_twice_and_resumed_it_ends_with_the_same_weights(data, tmp_path):
    run, steps = Run(tmp_path / "killed"), []
    for checkpoints in (1, 3):
        kill_after_checkpoints(start(data, run.folder), run, checkpoints)
        steps.append(run.load_checkpoint()[0]["step"])
    assert 0 < steps[0] < steps[1] < STEPS
    last = start(data, run.folder)
    assert last.wait(900) == 0, last.stderr.read().decode()
    last.stderr.close()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(data, out=tmp_path / "whole", changes=CHANGES, steps=STEPS)
    finally:
        torch.set_num_threads(threads)
    whole, killed = (Run(tmp_path / name) for name in ("whole", "killed"))
    states = whole.load_checkpoint()[0], killed.load_checkpoint()[0]
    assert states[0]["ema_steps"] == states[1]["ema_steps"] == STEPS
    for part in ("model", "ema"):
        assert all(torch.equal(states[0][part][key], states[1][part][key]) for key in states[0][part])
    for one, other in zip(*(state["optimizer"]["state"].values() for state in states), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(states[0]["rng"][0]["cpu"], states[1]["rng"][0]["cpu"])
    assert [row["loss"] for row in whole.log] == [row["loss"] for row in killed.log]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_interrupt_keeps_its_steps_and_says_how_to_resume(data, tmp_path, number):
    run = Run(tmp_path / "run")
    process = start(data, run.folder, checkpoint="1s", steps=100_000)
    wait_until(lambda: process.poll() is not None or run.log, what="a checkpoint")
    kept = len(run.log)
    process.send_signal(number)
    _, error = process.communicate(timeout=900)
    assert process.returncode == 130
    step = run.load_checkpoint()[0]["step"]
    assert step >= kept, "what came after the last checkpoint is kept too"
    assert [row["step"] for row in run.log] == list(range(step))
    kept = f"{run.folder}: stopped; {step} steps are kept."
    assert error.decode().endswith(f"{kept} Resume with: foldfuse train --resume {run.folder}\n")


def test_a_resumed_run_has_the_rest_of_its_own_budget(data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    train(data, out=out, changes=CHANGES, steps=1)
    run = Run(out)
    run.write_metadata(replace(run.metadata, budget={"seconds": 100.0}))
    state = run.load_checkpoint()[0]
    run.save_checkpoint(state | {"seconds": 99.9})
    train(resume=out)
    assert run.metadata.steps <= 20  # not another hundred seconds
    assert run.metadata.budget == {"seconds": 100.0}


def test_a_broken_checkpoint_gives_way_to_the_one_before(data, tmp_path, caplog):
    out = tmp_path / "run"
    train(data, out=out, changes=CHANGES, steps=2)
    train(resume=out, steps=3)
    (out / "checkpoint.pt").write_bytes((out / "checkpoint.pt").read_bytes()[:1000])
    train(resume=out, steps=4)
    assert "checkpoint.pt: is broken" in caplog.text
    assert [row["step"] for row in Run(out).log] == [0, 1, 2, 3]


def test_a_run_that_was_stopped_before_it_began_can_be_overwritten(data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text("{")
    train(data, out=tmp_path / "run", changes=CHANGES, steps=1, overwrite=True)
    assert Run(tmp_path / "run").metadata.steps == 1


def test_what_is_done_in_a_pause_is_not_paid_for():
    now = [0.0]
    budget = Budget(seconds=100, clock=lambda: now[0])
    assert budget.spent(0) == 0
    now[0] = 30
    with budget.paused():
        now[0] = 1000
    assert budget.elapsed() == 30
    now[0] = 1020
    assert budget.spent(1) == 0.5
