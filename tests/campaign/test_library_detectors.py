"""Campaigns with a detector of torchvision or transformers: killed, moved from a card to a CPU, resumed, and finished."""

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

SMALL = ("image_size=64", "batch_size=2", "init_weights=none", "frozen_stages=0", "lr=1e-4")


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "foldfuse", "campaign", *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ssdlite320", "dfine_n"])
def test_killed_on_a_card_it_is_resumed_on_a_cpu_and_finishes(recipe, tmp_path):
    pytest.importorskip("transformers", reason="pip install 'foldfuse[transformers]' brings it")
    data, out = write_dataset(tmp_path / "d", 16), tmp_path / "out"
    test = write_dataset(tmp_path / "t", 4, seed=9)
    changes = [word for change in SMALL for word in ("--set", change)]
    process = start(
        data, "--test", test, "--deadline", "120s", "--out", out, "--folds", "3", "--recipe", recipe, *changes
    )
    try:
        while not list(out.glob("members/*/checkpoint.pt")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    for file in out.glob("members/*/checkpoint.pt"):
        as_from_a_card(Run(file.parent), "bfloat16")
    facts = ledgers.snapshot(out)
    with closing(ledgers.resume(out, start=time.monotonic())) as ledger:
        ledger.set(
            request=facts["request"] | {"device": "cuda"},
            device="cuda",
            machine=facts["machine"] | {"device": "a card"},
        )

    refused = start("--resume", out)
    assert "finds no CUDA device here" in refused.communicate()[1]
    assert refused.returncode == 2
    process = start("--resume", out, "--device", "cpu")
    error = process.communicate()[1]
    assert process.returncode == 0, error
    facts = json.loads((out / "campaign.json").read_text())
    assert (facts["state"], facts["device"], facts["resumed"]) == ("finished", "cpu", 1)
    assert {row["recipe"]["detector"] for row in facts["segments"] if row["state"] == "done"} == {recipe}
    assert facts["submissions"] >= 1
    validate_submission(out / "submission.csv", read(test, annotated=False))
