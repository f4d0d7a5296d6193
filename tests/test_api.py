"""The commands as Python functions: the same arguments as the commands, objects or paths, sentences instead of tracebacks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import foldfuse as ff
from foldfuse.cli import make_app
from foldfuse.detections import Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.system.durations import parse_duration

ONLY_COMMANDS = {  # function: the options that its command alone has
    "train": set(),
    "run_campaign": {"plan"},  # prints a table and returns no campaign
    "fuse": set(),
    "score": {"other", "metric", "thresholds", "overwrite"},  # print tables, or write a file
    "next_images": set(),
}


@pytest.mark.parametrize("name", ONLY_COMMANDS)
def test_a_function_has_the_arguments_of_its_command(name: str) -> None:
    command = make_app()[{"run_campaign": "campaign", "next_images": "next"}.get(name, name)]
    options = {}
    for argument in command.assemble_argument_collection(parse_docstring=True):
        long = next(each for each in argument.names if each.startswith("--"))
        default = argument.field_info.default
        options[long.removeprefix("--").replace("-", "_")] = None if default is inspect.Parameter.empty else default
    parameters = inspect.signature(getattr(ff, name)).parameters
    assert set(parameters) == set(options) - ONLY_COMMANDS[name]
    for key, parameter in parameters.items():
        default = None if parameter.default is inspect.Parameter.empty else parameter.default
        if key == "deadline":
            default = parse_duration(default)
        assert str(default) == str(options[key]), key


@pytest.fixture
def members(make_dataset: Callable[..., Path]) -> tuple[ff.Dataset, list[Predictions]]:
    """A dataset and two sets of predictions of it: its annotations, and the same with lower scores and moved boxes."""
    dataset = ff.read(str(make_dataset()))
    found = {
        s.id: Detections(s.annotations.boxes.copy(), np.full(len(s.annotations), 0.9), s.annotations.labels)
        for s in dataset
    }
    good = Predictions.of(found, dataset.classes)
    return dataset, [good, replace(good, boxes=good.boxes + 6, scores=good.scores - 0.4)]


def test_fuse_takes_objects_and_paths(members: tuple[ff.Dataset, list[Predictions]], tmp_path: Path) -> None:
    dataset, (a, b) = members
    fused = ff.fuse(a, b, weight=[2, 1], iou=0.5)
    assert len(fused) == len(dataset)
    for name, each in (("a", a), ("b", b)):
        ff.write_predictions(each, tmp_path / f"{name}.parquet", dataset)
    paths = [str(tmp_path / "a.parquet"), tmp_path / "b.parquet"]
    out = tmp_path / "fused.parquet"
    again = ff.fuse(*paths, data=str(dataset.source), out=str(out), weight=[2, 1], iou=0.5)
    assert np.allclose(again.boxes, fused.boxes)
    assert out.exists()
    assert again[0].plot().size == (96, 64), "the images are known"
    mixed = ff.fuse([a, paths[1]], data=dataset, weight=(2, 1), iou=0.5)
    assert np.allclose(mixed.boxes, fused.boxes)
    ff.Ensemble({"a": 2.0, "b": 1.0}, iou=0.5).write(tmp_path / "ensemble.json")
    for given in ({"b": b, "a": a}, {"b": paths[1], "a": a}, [paths[1], paths[0]]):
        named = ff.fuse(given, data=dataset, ensemble=str(tmp_path / "ensemble.json"))
        assert np.allclose(np.sort(named.scores), np.sort(fused.scores))


def test_fuse_says_what_is_wrong(members: tuple[ff.Dataset, list[Predictions]], tmp_path: Path) -> None:
    _, (a, b) = members
    for call, sentence in (
        (lambda: ff.fuse(), "no predictions to fuse"),
        (lambda: ff.fuse("a.parquet"), "Give data=, the images"),
        (lambda: ff.fuse(a, b, iou=2), "--iou. 2 is not in 0..1"),
        (lambda: ff.fuse(a, b, method="mean"), 'Choose from: "wbf"'),
        (lambda: ff.fuse(a, b, weight=[1, 2], ensemble="x.json"), "x.json: the ensemble decides"),
        (lambda: ff.fuse(a, "gone.parquet", data="gone.json"), "gone.json"),
    ):
        with pytest.raises(InputError, match=sentence):
            call()


def test_score_takes_objects_and_paths(members: tuple[ff.Dataset, list[Predictions]], tmp_path: Path) -> None:
    dataset, (good, moved) = members
    assert ff.score(good, dataset).ap == 1
    assert ff.score(moved, str(dataset.source)).ap < 1
    ff.write_predictions(good, tmp_path / "a.json", dataset)
    assert ff.score(str(tmp_path / "a.json"), dataset.source, image_ids="id").ap50 == 1
    with pytest.raises(InputError, match="gone"):
        ff.score(good, "gone.json")


def test_train_returns_the_run(
    make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ff.read(make_dataset(images=4))
    run = ff.train(data, out=str(tmp_path / "run"), steps=2, image_size=64, batch_size=2, set={"mosaic": 0.0})
    assert run.is_trained
    assert run.recipe.mosaic == 0
    assert "efficientdet" in run._repr_html_() or "lite0" in run._repr_html_()
    assert ff.train(resume=run, steps=3).metadata.steps == 3
    changed = replace(data, samples=data.samples[:3])
    with pytest.raises(InputError, match="was changed after it was read"):
        ff.train(changed, out=tmp_path / "other", steps=1)
    with pytest.raises(InputError, match="the time 'soon' is no duration"):
        ff.train(data, out=tmp_path / "other", budget="soon")
    with pytest.raises(InputError, match="needs DATA and --out"):
        ff.train(data)
    assert not (tmp_path / "other").exists()


def test_run_campaign_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone"):
        ff.run_campaign("gone", deadline=60, out=tmp_path / "new")
    with pytest.raises(InputError, match="holds no campaign"):
        ff.run_campaign(resume=tmp_path)
    campaign = ff.Campaign(str(tmp_path))
    assert repr(campaign) == f"Campaign({str(tmp_path)!r})"
    assert "holds no campaign" in campaign._repr_html_()


def test_an_interrupted_campaign_says_how_to_resume(
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "night"
    in_python = f"foldfuse.run_campaign(resume={str(out)!r})"
    with monkeypatch.context() as during:
        during.setattr("foldfuse.campaign.task.unreadable_images", pressed)
        with pytest.raises(KeyboardInterrupt) as caught:
            ff.run_campaign(make_dataset(images=16), out=out, folds=3)
    assert str(caught.value) == (
        f"{out}: is interrupted. Resume with: foldfuse campaign --resume {out}, or in Python: {in_python}"
    )
    capsys.readouterr()
    monkeypatch.setattr("foldfuse.commands.campaign.resume_campaign", lambda folder, **_: folder)  # submits, and ends
    assert ff.run_campaign(resume=out).state == "interrupted"
    assert f"In Python, resume with: {in_python}" in capsys.readouterr().err


def test_a_notebook_shows_sentences() -> None:
    assert InputError("a: is gone.")._render_traceback_() == ["InputError: a: is gone."]
