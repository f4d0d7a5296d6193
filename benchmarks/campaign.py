"""What campaigns reach: runs `foldfuse campaign` and scores what it leaves on pictures whose answers it never read.

    python benchmarks/campaign.py bccd aquatrash playing_cards --seeds 0 1 2 --deadline 10m --out runs

DATA folders (train.json, val.json) are looked for in $FOLDFUSE_SHARED/data or ../shared/data. A finished campaign in the
output folder is scored and not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from foldfuse.data import read
from foldfuse.formats import read_predictions
from foldfuse.score import score_predictions

ROOT = Path(os.environ.get("FOLDFUSE_SHARED", Path(__file__).parents[2] / "shared")) / "data"


def main() -> None:
    """Run what is not there yet; print a row for each campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--deadline", default="10m")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    asked = parser.parse_args()
    print("| data | seed | AP50 | AP | out-of-fold AP50 | seconds | peak MB |")
    print("|---|---|---|---|---|---|---|")
    for name in asked.names:
        for seed in asked.seeds:
            folder = asked.out / f"{name}-{seed}"
            wall = run(name, seed, asked.deadline, folder) if not (folder / "submission.json").is_file() else None
            facts = json.loads((folder / "campaign.json").read_text(encoding="utf-8"))
            truth = read(ROOT / name / "val.json")
            score = score_predictions(read_predictions(folder / "submission.json", truth), truth)
            seconds = facts["seconds_used"] if wall is None else wall
            print(
                f"| {name} | {seed} | {score.ap50:.3f} | {score.ap:.3f} | {facts['fused']['ap50']:.3f} | {seconds:.0f} | "
                f"{facts['peak_memory_mb']} |",
                flush=True,
            )


def run(name: str, seed: int, deadline: str, folder: Path) -> float:
    """Run one campaign; the seconds of the whole process come back."""
    start = time.monotonic()
    command = [sys.executable, "-m", "foldfuse.cli", "campaign", str(ROOT / name / "train.json")]
    command += ["--test", str(ROOT / name / "val.json"), "--deadline", deadline, "--seed", str(seed)]
    subprocess.run([*command, "--out", str(folder)], check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


if __name__ == "__main__":
    main()
