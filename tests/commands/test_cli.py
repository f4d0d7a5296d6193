"""The command line is the API: flags are arguments; what cannot be used is told in a sentence, with status 2."""

import importlib
import inspect
import subprocess
import sys

import pytest

from foldfuse import __version__, cli


def function(name):
    """The function of a command."""
    module, _, attribute = cli.COMMANDS[name][0].partition(":")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_flags_are_the_arguments_of_the_function(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    for argument in inspect.signature(function(name)).parameters:
        assert f"--{argument.replace('_', '-')}" in text
    assert "--no-" not in text
    assert "--empty-" not in text
    assert "[default: ()]" not in text
    assert "[default: False]" not in text


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_argument_is_explained(name):
    for argument in cli.make_app()[name].assemble_argument_collection(parse_docstring=True):
        assert argument.parameter.help, f"{name} does not explain {argument.name}"


def test_every_command_has_one_heading():
    assert sorted(name for names in cli.GROUPS.values() for name in names) == sorted(cli.COMMANDS)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["campain", "x"], 'Did you mean "campaign"'),
        (["train", "--dat", "x"], "Did you mean --data"),
        (["train", "x"], "--out"),
        (["train", "x", "y", "--steps", "many"], "many"),
        (["campaign", "x", "--recipe", "efficientdet-lite0"], "Did you mean 'efficientdet_lite0'"),
        (["campaign", "gone.json"], "gone.json: there is no such file"),
        (["campaign", "gone.json", "--deadline", "soon"], "the time 'soon' is no duration"),
        (["predict", "gone", "gone.json", "out.json"], "Is gone the folder of a run"),
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
