"""A run made on one kind of device is resumed and predicted on another: what its files hold of a card does no harm elsewhere."""

from __future__ import annotations

import json

import torch

from foldfuse.commands.predict import predict
from foldfuse.commands.train import train
from foldfuse.data.readers.coco import read
from foldfuse.formats.predictions import read_predictions
from foldfuse.storage.run import Run
from learning_samples import write_dataset

SMALL = ("image_size=64", "batch_size=2")
SCALER = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 3}


def test_a_run_of_a_card_with_float16_goes_on_on_a_cpu(tmp_path):
    data = write_dataset(tmp_path / "d", 6)
    run = Run(train(data, out=tmp_path / "run", changes=SMALL, steps=2))
    # What a card without bfloat16 leaves in the files: its random state, the scaler of the loss, and float16.
    state, _ = run.load_checkpoint()
    state["rng"][0]["cuda"] = torch.zeros(16, dtype=torch.uint8)
    run.save_checkpoint(state | {"scaler": SCALER})
    facts = json.loads((run.folder / "run.json").read_text())
    facts |= {"trained_on": "cuda", "device": "auto"}
    facts["compute"] |= {"precision": "float16"}
    (run.folder / "run.json").write_text(json.dumps(facts))

    train(resume=run.folder, steps=4, device="cpu")
    assert run.metadata.trained_on == "cpu"
    assert [row["step"] for row in run.log] == [0, 1, 2, 3]
    predict(run.folder, data, out=tmp_path / "a.parquet", all_=True, device="cpu")
    assert len(read_predictions(tmp_path / "a.parquet", read(data))) == 6
