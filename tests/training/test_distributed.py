"""Several processes do what one does: real processes, which meet by gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foldfuse.commands.predict import predict
from foldfuse.commands.train import train
from foldfuse.data.folds import make_folds
from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError
from foldfuse.evaluation.record import read_evaluation
from foldfuse.formats.predictions import read_predictions
from foldfuse.storage.run import Run
from foldfuse.system.processes import SINGLE_PROCESS, World, open_world
from foldfuse.training.distributed import gather_batch, synced_batch_norm
from learning_samples import write_dataset

HERE = Path(__file__).parent
QUIET = os.environ | {"OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", 6)


def run(*command):
    done = subprocess.run(
        [str(part) for part in command], env=QUIET, capture_output=True, text=True, timeout=900
    )  # a busy machine is no failure
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(data, tmp_path):
    run(sys.executable, HERE / "two_processes.py", data, tmp_path / "one.json")
    run(*TORCHRUN, HERE / "two_processes.py", data, tmp_path / "two.json")
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    for name, steps, alike in (
        ("detector", 5, 4),
        ("counter", 20, 20),
    ):  # rounding may flip an assignment in the fifth step
        assert len(set(one[name][0])) == steps
        assert two[name][0] == two[name][1], "the processes do not agree on the loss of the whole batch"
        np.testing.assert_allclose(two[name][0][:alike], one[name][0][:alike], rtol=1e-3)


@pytest.mark.slow
def test_two_processes_train_and_predict_from_the_command_line(data, tmp_path):
    changes = (
        "image_size=64",
        "batch_size=4",
        "lr=1e-4",
    )  # at the usual rate, rounding alone parts two runs in ten steps
    flags = [word for change in changes for word in ("--set", change)]
    folds = tmp_path / "folds.json"
    make_folds(read(data), num_folds=3).write(folds)
    out = ["--out", tmp_path / "run", "--folds", folds]
    printed = run(*TORCHRUN, "-m", "foldfuse", "train", data, *out, *flags, "--steps", "20")
    assert printed.count("(COCO's) on 2 held-out images") == 1, "one process scores and prints"
    assert read_evaluation(tmp_path / "run").steps == 20
    train(data, out=tmp_path / "alone", folds=folds, changes=changes, steps=20)
    metadata = Run(tmp_path / "run").metadata
    assert (metadata.steps, metadata.processes) == (20, 2)
    two, one = ([row["loss"] for row in Run(tmp_path / name).log if "loss" in row] for name in ("run", "alone"))
    np.testing.assert_allclose(two, one, rtol=1e-3)
    run(*TORCHRUN, "-m", "foldfuse", "predict", tmp_path / "run", data, "--all", "--out", tmp_path / "two.parquet")
    predict(tmp_path / "run", data, all_=True, out=tmp_path / "one.parquet")
    one, two = (read_predictions(tmp_path / f"{name}.parquet", read(data)) for name in ("one", "two"))
    assert list(one.image_ids) == list(two.image_ids)
    for i in one.image_ids:
        np.testing.assert_allclose(one[i].boxes, two[i].boxes, atol=1e-2)
        np.testing.assert_allclose(one[i].scores, two[i].scores, atol=1e-4)


def test_a_batch_is_shared_evenly_or_refused():
    assert [list(World(rank, 3).shard(6)) for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(InputError, match=r"batch_size is 4, and cannot be shared evenly by 3 .* 3 and 6"):
        World(0, 3).shard(4)


def test_one_process_is_a_world_of_its_own(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with open_world() as world:
        assert world.size == 1
        assert world.is_main
    t = torch.rand(2)
    assert gather_batch((t, 3), SINGLE_PROCESS) == (t, 3)
    assert SINGLE_PROCESS.all_gather("x") == ["x"]
    assert SINGLE_PROCESS.broadcast(0.5) == 0.5
    with synced_batch_norm(SINGLE_PROCESS):
        F.batch_norm(torch.rand(2, 3), None, None, training=True)
