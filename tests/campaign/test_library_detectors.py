"""A campaign with detectors of torchvision and transformers: killed, moved from a card to a CPU, resumed, and finished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest

from card_samples import as_from_a_card
from foldfuse.data.readers.coco import read
from foldfuse.formats.submission import validate_submission
from foldfuse.storage import ledger as ledgers
from foldfuse.storage.run import Run
from learning_samples import write_dataset

# A short campaign trains two base runs only if it may compare them after a few steps.
QUICK = """
import sys
from foldfuse.campaign import constants as c
c.COMPARE_DEADLINE, c.MIN_COMPARED_STEPS, c.MIN_SEGMENT_SECONDS = 0.0, 1, 0.1
from foldfuse import cli
sys.exit(cli.main(["campaign", *sys.argv[1:]]))
"""
RECIPES = ("ssdlite320", "dfine_n")
SMALL = ("image_size=64", "batch_size=2", "init_weights=none", "frozen_stages=0")


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-c", QUICK, *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def detectors(facts, state):
    """The detectors of the segments in a state."""
    return {row["recipe"]["detector"] for row in facts["segments"] if row["state"] == state}


@pytest.mark.slow
def test_killed_on_a_card_it_is_resumed_on_a_cpu_and_ends_with_members_of_both(tmp_path):
    pytest.importorskip("transformers", reason="pip install 'foldfuse[transformers]' brings it")
    data, out = write_dataset(tmp_path / "d", 16), tmp_path / "out"
    test = write_dataset(tmp_path / "t", 4, seed=9)
    changes = [word for change in SMALL for word in ("--set", change)]
    process = start(
        data,
        "--test",
        test,
        "--deadline",
        "100s",
        "--out",
        out,
        "--folds",
        "3",
        "--recipe",
        ",".join(RECIPES),
        *changes,
    )
    try:
        facts = {"segments": []}
        while not (detectors(facts, "done") and [row for row in facts["segments"] if row["state"] != "done"]):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
            facts = ledgers.snapshot(out) if (out / ledgers.NAME).exists() else facts
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = {row["name"]: row["ended"] for row in facts["segments"] if row["state"] == "done"}
    for folder in (out / "members").iterdir():
        if (folder / "checkpoint.pt").is_file():
            as_from_a_card(Run(folder), "bfloat16")
    request = facts["request"] | {"device": "cuda"}
    with closing(ledgers.resume(out, start=time.monotonic())) as ledger:
        ledger.set(request=request, device="cuda", machine=facts["machine"] | {"device": "a card"})

    refused = start("--resume", out)
    assert "finds no CUDA device here" in refused.communicate()[1]
    assert refused.returncode == 2
    process = start("--resume", out, "--device", "cpu")
    error = process.communicate()[1]
    assert process.returncode == 0, error
    facts = json.loads((out / "campaign.json").read_text())
    assert (facts["state"], facts["device"], facts["resumed"]) == ("finished", "cpu", 1)
    assert detectors(facts, "done") == set(RECIPES)
    ended = {row["name"]: row["ended"] for row in facts["segments"]}
    assert {name: ended[name] for name in done} == done, "what was done is not trained again"
    assert facts["submissions"] >= 1
    validate_submission(out / "submission.csv", read(test, annotated=False))
