"""Campaigns: refused input leaves nothing behind; a real one keeps its deadline and leaves a valid submission."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest

from foldfuse import cli
from foldfuse.commands.campaign import campaign
from foldfuse.data.folds import read_folds
from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError
from foldfuse.formats.predictions import read_predictions
from foldfuse.formats.submission import validate_submission
from foldfuse.storage import ledger
from learning_samples import write_dataset


@pytest.fixture
def data(tmp_path):
    return write_dataset(tmp_path / "d", 16)


def edited(path, name, change):
    """A copy of a JSON beside it, called `name`, after `change(document)`."""
    document = json.loads(path.read_text())
    change(document)
    (path.parent / name).write_text(json.dumps(document))
    return path.parent / name


def break_images(path, number):
    for image in sorted((path.parent / "images").iterdir())[:number]:
        image.write_bytes(b"no image")
    return path


@pytest.mark.parametrize(
    ("bad", "options", "message"),
    [
        (lambda d: d, {"deadline": 59.0}, "the deadline is 59 s, and even one member needs 1 min"),
        (lambda d: d, {"recipe": ("yolo",)}, "no recipe is called 'yolo'"),
        (lambda d: d, {"set": ("lr=0",)}, "lr is 0"),
        (lambda d: d, {"device": "cuda:9"}, "--device cuda:9: "),
        (lambda d: d, {"metric": "map"}, "no metric is called 'map'"),
        (lambda d: d.parent / "gone.json", {}, "gone.json: there is no such file"),
        (lambda d: d.parent / "images", {}, "holds images, but no annotations"),
        (lambda d: edited(d, "b.json", lambda doc: doc.update(annotations=[])), {}, "not one object is annotated"),
        (lambda d: edited(d, "b.json", lambda doc: doc["images"][3].update(file_name="x.png")), {}, "no image"),
        (lambda d: edited(d, "b.json", lambda doc: doc.pop("categories")), {}, "has no 'categories'"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(data, tmp_path, bad, options, message):
    before = set(tmp_path.rglob("*"))
    path = bad(data)
    before |= {path}
    with pytest.raises(InputError) as caught:
        campaign(path, out=tmp_path / "out", **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert set(tmp_path.rglob("*")) <= before


def test_a_broken_json_is_status_2(data, tmp_path, capsys):
    data.write_text(data.read_text()[:300])
    assert cli.main(["campaign", str(data), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "is not JSON (line 1, column" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_left_alone(data, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="exists already"):
        campaign(data, out=out)
    assert [p.name for p in out.iterdir()] == ["mine.txt"]


def test_overwrite_replaces_an_earlier_campaign_and_nothing_else(data, tmp_path, monkeypatch):
    monkeypatch.setattr("foldfuse.campaign.campaign._work", lambda *_, **__: None)
    out = tmp_path / "out"
    campaign(data, out=out, seed=1)
    (out / "old.txt").write_text("old")
    with pytest.raises(InputError, match="--overwrite"):
        campaign(data, out=out, seed=2)
    with pytest.raises(InputError, match="the deadline is 1 s"):
        campaign(data, out=out, deadline=1.0, overwrite=True)
    with ledger.exclusive(out), pytest.raises(InputError, match="another process is at work"):
        campaign(data, out=out, seed=2, overwrite=True)
    assert (out / "old.txt").exists(), "a refused campaign removes nothing"
    campaign(data, out=out, seed=2, overwrite=True)
    assert ledger.snapshot(out)["seed"] == 2
    assert not (out / "old.txt").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "keep.txt").write_text("keep")
    with pytest.raises(InputError, match="exists already"):
        campaign(data, out=tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "keep.txt").exists()


def test_a_sample_submission_is_checked_first_and_kept(data, tmp_path, monkeypatch):
    monkeypatch.setattr("foldfuse.campaign.campaign._work", lambda *_, **__: None)
    out, sample = tmp_path / "out", tmp_path / "sample.csv"
    names = [row["file_name"] for row in json.loads(data.read_text())["images"]]
    sample.write_text("PredictionString,image_id\n" + "".join(f",{name}\n" for name in names[:-1]))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"names 15 of the 16 images .*lacks 1"):
        campaign(data, test=data, like=sample, out=out)
    with pytest.raises(InputError, match=r"--like .*Add --test"):
        campaign(data, like=sample, out=out)
    with pytest.raises(InputError, match="Add --like SAMPLE"):
        campaign(data, labels="id", out=out)
    assert set(tmp_path.rglob("*")) == before
    sample.write_text("PredictionString,image_id\n" + "".join(f",{name}\n" for name in names))
    campaign(data, test=data, like=sample, out=out)
    text = sample.read_text()
    sample.unlink()
    assert (out / "sample_submission.csv").read_text() == text
    seen = []
    monkeypatch.setattr(
        "foldfuse.campaign.campaign._work", lambda request, inputs, *_, **__: seen.append((request, inputs))
    )
    campaign(resume=out)
    request, inputs = seen[0]
    assert request.read_sample(inputs, out / "sample_submission.csv").layout.name == "label_score_xyxy"


def test_a_campaign_of_a_card_is_resumed_on_another_device(data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("foldfuse.campaign.campaign._work", lambda request, *_, **__: seen.append(request.device))
    campaign(data, out=tmp_path / "out")
    with closing(ledger.resume(tmp_path / "out", start=time.monotonic())) as opened:
        opened.set(request=opened.get("request") | {"device": "cuda"})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match=r"--device cuda: torch .* finds no CUDA device here"):
        campaign(resume=tmp_path / "out")
    campaign(resume=tmp_path / "out", device="cpu")
    campaign(resume=tmp_path / "out")
    assert seen == ["auto", "cpu", "cpu"]
    with pytest.raises(InputError, match="continues with the campaign's own options"):
        campaign(resume=tmp_path / "out", device="cpu", seed=3)


@pytest.mark.parametrize(
    ("number", "folds", "message"),
    [(8, 5, "8 of 16 images cannot be decoded"), (0, 20, "fewer than 20 folds"), (0, 1, "number of folds is 1")],
)
def test_a_campaign_refused_for_its_images_leaves_no_folder(data, tmp_path, number, folds, message):
    break_images(data, number)
    with pytest.raises(InputError, match=message):
        campaign(data, out=tmp_path / "out", folds=folds)
    assert not (tmp_path / "out").exists(), "the same command could not be given again"


def test_a_base_run_that_diverges_is_one_sentence(data, tmp_path, capsys, monkeypatch):
    def diverge(*arguments, **options):
        raise FloatingPointError("step 7: the loss is not finite. Try a lower lr.")

    monkeypatch.setattr("foldfuse.campaign.execution.jobs.train_detector", diverge)
    assert cli.main(["campaign", str(data), "--out", str(tmp_path / "out")]) == 1
    assert "error: step 7: the loss is not finite" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "campaign.json").read_text())["state"] == "failed"
    assert not (tmp_path / "out" / "submission.csv").exists()


def test_an_interrupt_while_checking_the_data_is_one_sentence(data, tmp_path, capsys, monkeypatch):
    def pressed(dataset, **options):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as during:
        during.setattr("foldfuse.campaign.task.unreadable_images", pressed)
        assert cli.main(["campaign", str(data), "--out", str(out), "--folds", "3"]) == 130
    again = f"{out}: is interrupted. Resume with: foldfuse campaign --resume {out}\n"
    assert f"Interrupted: there is no submission yet.\n{again}" in capsys.readouterr().err
    assert ledger.snapshot(out)["state"] == "interrupted"

    tasks = []
    monkeypatch.setattr("foldfuse.campaign.runner.run", lambda task, *_, **__: tasks.append(task))
    assert cli.main(["campaign", "--resume", str(out)]) == 0
    (task,) = tasks
    assert len(task.train) + len(task.val) + len(task.test) == 16


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
def test_ctrl_c_in_the_first_training_ends_it_at_once(data, tmp_path):
    out = tmp_path / "out"
    words = ["--folds", "3", "--image-size", "64", "--set", "batch_size=2", "--set", "image_size=64"]
    process = subprocess.Popen(
        [sys.executable, "-m", "foldfuse", "campaign", str(data), "--out", str(out), *words],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # it may be ignored where we run
    )
    while not list(out.glob("members/base-*/log.jsonl")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert error.endswith(f"{out}: is interrupted. Resume with: foldfuse campaign --resume {out}\n")
    facts = ledger.snapshot(out)
    assert (facts["state"], facts["submissions"]) == ("interrupted", 0)


@pytest.mark.slow
@pytest.mark.parametrize(("train_folds", "deadline"), [(1, "60s"), (2, "150s")])
def test_a_campaign_keeps_its_deadline_and_leaves_a_valid_submission(data, tmp_path, capsys, train_folds, deadline):
    break_images(data, 1)
    test = write_dataset(tmp_path / "t", 6, size=(64, 96), seed=9)
    cut_off = test.parent / "images" / "002.png"
    cut_off.write_bytes(cut_off.read_bytes()[:-200])  # cut off while copying
    out = tmp_path / "out"
    options = ["--deadline", deadline, "--out", str(out), "--folds", "3", "--train-folds", str(train_folds)]
    changes = ["--set", "image_size=64", "--set", "batch_size=2"]
    assert cli.main(["campaign", str(data), "--test", str(test), *options, *changes]) == 0

    assert f"The submission is {out / 'submission.csv'}" in capsys.readouterr().err

    images = read(test, annotated=False)
    found = validate_submission(out / "submission.csv", images)
    assert list(found.image_ids) == list(images.image_ids)
    assert len(found[2]) == 0, "a broken image is submitted without boxes"
    assert len(found.boxes) > 0
    assert len(read_predictions(out / "submission.json", images).boxes) == len(found.boxes)
    page = (out / "report.html").read_text()
    facts = json.loads((out / "campaign.json").read_text())
    assert facts["state"] == "finished"
    assert {row["file_name"] for row in facts["left_out"]} == {"000.png", "002.png"}
    assert all(row["file_name"] in page for row in facts["left_out"])
    assert {member["fold"] for member in facts["members"]} == {*range(train_folds)}
    folds = read_folds(out / "folds.json")
    scored = read_predictions(out / "fused_oof.parquet", read(data))
    assert {*scored} == {i for fold in range(train_folds) for i in folds.val_ids(fold)} - {0}
    assert not list(out.rglob(".*")), "a temporary file was left"


@pytest.mark.slow
def test_the_base_runs_that_add_most_are_promoted(data, tmp_path, monkeypatch):
    monkeypatch.setattr("foldfuse.campaign.constants.COMPARE_DEADLINE", 0.0)
    monkeypatch.setattr("foldfuse.campaign.constants.MIN_COMPARED_STEPS", 1)
    monkeypatch.setattr("foldfuse.campaign.constants.MIN_SEGMENT_SECONDS", 0.1)
    out = tmp_path / "out"
    options = ["--deadline", "2m", "--out", str(out), "--folds", "3"]
    changes = ["--set", "image_size=192", "--set", "batch_size=2"]
    recipes = ["--recipe", "lite0_fpn,yolov5n"]
    assert cli.main(["campaign", str(data), *options, *changes, *recipes]) == 0
    facts = json.loads((out / "campaign.json").read_text())
    segments = {segment["name"]: segment for segment in facts["segments"]}
    of_role = {role: [s for s in segments.values() if s["role"] == role] for role in ("base", "extended", "cooldown")}
    bases = [segment["name"] for segment in of_role["base"]]
    assert len(bases) == 4
    assert set(facts["ranking"]) <= set(bases)
    continued = [segment["parent"] for segment in of_role["extended"]]
    assert continued == facts["ranking"][: len(continued)]
    assert 1 <= len(continued) <= 2
    for segment in of_role["cooldown"]:
        parent = segments[segment["parent"]]
        assert parent["role"] == "extended"
        assert parent["recipe"]["detector"] == segment["recipe"]["detector"]
    assert any("Base runs by AP50 of the ensemble" in note for note in facts["notes"])
    assert (out / "submission.csv").is_file()
