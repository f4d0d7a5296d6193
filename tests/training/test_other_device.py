"""A run made on one kind of device is resumed and predicted on another: what its files hold of a card does no harm elsewhere."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from card_samples import as_from_a_card
from foldfuse.commands.evaluate import evaluate
from foldfuse.commands.predict import predict
from foldfuse.commands.train import train
from foldfuse.data.readers.coco import read
from foldfuse.formats.predictions import read_predictions
from foldfuse.inference.bundle_writer import write_bundle
from foldfuse.storage.run import Run
from learning_samples import write_dataset

SMALL = ("image_size=64", "batch_size=2")


def test_what_a_card_saves_is_tagged_with_it(tmp_path):
    run = Run(train(write_dataset(tmp_path / "d", 6), out=tmp_path / "run", changes=SMALL, steps=1))
    as_from_a_card(run)
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(run.folder / "checkpoint.pt", weights_only=True)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_run_of_a_card_goes_on_and_predicts_on_a_cpu(tmp_path, precision):
    data = write_dataset(tmp_path / "d", 6)
    run = Run(train(data, out=tmp_path / "run", changes=SMALL, steps=2))
    as_from_a_card(run, precision)
    predict(run.folder, data, out=tmp_path / "before.parquet", all_=True, device="cpu")

    train(resume=run.folder, steps=4, device="cpu")
    assert run.metadata.trained_on == "cpu"
    assert [row["step"] for row in run.log] == [0, 1, 2, 3]
    predict(run.folder, data, out=tmp_path / "a.parquet", all_=True, device="cpu")
    before, after = (read_predictions(tmp_path / f"{name}.parquet", read(data)) for name in ("before", "a"))
    assert len(before) == len(after) == 6
    assert not np.array_equal(before.scores, after.scores), "the training went on"


def test_a_run_of_a_card_is_evaluated_bundled_and_started_from_on_a_cpu(tmp_path):
    data = write_dataset(tmp_path / "d", 6)
    run = Run(train(data, out=tmp_path / "run", changes=SMALL, steps=2))
    as_from_a_card(run)
    assert evaluate(
        run.folder, write_dataset(tmp_path / "e", 4, seed=9), out=tmp_path / "e.html", device="cpu"
    ).is_file()
    write_bundle(run.folder, tmp_path / "run.zip")
    predict(tmp_path / "run.zip", data, out=tmp_path / "b.parquet", all_=True)
    assert len(read_predictions(tmp_path / "b.parquet", read(data))) == 6
    other = Run(train(data, out=tmp_path / "other", init_from=run.folder, steps=1, device="cpu"))
    assert other.metadata.trained_on == "cpu"


def test_a_run_of_a_cpu_looks_the_same_to_a_card(tmp_path):
    run = Run(train(write_dataset(tmp_path / "d", 6), out=tmp_path / "run", changes=SMALL, steps=1))
    state, _ = run.load_checkpoint()
    assert "cuda" not in state["rng"][0], "a card then keeps its own random state"
    assert not state["scaler"], "a card then begins with a new one"
    facts = json.loads((run.folder / "run.json").read_text())
    assert facts["compute"]["precision"] == "float32"
