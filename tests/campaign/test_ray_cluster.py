"""A Ray cluster as workers: files arrive unchanged, bad addresses are refused, and a killed node costs only its segment."""

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

from campaign_samples import campaign_state
from foldfuse import cli
from foldfuse.campaign.execution.jobs import HeldOutPredictions
from foldfuse.campaign.execution.ray_worker import JobSpec, Worker, image_chunks, read_files, unpack_images, write_files
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
def test_images_arrive_unchanged(data, tmp_path, size):
    dataset = read(data)
    chunks = list(image_chunks(dataset.samples, size))
    assert [i for chunk in chunks for i in chunk] == list(range(24))
    assert len(chunks) == {1: 24, 10**9: 1}.get(size, len(chunks))
    assert 1 < len(chunks) < 24 or size != 20_000
    arrived = unpack_images(dataset, chunks, tmp_path / "there")
    for here, there in zip(dataset.samples, arrived.samples, strict=True):
        assert there.path.parent == tmp_path / "there"
        assert there.path.read_bytes() == here.path.read_bytes()
        assert np.array_equal(there.annotations.boxes, here.annotations.boxes)
    assert arrived.fingerprint == dataset.fingerprint


def test_a_run_folder_arrives_unchanged(tmp_path):
    run = Run(tmp_path / "here")
    run.write_metadata(RunMetadata(seed=3))
    run.save_checkpoint({"step": 1})
    run.save_checkpoint({"step": 2})
    write_files(read_files(run.folder), tmp_path / "there")
    there = Run(tmp_path / "there")
    assert there.metadata == RunMetadata(seed=3)
    assert there.load_checkpoint()[0] == {"step": 2}
    assert set(read_files(run.folder, "checkpoint*.pt")) == {"checkpoint.pt", "checkpoint.previous.pt"}
    assert not list(there.folder.glob(".*"))


def test_a_worker_also_trains_on_the_images_that_come_with_a_job(data, tmp_path, monkeypatch):
    whole = read(data)
    labeled, more = whole.subset(whole.image_ids[:20]), whole.subset(whole.image_ids[20:])
    folds = {0: (range(12), range(12, 20)), 1: (range(4, 20), range(4))}
    seen = []

    def train_segment(run, dataset, seconds, *, images, **_):
        seen.append((dataset.image_ids, [images[i].shape for i in range(len(dataset))]))
        return seconds

    monkeypatch.setattr("foldfuse.campaign.execution.jobs.train_segment", train_segment)
    monkeypatch.setattr(
        "foldfuse.campaign.execution.jobs.predict_held_out", lambda *_, **__: HeldOutPredictions({}, 0.5)
    )
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda chunk: chunk))
    worker = Worker()
    worker.prepare(labeled, list(image_chunks(labeled.samples)), folds, 64)
    run = Run(tmp_path / "run")
    run.write_metadata(RunMetadata())
    plain = JobSpec("b", 2.0, read_files(run.folder), {}, 60.0, campaign_state(), "cpu")
    extra = {"pseudo_labeled": more, "chunks": tuple(image_chunks(more.samples))}
    for spec in (plain, replace(plain, **extra), plain, replace(plain, fold=1)):
        assert worker.work(spec).image_seconds == 0.5
    alone, both, again, other_fold = seen
    assert alone == again
    assert alone[0] == labeled.image_ids[:12]
    assert both[0] == alone[0] + more.image_ids
    assert other_fold[0] == labeled.image_ids[4:]
    assert len(both[1]) == 16
    worker.close()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://10.0.0.1:10001", "Ray's client is not supported"),
        ("somewhere", "auto or HOST:PORT, such as 10.0.0.1:6379; got 'somewhere'"),
        ("127.0.0.1:1", "nothing answers there"),
        ("127.0.0.1:99999", "nothing answers there"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_one_sentence_and_nothing_is_written(data, tmp_path, address, message):
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


def test_the_recorded_command_names_the_last_cluster(data, tmp_path, monkeypatch):
    monkeypatch.setattr("foldfuse.campaign.campaign._connected", lambda ray: nullcontext())
    monkeypatch.setattr("foldfuse.campaign.campaign._work", lambda *_, **__: None)
    out = tmp_path / "our out"
    plain = shlex.join(["foldfuse", "campaign", str(data), "--deadline", "10m", "--out", str(out), "--seed", "0"])
    commands = []
    for where in ({"data": data, "out": out, "ray": "10.0.0.1:6379"}, {"resume": out}, {"resume": out, "ray": "auto"}):
        campaign(**where)
        commands.append(ledger.snapshot(out)["command"])
    assert commands == [f"{plain} --ray 10.0.0.1:6379", f"{plain} --ray 10.0.0.1:6379", f"{plain} --ray auto"]


def test_the_command_of_a_campaign_resumed_on_a_cluster_names_the_cluster(data, tmp_path, monkeypatch):
    monkeypatch.setattr("foldfuse.campaign.campaign._connected", lambda ray: nullcontext())
    monkeypatch.setattr("foldfuse.campaign.campaign._work", lambda *_, **__: None)
    out = tmp_path / "out"
    campaign(data, out=out)
    assert "--ray" not in ledger.snapshot(out)["command"]
    campaign(resume=out, ray="auto")
    assert ledger.snapshot(out)["command"].endswith(" --ray auto")


def test_a_campaign_without_a_network_is_resumed_without_one(data, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("foldfuse.commands.campaign.go_offline", lambda: None)
    monkeypatch.setattr("foldfuse.campaign.campaign.go_offline", lambda: calls.append("offline"))
    monkeypatch.setattr("foldfuse.campaign.campaign._work", lambda *_, **__: None)
    campaign(data, out=tmp_path / "a")
    campaign(resume=tmp_path / "a")
    assert not calls
    campaign(data, out=tmp_path / "b", offline=True)
    assert ledger.snapshot(tmp_path / "b")["command"].endswith(" --offline")
    campaign(resume=tmp_path / "b")
    assert calls == ["offline"]


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


def start(data, out, cluster, *options):
    command = [sys.executable, "-m", "foldfuse", "campaign", str(data), "--out", str(out), "--ray", cluster.address]
    words = ["--folds", "3", "--set", "image_size=64", "--set", "batch_size=2", *options]
    return subprocess.Popen(
        [*command, *words], env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own processes and sockets
def test_a_killed_node_costs_only_its_segment(data, tmp_path, nodes):
    cluster, alive = nodes
    out = tmp_path / "out"
    process = start(data, out, cluster, "--deadline", "180s")
    members = out / "members"
    while not list(members.glob("base-*/checkpoint.pt")):  # the first checkpoint that came from the node
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.2)
    facts = ledger.snapshot(out)
    base, node = next(
        found.groups() for note in facts["notes"] if (found := re.match(r"(base-\d+) is trained on .*\((\w+)\)", note))
    )
    [killed] = [one for one in alive if one.node_id.startswith(node)]
    cluster.remove_node(killed, allow_graceful=False)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error

    facts = json.loads((out / "campaign.json").read_text())
    assert facts["state"] == "finished"
    trained = [span["name"] for span in facts["timeline"] if span["kind"] == "train"]
    assert trained.count(f"train {base}") == 2
    others = [name for name in trained if name != f"train {base}"]
    assert others
    assert len(others) == len(set(others)), "another segment was repeated"
    assert any(f"{base} resumes from its checkpoint" in note for note in facts["notes"])
    rows = {row["name"]: row for row in facts["segments"]}
    assert rows[base]["state"] == "done"
    steps = [row["step"] for row in Run(members / base).log if "loss" in row]
    assert steps == list(range(len(steps))), "the log has a gap where the node was killed"
    assert any(row["parent"] == base and row["state"] == "done" for row in facts["segments"])
    images = read(data).subset(read_folds(out / "folds.json").val_ids(1))  # they stand in for test images
    assert list(validate_submission(out / "submission.csv", images).image_ids) == list(images.image_ids)
