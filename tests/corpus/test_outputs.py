"""Outputs that would destroy something, and options that mean nothing: each is refused in one sentence, and nothing is lost."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from corpus_samples import Case, coco, parametrize, run
from hostile_samples import DIGITS, sound, with_file, with_node

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes and links of files")

OUTPUTS = [
    Case(
        "out_is_the_data",
        sound,
        "split train.json --folds 2 --out train.json --overwrite",
        2,
        ("is an input of this command",),
    ),
    Case(
        "out_is_a_hard_link",
        with_node("o.json", lambda path: path.hardlink_to(path.parent / "train.json")),
        "split train.json --folds 2 --out o.json --overwrite",
        2,
        ("is an input",),
    ),
    Case(
        "out_is_a_link",
        with_node("o.json", lambda path: path.symlink_to("train.json")),
        "split train.json --folds 2 --out o.json --overwrite",
        2,
        ("is an input",),
    ),
    Case("out_is_an_image", sound, "split train.json --folds 2 --out images/1.jpg --overwrite", 2, ("is an image",)),
    Case(
        "out_is_other_data",
        with_file("other.json", json.dumps(coco())),
        "split train.json --folds 2 --out other.json --overwrite",
        2,
        ("is a dataset in COCO JSON",),
    ),
    Case(
        "out_is_the_data_of_a_folder", sound, "split . --folds 2 --out train.json --overwrite", 2, ("train.json: is",)
    ),
    Case("fixed_over_the_data", sound, "check train.json --fix --out train.json --overwrite", 2, ("is an input",)),
    Case(
        "fused_over_an_input",
        sound,
        "fuse p.json q.json --data train.json --out q.json --overwrite",
        2,
        ("q.json: is an input",),
    ),
    Case(
        "fused_over_the_data",
        sound,
        "fuse p.json q.json --data train.json --out train.json --overwrite",
        2,
        ("is an input",),
    ),
    Case(
        "converted_over_itself",
        sound,
        "convert p.json train.json --out ./images/../p.json --overwrite",
        2,
        ("is an input",),
    ),
    Case(
        "submitted_over_the_data",
        sound,
        "submit p.json train.json --format coco_json --out train.json --overwrite",
        2,
        ("is an input",),
    ),
    Case(
        "ensemble_over_a_member",
        sound,
        "ensemble p.json q.json --data train.json --out p.json --overwrite",
        2,
        ("is an input",),
    ),
    Case(
        "report_over_the_ledger",
        with_file("c/campaign.sqlite", b"SQLite format 3\0"),
        "report c --out c/campaign.sqlite --overwrite",
        2,
        ("is a record of the run or campaign",),
    ),
    Case(
        "report_over_a_database",
        with_file("notes.db", b"SQLite format 3\0"),
        "report c --out notes.db --overwrite",
        2,
        ("is a database",),
    ),
    Case(
        "report_over_a_record",
        with_file("r/run.json", "{}"),
        "report r --out r/run.json --overwrite",
        2,
        ("is a record of the run",),
    ),
    Case(
        "trained_over_its_data",
        with_file("run.json", "{}"),
        "train train.json --out . --overwrite",
        2,
        ("holds an input",),
    ),
    Case(
        "trained_over_a_campaign",
        with_file("c/campaign.sqlite", b""),
        "train train.json --out c --overwrite",
        2,
        ("this command did not make it",),
    ),
    Case(
        "campaign_over_its_data",
        with_file("campaign.sqlite", b""),
        "campaign train.json --out . --overwrite",
        2,
        ("holds an input of this command",),
    ),
    Case(
        "campaign_is_a_file",
        sound,
        "campaign train.json --out p.json --overwrite",
        2,
        ("p.json: is a file, expected a folder",),
    ),
    Case("demo_is_a_file", sound, "demo --out p.json", 2, ("p.json: is a file, expected a folder",)),
    Case(
        "converted_over_the_classes",
        with_file("c.json", json.dumps(coco())),
        "convert p.json train.json --classes-from c.json --out c.json --overwrite",
        2,
        ("is an input",),
    ),
    Case("out_is_a_device", sound, "split train.json --folds 2 --out /dev/null", 2, ("/dev/null: is a device",)),
    Case("out_is_a_system_name", sound, "split train.json --folds 2 --out /dev/fd/1", 2, ("/dev/fd/1: is",)),
    Case(
        "out_is_a_fifo",
        with_node("o.json", os.mkfifo),
        "split train.json --folds 2 --out o.json --overwrite",
        2,
        ("o.json: is a pipe",),
    ),
    Case("out_is_a_folder", sound, "split train.json --folds 2 --out images", 2, ("images: is a folder",)),
    Case("out_is_below_a_file", sound, "split train.json --folds 2 --out train.json/f.json", 2, ("is a file",)),
    Case("out_name_too_long", sound, f"split train.json --folds 2 --out {'n' * 300}", 2, ("file name too long",)),
    Case(
        "run_is_a_file",
        sound,
        "train train.json --out p.json --overwrite",
        2,
        ("p.json: is a file, expected a folder",),
    ),
]

OPTIONS = [
    Case("pattern_broken", sound, "split train.json --out f.json --group '('", 2, ("is not a regular expression",)),
    Case("folds_many", sound, "split train.json --out f.json --folds 1000", 2, ("Ask for at most 4 folds",)),
    Case("folds_more", sound, "split train.json --out f.json --folds 100000", 2, ("are too many",)),
    Case(
        "folds_of_ensemble",
        sound,
        "ensemble p.json q.json --data train.json --out e.json --folds 1000",
        2,
        ("train.json has 4 images",),
    ),
    Case(
        "seed_negative", sound, "split train.json --out f.json --seed=-1", 2, ("--seed", "-1 is not in 0..4294967295")
    ),
    Case("seed_huge", sound, f"split train.json --out f.json --seed {DIGITS}", 2, ("--seed",), (DIGITS,)),
    Case(
        "iou_nan", sound, "fuse p.json q.json --data train.json --out o.parquet --iou nan", 2, ("nan is not in 0..1",)
    ),
    Case(
        "threshold_nan",
        sound,
        "fuse p.json q.json --data train.json --out o.parquet --score-threshold nan",
        2,
        ("nan is not in 0..1",),
    ),
    Case(
        "weight_nan",
        sound,
        "fuse p.json q.json --data train.json --out o.parquet --weight 1,nan",
        2,
        ("nan is not in",),
    ),
    Case(
        "weight_huge", sound, "fuse p.json q.json --data train.json --out o.parquet --weight 1e308,1", 2, ("is not in",)
    ),
    Case(
        "budget_nan", sound, "ensemble p.json q.json --data train.json --out e.json --budget nan", 2, ("no duration",)
    ),
    Case(
        "budget_digits",
        sound,
        f"ensemble p.json q.json --data train.json --out e.json --budget {DIGITS}",
        2,
        ("longer than a year",),
        (DIGITS,),
    ),
    Case("deadline_digits", sound, f"campaign train.json --deadline {'9' * 400} --out c", 2, ("longer than a year",)),
    Case("num_classes_0", sound, "export vit_tiny --out m.onnx --num-classes 0", 2, ("0 is not in 1..",)),
    Case("size_24000", sound, "train train.json --out r --image-size 24000", 2, ("24000",)),
    Case("set_deep", sound, f"train train.json --out r --set lr={'(' * 3000}", 2, ("is not a number",)),
    Case(
        "web_address",
        sound,
        "train train.json --out r --set init_weights=http://example.org/w.pt --steps 1",
        2,
        ("'http://example.org/w.pt', a web address",),
    ),
    Case("long_value", sound, f"check {'x ' * 3000}", 2, (), ("x " * 2000,)),
    Case("unknown_option", sound, "check train.json --\x1b[31mx", 2, ("Unknown option",)),
]


@parametrize(OUTPUTS + OPTIONS)
def test_outputs_and_options(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(case, tmp_path, monkeypatch, capsys)
