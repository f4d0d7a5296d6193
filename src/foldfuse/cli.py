"""The command line: each command is a function in `commands`, and the function's arguments are the command's options.

A command's module is imported when the command is called, so that `--help` does not wait for torch.
"""

from __future__ import annotations

import atexit
import gc
import inspect
import logging
import os
import re
import signal
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import cyclopts
from cyclopts import Group, Parameter
from cyclopts.help import DefaultFormatter, HelpPanel
from rich.console import Console, ConsoleOptions

from foldfuse import __version__
from foldfuse.errors import InputError, shown
from foldfuse.system import host, printing
from foldfuse.system.disk_full import disk_full_reason
from foldfuse.system.progress import log_on_standard_error
from foldfuse.system.signals import signals_as_interrupts

COMMANDS = {  # name: (function, summary)
    "campaign": ("foldfuse.commands.campaign:campaign", "Make the best submission possible by a deadline."),
    "watch": ("foldfuse.commands.campaign:watch", "Show a running campaign, live."),
    "report": ("foldfuse.commands.report:report", "Write the HTML page on a campaign or a run."),
    "compare": ("foldfuse.commands.report:compare", "Compare campaigns on the same data."),
    "note": ("foldfuse.commands.campaign:note", "Attach a note, or a leaderboard's score, to a campaign."),
    "demo": ("foldfuse.commands.campaign:demo", "Run a campaign on drawn scenes of recyclable trash."),
    "check": ("foldfuse.commands.data:check", "Find the faults of a dataset, and fix them."),
    "split": ("foldfuse.commands.data:split", "Split a dataset into stratified folds."),
    "join": ("foldfuse.commands.data:join", "Join annotated datasets of the same classes into one."),
    "train": ("foldfuse.commands.train:train", "Train one detector or classifier under a budget."),
    "sweep": ("foldfuse.commands.train:sweep", "Compare recipes, image sizes and batch sizes under one budget."),
    "import": (
        "foldfuse.commands.train:import_weights",
        "Import a YOLOv5 .pt checkpoint; no code in the file is executed.",
    ),
    "predict": ("foldfuse.commands.predict:predict", "Predict a dataset with a trained run, in one TTA view or more."),
    "evaluate": ("foldfuse.commands.evaluate:evaluate", "Predict and score annotated images with a trained run."),
    "fuse": ("foldfuse.commands.fusion:fuse", "Fuse several prediction files into one: WBF, NMS, Soft-NMS, NMW."),
    "ensemble": ("foldfuse.commands.fusion:ensemble", "Choose the best ensemble on out-of-fold predictions."),
    "rescore": ("foldfuse.commands.rescore:rescore", "Rescore detections with a classifier of their crops."),
    "convert": ("foldfuse.commands.predictions:convert", "Write predictions in another format."),
    "score": ("foldfuse.commands.predictions:score", "Score predictions against annotations."),
    "submit": ("foldfuse.commands.predictions:submit", "Write predictions as a submission, and read it back."),
    "browse": ("foldfuse.commands.browse:browse", "Write a page to look at images, annotations and predictions."),
    "review": ("foldfuse.commands.review:review", "Rank likely label errors, and write a page to accept corrections."),
    "next": ("foldfuse.commands.next_images:next_images", "Pick the unlabelled images that are worth labelling next."),
    "models": ("foldfuse.commands.model_table:models", "List the models with their cost."),
    "recipes": ("foldfuse.commands.recipes:recipes", "List the recipes."),
    "fetch": (
        "foldfuse.commands.fetch:fetch",
        "Download the initial weights of recipes, for a machine without a network.",
    ),
    "profile": ("foldfuse.commands.models:profile", "Measure how a model's cost grows with the image size."),
    "export": ("foldfuse.commands.models:export", "Write a model as an ONNX file."),
    "bundle": (
        "foldfuse.commands.bundle:bundle",
        "Pack everything that predicts into one zip, to be used without a network.",
    ),
    "publish": (
        "foldfuse.commands.publish:publish",
        "Publish a run, an ensemble or a campaign on the Hugging Face hub, with a model card.",
    ),
}
GROUPS = {  # heading in the help: its commands
    "Campaigns": ("campaign", "watch", "report", "compare", "note", "demo"),
    "Data": ("check", "split", "join", "browse", "review", "next"),
    "Training": ("train", "sweep", "import", "predict", "evaluate"),
    "Predictions": ("fuse", "ensemble", "rescore", "convert", "score", "submit"),
    "Models": ("models", "recipes", "fetch", "profile", "export", "bundle", "publish"),
}
NETWORK_PACKAGES = ("torch", "torchvision", "timm")  # a light install lacks them


def make_app() -> cyclopts.App:
    """The application: every command by the path of its function, which is imported when the command is called."""
    app = cyclopts.App(
        name="foldfuse",
        help="Fold, try, fuse, submit: the best object-detection submission possible by the deadline.\n\n"
        "`foldfuse COMMAND --help` explains a command, with examples.",
        version=__version__,
        help_format="markdown",
        default_parameter=Parameter(negative=(), show_default=_default_text),
        suppress_keyboard_interrupt=False,
    )
    for heading, names in GROUPS.items():
        group = Group.create_ordered(heading)
        for place, name in enumerate(names):
            path, text = COMMANDS[name]
            app.command(path, name=name, help=text, group=group, sort_key=place)
    about = Group.create_ordered("Options")
    for flag in ("--help", "--version"):
        app[flag].group = about
    return app


def _default_text(default: Any) -> str | None:
    """The default of an option in the help; None, and so not shown, where the option is simply not given."""
    if default is None or default is False or default == ():
        return None
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0, 1 for a failure, 2 for unusable input, or the result's own.

    Args:
        arguments: words of the command line; by default this process's.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = words[0] if words and words[0] in COMMANDS else None
    host.tune_malloc()
    first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes, one speaks
    if not first:
        logging.getLogger("foldfuse").addHandler(logging.NullHandler())  # else logging itself prints warnings
    with printing.printable_streams():
        try:
            with signals_as_interrupts(), log_on_standard_error() if first else nullcontext():
                app = make_app()
                if command is not None and {"--help", "-h"} & set(words):
                    print_help(app, command)
                    return 0
                result = app(words, exit_on_error=False, print_error=False, result_action="return_value")
            if result is not None and first:
                printing.write(result)
            if sys.stdout is not None:  # closed
                sys.stdout.flush()  # a full disk under standard output shows here
            return int(getattr(result, "exit_status", 0))
        except (Exception, KeyboardInterrupt) as error:
            failure = _failure(error, command, words)
            if failure is None:
                raise
            status, lines = failure
            for line in lines if first else ():
                printing.write(line, to_stderr=True)
            return status
        finally:
            atexit.register(_leave)  # last, so that it is called first


def _failure(error: BaseException, command: str | None, words: Sequence[str]) -> tuple[int, list[str]] | None:
    """The exit status and the lines to print after an error; None for a mistake in Foldfuse itself."""
    if isinstance(error, InputError):
        return 2, [f"error: {error}"]
    if isinstance(error, cyclopts.CycloptsError):
        see = f"See: foldfuse {f'{command} ' if command else ''}--help"
        return 2, [f"error: {_missing_argument(error, words) or _word_too_many(error) or error}", see]
    if isinstance(error, KeyboardInterrupt):
        return 130, [str(error) or "interrupted"]
    if isinstance(error, FloatingPointError):  # a training diverged
        return 1, [f"error: {error}"]
    if isinstance(error, ImportError) and (package := _missing_package(error)):
        needs = f"{command} runs a network and needs {package}, which is not installed."
        return 2, [f"error: {needs} Install all of Foldfuse: pip install foldfuse"]
    if isinstance(error, BrokenPipeError):  # the reader of the output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141, []
    if reason := disk_full_reason(error):
        place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        return 2, [f"error: {place}{reason}. Nothing half-written is kept; make room, then give the command again."]
    if isinstance(error, MemoryError):
        return 1, ["error: there is not enough memory. Close other programs, or use a machine with more memory."]
    if isinstance(error, OSError) and error.filename is not None:
        return 2, [f"error: {error.filename}: {(error.strerror or str(error)).lower()}. Check this path."]
    if isinstance(error, sqlite3.Error):
        return 2, [f"error: a campaign's ledger cannot be used ({error}). Is its folder writable and whole?"]
    return None


def _missing_argument(error: cyclopts.CycloptsError, words: Sequence[str]) -> str | None:
    """A sentence that names a required argument as the help page does; None for other errors."""
    argument = error.argument
    if not isinstance(error, cyclopts.MissingArgumentError) or argument is None or set(argument.names) & set(words):
        return None
    return f"{argument.name.lstrip('-').upper() if argument.index is not None else argument.name} is missing."


def _word_too_many(error: cyclopts.CycloptsError) -> str | None:
    """A sentence for a word that belongs to no argument, such as the second of several values after one option."""
    tokens = error.unused_tokens if isinstance(error, cyclopts.UnusedCliTokensError) else None
    if not tokens:
        return None
    return f"{shown(tokens[0])} belongs to no argument. Several values of one option stand in one word, with commas between them."


def _missing_package(error: BaseException | None) -> str | None:
    """The package for networks whose absence caused an error; None where the error has another cause."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name in NETWORK_PACKAGES:
            return error.name
        error = error.__cause__ or error.__context__
    return None


def print_help(app: cyclopts.App, command: str) -> None:
    """Prints the help page of a command: usage, description, arguments, options, and the examples of its docstring."""
    page = app[command]
    description, examples = documented(page.default_command)
    page.help = f"{COMMANDS[command][1]}\n\n{description}".strip()
    page.help_formatter = _Panels()
    app.help_print([command])
    lines = ["", "Examples:", *(f"  {line}" for line in examples)]
    printing.write("\n".join(lines))


def documented(function: Any) -> tuple[str, list[str]]:
    """The paragraphs of a docstring between its first line and its first section, and the lines of its section Examples."""
    parts = re.split(r"^(Args|Returns|Raises|Examples):\n", inspect.getdoc(function) or "", flags=re.MULTILINE)
    description = parts[0].partition("\n\n")[2].strip()
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    return description, [line.strip() for line in sections.get("Examples", "").splitlines() if line.strip()]


class _Panels(DefaultFormatter):
    """Shows the positional arguments and the options of a command, each in a separate panel."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Prints the panels of a command."""
        arguments = [entry.copy(positive_names=()) for entry in panel.entries if entry.positional_label]
        others = [entry for entry in panel.entries if not entry.positional_label]
        for title, entries in (("Arguments", arguments), ("Options", others)):
            super().__call__(console, options, panel.copy(title=title, entries=entries))


def _leave() -> None:
    """Make the process exit fast and without a traceback; all results are on disk already."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more Ctrl-C would only bring a traceback
    gc.freeze()  # else Python looks through all of torch's objects once more, for about a second


if __name__ == "__main__":
    sys.exit(main())
