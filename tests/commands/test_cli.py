"""The command line is the API: flags are arguments; what cannot be used is told in a sentence, with status 2."""

import subprocess
import sys

import pytest

from foldfuse import __version__, cli

OPTIONS = {  # of every command: its arguments by their place, then its options
    "campaign": (
        "DATA --test --deadline --out --recipe --forbid --image-size --set --folds --train-folds --external-run "
        "--external-predictions --seed --metric --pseudo-labels --like --format --labels --image-names "
        "--images --ignore-orientation --tracker --device --resume --ray --plan --offline --overwrite"
    ),
    "watch": "FOLDER",
    "report": "FOLDER --out --overwrite",
    "compare": "FOLDERS --out --metric --overwrite",
    "note": "FOLDER TEXT --leaderboard --submission",
    "demo": "--out --deadline --num-images --seed --device",
    "check": (
        "DATA --fix --out --corrections --json-only --box-format --category-ids --ignore-crowd --images --ignore-orientation "
        "--overwrite"
    ),
    "split": "DATA --out --folds --seed --group --ignore-near-duplicates --images --ignore-orientation --overwrite",
    "join": "DATA --out --ignore-orientation --overwrite",
    "train": (
        "DATA --out --recipe --init-from --set --image-size --batch-size --lr --budget --steps --seed --folds "
        "--fold --val --images --ignore-orientation --resume --checkpoint-every --eval-every --tracker --device --offline "
        "--overwrite"
    ),
    "sweep": (
        "DATA --out --recipe --image-size --batch-size --budget --folds --seed --metric --images "
        "--ignore-orientation --device --offline --overwrite"
    ),
    "import": "WEIGHTS --out --overwrite",
    "predict": (
        "RUN DATA --out --draw --score-threshold --max-detections --view --member --batch-size --all --images "
        "--ignore-orientation --device --engine --offline --overwrite"
    ),
    "evaluate": (
        "RUN DATA --out --predictions --metric --batch-size --images --ignore-orientation --device --engine --offline "
        "--overwrite"
    ),
    "browse": (
        "DATA --predictions --out --score-threshold --input-format --image-ids --category-ids --classes-from --images "
        "--ignore-orientation --overwrite"
    ),
    "review": (
        "DATA PREDICTIONS --out --top --input-format --image-ids --category-ids --images --ignore-orientation --overwrite"
    ),
    "next": (
        "UNLABELLED CAMPAIGN --number --out --score-threshold --batch-size --images --ignore-orientation --device --engine "
        "--overwrite"
    ),
    "fuse": (
        "PREDICTIONS --data --out --method --iou --score-threshold --weight --ensemble --input-format --image-ids --category-ids "
        "--classes-from --images --ignore-orientation --overwrite"
    ),
    "ensemble": (
        "PREDICTIONS --data --out --metric --budget --folds --seed --input-format --image-ids --category-ids "
        "--images --ignore-orientation "
        "--overwrite"
    ),
    "rescore": (
        "PREDICTIONS --data --out --folds --test-predictions --test --run --metric --seed --device "
        "--input-format --image-ids --category-ids "
        "--images --ignore-orientation --overwrite"
    ),
    "convert": (
        "PREDICTIONS DATA --out --format --image-names --score-threshold --input-format --image-ids --category-ids "
        "--classes-from --images --ignore-orientation --overwrite"
    ),
    "score": (
        "PREDICTIONS DATA --other --metric --thresholds --input-format --image-ids --category-ids --images --ignore-orientation "
        "--overwrite"
    ),
    "submit": (
        "PREDICTIONS DATA --out --like --format --labels --image-names --score-threshold --thresholds --max-detections "
        "--input-format --image-ids --category-ids --classes-from --images --ignore-orientation --overwrite"
    ),
    "models": "",
    "recipes": "",
    "fetch": "RECIPE --init --offline",
    "profile": "MODELS --image-size --budget --out --overwrite",
    "bundle": "RUN --out --member --wheels --overwrite",
    "publish": "RUN NAME --private --dry-run --licence --member",
    "export": "MODEL --out --image-size --num-classes --fixed-size --member --overwrite",
}


def arguments_of(name):
    """The arguments of a command, as the command line knows them."""
    return cli.make_app()[name].assemble_argument_collection(parse_docstring=True)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_options_of_every_command_are_these(name):
    labels = [a.name if a.index is None else a.name.lstrip("-").upper() for a in arguments_of(name)]
    assert " ".join(labels) == OPTIONS[name]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_help_page_explains_every_argument_without_noise(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    for argument in arguments_of(name):
        assert argument.parameter.help, f"{name} does not explain {argument.name}"
        assert (argument.name if argument.index is None else argument.name.lstrip("-").upper()) in text
    for noise in ("--no-", "--empty-", "default: ()", "default: False", "default: None"):
        assert noise not in text
    assert max(len(line) for line in text.partition("Examples:")[0].splitlines()) <= 80


def test_every_command_has_one_heading():
    assert sorted(name for names in cli.GROUPS.values() for name in names) == sorted(cli.COMMANDS)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["campain", "x"], 'Did you mean "campaign"'),
        (["train", "--dat", "x"], "Did you mean --data"),
        (["train", "x"], "--out"),
        (["train", "x", "--out", "y", "--steps", "many"], "many"),
        (["campaign", "x", "--recipe", "efficientdet-lite0"], "Did you mean 'efficientdet_lite0'"),
        (["fuse", "--data", "x", "--out", "y"], "error: PREDICTIONS is missing."),
        (["fuse", "x", "--data", "x"], "error: --out is missing."),
        (
            ["predict", "x", "y", "--view", "1", "1.25+hflip", "--out", "z"],
            "'1.25+hflip' belongs to no argument. Several values",
        ),
        (["train", "x", "--out", "y", "--fold", "1"], "--fold 1: there are no folds. Add --folds FILE"),
        (["campaign", "gone.json"], "gone.json: there is no such file"),
        (["campaign", "gone.json", "--deadline", "soon"], "the time 'soon' is no duration"),
        (["predict", "gone", "gone.json", "--out", "out.json"], "Is gone the folder of a run"),
    ],
)
def test_a_mistake_is_status_2_and_a_hint(words, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert hint in err
    assert "See: " not in err or err.endswith(f"See: foldfuse {words[0]} --help\n") or words[0] not in cli.COMMANDS
    assert "Traceback" not in out + err
    assert not list(tmp_path.iterdir()), "something was written"


def test_version_and_recipes_are_printed(capsys):
    assert cli.main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert cli.main(["recipes"]) == 0
    assert "efficientdet_lite0" in capsys.readouterr().out


def test_an_interrupt_is_no_traceback(capsys, monkeypatch):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr("foldfuse.commands.recipes.recipes", stop)
    assert cli.main(["recipes"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_interrupt_while_the_process_ends_is_no_traceback():
    late = "import atexit, signal, sys; atexit.register(signal.raise_signal, signal.SIGINT)"  # called after later ones
    code = f"{late}; from foldfuse.cli import main; sys.exit(main(['recipes']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_training_that_diverged_is_told_in_a_sentence(capsys, monkeypatch):
    def diverge():
        raise FloatingPointError("step 3: the loss is not finite")

    monkeypatch.setattr("foldfuse.commands.recipes.recipes", diverge)
    assert cli.main(["recipes"]) == 1
    assert capsys.readouterr().err == "error: step 3: the loss is not finite\n"


@pytest.mark.parametrize("words", [["--help"], ["campaign", "--help"], ["campaign", "gone.json"]])
def test_help_and_bad_input_do_not_wait_for_torch(words):
    code = f"import sys, foldfuse.cli\nfoldfuse.cli.main({words!r})\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    "words",
    [
        ["split", "x", "--out", "here"],
        ["check", "x", "--fix", "--out", "here"],
        ["ensemble", "a", "--data", "x", "--out", "here"],
        ["submit", "a", "x", "--out", "here", "--overwrite"],
        ["report", "x", "--out", "here"],
    ],
)
def test_a_folder_in_the_place_of_a_file_is_refused_at_once(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert cli.main(words) == 2
    assert "here: is a folder, expected a file to write." in capsys.readouterr().err
    assert not list((tmp_path / "here").iterdir())
