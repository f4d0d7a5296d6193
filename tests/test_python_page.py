"""The examples of docs/python.md run, one after another."""

import re
from pathlib import Path

import example_lines

TEXT = (Path(__file__).parent.parent / "docs" / "python.md").read_text(encoding="utf-8")


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    example_lines.make_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    images = sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / "data").rglob("*.[jp][pn]g"))
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(compile(code.replace("data/images/0.jpg", images[0]), "python.md", "exec"), names)
    assert capsys.readouterr().out.startswith("Dataset(")
    assert (tmp_path / "first.png").exists()
    assert (tmp_path / "found.png").exists()
    assert (tmp_path / "fused.parquet").exists()
