"""benchmarks/gpu.py measures and writes its page on a CPU too."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import gpu
import gpu_step
from gpu_commands import run_commands


def test_speeds_are_measured_and_written(tmp_path, capsys):
    words = ["--device", "cpu", "--small", "--no-commands", "--networks", "lite0_fpn", "--out", str(tmp_path)]
    gpu.main(words)
    result = json.loads((tmp_path / "gpu.json").read_text())
    (row,) = result["speeds"]
    assert row["network"] == "lite0_fpn"
    assert row["loading"] > 0
    assert row["prediction"] > 0
    assert set(row["training"]) == {"default", "plain"}
    for numbers in row["training"].values():
        assert numbers["images_per_second"] > 0
        assert 0 <= numbers["waiting"] <= 1
    shown = (tmp_path / "gpu.md").read_text()
    assert "| lite0_fpn | 64 | 2 |" in shown
    assert "gpu: all good" in capsys.readouterr().out


def test_a_failure_of_one_training_is_a_row_of_the_page():
    training = {"plain": {"failed": "OutOfMemoryError: CUDA out of memory"}}
    row = {"network": "a", "px": 640, "batch": 8, "loading": 1.0, "prediction": 2.0, "training": training}
    machine = {"device": "Tesla T4", "cpu": "c", "cores": 4, "torch": "2", "foldfuse": "0"}
    speeds = [row, {"network": "dfine_n", "failed": "transformers is not installed."}]
    commands = [{"command": "train", "on": "cuda", "seconds": 1.0}]
    result = {"quick": True, "machine": machine, "speeds": speeds, "commands": commands, "boxes_as_on_the_cpu": 0.995}
    shown = gpu.page(result)
    assert "| plain | OutOfMemoryError: CUDA out of memory |" in shown
    assert "transformers is not installed." in shown
    assert "99.50% of the boxes are those of the CPU." in shown


@pytest.mark.slow
def test_every_command_runs_and_computes_where_it_should(tmp_path):
    facts = run_commands("cpu", tmp_path, quick=True)
    assert not [row for row in facts["commands"] if "failed" in row]
    assert facts["boxes_as_on_the_cpu"] == 1
    assert [row["command"] for row in facts["commands"]][:2] == ["demo", "train"]


def test_the_parts_of_a_step_are_measured(tmp_path):
    words = ["--device", "cpu", "--small", "--networks", "lite0_fpn", "--out", str(tmp_path / "step.json")]
    gpu_step.main(words)
    (row,) = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert set(row["first step"]) == {"forward", "loss", "backward", "depthwise", "1x1", "dense"}
    assert row["milliseconds"]["whole step"] > row["milliseconds"]["forward"] > 0
