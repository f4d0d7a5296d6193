"""The end of a training: the score of the held-out images, where the weights are, and the commands to type next."""

from __future__ import annotations

from foldfuse.commands.score_tables import class_table
from foldfuse.commands.tables import score_text
from foldfuse.data.dataset import Dataset
from foldfuse.errors import InputError, Interrupted, counted
from foldfuse.inference.evaluation import evaluate_run, keep_evaluation, own_held_out
from foldfuse.reporting.next_commands import next_commands, shell_command
from foldfuse.storage.run import Run
from foldfuse.storage.run_tensors import WEIGHTS
from foldfuse.system import printing
from foldfuse.system.durations import format_duration
from foldfuse.system.progress import progress_bar
from foldfuse.training.classifier import val_accuracy


def report_end(run: Run, val: Dataset | None, *, num_learnt: int, device: str) -> None:
    """Score the held-out images, keep predictions and score in the run's folder, and print the end of a training.

    Images that cannot be scored are reported in a sentence: the run is trained all the same.

    Args:
        run: the run, trained to its end.
        val: the held-out images; None where nothing was held out.
        num_learnt: images that were left out of `val`, since the run has learnt from them.
        device: the device to predict on.

    Raises:
        Interrupted: with a sentence on how to score later.
    """
    try:
        if val is not None and run.is_classifier:
            accuracy, objects = val_accuracy(run, val, device=device)
            printing.write(f"accuracy on the {counted(objects, 'held-out object')}: {accuracy:.4f}")
        elif val is not None:
            _score(run, val, num_learnt=num_learnt, device=device)
    except InputError as error:
        printing.write(f"{run.folder}: is trained, but its held-out images are not scored. {error}", to_stderr=True)
    except KeyboardInterrupt:
        again = "" if run.is_classifier else f" Score it with: {shell_command('evaluate', run.folder)}"
        raise Interrupted(f"{run.folder}: is trained; scoring was stopped.{again}") from None
    for line in _summary(run, val):
        printing.write(line)


def _score(run: Run, val: Dataset, *, num_learnt: int, device: str) -> None:
    """Score the held-out images, keep the score, and print it."""
    held_out = own_held_out(run, val, num_learnt=num_learnt)
    with progress_bar(f"scoring {counted(len(held_out.dataset), 'held-out image')}") as progress:
        evaluation = evaluate_run(run, held_out, device=device, progress=progress)
    keep_evaluation(run, evaluation)
    score = evaluation.score
    printing.console().print(class_table([score], ["score"]))
    number = counted(len(held_out.dataset), "held-out image")
    printing.write(f"AP {score_text(score.ap)}, AP50 {score_text(score.ap50)} (COCO's) on {number}: {held_out.words}")


def _summary(run: Run, val: Dataset | None) -> list[str]:
    """What was trained and where it is, and the commands to type next."""
    metadata = run.metadata
    trained = f"{counted(metadata.steps or 0, 'step')} in {format_duration(metadata.seconds or 0.0)}"
    lines = [f"trained {trained} on {metadata.trained_on}; the weights are in {run.folder / WEIGHTS}"]
    if val is None:
        lines.append(
            "No image was held out, so there is no score. To get one, train with --val DATA (annotated images of their own), or "
            f"hold out a fold: {shell_command('split', metadata.data, '--folds', '5', '--out', 'folds.json')}, then train with "
            "--folds folds.json."
        )
    commands = next_commands(
        run.folder, is_classifier=run.is_classifier, has_held_out=val is not None, budget=metadata.budget
    )
    return [*lines, "next:", *(f"  {command}" for command in commands)]
