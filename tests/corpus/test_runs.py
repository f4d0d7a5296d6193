"""Run folders and weights as people have them: cut, edited, diverged, moved, locked, of other classes."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from corpus_samples import Case, coco, parametrize, run, write_coco
from foldfuse import cli
from foldfuse.storage.run import Run

SMALL = "--recipe yolov5n --image-size 64 --batch-size 2"
TRAIN = f"train train.json --out new --steps 1 {SMALL}"
NO_SIZE = TRAIN.replace("--image-size 64 ", "")
SWEEP = "--recipe yolov5n --image-size 64 --batch-size 2"
RESUME = "train --resume run --steps 2"  # as many as it has: nothing is trained
STEM = "backbone.stem.0.weight"
_trained: dict[str, Path] = {}
_open: list[IO[str]] = []


@pytest.fixture(scope="module", autouse=True)
def _base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A run of two steps on four images, and one with fold 1 of 2 held out, to copy and to break."""
    folder = tmp_path_factory.mktemp("base")
    data = write_coco(folder, coco(6))
    folds = folder / "folds.json"
    assert cli.main(["split", str(data), "--out", str(folds), "--folds", "2"]) == 0
    words = ["train", str(data), *SMALL.split(), "--steps", "2", "--checkpoint-every", "0.001s", "--seed", "5"]
    assert cli.main([*words, "--out", str(folder / "run")]) == 0
    assert cli.main([*words, "--out", str(folder / "held"), "--folds", str(folds), "--fold", "1"]) == 0
    _trained.update(run=folder / "run", held=folder / "held", data=folder)
    yield
    for file in _open:
        file.close()


def _plain(folder: Path) -> None:
    write_coco(folder, coco(6))
    shutil.copytree(_trained["run"], folder / "run")


def _held(folder: Path) -> None:
    shutil.copytree(_trained["held"], folder / "run")


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Data, and a run whose weights are changed."""

    def make(folder: Path) -> None:
        _plain(folder)
        path = folder / "run" / "weights.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path)

    return make


def _state(change: Callable[[dict[str, Any]], object], *, keep_previous: bool = False) -> Callable[[Path], None]:
    """Data, and a run whose last checkpoint is changed; the one before it is gone unless it is kept."""

    def make(folder: Path) -> None:
        _plain(folder)
        path = folder / "run" / "checkpoint.pt"
        state = torch.load(path, weights_only=True)
        changed = change(state)
        torch.save(state if changed is None else changed, path)
        if not keep_previous:
            (folder / "run" / "checkpoint.previous.pt").unlink()

    return make


def _json(name: str, **changes: Any) -> Callable[[Path], None]:
    """Data, and a run of which fields of a JSON file are changed."""

    def make(folder: Path) -> None:
        _plain(folder)
        path = folder / "run" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return make


def _poison(tensors: dict[str, torch.Tensor], name: str, value: float = float("nan")) -> None:
    tensors[name][(0,) * tensors[name].ndim] = value


def _locked(folder: Path) -> None:
    _plain(folder)
    file = (folder / "run" / "run.lock").open("a")
    fcntl.flock(file, fcntl.LOCK_EX)
    _open.append(file)


def _moved_and_edited(folder: Path) -> None:
    _plain(folder)
    document = coco(6)
    document["annotations"][0]["bbox"] = [9, 9, 20, 20]
    write_coco(folder, document)


def _broken_image(folder: Path) -> None:
    _plain(folder)
    (folder / "images" / "3.jpg").write_bytes((folder / "images" / "3.jpg").read_bytes()[:200])


def _objects(side: float, *, large: int = 0) -> Callable[[Path], None]:
    """Images of 1200 px with ten objects of this side, of which some are 100 px large."""

    def make(folder: Path) -> None:
        document = coco(2, width=1200, height=900, classes=("ball",))
        rows = [
            {"id": i, "image_id": 1 + i % 2, "category_id": 1, "bbox": [50 + 110 * i, 60, size, size], "iscrowd": 0}
            for i in range(10)
            for size in [100 if i < large else side]
        ]
        write_coco(folder, document | {"annotations": [row | {"area": row["bbox"][2] ** 2} for row in rows]})

    return make


def _bare_folds(folder: Path) -> None:
    """All objects are on the images of fold 1."""
    document = coco(6)
    document["annotations"] = [row for row in document["annotations"] if row["image_id"] > 3]
    write_coco(folder, document)
    folds = {"fold_of": {i: int(i > 3) for i in range(1, 7)}, "num_folds": 2}
    (folder / "folds.json").write_text(json.dumps({"format": 1, **folds}))


def _two_of_one_name(folder: Path) -> None:
    _plain(folder)
    write_coco(folder, coco(6, classes=("cat", "dog", "cat")))


def _other_order(folder: Path) -> None:
    _plain(folder)
    write_coco(folder, coco(6, classes=("bird", "cat", "dog")))


def _has_lr(folder: Path) -> None:
    metadata, recipe = Run(folder / "run").metadata, Run(folder / "run").recipe
    assert recipe.lr == 1e-5
    assert [(change.step, change.lr) for change in metadata.lr_changes] == [(2, 1e-5)]
    assert [row["step"] for row in Run(folder / "run").log] == [0, 1, 2]
    assert Run(folder / "run").log[-1]["lr"] <= 1e-5


def _keeps_old(folder: Path) -> None:
    assert (folder / "run" / "weights.safetensors").exists()


PREDICT = "predict run train.json --out p.parquet --all"
CASES = [
    # what is not finite
    Case(
        "weights_nan", _weights(lambda w: _poison(w, STEM)), PREDICT, 2, (f"the tensor {STEM} holds NaN or infinity",)
    ),
    Case(
        "statistics_infinite",
        _weights(lambda w: _poison(w, "backbone.stem.1.running_var", float("inf"))),
        PREDICT,
        2,
        ("the tensor backbone.stem.1.running_var holds NaN or infinity",),
    ),
    Case(
        "init_from_nan", _weights(lambda w: _poison(w, STEM)), f"{TRAIN} --init-from run", 2, (STEM, "NaN or infinity")
    ),
    Case("export_nan", _weights(lambda w: _poison(w, STEM)), "export run --out run.onnx", 2, (STEM, "NaN or infinity")),
    Case(
        "resume_falls_back",
        _state(lambda s: _poison(s["ema"], STEM), keep_previous=True),
        RESUME,
        says=(f"ema.{STEM} holds NaN or infinity; resuming from the checkpoint before it",),
    ),
    Case(
        "resume_without_good_state",
        _state(lambda s: _poison(s["model"], STEM)),
        RESUME,
        2,
        ("no checkpoint can be used", f"model.{STEM} holds NaN or infinity"),
    ),
    Case("state_seconds_nan", _state(lambda s: s.update(seconds=float("nan"))), RESUME, 2, ("seconds is nan",)),
    Case("state_step_huge", _state(lambda s: s.update(step=10**18)), RESUME, 2, ("step is 1000000000000000000",)),
    Case("state_step_negative", _state(lambda s: s.update(step=-1)), RESUME, 2, ("step is -1",)),
    Case("state_step_true", _state(lambda s: s.update(step=True)), RESUME, 2, ("step is true",)),
    # what does not fit
    Case("state_list", _state(lambda s: [1, 2]), RESUME, 2, ("it holds no state of a training",)),
    Case("state_empty", _state(lambda s: s.clear()), RESUME, 2, ("model is missing or of another type",)),
    Case(
        "state_lacks_tensor",
        _state(lambda s: s["model"].pop(STEM).shape and None),
        RESUME,
        2,
        ("lacks the tensor", STEM),
    ),
    Case(
        "state_extra_tensor",
        _state(lambda s: s["ema"].update(extra=torch.ones(1))),
        RESUME,
        2,
        ("has a tensor that the network does not have, extra",),
    ),
    Case(
        "state_other_shape",
        _state(lambda s: s["model"].update({STEM: torch.ones(2, 3)})),
        RESUME,
        2,
        (STEM, "has the shape 2 x 3"),
    ),
    Case(
        "state_other_optimizer",
        _state(lambda s: s["optimizer"]["param_groups"].pop() and None),
        RESUME,
        2,
        ("its optimizer is of other parameters",),
    ),
    Case("state_rng", _state(lambda s: s["rng"][0].update(cpu=torch.zeros(5))), RESUME, 2, ("rng is of another type",)),
    Case(
        "state_group",
        _state(lambda s: s["optimizer"]["param_groups"][0].pop("betas") and None),
        RESUME,
        2,
        ("its optimizer is of other parameters",),
    ),
    Case(
        "state_averages",
        _state(lambda s: s["optimizer"]["state"].update({0: {"step": 3}})),
        RESUME,
        2,
        ("its optimizer is of other parameters",),
    ),
    Case(
        "weights_whole_numbers",
        _weights(lambda w: w.update({STEM: w[STEM].to(torch.int64)})),
        PREDICT,
        2,
        (STEM, "holds whole numbers, and in the network numbers with fractions"),
    ),
    Case("weights_lack_tensor", _weights(lambda w: w.pop(STEM)), PREDICT, 2, ("lacks the tensor", STEM)),
    Case(
        "weights_extra_tensor",
        _weights(lambda w: w.update({"backbone.ls1.gamma": torch.ones(4)})),
        PREDICT,
        2,
        ("has a tensor that the network does not have, backbone.ls1.gamma",),
    ),
    Case(
        "weights_other_shape",
        _weights(lambda w: w.update({STEM: torch.ones(2)})),
        PREDICT,
        2,
        (STEM, "has the shape 2"),
    ),
    Case("weights_cut", lambda f: (_plain(f), _cut(f / "run" / "weights.safetensors"))[0], PREDICT, 2, ("is broken",)),
    # a resume that contradicts the run
    Case("resume_as_it_is", _plain, RESUME, says=("its budget of 2 steps is spent",)),
    Case("resume_other_seed", _plain, f"{RESUME} --seed 0", 2, ("the run has --seed 5, and --seed 0 was given",)),
    Case("resume_same_seed", _plain, f"{RESUME} --seed 5"),
    Case("resume_other_recipe", _plain, f"{RESUME} --recipe lite0_fpn", 2, ("detector=yolov5n", "'lite0_fpn'")),
    Case("resume_other_set", _plain, f"{RESUME} --set mosaic=0", 2, ("mosaic=0.3", "ask for 0.0")),
    Case("resume_same_options", _plain, f"{RESUME} {SMALL}"),
    Case(
        "resume_other_lr", _plain, "train --resume run --steps 3 --lr 1e-5", says=("instead of 0.001",), right=_has_lr
    ),
    Case(
        "resume_fewer_steps",
        _plain,
        "train --resume run --steps 1",
        2,
        ("2 steps of training are done, and --steps 1",),
    ),
    Case("resume_overwrite", _plain, f"{RESUME} --overwrite", 2, ("--overwrite would remove the run",)),
    Case("resume_elsewhere", _plain, f"{RESUME} --out other", 2, ("resumed in its own folder, not in other",)),
    Case("resume_moved_data", _plain, "train train.json --resume run --steps 2"),
    Case(
        "resume_edited_data",
        _moved_and_edited,
        "train train.json --resume run --steps 2",
        2,
        ("trained on other data",),
    ),
    Case("resume_other_fold", _held, f"{RESUME} --fold 0", 2, ("the run has --fold 1, and --fold 0 was given",)),
    Case("resume_own_folds", _held, RESUME),
    Case("resume_locked", _locked, RESUME, 2, ("another process is training this run",)),
    Case(
        "resume_trained_without_checkpoints",
        lambda f: (_plain(f), [p.unlink() for p in (f / "run").glob("checkpoint*")])[0],
        RESUME,
        2,
        ("its checkpoint.pt is gone", "--init-from run"),
    ),
    # run folders that are edited
    Case("classes_null", _json("run.json", classes=None), PREDICT, 2, ("run.json", "classes")),
    Case("classes_and_ids", _json("run.json", category_ids=[1]), PREDICT, 2, ("3 classes have 1 category_ids",)),
    Case("budget_text", _json("run.json", budget="long"), RESUME, 2, ("run.json", "budget")),
    Case("budget_negative", _json("run.json", budget={"steps": -3}), RESUME, 2, ("budget is {'steps': -3.0}",)),
    Case("seed_negative", _json("run.json", seed=-1), RESUME, 2, ("seed is -1",)),
    Case("detector_null", _json("recipe.json", detector=None), PREDICT, 2, ("recipe.json", "detector")),
    Case(
        "size_24000",
        _json("recipe.json", image_size=24000),
        PREDICT,
        2,
        ("image_size is 24000, and must be 4096 or less",),
    ),
    Case(
        "compute_unknown",
        _json("run.json", compute={"speed": 1}),
        "train --resume run --steps 3",
        2,
        ("compute", "speed"),
    ),
    Case("log_list", lambda f: (_plain(f), (f / "run" / "log.jsonl").write_text("[1]\n"))[0], RESUME, 2, ("line 1",)),
    # a refused training leaves nothing
    Case("broken_image", _broken_image, TRAIN, 2, ("3.jpg",)),
    Case("overwrite_with_broken_image", _broken_image, f"train train.json --out run --overwrite --steps 1 {SMALL}", 2),
    Case("weights_missing", _plain, f"{TRAIN} --set init_weights=gone.pth", 2, ("gone.pth: there is no such file",)),
    Case("init_from_nothing", _plain, f"{TRAIN} --init-from gone", 2, ("gone", "there is no such file")),
    Case("size_too_large", _plain, f"{NO_SIZE} --image-size 8192", 2, ("8192", "4096")),
    Case("jitter_huge", _plain, f"{TRAIN} --set scale_jitter=1e9", 2, ("scale_jitter is 1000000000.0",)),
    Case("lr_of_400_digits", _plain, f"{TRAIN} --set lr={'9' * 400}", 2, ("is not a number",)),
    Case("seed_below_0", _plain, f"{TRAIN} --seed -1", 2, ("seed",)),
    Case(
        "steps_huge", _plain, f"{TRAIN.replace('--steps 1 ', '')} --steps {'9' * 30}", 2, ("is not in 1..1000000000",)
    ),
    Case(
        "overwrite_own_start",
        _plain,
        f"train train.json --out run --overwrite --steps 1 {SMALL} --set init_weights=run",
        2,
        ("run",),
    ),
    Case("fold_without_objects", _bare_folds, f"{TRAIN} --folds folds.json --fold 1", 2, ("no object to learn from",)),
    Case(
        "sweep_too_short",
        _plain,
        f"sweep train.json --out new --budget 6s --folds 2 {SWEEP}",
        2,
        ("the budget leaves",),
    ),
    Case(
        "sweep_over_a_sweep_too_short",
        lambda f: (_plain(f), (f / "old").mkdir(), (f / "old" / "sweep.json").write_text("{}"))[0],
        f"sweep train.json --out old --overwrite --budget 6s --folds 2 {SWEEP}",
        2,
        ("the budget leaves",),
    ),
    Case("import_of_text", lambda f: (f / "w.pt").write_text("no") and None, "import w.pt --out new", 2, ("w.pt",)),
    Case("resume_imported", _json("run.json", data=""), RESUME, 2, ("holds imported weights",)),
    # heads and objects
    Case("init_other_order", _other_order, f"{TRAIN} --init-from run", says=("matched by name (3 of 3)",)),
    Case(
        "all_too_small",
        _objects(8),
        f"{TRAIN} --set mosaic=0.2",
        2,
        ("none of the 10 objects gets a target", "--image-size"),
    ),
    Case("some_too_small", _objects(8, large=4), TRAIN, says=("6 of 10 objects never get a target at image_size 64",)),
    Case("large_enough", _objects(100), TRAIN, never=("never get a target",)),
]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


@parametrize(CASES)
def test_runs(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(case, tmp_path, monkeypatch, capsys)
