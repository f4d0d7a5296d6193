"""A campaign exported as ONNX predicts what the campaign predicts, where torch is not installed."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch

from foldfuse import cli
from foldfuse.data.pixels import open_images
from foldfuse.data.readers.coco import read
from foldfuse.ensemble.ensemble import Ensemble
from foldfuse.errors import InputError
from foldfuse.formats.predictions import read_predictions
from foldfuse.inference import bundle, onnx_export
from foldfuse.inference.bundle_writer import write_bundle
from foldfuse.inference.onnx_bundle import write_onnx_bundle
from foldfuse.inference.predictor import load
from foldfuse.models import make_detector
from foldfuse.recipes import Recipe
from foldfuse.storage.run import Run, RunMetadata
from submission_samples import crop_rescorer, make_run, members_of, open_campaign, submit

WITHOUT_TORCH = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "transformers", "openvino"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
from foldfuse import cli

status = cli.main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(status)
"""


@pytest.fixture(autouse=True)
def packages():
    for name in onnx_export.PACKAGES:
        pytest.importorskip(name, reason="pip install 'foldfuse[export]' brings it")
    logging.disable(logging.DEBUG)  # torch traces in hundreds of thousands of records, which pytest would keep
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
def test_an_exported_campaign_predicts_its_submission_without_torch(tmp_path, monkeypatch, capsys):
    made = make_run(tmp_path / "made")
    ensemble = Ensemble({"base@1": 2.0, "base@1+hflip": 1.0, "base@1.5": 1.0}, score_exponents={"base@1.5": 2.0})
    with open_campaign(made, tmp_path / "campaign1") as (task, ledger):
        members = members_of(ledger)
        submit(task, ledger, members, ensemble, 0.4, {"rescoring": {"accepted": True}}, crop_rescorer())
        submitted = read_predictions(ledger.folder / "fused_test.parquet", task.test)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", "campaign1", "--out", "c.zip"]) == 0
    assert "c.zip: 1 network, " in capsys.readouterr().out
    assert bundle.read_bundle_record(tmp_path / "c.zip").runtime == "onnx"
    words = ["predict", "c.zip", str(made / "t"), "--out", "onnx.parquet", "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = read_predictions(tmp_path / "onnx.parquet", open_images(read(made / "t", annotated=False)))
    assert found.offsets.tolist() == submitted.offsets.tolist()
    np.testing.assert_allclose(found.boxes, submitted.boxes, atol=0.01)
    difference = np.abs(found.scores - submitted.scores)
    # The crop rescorer's random weights enlarge rounding: on one processor one score of 874 differs by 1.3e-4.
    assert (difference > 1e-4).mean() <= 0.005
    assert difference.max() < 2e-3
    assert found.labels.tolist() == submitted.labels.tolist()
    predictor = load(tmp_path / "c.zip", device="cpu")
    assert repr(predictor) == repr(load(tmp_path / "campaign1", device="cpu"))
    assert len(predictor.learnt_ids(open_images(read(made / "d")))) == 8
    with pytest.raises(InputError, match="a bundle as it is"):
        write_bundle(tmp_path / "c.zip", tmp_path / "again.zip")
    with pytest.raises(InputError, match="is exported already"):
        write_onnx_bundle(tmp_path / "c.zip", tmp_path / "again.zip")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main([*words, "--overwrite"]) == 2
    assert "Give the command without torchrun" in capsys.readouterr().err


@pytest.mark.slow
def test_an_exported_run_keeps_its_views_and_its_learnt_images(tmp_path):
    made = make_run(tmp_path / "made")
    write_onnx_bundle(made / "run", tmp_path / "run.zip")
    zipped, run = (load(path, device="cpu", engine="eager") for path in (tmp_path / "run.zip", made / "run"))
    found, expected = (each.predict(made / "t", views=["1", "1.5+hflip"]) for each in (zipped, run))
    assert found.offsets.tolist() == expected.offsets.tolist()
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    data = open_images(read(made / "d"))
    assert zipped.learnt_ids(data) == run.learnt_ids(data) != frozenset()


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    run = Run.create(tmp_path / "run", Recipe("ssdlite320", image_size=320), RunMetadata(("a",), (1,)))
    run.save_weights(make_detector("ssdlite320", 1, pretrained=False).state_dict())

    def fail(*_, **__):
        raise torch.onnx.errors.OnnxExporterError("an odd operation")

    monkeypatch.setattr(torch.onnx, "export", fail)
    for words, message in (
        ("run --out run.zip", "cannot be written as ONNX (an odd operation). Export another detector"),
        ("run --out run.onnx", "or use 'foldfuse bundle'"),
        ("run --out run.zip --fixed-size", "a zip holds files for images of any size"),
        ("e.json --out e.onnx", "Give --out e.zip"),
        ("run --out run.pt", "must end in .onnx or .zip"),
        ("gone --out gone.zip", "there is nothing of that name"),
    ):
        assert cli.main(["export", *words.split()]) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
