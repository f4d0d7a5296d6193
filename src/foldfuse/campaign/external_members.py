"""Guests of a campaign: runs that were trained elsewhere, and other toolkits' predictions, join the ensemble as members.

Both must be out-of-fold: not have learnt from the pictures that the campaign holds back. A run says so itself; of another
toolkit's predictions it cannot be seen, and is the user's word.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from foldfuse.campaign.task import Task
from foldfuse.detections import Predictions
from foldfuse.errors import InputError
from foldfuse.evaluation.coco import score_predictions
from foldfuse.formats.predictions import read_told, write_predictions
from foldfuse.storage.ledger import Ledger, SegmentRecord
from foldfuse.storage.run import Run

LEAST_COVERED = 0.5  # share of the held-back pictures with objects in which foreign predictions must find something
_OF_A_RUN = ("recipe.json", "run.json", "weights.safetensors", "log.jsonl")


def welcome(members: Sequence[str], foreign: Sequence[str], task: Task, ledger: Ledger) -> None:
    """Check all guests, then give each a folder among the members and a row in the ledger; once in a campaign.

    Args:
        members: folders of trained runs.
        foreign: "HELD:TEST", the files of predictions of the held-back and of the test pictures.
        task: says which pictures these are.
        ledger: of the campaign.

    Raises:
        InputError: a guest cannot be one; none is then taken in.
    """
    if ledger.get("welcomed") or not (members or foreign):
        return
    runs = {Path(folder).resolve().name: _checked(Run(Path(folder)), task) for folder in members}
    others = {Path(_parted(pair)[0]).stem: _read(*_parted(pair), task) for pair in foreign}
    names = [*runs, *others]
    if len(names) < len(members) + len(foreign) or len({*runs, *others}) < len(names):
        raise InputError("two guests have the same name, that of their folder or file. Rename one.")
    for name in names:
        if "@" in name or name.startswith(("trunk-", "grown-", "branch")):
            raise InputError(f"a guest cannot be called {name!r}: the campaign's own members may be. Rename it.")
    for name, run in runs.items():
        _take_run(name, run, ledger)
    for name, (held, target) in others.items():
        _take_predictions(name, held, target, task, ledger)
    ledger.set(welcomed=True)


def _checked(run: Run, task: Task) -> Run:
    """The run, if it has not learnt from a held-back picture and knows the same classes."""
    metadata = run.metadata
    if metadata.classes != task.train.classes:
        raise InputError(
            f"{run.folder}: was trained for the classes {', '.join(metadata.classes)}, but the data has "
            f"{', '.join(task.train.classes)}. A member needs the same classes in the same order."
        )
    run.load_weights()
    learnt = set(task.held.image_ids) - set(metadata.val_ids)
    if learnt:
        raise InputError(
            f"{run.folder}: learnt from {len(learnt)} of the {len(task.held)} pictures that the campaign holds back, such as "
            f"image id {min(learnt)}. Train it with --folds and --fold 0 of the file that the campaign is given as --folds."
        )
    return run


def _parted(pair: str) -> tuple[str, str]:
    held, colon, test = pair.rpartition(":")
    if not colon or not held or not test:
        raise InputError(f"--foreign is HELD:TEST, two files of predictions; got {pair!r}.")
    return held, test


def _read(held: str, test: str, task: Task) -> tuple[Predictions, Predictions]:
    """The predictions of the held-back pictures, and of those to submit."""
    labelled = replace(
        task.held, samples=(*task.train.samples, *task.held.samples)
    )  # an out-of-fold file may speak of every labelled picture
    found = read_told(Path(held), labelled)
    mine = found.select_images([i for i in task.held.image_ids if i in found])
    drawn = [s for s in task.held.samples if s.annotations is not None and len(s.annotations)]
    covered = sum(s.id in mine and len(mine[s.id]) > 0 for s in drawn)
    if len(mine) < len(task.held) or covered < LEAST_COVERED * len(drawn):
        raise InputError(
            f"{held}: finds something in {covered} of the {len(drawn)} held-back pictures that have objects, and speaks of "
            f"{len(mine)} of all {len(task.held)}. Predict the pictures of fold 0 of the campaign's folds with a "
            "model that did not learn from them."
        )
    theirs = read_told(Path(test), task.target)
    return mine, theirs.select_images([i for i in task.target.image_ids if i not in task.unseen])


def _take_run(name: str, run: Run, ledger: Ledger) -> None:
    folder = ledger.folder / "members" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in _OF_A_RUN:
        if (run.folder / file).exists():
            shutil.copyfile(run.folder / file, folder / file)
    metadata = run.metadata
    ledger.put_segment(
        SegmentRecord(
            name=name,
            kind="run",
            recipe=vars(run.recipe),
            parent=None,
            fold=0,
            seed=metadata.seed,
            state="trained",
            budget=metadata.seconds or 0.0,
            seconds=metadata.seconds or 0.0,
            started=ledger.elapsed,
            ended=None,
            result={},
        )
    )
    ledger.log(f"{name} joins as a member; it was trained elsewhere.")


def _take_predictions(name: str, held: Predictions, target: Predictions, task: Task, ledger: Ledger) -> None:
    folder = ledger.folder / "members" / name
    write_predictions(held, folder / "held@1.parquet", task.held)
    write_predictions(target, folder / "target@1.parquet", task.target)
    score = score_predictions(held, task.held)
    result = {
        "name": name,
        "recipe": "another toolkit's",
        "fold": 0,
        "views": ["1"],
        "ap": score.ap,
        "ap50": score.ap50,
    }
    ledger.put_segment(
        SegmentRecord(name, "foreign", {}, None, 0, 0, "done", 0.0, 0.0, ledger.elapsed, ledger.elapsed, result)
    )
    ledger.log(
        f"{name} joins as a member, predicted by another toolkit: AP50 {score.ap50:.3f} on the held-back pictures."
    )
