"""Kills a campaign at random moments and resumes it, again and again, and counts the cost of each kill.

    python benchmarks/kills.py --kills 50 --out kills.md

A tiny drawn dataset, a small detector and a deadline of a minute or more. After each kill the ledger must be intact,
the last submission must still be there and valid, and no finished segment may be trained again. A campaign that ends
before its kill is checked and the next one started, until the number of kills is reached.
"""

from __future__ import annotations

import argparse
import random
import shlex
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from foldfuse.data.readers.coco import read
from foldfuse.demo.synthetic import make_dataset
from foldfuse.errors import InputError
from foldfuse.formats.submission import validate_submission
from foldfuse.storage import ledger as ledgers
from rows import read_rows

BEFORE_LEDGER = "before there was a ledger"
SMALL = ("--folds", "3", "--image-size", "64", "--set", "batch_size=2", "--set", "image_size=64")
SMALL += ("--recipe", "efficientdet_lite0")


@dataclass
class Counts:
    """The counts.

    Attributes:
        kills: {current work: number of kills during it}.
        campaigns: that ended.
        out_of_time: campaigns without time for a first member, because of the kills.
        submissions: valid submissions found after a kill.
        lost: seconds of training that each kill cost.
        late: of each finished campaign, the share of its deadline that was used at its last kill, and the seconds of work
            beyond the deadline at its end.
        wrong: sentences on violated guarantees.
    """

    kills: dict[str, int] = field(default_factory=dict)
    campaigns: int = 0
    out_of_time: int = 0
    submissions: int = 0
    lost: list[float] = field(default_factory=list)
    late: list[tuple[float, float]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def main() -> None:
    """Kills as often as requested, writes a page, and fails where a guarantee was violated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--deadline", default="60s")
    parser.add_argument("--longest", type=float, default=25.0, help="seconds between a start and its kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("kills.md"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = kills(
            Path(folder), arguments.kills, deadline=arguments.deadline, longest=arguments.longest, seed=arguments.seed
        )
    text = page(counts, shlex.join(["python", *sys.argv]))
    arguments.out.write_text(text, encoding="utf-8")
    print(text)
    sys.exit(1 if counts.wrong else 0)


def kills(work: Path, number: int, *, deadline: str, longest: float, seed: int) -> Counts:
    """Runs campaigns in `work`, one after another, until `number` kills have happened and the last campaign has finished."""
    rng, counts = random.Random(seed), Counts()
    data = make_dataset(work / "data", num_images=18, num_test_images=6, seed=seed)
    out, done, last = work / "out0", dict[str, float](), 0.0
    while sum(counts.kills.values()) < number or (out / ledgers.NAME).exists():
        begun = (out / ledgers.NAME).exists()
        words = ["--resume", str(out)] if begun else [str(data), "--deadline", deadline, "--out", str(out), *SMALL]
        process = subprocess.Popen(
            [sys.executable, "-m", "foldfuse", "campaign", *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        more = sum(counts.kills.values()) < number
        try:
            _, error = process.communicate(timeout=rng.uniform(0.0, longest) if more else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kind = check_folder(out, data, done, counts)
            counts.kills[kind] = counts.kills.get(kind, 0) + 1
            last = elapsed_share(out)
            print(f"kill {sum(counts.kills.values())}: {kind}", file=sys.stderr, flush=True)
            continue
        if process.returncode:
            if b"the time was over before a first member" in error:
                counts.out_of_time += 1
            else:
                counts.wrong.append(f"a campaign ended with {process.returncode}: {error.decode()[-300:]}")
        else:
            check_folder(out, data, done, counts)
            finished = ledgers.snapshot(out)
            counts.late.append((last, finished["seconds_used"] - finished["deadline_seconds"]))
            if finished["state"] != "finished" or not (out / "submission.csv").is_file():
                counts.wrong.append("a campaign ended without a submission")
        counts.campaigns += 1
        out, done, last = work / f"out{counts.campaigns}", {}, 0.0
    return counts


def elapsed_share(out: Path) -> float:
    """The elapsed share of a campaign's deadline; 0 before there is a ledger."""
    if not (out / ledgers.NAME).exists():
        return 0.0
    facts = ledgers.snapshot(out)
    return float(facts["seconds_used"] / facts["deadline_seconds"])


def check_folder(out: Path, data: Path, done: dict[str, float], counts: Counts) -> str:
    """The current work of a killed campaign; violated guarantees go to `counts`.

    `done` is {finished segment: when it ended} from earlier kills; it is updated.
    """
    if not (out / ledgers.NAME).exists():
        return BEFORE_LEDGER
    with closing(sqlite3.connect(out / ledgers.NAME)) as db:
        if db.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            counts.wrong.append("the ledger is broken")
    facts = ledgers.snapshot(out)
    for name, ended in done.items():
        row = next((r for r in facts["segments"] if r["name"] == name), None)
        if row is None or row["state"] != "done" or row["ended"] != ended:
            counts.wrong.append(f"the finished segment {name} was trained again")
    done.update({row["name"]: row["ended"] for row in facts["segments"] if row["state"] == "done"})
    if facts["submissions"]:
        counts.submissions += 1
        check_submissions(out, facts["submissions"], data, counts)
    interval = facts["timeline"][-1] if facts["timeline"] else None
    if interval is None or interval["end"] is not None:
        return "between two intervals of work"
    if interval["kind"] == "train":
        log = out / "members" / interval["name"].removeprefix("train ") / "log.jsonl"
        rows = read_rows(log)
        kept = max((row["seconds"] for row in rows), default=0.0)
        own = next((r for r in facts["segments"] if r["name"] == interval["name"].removeprefix("train ")), None)
        before = own["seconds"] if own else 0.0
        counts.lost.append(max(0.0, facts["seconds_used"] - interval["start"] - max(0.0, kept - before)))
    return f"in the stage '{interval['kind']}'"


def check_submissions(out: Path, number: int, data: Path, counts: Counts) -> None:
    """Checks the current submission and the files at the top of the folder; violated guarantees go to `counts`.

    The first submission may not have been copied to the top yet; every later one replaces a complete one.
    """
    images = read(data / "test.json", annotated=False)
    for folder in (out / "submissions" / str(number), out):
        for name, kind in (("submission.csv", "contest_csv"), ("submission.json", "coco_json")):
            if folder == out and number == 1 and not (out / name).exists():
                continue
            try:
                validate_submission(folder / name, images, kind)
            except InputError as error:
                counts.wrong.append(f"a submission was made, and is not valid: {error}")


def page(counts: Counts, command: str) -> str:
    """The counts as Markdown."""
    total = sum(counts.kills.values())
    lines = ["# Killed campaigns", "", f"`{command}` on {time.strftime('%Y-%m-%d')}.", ""]
    lines += ["| the kill came | times |", "|---|---|"]
    lines += [f"| {kind} | {number} |" for kind, number in sorted(counts.kills.items(), key=lambda item: -item[1])]
    lines += ["", f"{total} kills; {counts.submissions} times a valid submission lay there afterwards."]
    if counts.lost:
        lines.append(
            f"A kill in training lost {median(counts.lost):.1f} s of it at the median, {max(counts.lost):.1f} s at most."
        )
    lines.append(f"{len(counts.late)} of {counts.campaigns} campaigns finished, each with a submission;")
    lines.append(f"{counts.out_of_time} had no time left for a first member, since each start costs some seconds.")
    for share, late in sorted(counts.late):
        lines += [
            "",
            f"Last killed at {share:.0%} of its deadline, a campaign ended {late:+.1f} s from it, in seconds of work.",
        ]
    lines += [f"Wrong: {'; '.join(counts.wrong) or 'nothing'}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
