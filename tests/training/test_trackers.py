"""Trackers are given the rows of the log, whichever package draws them: fakes stand for the packages."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from foldfuse.commands.train import train
from foldfuse.errors import InputError
from foldfuse.storage.run import Run
from foldfuse.training.trackers import check_trackers, open_trackers
from learning_samples import write_dataset

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
