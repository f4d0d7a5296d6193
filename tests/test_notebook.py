"""The front door in the kernel of a real notebook: train, interrupt, resume, predict, look."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient", reason="the tests' extra 'dev' has nbclient, nbformat and ipykernel")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
pytestmark = pytest.mark.filterwarnings("ignore")  # of jupyter_client and zmq

SOURCE = str(Path(__file__).parents[1] / "src")
TRAIN = "run = ff.train(data, out='run', steps=4, image_size=64, batch_size=2, set={'mosaic': 0})\nrun"
INTERRUPTED = """
import os, signal, threading, time
from pathlib import Path

def stop():  # as the notebook's button does: SIGINT to the kernel
    while not Path("long/checkpoint.pt").exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=stop).start()
ff.train(data, out="long", steps=100_000, image_size=64, batch_size=2, checkpoint_every="1s")
"""
RESUMED = """
steps = max(row["step"] for row in ff.Run("long").log) + 2
ff.train(resume="long", steps=steps).metadata.steps == steps
"""


def run_notebook(folder: Path, cells: list[str]) -> list[list[dict[str, Any]]]:
    """The outputs of each cell; a cell may raise."""
    made = [nbformat.v4.new_code_cell(cell, metadata={"tags": ["raises-exception"]}) for cell in cells]
    notebook = nbformat.v4.new_notebook(cells=made)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    return [cell.outputs for cell in notebook.cells]


def shown(outputs: list[dict[str, Any]], mime: str) -> str:
    """All that a cell shows in one format."""
    return "".join(output["data"].get(mime, "") for output in outputs if "data" in output)


def errors(outputs: list[dict[str, Any]]) -> list[str]:
    return ["\n".join(output["traceback"]) for output in outputs if output["output_type"] == "error"]


@pytest.mark.slow
def test_a_notebook(make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(images=6)
    monkeypatch.setenv("PYTHONPATH", SOURCE)
    cells = {
        "import": "import sys, foldfuse as ff\n'torch' in sys.modules",
        "read": "data = ff.read('train.json')\ndata",
        "wrong": "ff.train('gone.json', out='x')",
        "train": TRAIN,
        "load": "predictor = ff.load(run)\nfound = predictor(data[0].load())\nfound",
        "plot": "found.plot(score_threshold=0)",
        "predict": "predictions = predictor.predict(data)\npredictions",
        "pandas": "predictions.to_pandas().head(3)",
        "score": "ff.score(ff.fuse(predictions, predictions), data)",
        "interrupted": INTERRUPTED,
        "resumed": RESUMED,
    }
    outputs = dict(zip(cells, run_notebook(tmp_path, list(cells.values())), strict=True))
    raised = {name: errors(each) for name, each in outputs.items() if errors(each)}
    assert set(raised) == {"wrong", "interrupted"}, raised
    assert shown(outputs["import"], "text/plain") == "False", "importing is light"
    assert shown(outputs["read"], "text/html").count("data:image/jpeg") == 6
    assert raised["wrong"][0].startswith("InputError: gone.json")
    assert len(raised["wrong"][0].splitlines()) == 1
    assert "lite0" in shown(outputs["train"], "text/html")
    assert any(output["output_type"] == "display_data" for output in outputs["interrupted"]), (
        "a bar, cleared at the end"
    )
    assert shown(outputs["load"], "text/plain").startswith("Detections(")
    assert "data:image/jpeg" in shown(outputs["load"], "text/html")
    assert shown(outputs["plot"], "image/png")
    assert shown(outputs["predict"], "text/plain").startswith("Predictions(6 images")
    assert "<table" in shown(outputs["pandas"], "text/html")
    assert shown(outputs["score"], "text/plain").startswith("Score(AP ")
    assert raised["interrupted"][0].startswith("Interrupted: long: stopped")
    assert "--resume long" in raised["interrupted"][0]
    assert "train(resume='long')" in raised["interrupted"][0]
    assert shown(outputs["resumed"], "text/plain").endswith("True")
