"""fetch fills the cache and shows what lies there; --offline tries no network."""

import pytest

from foldfuse import cli
from foldfuse.commands import fetch as command
from foldfuse.system import offline


def test_fetch_shows_file_size_licence_and_place(monkeypatch, tmp_path, capsys):
    (tmp_path / "w.safetensors").write_bytes(b"0" * 1_500_000)
    monkeypatch.setattr(command, "locate", lambda weights, *, offline: tmp_path / "w.safetensors")
    monkeypatch.setattr(command, "_fetch_card", lambda repository: None)
    monkeypatch.setenv("COLUMNS", "400")
    assert cli.main(["fetch", "efficientdet_d0", "timm:convnextv2_atto.fcmae", "lite0_fpn"]) == 0
    out, err = capsys.readouterr()
    assert "1.5" in out
    assert "cc-by-nc-4.0" in out
    assert "comes with the package" in out
    assert "under the licence cc-by-nc-4.0" in err


def test_without_a_network_fetch_is_a_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert cli.main(["fetch", "efficientdet_d0", "--offline"]) == 2
    assert "a download is not allowed (offline)" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["fetch", "nothing"], ["fetch", "lite0_fpn", "--init", "x"]])
def test_what_does_not_exist_is_a_sentence(words, capsys):
    assert cli.main(words) == 2
    assert "error: " in capsys.readouterr().err


def test_offline_reaches_the_hub(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv(offline.VARIABLE, "0")
    assert not offline.is_offline()
    offline.go_offline()
    assert offline.is_offline()
    assert constants.HF_HUB_OFFLINE
