"""A Ray cluster as workers: what is sent arrives, bad addresses are told of, and a killed node costs its segment alone."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from campaign_samples import standing
from foldfuse import cli
from foldfuse.campaign.execution.jobs import Seen
from foldfuse.campaign.execution.ray_worker import Order, Worker, files_of, parcels, put, unpacked
from foldfuse.commands.campaign import campaign
from foldfuse.data.folds import read_folds
from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError
from foldfuse.formats.submission import validate_submission
from foldfuse.storage import ledger
from foldfuse.storage.run import Run, RunMetadata
from learning_samples import write_dataset


@pytest.fixture
def data(tmp_path):
    return write_dataset(tmp_path / "d", 24)


@pytest.mark.parametrize("size", [1, 20_000, 10**9])
def test_pictures_arrive_as_they_were_sent(data, tmp_path, size):
    dataset = read(data)
    sent = list(parcels(dataset.samples, size))
    assert [i for parcel in sent for i in parcel] == list(range(24))
    assert len(sent) == {1: 24, 10**9: 1}.get(size, len(sent))
    assert 1 < len(sent) < 24 or size != 20_000
    arrived = unpacked(dataset, sent, tmp_path / "there")
    for here, there in zip(dataset.samples, arrived.samples, strict=True):
        assert there.path.parent == tmp_path / "there"
        assert there.path.read_bytes() == here.path.read_bytes()
        assert np.array_equal(there.annotations.boxes, here.annotations.boxes)
    assert arrived.fingerprint == dataset.fingerprint


def test_a_run_folder_arrives_as_it_was_sent(tmp_path):
    run = Run(tmp_path / "here")
    run.write_metadata(RunMetadata(seed=3))
    run.save_checkpoint({"step": 1})
    run.save_checkpoint({"step": 2})
    put(files_of(run.folder), tmp_path / "there")
    there = Run(tmp_path / "there")
    assert there.metadata == RunMetadata(seed=3)
    assert there.load_checkpoint()[0] == {"step": 2}
    assert set(files_of(run.folder, "checkpoint*.pt")) == {"checkpoint.pt", "checkpoint.previous.pt"}
    assert not list(there.folder.glob(".*"))


def test_a_worker_learns_from_the_pictures_that_come_with_an_order_too(data, tmp_path, monkeypatch):
    whole = read(data)
    train, held, more = (whole.subset(whole.image_ids[part]) for part in (slice(12), slice(12, 20), slice(20, 24)))
    seen = []

    def learn(run, dataset, seconds, *, images, **_):
        seen.append((dataset.image_ids, [images[i].shape for i in range(len(dataset))]))
        return seconds

    monkeypatch.setattr("foldfuse.campaign.execution.jobs.learn", learn)
    monkeypatch.setattr("foldfuse.campaign.execution.jobs.look", lambda *_: Seen({}, 0.5))
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda parcel: parcel))
    worker = Worker()
    worker.prepare(train, held, list(parcels(train.samples)), list(parcels(held.samples)), 64)
    run = Run(tmp_path / "run")
    run.write_metadata(RunMetadata())
    plain = Order("b", 2.0, files_of(run.folder), {}, 60.0, standing())
    for order in (plain, replace(plain, more=more, parcels=tuple(parcels(more.samples))), plain):
        assert worker.work(order).cost == 0.5
    alone, joined, again = seen
    assert alone == again
    assert joined[0] == train.image_ids + more.image_ids
    assert len(joined[1]) == 16
    worker.close()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://10.0.0.1:10001", "Ray's client is not supported"),
        ("somewhere", "auto or HOST:PORT, such as 10.0.0.1:6379; got 'somewhere'"),
        ("127.0.0.1:1", "nobody answers there"),
        ("127.0.0.1:99999", "nobody answers there"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_told_of_and_nothing_is_written(data, tmp_path, address, message):
    with pytest.raises(InputError) as caught:
        campaign(data, out=tmp_path / "out", ray=address)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_without_ray_one_sentence_says_how_to_get_it(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["campaign", str(data), "--out", str(tmp_path / "out"), "--ray", "auto"]) == 2
    assert capsys.readouterr().err == "error: --ray: Ray is not installed. Install it: pip install foldfuse[ray]\n"


def test_the_plan_is_of_this_machine(data):
    with pytest.raises(InputError, match="Leave out --ray"):
        campaign(data, plan=True, ray="auto")


def test_the_recorded_command_names_the_cluster_that_was_last_given(data, tmp_path, monkeypatch):
    monkeypatch.setattr("foldfuse.campaign.campaign._joined", lambda ray: nullcontext())
    monkeypatch.setattr("foldfuse.campaign.campaign._work", lambda *asked, **how: None)
    out = tmp_path / "our out"
    plain = shlex.join(["foldfuse", "campaign", str(data), "--deadline", "10m", "--out", str(out), "--seed", "0"])
    told = []
    for where in ({"data": data, "out": out, "ray": "10.0.0.1:6379"}, {"resume": out}, {"resume": out, "ray": "auto"}):
        campaign(**where)
        told.append(ledger.snapshot(out)["command"])
    assert told == [f"{plain} --ray 10.0.0.1:6379", f"{plain} --ray 10.0.0.1:6379", f"{plain} --ray auto"]


def test_a_campaign_begun_here_and_resumed_on_a_cluster_tells_so(data, tmp_path, monkeypatch):
    monkeypatch.setattr("foldfuse.campaign.campaign._joined", lambda ray: nullcontext())
    monkeypatch.setattr("foldfuse.campaign.campaign._work", lambda *asked, **how: None)
    out = tmp_path / "out"
    campaign(data, out=out)
    assert "--ray" not in ledger.snapshot(out)["command"]
    campaign(resume=out, ray="auto")
    assert ledger.snapshot(out)["command"].endswith(" --ray auto")


@pytest.fixture
def nodes(monkeypatch):
    """(cluster, its two nodes of one CPU each): processes of their own on this machine, beside a head that trains nothing."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else 15, and on a busy machine no worker is ready in time
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield cluster, [cluster.add_node(num_cpus=1) for _ in range(2)]
    finally:
        cluster.shutdown()


def started(data, out, cluster, *options):
    command = [sys.executable, "-m", "foldfuse", "campaign", str(data), "--out", str(out), "--ray", cluster.address]
    words = ["--folds", "3", "--change", "image_size=64", "--change", "batch_size=2", *options]
    return subprocess.Popen(
        [*command, *words], env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own processes and sockets
def test_a_node_killed_at_work_costs_no_more_than_its_segment(data, tmp_path, nodes):
    cluster, alive = nodes
    out = tmp_path / "out"
    process = started(data, out, cluster, "--deadline", "180s")
    members = out / "members"
    while not list(members.glob("trunk-*/checkpoint.pt")):  # the first checkpoint that came from the node
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.2)
    facts = ledger.snapshot(out)
    trunk, node = next(
        found.groups() for note in facts["notes"] if (found := re.match(r"(trunk-\d+) is trained on .*\((\w+)\)", note))
    )
    [killed] = [one for one in alive if one.node_id.startswith(node)]
    cluster.remove_node(killed, allow_graceful=False)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error

    facts = json.loads((out / "campaign.json").read_text())
    assert facts["state"] == "finished"
    trained = [span["name"] for span in facts["timeline"] if span["kind"] == "train"]
    assert trained.count(f"train {trunk}") == 2
    others = [name for name in trained if name != f"train {trunk}"]
    assert others
    assert len(others) == len(set(others)), "another segment was repeated"
    assert any(f"{trunk} goes on from its checkpoint" in note for note in facts["notes"])
    rows = {row["name"]: row for row in facts["segments"]}
    assert rows[trunk]["state"] == "done"
    steps = [row["step"] for row in Run(members / trunk).log if "loss" in row]
    assert steps == list(range(len(steps))), "the log has a gap where the node was killed"
    assert any(row["parent"] == trunk and row["state"] == "done" for row in facts["segments"])
    target = read(data).subset(read_folds(out / "folds.json").val_ids(1))  # they stand in for test pictures
    assert list(validate_submission(out / "submission.csv", target).image_ids) == list(target.image_ids)
