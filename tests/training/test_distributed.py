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
from foldfuse.training.distributed import distributed_network, loss_terms, sum_over_processes, synced_batch_norm
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
    for name in two:
        assert len(set(two[name][0])) == 20
        assert two[name][0] == two[name][1], "the processes do not agree on the loss of the whole batch"
    for name in one:
        np.testing.assert_allclose(two[name][0], one[name][0], rtol=1e-9, err_msg=name)


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
    t, network = torch.rand(2), torch.nn.Linear(1, 1)
    assert sum_over_processes(t, SINGLE_PROCESS) is t
    assert distributed_network(network, SINGLE_PROCESS) is network
    assert SINGLE_PROCESS.all_gather("x") == ["x"]
    assert SINGLE_PROCESS.broadcast(0.5, 1) == [0.5, 1]
    with synced_batch_norm(SINGLE_PROCESS):
        F.batch_norm(torch.rand(2, 3), None, None, training=True)


def test_a_loss_without_batch_total_is_averaged_over_the_processes(monkeypatch):
    class Mean:
        def loss(self, raw, targets):
            return {"mean": raw.mean()}

    class Sum:
        def loss(self, raw, targets, *, batch_total):
            return {"sum": raw.sum() / batch_total(torch.tensor(float(len(targets))))}

    module = "foldfuse.training.distributed.sum_over_processes"
    monkeypatch.setattr(module, lambda counts, world: counts * world.size)
    raw = torch.tensor([1.0, 3.0])
    assert loss_terms(Mean(), raw, [0, 0], World(0, 2)) == {"mean": 1.0}
    assert loss_terms(Sum(), raw, [0, 0], World(0, 2)) == {"sum": 1.0}
