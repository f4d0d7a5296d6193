"""The whole competition under one clock: fold, train, predict out-of-fold, choose views, fuse, submit.

The members are branches of one trunk. The trunk trains on small pictures at a level learning rate; each branch goes on
from its end with an image size and a seed of its own while the rate falls to 0 ("warmup-stable-decay", Hu et al.,
"MiniCPM", arXiv:2404.06395, section 4). So every member costs a fraction of a training of its own. One fold is held back
from all of them: what they find there is out-of-fold for each, and the ensemble is chosen on it.

From the first finished member on there is a valid submission on disk. It is only replaced by one that does better on the
held-back fold.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foldfuse import machine
from foldfuse.data import Dataset, locate, read, require_annotations
from foldfuse.doctor import undecodable
from foldfuse.durations import clock_text, seconds_of
from foldfuse.errors import InputError
from foldfuse.files import write_text
from foldfuse.recipes import Recipe, load_recipe
from foldfuse.split import Folds
from foldfuse.split import folds as make_folds

SHORTEST = 60.0  # seconds: in less not even one member can be trained, used and fused
MOST_UNDECODABLE = 0.1  # share of the pictures; more than a few broken ones mean that something else is wrong


@dataclass
class Ledger:
    """What a campaign has done so far, as campaign.json tells it, and how much of its time is left.

    Attributes:
        folder: of the campaign.
        deadline: seconds, from the start.
        facts: all that campaign.json holds but the timeline.
        clock: seconds, from any start.
        start: the clock's reading when the campaign began.
    """

    folder: Path
    deadline: float
    facts: dict[str, Any]
    clock: Callable[[], float] = time.monotonic
    start: float = field(default_factory=time.monotonic)
    timeline: list[dict[str, Any]] = field(default_factory=list)

    @property
    def used(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.start

    @property
    def left(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - self.used

    @contextmanager
    def stage(self, name: str, kind: str) -> Iterator[None]:
        """A stretch of the timeline: everything done within it."""
        row = {"name": name, "kind": kind, "start": round(self.used, 2)}
        try:
            yield
        finally:
            self.timeline.append(row | {"end": round(self.used, 2)})
            self.save()

    def note(self, sentence: str) -> None:
        """Keep a sentence that explains a decision, and tell it to whoever watches."""
        self.facts["notes"].append(sentence)
        print(f"[{clock_text(self.used)}] {sentence}", file=sys.stderr)

    def save(self) -> None:
        """Replace campaign.json."""
        facts = self.facts | {"timeline": self.timeline, "seconds_used": round(self.used, 2)}
        write_text(self.folder / "campaign.json", json.dumps(facts, indent=1))


@dataclass(frozen=True)
class Task:
    """What is to be done.

    Attributes:
        train: pictures to learn from, with annotations.
        held: annotated pictures that no member learns from: the ensemble is chosen on them.
        target: pictures to predict for the submission, without annotations.
        unseen: image ids of `target` whose pictures cannot be decoded; they are submitted as empty.
        recipe: of all members, but for image size and seed.
        seed: of every random choice.
    """

    train: Dataset
    held: Dataset
    target: Dataset
    unseen: frozenset[int]
    recipe: Recipe
    seed: int


def campaign(
    data: Path,
    *,
    test: Path | None = None,
    deadline: str = "10m",
    out: Path = Path("campaign"),
    recipe: str = "efficientdet_lite0",
    change: tuple[str, ...] = (),
    folds: int = 5,
    seed: int = 0,
) -> Path:
    """Make the best submission that can be had by the deadline; the folder that holds it comes back.

    It leaves submission.csv (`PredictionString,image_id`), submission.json (COCO results) and report.html there.

    Args:
        data: COCO JSON with annotations, its pictures beside it or in images/ beside it; or a folder with a train.json
            and perhaps a test.json.
        test: COCO JSON of the pictures to predict; its annotations, if it has any, are never read. Without it, a
            held-back fold stands in.
        deadline: wall-clock time for everything, such as 10m, 2h or 1h30m.
        out: folder to make.
        recipe: of all members; `foldfuse recipes` lists them.
        change: changes to the recipe, such as lr=3e-4.
        folds: one of so many is held back from training, to choose the ensemble on.
        seed: of every random choice.

    Raises:
        InputError: the data cannot be used, the deadline is too short, or the folder is in use.
    """
    start = time.monotonic()
    seconds = seconds_of(deadline)
    if seconds < SHORTEST:
        raise InputError(
            f"the deadline is {clock_text(seconds)}, and even one member needs {clock_text(SHORTEST)}. Give more time."
        )
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is there already. Choose another --out, or remove it.")
    made = load_recipe(recipe, change)
    train_json, test_json = locate(Path(data))
    test_json = Path(test) if test is not None else test_json
    labelled = require_annotations(read(train_json))
    target = read(test_json, annotated=False) if test_json is not None else None

    machine.tune()
    options = ["foldfuse", "campaign", str(data), *(["--test", str(test)] if test else [])]
    options += [
        "--deadline",
        deadline,
        "--out",
        str(out),
        "--recipe",
        recipe,
        "--folds",
        str(folds),
        "--seed",
        str(seed),
    ]
    options += [word for one in change for word in ("--change", one)]
    facts: dict[str, Any] = {
        "state": "running",
        "command": " ".join(options),
        "data": str(train_json.resolve()),
        "test": str(test_json.resolve()) if test_json else None,
        "deadline_seconds": seconds,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": None,
        "seed": seed,
        "left_out": [],
        "members": [],
        "fused": None,
        "best_member": None,
        "notes": [],
    }
    out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(out, seconds, facts, start=start)
    try:
        with ledger.stage("look at the data", "setup"):
            task = look(labelled, target, made, folds=folds, seed=seed, ledger=ledger)
    except InputError:
        shutil.rmtree(out)  # it held nothing before: once the data is mended, the same command works
        raise

    from foldfuse.stages import carry_out  # here, so that torch is loaded after the input was found good

    carry_out(task, ledger)
    return out


def look(labelled: Dataset, target: Dataset | None, recipe: Recipe, *, folds: int, seed: int, ledger: Ledger) -> Task:
    """The task: what is trained on, what is held back, what is predicted. Pictures that cannot be decoded are left out.

    Raises:
        InputError: too many pictures cannot be decoded, or there are too few to fold.
    """
    labelled = labelled.subset(set(labelled.image_ids) - _left_out(labelled, ledger))
    require_annotations(labelled)
    split: Folds = make_folds(labelled, k=folds, seed=seed)
    split.write(ledger.folder / "folds.json")
    held = labelled.subset(split.held_ids(0))
    train_ids = set(split.train_ids(0))
    unseen: set[int] = set()
    if target is None:
        stand_in = set(split.held_ids(1))
        target = labelled.subset(stand_in).without_annotations()
        train_ids -= stand_in
        ledger.note(
            f"No test pictures were given: {len(stand_in)} labelled ones (fold 1) stand in, and nothing learns from them."
        )
    else:
        unseen = _left_out(target, ledger)
        if len(unseen) == len(target):
            raise InputError(f"{target.source}: none of its {len(target)} pictures can be decoded.")
    train = labelled.subset(train_ids)
    require_annotations(train)
    ledger.note(
        f"{len(train)} pictures with {train.num_boxes} boxes of {len(train.classes)} classes to learn from; {len(held)} with "
        f"{held.num_boxes} boxes held back (fold 0 of {folds}) to choose the ensemble on; {len(target)} to predict."
    )
    return Task(train, held, target, frozenset(unseen), recipe, seed)


def _left_out(dataset: Dataset, ledger: Ledger) -> set[int]:
    """Ids of the pictures of `dataset` that cannot be decoded; each is noted.

    Raises:
        InputError: they are more than a few.
    """
    broken = undecodable(dataset)
    if broken and len(broken) > max(3, MOST_UNDECODABLE * len(dataset)):
        sample, reason = broken[0]
        raise InputError(
            f"{dataset.source}: {len(broken)} of {len(dataset)} pictures cannot be decoded, such as {sample.path} ({reason}). "
            "Copy the pictures again."
        )
    for sample, reason in broken:
        ledger.facts["left_out"].append({"file_name": sample.file_name, "reason": reason})
        ledger.note(f"{sample.file_name} is left out: {reason}")
    return {sample.id for sample, _ in broken}
