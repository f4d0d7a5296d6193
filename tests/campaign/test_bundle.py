"""A bundle predicts what was bundled, without a network and wherever it lies; a zip from elsewhere can do no harm."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import venv
import zipfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from campaign_samples import noisy
from foldfuse import cli
from foldfuse.campaign.external_members import _add_predictions
from foldfuse.data.pixels import open_images
from foldfuse.data.readers.coco import read
from foldfuse.ensemble.ensemble import Ensemble
from foldfuse.ensemble.member_views import MemberView
from foldfuse.errors import InputError
from foldfuse.evaluation.thresholds import read_thresholds
from foldfuse.formats.predictions import read_predictions
from foldfuse.inference import bundle as bundles
from foldfuse.inference.bundle_writer import member_names, write_bundle
from foldfuse.inference.predictor import load
from foldfuse.storage import ledger
from foldfuse.storage.run import Run
from foldfuse.system import wheels
from submission_samples import crop_rescorer, make_run, members_of, open_campaign, submit

ENSEMBLE = Ensemble({"base@1": 2.0, "base@1+hflip": 1.0, "base@1.5": 1.0}, score_exponents={"base@1.5": 2.0})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def campaign(made):
    """The folder of a campaign with two submissions, the second in three views and rescored."""
    with open_campaign(made, made / "campaign1") as (task, ledger):
        members = members_of(ledger)
        submit(task, ledger, members, Ensemble({"base@1": 1.0}), 0.3)
        submit(task, ledger, members, ENSEMBLE, 0.4, {"rescoring": {"accepted": True}}, crop_rescorer())
        return ledger.folder


@pytest.fixture(scope="module")
def zipped(campaign):
    """The campaign's bundle."""
    return write_bundle(campaign, campaign.parent / "bundle.zip").path


def same(found, expected):
    assert len(expected.boxes)
    for name in ("image_ids", "offsets", "boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.learnt_ids == expected.learnt_ids


def test_a_bundle_has_the_thresholds_of_its_campaign(made, campaign, zipped, tmp_path, capsys):
    chosen = read_thresholds(campaign / "thresholds.json")
    expected = chosen.apply(load(campaign, device="cpu", engine="eager").predict(made / "t"), "best-by-class")
    out = tmp_path / "found.parquet"
    words = ["predict", str(zipped), str(made / "t"), "--out", str(out), "--device", "cpu", "--engine", "eager"]
    assert cli.main([*words, "--score-threshold", "best-by-class"]) == 0
    found = read_predictions(out, read(made / "t", annotated=False))
    assert found.offsets.tolist() == expected.offsets.tolist()
    bare = write_bundle(made / "run", tmp_path / "run.zip").path
    (made / "run" / "thresholds.json").rename(made / "run" / "kept.json")
    bare = write_bundle(made / "run", tmp_path / "bare.zip").path
    (made / "run" / "kept.json").rename(made / "run" / "thresholds.json")
    for name, status in (("run.zip", 0), ("bare.zip", 2)):
        words[1] = str(bare.parent / name)
        assert cli.main([*words, "--overwrite", "--score-threshold", "best"]) == status
    assert "holds no thresholds.json: what was bundled had stored none" in capsys.readouterr().err


def test_a_bundle_predicts_what_its_campaign_predicts(made, campaign, zipped, tmp_path):
    expected = load(campaign, device="cpu", engine="eager").predict(made / "t")
    predictor = load(zipped, device="cpu", engine="eager")
    assert repr(predictor) == repr(load(campaign, device="cpu")), "views, fusion and crop rescoring are in it"
    same(predictor.predict(made / "t"), expected)
    folder = predictor.runs[0].folder
    assert folder.is_dir()
    del predictor
    assert not folder.exists(), "the files live as long as the predictor"
    with zipfile.ZipFile(zipped) as archive:
        archive.extractall(tmp_path / "unpacked")  # as Kaggle does
        names = archive.namelist()
    same(load(tmp_path / "unpacked", device="cpu", engine="eager").predict(made / "t"), expected)
    assert not [name for name in names if "checkpoint" in name or "oof" in name or "log" in name]
    assert {"README.md", "predict.py", "requirements.txt", "weights.md", "LICENSE", "NOTICE"} < set(names)
    learnt = load(zipped, device="cpu").learnt_ids(open_images(read(made / "d")))
    assert len(learnt) == 8, "the member's images, and those of the rescorer"


def test_the_same_campaign_gives_the_same_bytes(campaign, zipped, tmp_path):
    os.utime(campaign / "members" / "base" / "weights.safetensors", (10**9, 10**9))
    again = write_bundle(campaign, tmp_path / "again.zip").path
    assert again.read_bytes() == zipped.read_bytes()
    assert write_bundle(zipped, tmp_path / "third.zip").path.stat().st_size > 10**6, "a bundle can be bundled"


def test_the_command_and_the_script_in_the_zip(made, campaign, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["bundle", str(campaign), "--out", "b.zip"]
    assert cli.main(words) == 0
    assert "b.zip: 1 network, " in capsys.readouterr().err
    assert cli.main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main([*words, "--overwrite"]) == 0
    Path("other.zip").write_bytes(b"PK\x03\x04 of the user")
    assert cli.main(["bundle", str(campaign), "--out", "other.zip", "--overwrite"]) == 2
    assert cli.main(["predict", "b.zip", str(made / "t"), "--device", "cpu", "--out", "p.parquet"]) == 0
    shutil.unpack_archive("b.zip", "unpacked")
    images = str(made / "t" / "images")
    done = subprocess.run([sys.executable, "unpacked/predict.py", images, "s.csv"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(Path("s.csv").read_text().splitlines()) == 6


def test_the_script_knows_what_the_sample_of_the_campaign_leaves_open(made, campaign, tmp_path):
    copy = shutil.copytree(campaign, tmp_path / "night")
    with closing(sqlite3.connect(copy / ledger.NAME)) as db, db:
        (text,) = db.execute("SELECT value FROM facts WHERE name = 'request'").fetchone() or ("{}",)
        request = json.loads(text) | {"sample_format": "label_score_xyxy"}
        db.execute("INSERT OR REPLACE INTO facts VALUES ('request', ?)", (json.dumps(request),))
    first = write_bundle(copy, tmp_path / "b.zip").path
    shutil.unpack_archive(write_bundle(first, tmp_path / "again.zip").path, tmp_path / "unpacked")
    images = sorted((made / "t" / "images").iterdir())
    sample = tmp_path / "sample.csv"
    sample.write_text("image_id,PredictionString\n" + "".join(f"{i.name},0 0.5 10 10 50 40\n" for i in images))
    words = [sys.executable, str(tmp_path / "unpacked" / "predict.py"), images[0].parent, tmp_path / "s.csv", sample]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 1 + len(images)
    readme = (tmp_path / "unpacked" / "README.md").read_text()
    assert "--like sample_submission.csv --format label_score_xyxy" in readme, "also in the bundle of a bundle"


def test_a_run_keeps_its_views_and_its_learnt_images(made, tmp_path, capsys):
    path = write_bundle(made / "run", tmp_path / "run.zip").path
    run, zipped = (load(each, device="cpu", engine="eager") for each in (made / "run", path))
    same(zipped.predict(made / "t", views=["1", "1.5"]), run.predict(made / "t", views=["1", "1.5"]))
    out = str(tmp_path / "p.parquet")
    assert cli.main(["predict", str(path), str(made / "d"), "--out", out, "--device", "cpu"]) == 0
    assert "has learnt from 4 of the 8 images" in capsys.readouterr().err


def test_an_ensemble_file_brings_its_runs(made, tmp_path):
    Ensemble({"a": 2.0, "b": 1.0}).write(tmp_path / "ensemble.json")
    shutil.copytree(made / "run", tmp_path / "elsewhere" / "run")
    members = {"a": made / "run", "b": f"{tmp_path / 'elsewhere' / 'run'}@1,1+hflip"}
    with pytest.raises(InputError, match="is not beside the file"):
        write_bundle(tmp_path / "ensemble.json", tmp_path / "e.zip")
    path = write_bundle(tmp_path / "ensemble.json", tmp_path / "e.zip", members=members).path
    expected = load(tmp_path / "ensemble.json", device="cpu", engine="eager", members=members).predict(made / "t")
    same(load(path, device="cpu", engine="eager").predict(made / "t"), expected)
    with pytest.raises(InputError, match="is no ensemble"):
        load(path, members=members)


def test_external_predictions_are_left_out_and_the_bundle_says_so(made, tmp_path, caplog):
    with open_campaign(made, tmp_path / "out") as (task, ledger):
        members, test = members_of(ledger), noisy(open_images(read(made / "t")), 4)
        _add_predictions("other", noisy(task.val, 3), test, task, ledger)
        members.test[MemberView("other", "1")] = test
        submit(task, ledger, members, Ensemble({"base@1": 1.0, "other@1": 3.0}), 0.3, {"fused": {"metric": "ap"}})
        path = write_bundle(ledger.folder, tmp_path / "b.zip").path
    assert "Out-of-fold, AP is" in caplog.text
    caplog.clear()
    assert load(path, device="cpu").ensemble.weights == {"base@1": 4.0}
    assert "other joined as predictions of another toolkit" in caplog.text
    with zipfile.ZipFile(path) as archive:
        assert "other joined as predictions" in archive.read("README.md").decode()


def test_what_cannot_be_bundled_is_refused_and_leaves_nothing(made, campaign, tmp_path, capsys):
    broken = Path(shutil.copytree(made / "run", tmp_path / "broken"))
    with (broken / "weights.safetensors").open("r+b") as file:
        file.truncate(5000)
    Ensemble({"broken": 1.0}).write(tmp_path / "ensemble.json")
    for source, message in (
        (broken, "is broken"),
        (tmp_path / "ensemble.json", rf"{tmp_path}/broken/weights.safetensors: is broken"),
        (tmp_path / "gone", "there is nothing of that name"),
    ):
        with pytest.raises(InputError, match=message):
            write_bundle(source, tmp_path / "b.zip")
    assert cli.main(["bundle", str(made / "run"), "--out", "b.tar"]) == 2
    assert not list(tmp_path.glob("*b.zip*"))


def test_members_have_plain_names_of_their_own(tmp_path):
    runs = [Run(tmp_path / name) for name in ("a/run", "b/RUN", "..weird name!", "é", "c/run")]
    assert list(member_names(runs).values()) == ["run", "RUN_2", "weird_name_", "run_3", "run_4"]


def changed(source: Path, target: Path, changes: dict[str, bytes | None]) -> Path:
    """A copy of a zip with other content of some files, with more files, and without those of None."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if name not in changes and "/weights" not in name:
                new.writestr(name, old.read(name))
        for name, content in changes.items():
            if content is not None:
                new.writestr(name, content, zipfile.ZIP_DEFLATED)
    return target


def test_only_files_of_a_bundle_are_taken_out_of_a_zip(zipped, tmp_path):
    evil = {
        "../outside.json": b"{}",
        "/tmp/foldfuse_outside.json": b"{}",
        "members/../../outside.json": b"{}",
        "members/base/../../../run.json": b"{}",
        "members/base/evil.py": b"1",
        "members\\base\\run.json": b"{}",
        "sitecustomize.py": b"1",
    }
    path = changed(zipped, tmp_path / "evil.zip", evil)
    (tmp_path / "into" / "here").mkdir(parents=True)
    bundles.extract(path, tmp_path / "into" / "here")
    files = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    own = {
        *("bundle.json", "ensemble.json", "rescorer.json", "rescorer.safetensors", "thresholds.json"),
        *(f"members/base/{name}" for name in bundles.RUN_FILES),
    }
    assert files == {"evil.zip", *(f"into/here/{name}" for name in own)}
    link = zipfile.ZipInfo("members/base/weights.safetensors")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    (tmp_path / "linked").mkdir()
    bundles.extract(path, tmp_path / "linked")
    assert not (tmp_path / "linked" / "members" / "base" / "weights.safetensors").is_symlink()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bundle.json": None}, r"holds no bundle\.json"),
        ({"bundle.json": b"{"}, "bundle.json"),
        ({"bundle.json": b"\xff"}, "not UTF-8"),
        ({"members/base/run.json": None}, "lacks the files of its member base"),
        ({}, "lacks the files of its member base"),
        ({"members/base/weights.safetensors": b"0" * 300 * 2**20}, "far more than the zip"),
        ({"ensemble.json": b'{"format": 1, "weights": {"x": 1.0}}'}, "lacks the files"),
    ],
)
def test_a_broken_bundle_is_one_sentence(zipped, tmp_path, changes, message):
    path = changed(zipped, tmp_path / "b.zip", changes)
    with pytest.raises(InputError, match=message):
        load(path, device="cpu")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", 99, "Update Foldfuse"),
        ("noun", "virus", "not those of a 'virus'"),
        ("parts", [], "0 parts"),
        ("parts", [{"member": "../base"}], "no name of a member"),
        ("parts", [{"member": "base", "views": {"base@1": ["1"]}}], "name different members"),
    ],
)
def test_a_record_that_does_not_fit_is_one_sentence(zipped, tmp_path, field, value, message):
    shutil.unpack_archive(zipped, tmp_path / "b")
    record = json.loads((tmp_path / "b" / "bundle.json").read_text())
    (tmp_path / "b" / "bundle.json").write_text(json.dumps(record | {field: value}))
    with pytest.raises(InputError, match=message):
        load(tmp_path / "b", device="cpu")


def test_a_damaged_zip_is_one_sentence(zipped, tmp_path):
    content = bytearray(zipped.read_bytes())
    (tmp_path / "cut.zip").write_bytes(content[:-500])
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.zip").write_bytes(content)
    for name in ("cut", "flipped"):
        with pytest.raises(InputError, match="cannot be read as a zip"):
            load(tmp_path / f"{name}.zip", device="cpu")
    with pytest.raises(InputError, match="there is nothing of that name"):
        load(tmp_path / "gone.zip")


def test_wheels_need_a_network_and_say_so(made, tmp_path, monkeypatch, capsys):
    words = ["bundle", str(made / "run"), "--wheels", "all", "--out", str(tmp_path / "b.zip")]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(words) == 2
    assert "downloads are forbidden here. Give --wheels own" in capsys.readouterr().err
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(wheels.sys, "executable", "false")
    assert cli.main(words) == 2
    assert "pip cannot download the wheels (pip ended without a reason)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_packages_are_those_that_predict():
    found = wheels.needed_packages(["foldfuse"], without=["torch", "torchvision"])
    assert {"numba", "llvmlite", "timm", "cyclopts"} < set(found)
    assert not {"torch", "torchvision", "sympy", "pytest", "onnx"} & set(found)


NO_SOCKETS = """
import socket
def refuse(*_, **__):
    raise OSError("the network is cut")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the environment's folders have other names there")
def test_a_bundle_predicts_in_a_fresh_environment_without_a_network(made, campaign, tmp_path):
    """Foldfuse comes from the wheel in the bundle; the packages that it needs are those of this environment."""
    path = write_bundle(campaign, tmp_path / "bundle.zip", wheels="own").path
    expected = load(campaign, device="cpu", engine="eager").predict(made / "t")
    shutil.unpack_archive(path, tmp_path / "unpacked")
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh" / "bin" / "python"
    (wheel,) = (tmp_path / "unpacked" / "wheels").glob("*.whl")
    install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(list(map(str, install)), check=True, timeout=120)
    (site,) = (tmp_path / "fresh").rglob("site-packages")
    (site / "packages.pth").write_text(str(Path(np.__file__).parents[1]) + "\n")
    cut = ["unshare", "-rn"]
    if shutil.which("unshare") is None or subprocess.run([*cut, "true"], capture_output=True).returncode:
        cut = []
        (site / "sitecustomize.py").write_text(NO_SOCKETS)
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    environment |= {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [*cut, str(python), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=240)

    server = socket.create_server(("127.0.0.1", 0))  # of this process's network
    reach = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)"
    assert run("-c", reach).returncode, "the network is not cut"
    server.close()
    where = run("-c", "import foldfuse; print(foldfuse.__file__)").stdout.strip()
    assert Path(where).is_relative_to(tmp_path / "fresh"), "foldfuse does not come from the wheel"
    words = (
        "-m",
        "foldfuse",
        "predict",
        path,
        made / "t",
        "--out",
        "p.parquet",
        "--device",
        "cpu",
        "--engine",
        "eager",
    )
    done = run(*words)
    assert done.returncode == 0, done.stderr
    found = read_predictions(tmp_path / "p.parquet", open_images(read(made / "t", annotated=False)))
    same(found, expected)
    done = run(tmp_path / "unpacked" / "predict.py", made / "t" / "images", "submission.csv")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "submission.csv").read_text().splitlines()) == 6
