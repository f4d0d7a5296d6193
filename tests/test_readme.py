"""The README names every file of the package, and every command."""

from pathlib import Path

from foldfuse.cli import COMMANDS

ROOT = Path(__file__).parent.parent


def test_every_module_is_named():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [path.name for path in (ROOT / "src" / "foldfuse").rglob("*.py") if f" {path.name}" not in text]
    assert not missing, f"the README does not say what these are: {', '.join(missing)}"


def test_every_command_is_named():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in COMMANDS if f"| `{name}` |" not in text]
