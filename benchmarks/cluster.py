"""The gain of a campaign from a second node: one process on one core against a Ray cluster of two nodes with one CPU each.

    python benchmarks/cluster.py --data bccd/train.json --test bccd/val.json --deadline 10m --out cluster.md

Same data, same deadline, same seed. The nodes are processes on this machine, each with one CPU for its worker, beside a
head that trains nothing; the campaign's own process searches ensembles and predicts the test images beside them. Without
--data, the drawn demo. Needs foldfuse[ray] and two idle cores.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foldfuse.demo.synthetic import make_dataset
from foldfuse.storage import ledger
from foldfuse.storage.run import Run
from foldfuse.system import host


@dataclass(frozen=True)
class Measured:
    """Measurements of a campaign.

    Attributes:
        segments: finished segments.
        steps, images: that these trained on, in all.
        trained: seconds of training of all segments.
        phase: seconds from the start of the first training to the end of the last.
        best, fused: AP50 on the held-out images, of the best member in one view and of the submission.
        elapsed: seconds of the whole campaign.
    """

    segments: int
    steps: int
    images: int
    trained: float
    phase: float
    best: float
    fused: float
    elapsed: float


def main() -> None:
    """Runs the campaigns one after the other, and writes a page on them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--deadline", default="10m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--more", default="", help="further words for both campaigns, such as '--recipe lite0_fpn'")
    parser.add_argument("--work", type=Path, help="folder to make for the campaigns; a temporary one by default")
    parser.add_argument("--out", type=Path, default=Path("cluster.md"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        words = [
            str(arguments.data or make_dataset(work / "data", num_images=60, num_test_images=20, seed=arguments.seed))
        ]
        words += ["--test", str(arguments.test)] if arguments.test else []
        words += ["--deadline", arguments.deadline, "--seed", str(arguments.seed), *shlex.split(arguments.more)]
        alone = campaign(work / "alone", words, cores=1)
        with two_nodes() as address:
            both = campaign(work / "both", [*words, "--ray", address], cores=None)
    text = page(alone, both, shlex.join(["python", *sys.argv]))
    arguments.out.write_text(text, encoding="utf-8")
    print(text)


def campaign(out: Path, words: Sequence[str], *, cores: int | None) -> Measured:
    """Runs a campaign in a process limited to `cores` of this process's cores; None for all."""
    usable = sorted(os.sched_getaffinity(0))
    subprocess.run(
        [sys.executable, "-m", "foldfuse", "campaign", *words, "--out", str(out)],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, usable[:cores]),
    )
    return measured(out, ledger.snapshot(out))


def measured(out: Path, facts: Mapping[str, Any]) -> Measured:
    """Measurements from the ledger and the run folders of a campaign."""
    runs = {row["name"]: Run(out / "members" / row["name"]) for row in facts["segments"] if row["state"] == "done"}
    spans = [span for span in facts["timeline"] if span["kind"] == "train"]
    steps = {name: run.metadata.steps for name, run in runs.items()}
    return Measured(
        segments=len(runs),
        steps=sum(steps.values()),
        images=sum(steps[name] * run.recipe.batch_size for name, run in runs.items()),
        trained=sum(run.metadata.seconds for run in runs.values()),
        phase=max(span["end"] or facts["seconds_used"] for span in spans) - min(span["start"] for span in spans),
        best=max(member["ap50"] for member in facts["members"]),
        felapsed=facts["fused"]["ap50"],
        elapsed=facts["seconds_used"],
    )


@contextmanager
def two_nodes() -> Iterator[str]:
    """Yields the address of a cluster of two nodes with one CPU each."""
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }  # else 15, and other processes go first
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster.address
    finally:
        cluster.shutdown()


def page(alone: Measured, both: Measured, command: str) -> str:
    """The two side by side, as Markdown."""
    rows: dict[str, Callable[[Measured], str]] = {
        "segments trained": lambda m: f"{m.segments}",
        "steps of training": lambda m: f"{m.steps}",
        "steps a second of the training phase": lambda m: f"{m.steps / m.phase:.2f}",
        "images a second of the training phase": lambda m: f"{m.images / m.phase:.1f}",
        "workers in training, on average": lambda m: f"{m.trained / m.phase:.2f}",
        "images a second of a worker in training": lambda m: f"{m.images / m.trained:.1f}",
        "AP50 out-of-fold, best member": lambda m: f"{m.best:.3f}",
        "AP50 out-of-fold, submitted": lambda m: f"{m.fused:.3f}",
        "seconds of the campaign": lambda m: f"{m.elapsed:.0f}",
    }
    gain = both.images / both.phase / (alone.images / alone.phase)
    lines = [
        "# A campaign on two nodes",
        "",
        f"`{command}` on {time.strftime('%Y-%m-%d')}; one run each.",
        "The training phase is from the start of the first training to the end of the last one.",
        "",
        "| | one process, one core | two nodes, one CPU each |",
        "|---|---|---|",
        *(f"| {name} | {value(alone)} | {value(both)} |" for name, value in rows.items()),
        "",
        f"The two nodes trained on {gain:.2f} times as many images a second of the training phase.",
        "",
        f"Machine: {', '.join(f'{name} {value}' for name, value in host.describe().items())}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
