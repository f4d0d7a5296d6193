"""AP after the same time at several image sizes, on datasets with large and with small objects.

    python benchmarks/image_sizes.py --out image_sizes.jsonl --sizes 256 320 416 512 640 --seconds 60 --seeds 0

Each training has its own process, one thread and so many seconds of processor time, so that `--jobs` of them may run side by
side; making the predictions is not counted. A training that is in the results file is not run again. Where the datasets
come from: `trainings.py`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rows import read_rows
from trainings import Row, datasets, train_and_score

DATA = ("bccd", "aquatrash", "playing_cards")
GRIDS = tuple(f"{name}_2x2" for name in DATA)
KEY = ("data", "image_size", "seconds", "seed", "changes")


def main() -> None:
    """Run what is not there yet; print the table of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("image_sizes.jsonl"))
    parser.add_argument("--data", nargs="+", default=[*DATA, *GRIDS])
    parser.add_argument("--sizes", nargs="+", default=["256", "320", "416", "512", "640"], help="pixels, or auto")
    parser.add_argument("--seconds", type=float, nargs="+", default=[60])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", nargs="*", default=[], dest="changes", metavar="NAME=VALUE")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--worker", help="a training as JSON: run it in this process, and print its row")
    asked = parser.parse_args()
    if asked.worker:
        print(json.dumps(worker(json.loads(asked.worker))))
        return
    done = {json.dumps([row[key] for key in KEY]) for row in read_rows(asked.out)}
    keys = [
        dict(zip(KEY, (name, size, seconds, seed, list(asked.changes)), strict=True))
        for seed, seconds, name, size in itertools.product(asked.seeds, asked.seconds, asked.data, asked.sizes)
    ]
    for name, seed in sorted({(key["data"], key["seed"]) for key in keys}):
        datasets(name, seed)  # grids are written by one process
    lock = threading.Lock()

    def run(key: Row) -> None:
        env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, __file__, "--worker", json.dumps(key)]
        shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
        with lock, asked.out.open("a") as file:
            file.write(shown.splitlines()[-1] + "\n")
            print(shown.splitlines()[-1], file=sys.stderr, flush=True)

    with ThreadPoolExecutor(asked.jobs) as pool:
        list(pool.map(run, [key for key in keys if json.dumps(list(key.values())) not in done]))
    print(table(read_rows(asked.out)))


def worker(key: Row) -> Row:
    """Run one training: its key with what `train_and_score` returns."""
    from foldfuse.system import host

    host.tune_malloc()
    import torch

    from foldfuse.recipes import load_recipe
    from foldfuse.training.budget import Budget

    torch.set_num_threads(1)
    data, held_out = datasets(key["data"], key["seed"])
    recipe = load_recipe("lite0_fpn", [f"image_size={key['image_size']}", *key["changes"]])
    budget = Budget(seconds=key["seconds"], clock=time.process_time)
    found = train_and_score(data, held_out, recipe, budget, seed=key["seed"])
    return key | {"trained_at" if name == "image_size" else name: value for name, value in found.items()}


def table(rows: list[Row]) -> str:
    """A Markdown table: for each dataset and time the mean AP over the seeds, a column for each size."""
    sizes = sorted({row["image_size"] for row in rows}, key=lambda size: (size == "auto", size))
    lines = [f"| data | seconds | changes | {' | '.join(sizes)} |", "|" + "---|" * (3 + len(sizes))]
    kinds = dict.fromkeys((row["data"], row["seconds"], " ".join(row["changes"])) for row in rows)
    for name, seconds, changes in kinds:
        cells = []
        for size in sizes:
            mine = [
                row
                for row in rows
                if (row["data"], row["seconds"], " ".join(row["changes"]), row["image_size"])
                == (name, seconds, changes, size)
            ]
            count = len(mine)
            ap, steps = (sum(row[key] for row in mine) / count if mine else 0.0 for key in ("ap", "steps_made"))
            cells.append(f"{ap:.3f} ({steps:.0f}; {count})" if mine else "")
        lines.append(f"| {name} | {seconds:g} | {changes} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
