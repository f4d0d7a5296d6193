"""The notebooks in examples/ run in a fresh kernel from the first cell to the last, and hold the outputs of one run or none."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="pip install 'foldfuse[dev]' brings nbformat, nbclient and ipykernel")

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples").glob("*.ipynb"))
MAX_BYTES = 500_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_small_and_holds_the_outputs_of_one_run_or_none(path):
    assert path.stat().st_size < MAX_BYTES
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in cells]
    assert counts in (list(range(1, len(cells) + 1)), [None] * len(cells))
    assert not [out for cell in cells for out in cell.outputs if out.output_type == "error"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of jupyter_client and zmq
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib", reason="pip install 'foldfuse[examples]' brings it")
    monkeypatch.setenv("FOLDFUSE_QUICK", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent / "src"))
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    if path.stem == "apply_and_explore":
        campaign = tmp_path / "work" / "night1"
        assert (campaign / "submission.csv").is_file()
        assert "Submission" in (campaign / "report.html").read_text(encoding="utf-8")
        assert (tmp_path / "work" / "errors.html").is_file()
