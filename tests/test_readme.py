"""The README names every command."""

from pathlib import Path

from foldfuse.cli import COMMANDS

ROOT = Path(__file__).parent.parent


def test_every_command_is_named():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in COMMANDS if f"| `{name}` |" not in text]
