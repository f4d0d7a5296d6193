"""Trackers are given the rows of the log, whichever package draws them: fakes stand for the packages."""

import importlib.util
import json
import sqlite3
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from foldfuse.commands.train import train
from foldfuse.errors import InputError
from foldfuse.storage.run import Run
from foldfuse.training.trackers import absolute_tracker, check_trackers, open_trackers
from learning_samples import write_dataset
from waiting import wait_until

ROWS = [{"step": 0, "loss": 2.5, "lr": 0.0, "note": "text"}, {"step": 1, "ap50": 0.5, "ap": None}]


@pytest.fixture
def tensorboard(monkeypatch):
    """The points that a SummaryWriter was given, and what became of it."""
    seen = {"points": [], "closed": 0}

    class SummaryWriter:
        def __init__(self, folder):
            seen["folder"] = folder

        def add_scalar(self, key, value, step):
            seen["points"].append((key, value, step))

        def flush(self):
            pass

        def close(self):
            seen["closed"] += 1

    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    return seen


@pytest.fixture
def mlflow(monkeypatch):
    """The calls that MLflow was given."""
    calls = []
    fake = ModuleType("mlflow")
    for name in ("set_tracking_uri", "start_run", "log_metrics", "flush_async_logging", "end_run"):
        setattr(fake, name, lambda *args, _name=name, **kwargs: calls.append((_name, args, kwargs)))
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return calls


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """The calls that W&B was given, on a machine without an account."""
    calls = []
    run = SimpleNamespace(dir="wandb/offline-run-1", url=None)
    for name in ("define_metric", "log", "finish"):
        setattr(run, name, lambda *args, _name=name, **kwargs: calls.append((_name, args, kwargs)))
    fake = ModuleType("wandb")
    fake.Settings = lambda **kwargs: kwargs
    fake.init = lambda **kwargs: calls.append(("init", (), kwargs)) or run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return calls


@pytest.fixture
def trackio(monkeypatch):
    """The calls that Trackio was given."""
    calls = []
    run = SimpleNamespace()
    for name in ("log", "finish"):
        setattr(run, name, lambda *args, _name=name, **kwargs: calls.append((_name, args, kwargs)))
    fake = ModuleType("trackio")
    fake.init = lambda **kwargs: calls.append(("init", (), kwargs)) or run
    monkeypatch.setitem(sys.modules, "trackio", fake)
    return calls


def test_every_number_of_a_row_is_a_point(tensorboard):
    with open_trackers(["tensorboard:logs"], "run1") as track:
        track(ROWS)
    assert tensorboard["folder"] == "logs/run1"
    assert tensorboard["points"] == [("loss", 2.5, 0), ("lr", 0.0, 0), ("ap50", 0.5, 1)]
    assert tensorboard["closed"] == 1


def test_mlflow_gets_the_same_points_and_is_closed_when_training_fails(mlflow):
    def diverge():
        with open_trackers(["mlflow:http://host"], "run1") as track:
            track(ROWS)
            raise FloatingPointError

    with pytest.raises(FloatingPointError):
        diverge()
    assert [call[0] for call in mlflow] == [
        "set_tracking_uri",
        "start_run",
        *["log_metrics"] * 2,
        "flush_async_logging",
        "end_run",
    ]
    assert mlflow[-1][1] == ("FAILED",)
    assert mlflow[0][1] == ("http://host",)
    assert mlflow[1][2] == {"run_name": "run1"}
    assert mlflow[2][1:] == (({"loss": 2.5, "lr": 0.0},), {"step": 0, "synchronous": False})


def test_training_gives_each_row_once_and_a_resumed_one_only_the_new(tensorboard, mlflow, tmp_path):
    data = write_dataset(tmp_path / "d", 4)
    both = ("tensorboard:logs", "mlflow:file")
    changes = ("image_size=64", "batch_size=2")
    train(data, out=tmp_path / "run", changes=changes, steps=2, tracker=both, checkpoint_every=0.001)
    train(resume=tmp_path / "run", steps=3)
    losses = [(value, step) for key, value, step in tensorboard["points"] if key == "loss"]
    assert losses == [(row["loss"], row["step"]) for row in Run(tmp_path / "run").log]
    assert len([call for call in mlflow if call[0] == "log_metrics"]) == 3


def test_what_cannot_be_opened_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as where it is not installed
    data = write_dataset(tmp_path / "d", 2)
    for wanted, message in [
        ("tensorbord:x", "Did you mean 'tensorboard'"),
        ("tensorboard", "does not say where: write it as tensorboard:DIR"),
        ("mlflow:x", r"pip install 'foldfuse\[mlflow\]'"),
    ]:
        with pytest.raises(InputError, match=message):
            train(data, out=tmp_path / "run", steps=1, tracker=(wanted,))
        with pytest.raises(InputError, match=message):
            check_trackers([wanted])
        assert not (tmp_path / "run").exists()


def test_a_server_that_cannot_be_reached_is_told_and_leaves_no_run(mlflow, tmp_path, monkeypatch):
    def refuse(**kwargs):
        raise ConnectionError("nobody answers\nat length")

    monkeypatch.setattr(sys.modules["mlflow"], "start_run", refuse)
    data = write_dataset(tmp_path / "d", 2)
    with pytest.raises(InputError, match=r"mlflow:http://host cannot be opened \(ConnectionError: nobody answers\)"):
        train(data, out=tmp_path / "run", steps=1, tracker=("mlflow:http://host",))
    assert not (tmp_path / "run").exists()


def test_a_server_that_goes_away_does_not_take_the_run_along(mlflow, monkeypatch, caplog):
    def gone():
        raise ConnectionError("refused")

    monkeypatch.setattr(sys.modules["mlflow"], "flush_async_logging", gone)
    with open_trackers(["mlflow:http://host"], "run1") as track:
        track(ROWS)
    assert "mlflow:http://host was lost (ConnectionError: refused); log.jsonl has all rows." in caplog.text


def test_tensorboard_may_write_into_the_folder_of_the_run(monkeypatch, tmp_path):
    class SummaryWriter:
        def __init__(self, folder):
            self.path = Path(folder) / "events"
            self.path.parent.mkdir(parents=True, exist_ok=True)

        def add_scalar(self, key, value, step):
            self.path.write_text(key)

        def flush(self):
            pass

        close = flush

    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    data = write_dataset(tmp_path / "d", 4)
    small = ("image_size=64", "batch_size=2")
    train(data, out=tmp_path / "run", changes=small, steps=1, tracker=(f"tensorboard:{tmp_path}",))
    assert (tmp_path / "run" / "events").exists()


def test_wandb_gets_the_points_with_steps_of_their_own(wandb):
    rows = [*ROWS, {"step": 0, "base/loss": 3.0}, {"step": 4, "base/ap50": 0.1}]
    with open_trackers(["wandb:litter"], "run1") as track:
        track(rows)
    opened = wandb[0][2]
    assert (opened["project"], opened["name"], opened["mode"]) == ("litter", "run1", "offline")
    assert [call[1:] for call in wandb if call[0] == "define_metric"] == [
        (("step",), {}),
        (("*",), {"step_metric": "step"}),
        (("base/step",), {}),
        (("base/*",), {"step_metric": "base/step"}),
    ]
    assert [call[1][0] for call in wandb if call[0] == "log"] == [
        {"loss": 2.5, "lr": 0.0, "step": 0},
        {"ap50": 0.5, "step": 1},
        {"base/loss": 3.0, "base/step": 0},
        {"base/ap50": 0.1, "base/step": 4},
    ]
    assert wandb[-1] == ("finish", (), {"exit_code": 0})


def test_wandb_is_offline_without_an_account_and_as_the_user_says(wandb, monkeypatch, tmp_path):
    def mode():
        with open_trackers(["wandb:p"], "run1"):
            pass
        return [call[2]["mode"] for call in wandb if call[0] == "init"][-1]

    assert mode() == "offline"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert mode() is None
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # as --offline does
    assert mode() == "offline"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("WANDB_MODE")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    (tmp_path / "netrc").chmod(0o600)
    assert mode() is None
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080/x")
    assert mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert mode() is None


def test_trackio_gets_the_same_points(trackio):
    with open_trackers(["trackio:litter"], "run1") as track:
        track(ROWS)
    assert trackio[0][2]["project"] == "litter"
    assert trackio[0][2]["name"] == "run1"
    assert [call[1:] for call in trackio if call[0] == "log"] == [
        (({"loss": 2.5, "lr": 0.0},), {"step": 0}),
        (({"ap50": 0.5},), {"step": 1}),
    ]
    assert trackio[-1][0] == "finish"


def test_a_tracker_that_fails_is_told_once_and_the_others_go_on(wandb, trackio, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError("the disk is full\nat length")

    run = sys.modules["trackio"].init()
    monkeypatch.setattr(run, "log", full)
    monkeypatch.setattr(run, "finish", full)
    with open_trackers(["trackio:p", "wandb:p"], "run1") as track:
        track(ROWS)
        track(ROWS)
    assert caplog.text.count("the tracker trackio:p was lost (OSError: the disk is full); log.jsonl has all rows.") == 1
    assert caplog.text.count("lost") == 1
    assert len([call for call in wandb if call[0] == "log"]) == 4


def test_a_resumed_run_goes_on_without_a_tracker_that_cannot_be_opened(
    tensorboard, mlflow, tmp_path, monkeypatch, caplog
):
    data = write_dataset(tmp_path / "d", 4)
    both = ("mlflow:http://host", "tensorboard:logs")
    train(data, out=tmp_path / "run", changes=("image_size=64", "batch_size=2"), steps=1, tracker=both)

    def refuse(**kwargs):
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(sys.modules["mlflow"], "start_run", refuse)
    train(resume=tmp_path / "run", steps=2)
    assert "mlflow:http://host cannot be opened (ConnectionError: nobody answers)" in caplog.text
    assert "It goes on without this tracker" in caplog.text
    assert [step for key, _, step in tensorboard["points"] if key == "loss"] == [0, 1]


def test_a_folder_of_tensorboard_stays_the_same_in_another_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_tracker("tensorboard:logs") == f"tensorboard:{tmp_path / 'logs'}"
    assert absolute_tracker("mlflow:http://host") == "mlflow:http://host"


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="pip install wandb")
def test_the_real_wandb_keeps_a_run_without_an_account(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    with open_trackers(["wandb:litter"], "run1") as track:
        track([*ROWS, {"step": 0, "base/loss": 3.0}])
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    wait_until(lambda: b"base/loss" in file.read_bytes(), what="W&B's own process to write", seconds=30)


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="pip install trackio")
def test_the_real_trackio_keeps_a_run_without_an_account(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "kept"))
    with open_trackers(["trackio:litter"], "run1") as track:
        track([*ROWS, {"step": 0, "base/loss": 3.0}])
    (file,) = (tmp_path / "kept").rglob("litter*.db")
    rows = sqlite3.connect(file).execute("SELECT step, metrics FROM metrics ORDER BY id").fetchall()
    assert (rows[0][0], json.loads(rows[0][1])) == (0, {"loss": 2.5, "lr": 0.0})
