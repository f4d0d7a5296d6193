"""Commands on campaigns: campaign, note and demo."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from foldfuse.campaign.campaign import _begin, _joined, _resume, _show_plan
from foldfuse.campaign.request import Asked
from foldfuse.commands.predictions import score
from foldfuse.demo.synthetic import make_dataset
from foldfuse.errors import InputError
from foldfuse.storage.notes import FOLDER, Note, record, submission_scores
from foldfuse.system import host
from foldfuse.system.atomic_files import write_text


def note(
    folder: Path, text: str | None = None, *, leaderboard: float | None = None, submission: int | None = None
) -> Path:
    """Attach a note, or the score that a leaderboard gave a submission, to a campaign; the note's file comes back.

    Args:
        folder: of the campaign, which may be running.
        text: of the note.
        leaderboard: score that a submission got.
        submission: the one that is meant, a number in `submissions/`; by default the one that holds now.

    Raises:
        InputError: the folder is no campaign's, it has no such submission, or nothing is said.
    """
    folder = Path(folder)
    count = len(submission_scores(record(folder)))
    if text is not None and not text.strip():
        raise InputError("the note is empty. Write a text, or leave it out and give --leaderboard SCORE.")
    if text is None and leaderboard is None:
        raise InputError(f"nothing is said about {folder}. Give a text, --leaderboard SCORE, or both.")
    if leaderboard is not None and not math.isfinite(leaderboard):
        raise InputError(f"--leaderboard is {leaderboard}, and must be a number.")
    if submission is not None and not 1 <= submission <= count:
        has = f"submissions 1 to {count}" if count > 1 else "submission 1 alone" if count else "no submission yet"
        raise InputError(f"{folder}: --submission is {submission}, and the campaign has {has}.")
    if leaderboard is not None and submission is None:
        if not count:
            raise InputError(f"{folder}: has no submission yet that could have a score. Wait for the first one.")
        submission = count
    said = Note(datetime.now(UTC).isoformat(timespec="seconds"), text, leaderboard, submission)
    path = folder / FOLDER / f"{time.time_ns()}.json"
    write_text(path, json.dumps(asdict(said), indent=1, ensure_ascii=False) + "\n")
    return path


def campaign(
    data: Path | None = None,
    *,
    test: Path | None = None,
    deadline: str = "10m",
    out: Path = Path("campaign"),
    recipe: tuple[str, ...] = (),
    forbid: tuple[str, ...] = (),
    size: tuple[int, ...] = (),
    change: tuple[str, ...] = (),
    folds: int | Path = 5,
    member: tuple[Path, ...] = (),
    foreign: tuple[str, ...] = (),
    seed: int = 0,
    metric: str = "ap50",
    pseudo_labels: bool = False,
    resume: Path | None = None,
    ray: str | None = None,
    plan: bool = False,
) -> Path | None:
    """Make the best submission that can be had by the deadline; the folder that holds it comes back, None for a plan.

    It leaves submission.csv (`PredictionString,image_id`), submission.json (COCO results) and report.html there.

    Args:
        data: COCO JSON with annotations, its pictures beside it or in images/ beside it; or a folder with a train.json
            and perhaps a test.json.
        test: COCO JSON of the pictures to predict; its annotations, if it has any, are never read. Without it, a
            held-back fold stands in.
        deadline: wall-clock time for everything, such as 10m, 2h or 1h30m.
        out: folder to make.
        recipe: allowed for members; lite0_fpn, lite1_fpn and yolov5n by default. With little time only the first is
            taken. `foldfuse recipes` lists them.
        forbid: recipes that are not allowed.
        size: image sizes that are allowed, in pixels; all by default.
        change: changes to the recipes, such as lr=3e-4.
        folds: one of so many is held back from training, to choose the ensemble on; or the file of `foldfuse split`, whose
            fold 0 is held back.
        member: folders of runs that were trained without the pictures held back; they join the ensemble.
        foreign: HELD:TEST, another toolkit's predictions of the pictures held back and of the test pictures, in any format
            that `fuse` takes; they join the ensemble.
        seed: of every random choice.
        metric: the contest's, that everything is chosen by out-of-fold: ap50, ap (COCO's), f2 or wheat.
        pseudo_labels: let the last members learn from what the ensemble is sure of in the test pictures, too, where the
            contest's rules allow it; the pictures held back stay held back.
        resume: folder of a campaign that was stopped, to go on with what it was asked; given alone, or with `ray`. The time
            that it has worked counts against its deadline, the time that it lay still does not.
        ray: address of a running Ray cluster, such as 10.0.0.1:6379, or auto for the one of this machine: its nodes train
            the members. Needs foldfuse[ray].
        plan: only measure the candidates, show the plan, and stop.

    Raises:
        InputError: the data cannot be used, the deadline is too short, the folder is in use, the disk is full, or there is
            no such cluster.
    """
    start = time.monotonic()
    asked = Asked(
        None if data is None else str(data),
        None if test is None else str(test),
        deadline,
        str(out),
        tuple(recipe),
        tuple(forbid),
        tuple(size),
        tuple(change),
        folds if isinstance(folds, int) else str(folds),
        tuple(map(str, member)),
        tuple(foreign),
        seed,
        metric,
        pseudo_labels,
    )
    host.tune_malloc()
    if resume is not None:
        if asked != Asked():
            raise InputError(
                f"--resume {resume} goes on with what the campaign was asked. Give it alone, or with --ray."
            )
        with _joined(ray):
            return _resume(Path(resume), start, ray=ray)
    if asked.data is None:
        raise InputError("no data is given. Give a COCO JSON or a folder with a train.json; or --resume DIR.")
    if plan:
        if ray is not None:
            raise InputError("--plan measures this machine, not the nodes of a cluster. Leave out --ray.")
        _show_plan(asked, start)
        return None
    with _joined(ray):
        return _begin(asked, start, ray=ray)


def demo(out: Path = Path("demo"), *, deadline: str = "8m", pictures: int = 240, seed: int = 0) -> Path:
    """Draw a dataset of trash in ten classes, run a campaign on it, score it; the campaign's folder comes back.

    Args:
        out: folder to make; the pictures go to `data` in it, the campaign to `campaign`.
        deadline: of the campaign.
        pictures: to learn from; a third as many are to be predicted.
        seed: of every random choice.

    Raises:
        InputError: the folder is in use.
    """
    data = make_dataset(out / "data", num_images=pictures, num_test_images=pictures // 3, seed=seed)
    folder = campaign(data, deadline=deadline, out=out / "campaign", seed=seed)
    assert folder is not None, "only a plan leaves no folder"
    score(folder / "submission.json", data / "test_truth.json")
    print(f"The submission is {folder / 'submission.csv'}; open {folder / 'report.html'} to see why.")
    return folder
