"""The command line: each command is one function of the API, its flags are that function's arguments.

Modules are loaded when their command is called, so that `--help` does not wait for torch.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from collections.abc import Sequence

import cyclopts
from rich.console import Console

from foldfuse import __version__
from foldfuse.errors import InputError
from foldfuse.system import host
from foldfuse.system.signals import sigterm_as_interrupt

COMMANDS = {  # name: (function, what it does)
    "campaign": ("foldfuse.commands.campaign:campaign", "Make the best submission that can be had by a deadline."),
    "watch": ("foldfuse.reporting.live:watch", "Show a campaign that is under way, live."),
    "check": ("foldfuse.commands.data:check", "Find what is wrong with a dataset, and mend it."),
    "split": ("foldfuse.commands.data:split", "Cut a dataset into folds that are alike."),
    "train": ("foldfuse.commands.train:train", "Train one detector under a budget."),
    "sweep": ("foldfuse.commands.train:sweep", "Compare recipes, image sizes and batch sizes under one budget."),
    "import": (
        "foldfuse.commands.train:import_weights",
        "Make a run of your own YOLOv5 checkpoint; nothing in it is run.",
    ),
    "predict": ("foldfuse.commands.predict:predict", "Predict a dataset with a trained run, in one view or several."),
    "fuse": ("foldfuse.commands.fusion:fuse", "Make several files of predictions into one."),
    "ensemble": (
        "foldfuse.commands.fusion:ensemble",
        "Choose the best ensemble of out-of-fold predictions, honestly.",
    ),
    "rescore": (
        "foldfuse.commands.rescore:rescore",
        "Blend a crop classifier's word into scores, where that helps out-of-fold.",
    ),
    "convert": ("foldfuse.commands.predictions:convert", "Write predictions in another format."),
    "score": ("foldfuse.commands.predictions:score", "Score predictions against annotations."),
    "submit": ("foldfuse.commands.predictions:submit", "Write predictions as a submission, and read it back."),
    "report": ("foldfuse.commands.report:report", "Write the HTML page on a campaign or a run."),
    "compare": ("foldfuse.commands.report:compare", "Compare campaigns on the same data."),
    "note": ("foldfuse.commands.campaign:note", "Attach a note, or a leaderboard's score, to a campaign."),
    "models": ("foldfuse.commands.models:models", "List the models, with their cost."),
    "profile": ("foldfuse.commands.models:profile", "Tell how a model's cost grows with the image size."),
    "export": ("foldfuse.commands.models:export", "Write a model as an ONNX file."),
    "recipes": ("foldfuse.commands.models:recipes", "List the recipes."),
    "demo": ("foldfuse.commands.campaign:demo", "Run a campaign on drawn scenes of recyclable trash."),
}


def make_app() -> cyclopts.App:
    """The application: every command by the path of its function."""
    app = cyclopts.App(
        name="foldfuse",
        help="Fold, try, fuse, submit: the best object-detection submission that can be had by the deadline.",
        version=__version__,
        help_format="markdown",
        suppress_keyboard_interrupt=False,
    )
    for name, (path, text) in COMMANDS.items():
        app.command(path, name=name, help=text)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status comes back: 0, 2 where the user's input cannot be used, or the result's own.

    Args:
        arguments: words of the command line, those of this process by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    host.tune_malloc()
    first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes, one speaks
    error_console = Console(stderr=True, soft_wrap=True, highlight=False, quiet=not first)
    try:
        with sigterm_as_interrupt():
            result = make_app()(words, exit_on_error=False, print_error=False, result_action="return_value")
    except InputError as error:
        error_console.print(f"error: {error}", markup=False)
        return 2
    except cyclopts.CycloptsError as error:
        error_console.print(f"error: {error}", markup=False)
        error_console.print("See: foldfuse --help", markup=False)
        return 2
    except FloatingPointError as error:  # a training diverged
        error_console.print(f"error: {error}", markup=False)
        return 1
    except KeyboardInterrupt as error:
        error_console.print(str(error) or "interrupted", markup=False)
        return 130
    finally:
        atexit.register(_leave)  # last, so that it is called first
    if result is not None and first:
        print(result)
    return int(getattr(result, "exit_status", 0))


def _leave() -> None:
    """Let the process end soon and quietly; all that it made lies on the disk."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more Ctrl-C would only bring a traceback
    gc.freeze()  # else Python looks through all of torch's objects once more, for about a second


if __name__ == "__main__":
    sys.exit(main())
