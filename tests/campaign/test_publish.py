"""What is published predicts the same everywhere, tells nothing of this machine and runs no code. The hub is a local server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import constants

import foldfuse
from foldfuse import cli
from foldfuse.campaign.campaign_folder import Campaign
from foldfuse.ensemble.ensemble import Ensemble
from foldfuse.errors import InputError
from foldfuse.inference import hub as module
from foldfuse.inference.bundle_writer import write_bundle
from foldfuse.inference.hub import find_published
from foldfuse.inference.predictor import load
from foldfuse.inference.publishing import without_folders
from hub_samples import Repository, connected
from submission_samples import crop_rescorer, make_run, members_of, open_campaign, submit

ENSEMBLE = Ensemble({"base@1": 2.0, "base@1+hflip": 1.0})
FUSED = {"metric": "ap50", "value": 0.4, "nested": 0.38, "ap": 0.2, "ap50": 0.4, "per_class": []}
NAME = "anna/litter"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def campaign(made):
    with open_campaign(made, made / "campaign1") as (task, ledger):
        facts = {"fused": FUSED, "folds": [0], "rescoring": {"accepted": True}}
        submit(task, ledger, members_of(ledger), ENSEMBLE, 0.4, facts, crop_rescorer())
        return ledger.folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with nothing in it, an empty cache, and a token."""
    with connected(monkeypatch, tmp_path) as state:
        yield state


def same(found, expected):
    assert len(expected.boxes)
    for name in ("image_ids", "offsets", "boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def card_of(text: str) -> tuple[dict, str]:
    """The metadata and the body of a model card."""
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_a_campaign_is_published_and_predicts_the_same(made, campaign, hub, tmp_path, capsys):
    assert cli.main(["publish", str(campaign), NAME, "--licence", "cc-by-4.0"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == f"{hub.endpoint}/{NAME}"
    assert f"foldfuse predict hf:{NAME} IMAGES" in err
    files = hub.repositories[NAME].revisions[-1]
    assert not [name for name in files if not name.endswith((".json", ".safetensors", ".md", "LICENSE", "NOTICE"))][1:]
    metadata, body = card_of(files["README.md"].decode())
    assert metadata == {
        "library_name": "foldfuse",
        "pipeline_tag": "object-detection",
        "license": "cc-by-4.0",
        "tags": ["foldfuse", "object-detection"],
    }
    assert f'ff.load("hf:{NAME}")' in body
    assert "| AP50 | 0.400 |" in body
    assert "| AP50, nested cross-validation | 0.380 |" in body
    assert "red, blue." in body
    assert "Apache-2.0" in body
    predictor = foldfuse.load(f"hf:{NAME}", device="cpu", engine="eager")
    assert str(predictor.source) == f"hf:{NAME}"
    expected = load(Campaign(campaign), device="cpu", engine="eager").predict(made / "t")
    same(predictor.predict(made / "t"), expected)
    words = ["predict", f"hf:{NAME}", str(made / "t"), "--out", str(tmp_path / "p.parquet"), "--device", "cpu"]
    assert cli.main([*words, "--score-threshold", "best"]) == 0
    assert cli.main([*words, "--overwrite", "--offline"]) == 0


def test_nothing_of_this_machine_is_published(made, campaign, tmp_path):
    for source, folder in (
        (campaign, "a"),
        (made / "run", "b"),
        (write_bundle(campaign, tmp_path / "c.zip").path, "c"),
    ):
        assert cli.main(["publish", str(source), NAME, "--dry-run", str(tmp_path / folder)]) == 0
        texts = [p for p in (tmp_path / folder).rglob("*") if p.suffix in (".json", ".md")]
        assert len(texts) >= 6
        for path in texts:
            for secret in (str(made), str(Path.home()), "foldfuse train"):
                assert secret not in path.read_text(), path
        load(tmp_path / folder, device="cpu")


def test_a_dry_run_needs_no_hub_and_replaces_nothing(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "require_hub", lambda: pytest.fail("the hub was asked"))
    words = ["publish", str(made / "run"), NAME, "--dry-run", str(tmp_path / "card")]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "card")
    assert "license" not in card_of((tmp_path / "card" / "README.md").read_text())[0]
    assert cli.main(words) == 2
    assert cli.main([*words[:3], "--dry-run", str(made / "run")]) == 2
    for wrong in ("litter", "a/b/c", "anna/../x", "-a/b"):
        assert cli.main([*words[:2], wrong, "--dry-run", str(tmp_path / "x")]) == 2
    assert cli.main([*words[:3], "--licence", "My own!"]) == 2
    assert "expected the name of a licence" in capsys.readouterr().err


def test_a_run_brings_its_held_out_scores_and_is_evaluated(made, hub, tmp_path, monkeypatch, capsys):
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    assert cli.main(["evaluate", str(run), "--device", "cpu"]) == 0
    assert cli.main(["publish", str(run), NAME]) == 0
    body = card_of(hub.repositories[NAME].revisions[-1]["README.md"].decode())[1]
    assert "held-out images with" in body
    assert "which the run has not learnt from" in body
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert cli.main(["evaluate", f"hf:{NAME}", "--device", "cpu"]) == 2
    assert "the images that it held out were not published" in capsys.readouterr().err
    words = ["evaluate", f"hf:{NAME}", str(made / "d"), "--device", "cpu"]
    assert cli.main(words) == 0
    assert "has learnt from 4 of the 8 images" in capsys.readouterr().err
    assert (tmp_path / "evaluation.html").is_file()
    assert cli.main(words) == 2


def test_evaluate_refuses_a_published_campaign(campaign, hub, capsys):
    assert cli.main(["publish", str(campaign), NAME]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", f"hf:{NAME}", "x"]) == 2
    assert "is the bundle of a campaign, and evaluate takes a run" in capsys.readouterr().err


def test_a_second_publication_is_a_new_revision(made, campaign, hub):
    assert cli.main(["publish", str(campaign), NAME, "--private"]) == 0
    repository = hub.repositories[NAME]
    assert repository.private
    first = repository.sha()
    assert cli.main(["publish", str(made / "run"), NAME]) == 0
    files = repository.revisions[-1]
    assert "ensemble.json" not in files
    assert "members/base/run.json" not in files
    assert "members/run/weights.safetensors" in files
    assert len(load(f"hf:{NAME}", device="cpu").runs) == 1
    assert load(f"hf:{NAME}@{first}", device="cpu").noun == "campaign"
    with pytest.raises(InputError, match=r"has no such revision\. Leave out @v9"):
        load(f"hf:{NAME}@v9", device="cpu")


def test_no_code_and_no_other_file_is_downloaded(campaign, hub, tmp_path):
    assert cli.main(["publish", str(campaign), NAME]) == 0
    evil = {"sitecustomize.py": b"1", "predict.py": b"1", "members/base/evil.bin": b"1", "model.pt": b"1"}
    hub.repositories[NAME].revisions[-1] |= evil
    load(f"hf:{NAME}", device="cpu")
    names = {path.name for path in (tmp_path / "hub_cache").rglob("*")}
    assert "weights.safetensors" in names
    assert not names & {Path(name).name for name in (*evil, "README.md")}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model.safetensors": b"1"}, "holds no bundle.json, so Foldfuse did not publish it"),
        ({"bundle.json": b"{"}, "bundle.json"),
        ({"bundle.json": b'{"format": 1, "noun": "run"}'}, "bundle.json"),
    ],
)
def test_a_repository_of_others_is_a_sentence(hub, files, message):
    hub.repositories["bob/other"] = Repository(revisions=[files])
    with pytest.raises(InputError, match=message):
        load("hf:bob/other", device="cpu")


def test_a_file_that_is_too_large_is_not_downloaded(hub, monkeypatch):
    monkeypatch.setattr(module, "MAX_JSON_BYTES", 10)
    hub.repositories["bob/other"] = Repository(revisions=[{"bundle.json": b" " * 11}])
    with pytest.raises(InputError, match="has 11 bytes, expected at most 10"):
        load("hf:bob/other", device="cpu")
    assert not [request for request in hub.requests if "resolve" in request]


def test_without_an_answer_the_cache_is_used_or_a_sentence_says_why(made, hub, caplog, monkeypatch):
    assert cli.main(["publish", str(made / "run"), NAME]) == 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"is not in the cache .* and downloads are forbidden here"):
        load(f"hf:{NAME}", device="cpu")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    expected = find_published(f"hf:{NAME}").path
    hub.is_broken = True
    caplog.clear()
    assert find_published(f"hf:{NAME}").path == expected
    assert "cannot be reached; the copy in the cache is used" in caplog.text
    with pytest.raises(InputError, match=r"is not in the cache .* cannot be reached\. Load it once"):
        load("hf:anna/gone", device="cpu")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    assert find_published(f"hf:{NAME}").path == expected
    assert cli.main(["publish", str(made / "run"), NAME]) == 2


def test_what_the_hub_refuses_is_a_sentence(made, hub, monkeypatch, capsys):
    run = str(made / "run")
    hub.repositories["anna/web"] = Repository(revisions=[{"index.html": b"1"}])
    hub.repositories["anna/open"] = Repository(revisions=[{"bundle.json": b"{}"}])
    hub.repositories["bob/secret"] = Repository(private=True)
    cases = [
        (["publish", run, "bob/mine"], "the token on this machine may not write there"),
        (["publish", run, "anna/web"], "holds other things than Foldfuse publishes, such as index.html"),
        (["publish", run, "anna/open", "--private"], "is public, so --private cannot be kept"),
        (["predict", "hf:anna/none", "x", "--out", "p.parquet"], "there is no such repository, or it is private"),
        (["predict", "hf:anna", "x", "--out", "p.parquet"], "Write it as hf:owner/name"),
    ]
    for words, message in cases:
        assert cli.main(words) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert cli.main(["publish", run, NAME]) == 2
    assert "may not write there" in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    assert cli.main(["publish", run, NAME]) == 2
    assert "there is no token of" in capsys.readouterr().err
    with pytest.raises(InputError, match="there is no such repository, or it is private"):
        load("hf:bob/secret", device="cpu")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(["publish", run, NAME]) == 2
    assert "uploads are forbidden here (offline)" in capsys.readouterr().err
    assert set(hub.repositories) == {"anna/web", "anna/open", "bob/secret"}


def test_a_broken_source_is_refused_before_the_hub_is_asked(made, hub, tmp_path, capsys):
    assert cli.main(["publish", str(tmp_path / "gone"), NAME]) == 2
    broken = Path(shutil.copytree(made / "run", tmp_path / "broken"))
    with (broken / "weights.safetensors").open("r+b") as file:
        file.truncate(5000)
    assert cli.main(["publish", str(broken), NAME]) == 2
    assert not hub.requests


def test_folders_are_cut_from_texts_and_addresses_are_not():
    for text, expected in (
        ("run /home/anna/runs/run1", "run run1"),
        (r"file C:\Users\anna\w.pt", "file w.pt"),
        ("~/x/y.json", "y.json"),
        ("hf:timm/resnet50", "hf:timm/resnet50"),
        ("https://github.com/a/b", "https://github.com/a/b"),
        ("package efficientnet-lite0", "package efficientnet-lite0"),
        ("said '/a/b/c' of it", "said 'c' of it"),
        ("run /home/anna b/my runs/run1", "run run1"),
        (r"C:\Users\Anna B\w.pt", "w.pt"),
        (f"{Path.home()}/x/run1: was left out", "run1: was left out"),
    ):
        assert without_folders(text) == expected


def test_names_cannot_break_the_card(made, tmp_path):
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    document = json.loads((run / "run.json").read_text())
    document["classes"] = ["<script>x</script>\n---\nlicense: mit", "a|b"]
    (run / "run.json").write_text(json.dumps(document))
    assert cli.main(["publish", str(run), NAME, "--dry-run", str(tmp_path / "card")]) == 0
    metadata, body = card_of((tmp_path / "card" / "README.md").read_text())
    assert "license" not in metadata
    assert "<script>" not in body
