"""Shared options convert what is typed, and say in a sentence what cannot be used; outputs are replaced only when asked to."""

from pathlib import Path

import cyclopts
import pytest

from foldfuse.cli import main, make_app
from foldfuse.commands import option_values, options
from foldfuse.errors import InputError
from foldfuse.recipes import AUTO

WITH_METRIC = (
    "score a.json b.json",
    "ensemble a.json --data b.json --out c",
    "rescore a.json --data b.json --out c",
    "campaign d",
    "evaluate run",
    "sweep d --out c",
    "compare a b",
)


def command(
    *,
    out: options.Out = Path("out"),
    also: options.OptionalOut = None,
    set: options.Set = (),
    image_size: options.ImageSize = None,
    image_sizes: options.ImageSizes = (256,),
    auto_size: options.AutoImageSize = None,
    auto_sizes: options.AutoImageSizes = (),
    recipe: options.Names = (),
    weight: options.Weights = (),
    budget: options.Duration = 5400.0,
    folds: options.Folds = 5,
    num_folds: options.NumFolds = 5,
    score_threshold: options.ScoreThreshold = 0.0,
    metric: options.Metric = "ap50",
    device: options.Device = "auto",
):
    return locals()


def run(*words):
    app = make_app()
    app.command(command, name="try")
    return app(["try", *words], exit_on_error=False, print_error=False, result_action="return_value")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["-o", "x"], "out", Path("x")),
        (["--set", "lr=1e-3", "--set", "betas=0.9,0.99"], "set", ("lr=1e-3", "betas=0.9,0.99")),
        (["--image-size", "320"], "image_size", 320),
        (["--image-sizes", "256,320", "--image-sizes", "512"], "image_sizes", (256, 320, 512)),
        (["--auto-size", "auto"], "auto_size", AUTO),
        (["--auto-size", "320"], "auto_size", 320),
        (["--auto-sizes", "auto"], "auto_sizes", (AUTO,)),
        (["--auto-sizes", "256,320"], "auto_sizes", (256, 320)),
        (["--recipe", "a,b", "--recipe", "c"], "recipe", ("a", "b", "c")),
        (["--weight", "2,0.5"], "weight", (2.0, 0.5)),
        (["--budget", "1h30m"], "budget", 5400.0),
        (["--folds", "4"], "folds", 4),
        (["--folds", "folds.json"], "folds", Path("folds.json")),
        (["--device", "cuda:1"], "device", "cuda:1"),
    ],
)
def test_options_convert(words, name, value):
    assert run(*words)[name] == value


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--set", "lr"], "'lr' is no change to a recipe; write key=value"),
        (["--image-size", "0"], "0 is not in 1..4096"),
        (["--image-sizes", "256,0"], "0 is not in 1..4096"),
        (["--image-sizes", "256;320"], "'256;320' are not whole numbers"),
        (["--auto-size", "0"], "0 is not in 1..4096"),
        (["--auto-size", "large"], "'large' is neither a whole number nor auto"),
        (["--auto-sizes", "auto,320"], "'auto,320': auto stands alone. Give it, or the sizes in pixels"),
        (["--recipe", "a,,b"], "a comma has no value before or after it"),
        (["--weight", "2,many"], "'2,many' are not numbers"),
        (["--budget", "soon"], "the time 'soon' is no duration"),
        (["--folds", "1"], "1 folds are too few"),
        (["--num-folds", "-3"], "-3 folds are too few"),
        (["--score-threshold", "1.5"], "1.5 is not in 0..1"),
        (["--score-threshold", "nan"], "nan is not in 0..1"),
        (["--weight", "nan"], "the weight nan is not in 0..1e+06"),
        (["--weight", "1e308"], "is not in 0..1e+06"),
        (["--num-folds", "1001"], "1001 folds are too many"),
        (["--budget", "9" * 400 + "s"], "is longer than a year"),
        (["--device", "gpu"], "expected auto, cpu, cuda, cuda:N or mps"),
    ],
)
def test_what_cannot_be_used_is_told_in_a_sentence(words, sentence):
    with pytest.raises(cyclopts.CycloptsError) as caught:
        run(*words)
    assert words[0] in str(caught.value)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "sentence"),
    [
        ("map", "no metric is called 'map'. Did you mean 'ap'? Known: ap, ap50, f1"),
        ("gone.py:f", "gone.py: there is no such"),
    ],
)
@pytest.mark.parametrize("words", WITH_METRIC)
def test_every_command_with_a_metric_checks_it_first(words, metric, sentence, capsys):
    assert main([*words.split(), "--metric", metric]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("text", ["45s", "10m", "1h", "1h30m", "90s"])
def test_durations_are_shown_as_they_are_given(text):
    seconds = run("--budget", text)["budget"]
    assert run("--budget", option_values.duration_text(seconds))["budget"] == seconds


def test_options_of_their_own_win_over_set():
    changes = options.recipe_changes(("lr=1", "seed=2"), lr=0.5, image_size=320)
    assert changes == ("lr=1", "seed=2", "lr=0.5", "image_size=320")
    assert options.recipe_changes((), image_size=AUTO) == ("image_size=auto",)


def test_nothing_is_overwritten_unasked(tmp_path):
    file, folder = tmp_path / "a.json", tmp_path / "run"
    file.touch()
    folder.mkdir()
    options.refuse_overwrite(tmp_path / "new.json", False)
    options.refuse_overwrite(folder, False)
    options.refuse_overwrite(file, True)
    with pytest.raises(InputError, match=r"a\.json: exists already\. Choose another --out, or add --overwrite"):
        options.refuse_overwrite(file, False)
    (folder / "thesis.txt").touch()
    with pytest.raises(InputError, match="exists already"):
        options.remove_old(folder, False)
    with pytest.raises(InputError, match="this command did not make it and leaves it"):
        options.remove_old(folder, True)
    assert (folder / "thesis.txt").exists()
    (folder / "run.json").touch()
    options.remove_old(folder, True)
    assert not folder.exists()
