"""The loop run once, with the commands as a user types them: check, campaign, review, fix, next, campaign; a results page.

    python benchmarks/loop.py --folder loop --deadline 5m

120 images of AquaTrash are the labelled data, the other 175 of its training images a folder of unlabelled ones, and its
held-out images the test set, whose annotations are read for the scores alone. The labels of the picked images are those of
AquaTrash.

A person is needed once: open FOLDER/review.html, look at the first 50 suggestions, and give the numbers of the right ones (the
first is 1): `--accepted 1,2,5`. Without the option, the suggestions with a probability of a half and more are accepted, and
the page says so. Steps whose output is there are not run again: before a second call with --accepted, remove corrections.json,
data/fixed.json, joined.json and night2. `--control` also trains a campaign on as many random images.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from foldfuse.api import score
from foldfuse.campaign.campaign_folder import Campaign
from foldfuse.data.readers.coco import read, write
from foldfuse.storage.next_images import read_next
from trainings import SHARED

SOURCE = SHARED / "data" / "aquatrash"
NUM_LABELLED, NUM_PICKED, NUM_LOOKED_AT = 120, 50, 50
ACCEPTED_PROBABILITY = 0.5
PAGE = "loop.md"


def main() -> None:
    """Run the steps that are not done, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("loop"))
    parser.add_argument("--deadline", default="5m")
    parser.add_argument("--train-folds", default="5", help="all, so that every image has out-of-fold predictions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accepted", help="numbers of the suggestions that a person accepts, such as 1,2,5; or none")
    parser.add_argument("--control", action="store_true")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(asked.folder)
    steps = Steps()
    if not Path("data/train.json").exists():
        make_data(asked.seed)
    campaign = (
        f"--test data/test.json --deadline {asked.deadline} --train-folds {asked.train_folds} --seed {asked.seed}"
    )
    steps.run("check data/train.json", "check.txt", ok=(0, 1))
    steps.run(f"campaign data/train.json {campaign} --out night1", "night1/submission.json")
    steps.run("review data/train.json night1 --out review.json --top 200", "review.json")
    steps.run("review data/train.json night1 --out review.html --top 200", "review.html")
    numbers = accept(asked.accepted)
    steps.run(
        "check data/train.json --fix --corrections corrections.json --out data/fixed.json", "data/fixed.json", ok=(0, 1)
    )
    steps.run(f"next unlabelled night1 --number {NUM_PICKED} --out next", "next/next.json")
    join(steps, "joined.json", [Path(one.path).name for one in read_next(Path("next")).images])
    steps.run(f"campaign joined.json {campaign} --out night2", "night2/submission.json")
    nights = ["night1", "night2"]
    if asked.control:
        others = sorted(path.name for path in Path("unlabelled").iterdir())
        join(steps, "joined_random.json", random.Random(asked.seed).sample(others, NUM_PICKED))
        steps.run(f"campaign joined_random.json {campaign} --out night2_random", "night2_random/submission.json")
        nights.append("night2_random")
    for night in nights:
        steps.run(f"score {night}/submission.json data/truth.json", f"{night}.score.txt")
    Path(PAGE).write_text(page(steps, nights, numbers, by_person=asked.accepted is not None), encoding="utf-8")
    print(Path(PAGE).read_text(encoding="utf-8"))


class Steps:
    """The commands that are run, with their seconds; a step whose output is there is not run again."""

    def __init__(self) -> None:
        self.path = Path("steps.json")
        self.done: list[dict[str, Any]] = json.loads(self.path.read_text()) if self.path.exists() else []

    def run(self, line: str, output: str, *, ok: Sequence[int] = (0,)) -> None:
        """Runs `foldfuse line` unless `output` is there; an output that ends in .txt is what the command prints."""
        if Path(output).exists():
            return
        print(f"$ foldfuse {line}", flush=True)
        start = time.monotonic()
        command = [sys.executable, "-m", "foldfuse", *shlex.split(line)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        print(done.stdout, flush=True)
        if done.returncode not in ok:
            sys.exit(f"foldfuse {line}: ended with status {done.returncode}")
        if output.endswith(".txt"):
            Path(output).write_text(done.stdout, encoding="utf-8")
        self.done = [step for step in self.done if step["line"] != line]
        self.done.append({"line": line, "seconds": round(time.monotonic() - start)})
        self.path.write_text(json.dumps(self.done, indent=1))


def make_data(seed: int) -> None:
    """Writes data/train.json with its images, the folder of unlabelled images, and the test set."""
    whole, held_out = read(SOURCE / "train.json"), read(SOURCE / "val.json")
    ids = random.Random(seed).sample(list(whole.image_ids), len(whole))
    Path("data/images").mkdir(parents=True)
    Path("unlabelled").mkdir()
    for i in ids:
        name = Path(whole[i].file_name).name
        shutil.copy(whole[i].path, Path("data/images" if i in ids[:NUM_LABELLED] else "unlabelled") / name)
    for sample in held_out.samples:
        shutil.copy(sample.path, Path("data/images") / Path(sample.file_name).name)
    for name, dataset in (
        ("test", held_out.without_annotations()),
        ("truth", held_out),
        ("train", whole.subset(ids[:NUM_LABELLED])),  # last: it marks that all is there
    ):
        flat = tuple(replace(s, file_name=f"images/{Path(s.file_name).name}") for s in dataset.samples)
        write(replace(dataset, samples=flat), Path("data") / f"{name}.json")


def accept(numbers: str | None) -> list[int]:
    """Writes corrections.json with the accepted suggestions, and returns their numbers, from 1."""
    document = json.loads(Path("review.json").read_text())
    suggestions = document["suggestions"]
    if numbers is None:
        accepted = [n for n, one in enumerate(suggestions, 1) if one["score"] >= ACCEPTED_PROBABILITY]
    else:
        accepted = [] if numbers == "none" else [int(n) for n in numbers.split(",")]
    chosen = [{key: value for key, value in suggestions[n - 1].items() if key != "kind"} for n in accepted]
    if not Path("corrections.json").exists():
        file = {key: document[key] for key in ("format", "fingerprint", "data")}
        Path("corrections.json").write_text(
            json.dumps(file | {"kind": "foldfuse corrections", "corrections": chosen}, indent=1)
        )
    return accepted


def join(steps: Steps, out: str, names: Sequence[str]) -> None:
    """Joins the corrected data with images of `unlabelled`, labelled as AquaTrash has them."""
    whole, labelled = read(SOURCE / "train.json"), Path(f"labelled-{out}")
    samples = [
        replace(s, path=Path("unlabelled") / Path(s.file_name).name, file_name=f"unlabelled/{Path(s.file_name).name}")
        for s in whole
        if Path(s.file_name).name in names
    ]
    write(replace(whole, samples=tuple(samples)), labelled)
    steps.run(f"join data/fixed.json {labelled} --out {out}", out)


def page(steps: Steps, nights: Sequence[str], accepted: Sequence[int], *, by_person: bool) -> str:
    """The results page."""
    suggestions = json.loads(Path("review.json").read_text())["suggestions"]
    first = sum(n <= NUM_LOOKED_AT for n in accepted)
    who = (
        "A person"
        if by_person
        else f"A rule (probability of {ACCEPTED_PROBABILITY:g} and more; no person looked at them)"
    )
    picked = read_next(Path("next"))
    scores = {night: scores_of(night) for night in nights}
    joined = read("joined.json")
    data = (
        f"AquaTrash: {NUM_LABELLED} labelled images, {len(list(Path('unlabelled').iterdir()))} unlabelled ones, and a test set "
        f"of {len(read('data/truth.json'))} images whose annotations are read for the scores alone."
    )
    reviewed = (
        f"* **Review.** {len(suggestions)} suggestions. {who} accepted {first} of the first "
        f"{min(NUM_LOOKED_AT, len(suggestions))}, and {len(accepted)} of all. The page is review.html."
    )
    labelled = (
        f"* **Next.** {len(picked.images)} images picked; the page is next/next.html. The corrected and joined data have "
        f"{len(joined)} images and {joined.num_boxes} boxes."
    )
    ran = [f"| `foldfuse {step['line']}` | {step['seconds']} |" for step in steps.done]
    lines = [
        "# The loop, run once",
        "",
        data,
        "",
        "| command | seconds |",
        "|---|---|",
        *ran,
        "",
        reviewed,
        labelled,
        "",
    ]
    lines += ["| campaign | trained on | out-of-fold score | test AP | test AP50 |", "|---|---|---|---|---|"]
    words = {
        "night1": "labelled",
        "night2": "corrected, and picked by next",
        "night2_random": "corrected, and random ones",
    }
    for night in nights:
        own = scores[night]
        lines.append(f"| {night} | {words[night]} | {own['oof']:.3f} | {own['ap']:.3f} | {own['ap50']:.3f} |")
    return "\n".join(lines) + "\n"


def scores_of(night: str) -> dict[str, float]:
    """The scores of a campaign: out-of-fold, and of its submission on the test set."""
    found = score(Path(night) / "submission.json", "data/truth.json")
    return {"oof": Campaign(Path(night)).score or 0.0, "ap": found.ap or 0.0, "ap50": found.ap50 or 0.0}


if __name__ == "__main__":
    main()
