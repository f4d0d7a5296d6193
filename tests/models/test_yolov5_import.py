"""Checkpoints of the original YOLOv5 toolkit become runs; no code in them is executed."""

import os
import sys
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from foldfuse import cli
from foldfuse.commands.predict import predict
from foldfuse.commands.train import import_weights, train
from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError
from foldfuse.evaluation.coco import score_predictions
from foldfuse.formats.predictions import read_predictions
from foldfuse.models.detection.composed import ComposedDetector
from foldfuse.models.detection.yolov5 import build_yolov5
from foldfuse.models.detection.yolov5_head import STRIDES
from foldfuse.models.pretrained.coco import COCO_CLASSES
from foldfuse.models.pretrained.yolov5 import LAYERS, category_ids
from foldfuse.recipes import load_recipe
from foldfuse.storage.run import Run
from foldfuse.training.init_weights import load_init_weights
from learning_samples import write_dataset

NAMES = ["cup", "can", "bag"]
SHARED = Path(os.environ.get("FOLDFUSE_SHARED", Path(__file__).parents[3] / "shared"))


def theirs(ours: str) -> str:
    """The name in the toolkit's files of one of our tensors."""
    number, prefix = max(
        ((n, p) for n, p in LAYERS.items() if ours.startswith(p + ".")), key=lambda found: len(found[1])
    )
    rest = ours.removeprefix(prefix + ".")
    if number == 24:
        return f"{number}." + rest.replace("predict.", "m.")
    words = rest.split(".")
    *parents, layer, leaf = words
    names = {"through": "cv1", "bypass": "cv2", "join": "cv3", "blocks": "m", "reduce": "cv1", "expand": "cv2"}
    parents = [("cv2" if word == "join" and number == 9 else names.get(word, word)) for word in parents]
    return ".".join([str(number), *parents, {"0": "conv", "1": "bn"}[layer], leaf])


@pytest.fixture
def toolkit(monkeypatch):
    """Modules as a user of the toolkit has them when a checkpoint is saved; they are gone when it is read."""
    module = types.ModuleType("models.yolo")

    class Model(nn.Module):
        pass

    Model.__module__, Model.__qualname__ = "models.yolo", "Model"
    module.Model = Model
    monkeypatch.setitem(sys.modules, "models", types.ModuleType("models"))
    monkeypatch.setitem(sys.modules, "models.yolo", module)
    return Model


def save(model: ComposedDetector, path: Path, toolkit, **changes) -> Path:
    """`model` as the toolkit would have saved it: a tree of modules, pickled whole, in half precision."""
    root = toolkit()
    root.names = NAMES
    tree = toolkit()
    root.add_module("model", tree)
    tensors = {theirs(key): t for key, t in model.state_dict().items() if key != "head.anchors"}
    tensors["24.anchors"] = model.head.anchors / torch.tensor(STRIDES).view(-1, 1, 1)
    for name, tensor in tensors.items():
        *parents, leaf = name.split(".")
        place = tree
        for parent in parents:
            if parent not in place._modules:
                place.add_module(parent, toolkit())
            place = place._modules[parent]
        place.register_buffer(leaf, tensor.half() if tensor.is_floating_point() else tensor)
    torch.save({"epoch": -1, "ema": None, "model": root} | changes, path)
    return path


@pytest.fixture
def small_model():
    torch.manual_seed(0)
    model = build_yolov5(3, depth=0.33, width=0.25).half().float()
    model.head.anchors.copy_((model.head.anchors / 8).half().float() * 8)
    return model


def test_a_checkpoint_becomes_a_run(small_model, toolkit, tmp_path, monkeypatch, capsys):
    path = save(small_model, tmp_path / "weights.pt", toolkit)
    monkeypatch.delitem(sys.modules, "models.yolo")
    run = Run(import_weights(path, out=tmp_path / "run"))
    assert "models.yolo" not in sys.modules
    assert run.recipe.detector == "yolov5n"
    assert run.metadata.classes == tuple(NAMES)
    assert run.metadata.origin["file"] == "weights.pt"
    assert "AGPL-3.0" in capsys.readouterr().out
    for key, tensor in run.load_weights().items():
        torch.testing.assert_close(tensor, small_model.state_dict()[key], msg=key)


def test_the_averaged_network_is_preferred(small_model, toolkit, tmp_path):
    other = build_yolov5(3, depth=0.33, width=0.25)
    path = save(other, tmp_path / "a.pt", toolkit)
    ema = torch.load(path, weights_only=False)["model"]
    path = save(small_model, tmp_path / "b.pt", toolkit, ema=ema)
    weights = Run(import_weights(path, out=tmp_path / "run")).load_weights()
    torch.testing.assert_close(weights["head.predict.0.weight"], other.head.predict[0].weight.half().float())


def test_a_run_of_other_classes_starts_another(small_model, toolkit, tmp_path):
    run = Run(import_weights(save(small_model, tmp_path / "w.pt", toolkit), out=tmp_path / "run"))
    other = build_yolov5(5, depth=0.33, width=0.25)
    before = other.head.predict[0].weight.clone()
    recipe = replace(load_recipe("yolov5n"), init_weights=str(run.folder))
    said = load_init_weights(recipe, other, ("lid", "bag", "cup", "net", "pen"))
    assert "matched by name (2 of 5), random initial values for lid, net, pen, without can of the trained run" in said
    rows, before = (w.view(3, 10, -1) for w in (other.head.predict[0].weight, before))
    trained = small_model.head.predict[0].weight.half().float().view(3, 8, -1)
    torch.testing.assert_close(rows[:, :5], trained[:, :5])
    torch.testing.assert_close(rows[:, [6, 7]], trained[:, [7, 5]])
    assert torch.equal(rows[:, [5, 8, 9]], before[:, [5, 8, 9]])
    torch.testing.assert_close(other.backbone.stem[0].weight, small_model.backbone.stem[0].weight)
    with pytest.raises(InputError, match=r"stem.*has the shape .*weights of another network"):
        load_init_weights(recipe, build_yolov5(3, depth=0.33, width=0.5), tuple(NAMES))


def test_a_training_starts_from_an_imported_run(small_model, toolkit, tmp_path, caplog):
    start = import_weights(save(small_model, tmp_path / "w.pt", toolkit), out=tmp_path / "start")
    data = write_dataset(tmp_path / "data", 4)
    small = ("image_size=64", "batch_size=2", "warmup_fraction=0", "ema_decay=0", "lr=1e-9", "precision=float32")
    run = Run(train(data, out=tmp_path / "run", init_from=start, changes=small, steps=1))
    assert "matched by name (0 of 2), random initial values for red, blue, without cup, can, bag" in caplog.text
    assert (run.recipe.detector, run.recipe.init_weights) == ("yolov5n", str(start))
    begun, now = Run(start).load_weights(), run.load_weights()
    same = [key for key in now if now[key].shape == begun[key].shape and key.endswith((".weight", "anchors"))]
    assert "head.anchors" in same
    assert "backbone.stem.0.weight" in same
    for key in same:
        torch.testing.assert_close(now[key], begun[key], rtol=0, atol=1e-6, msg=key)


def test_a_run_that_cannot_start_a_training_leaves_nothing(small_model, toolkit, tmp_path):
    start = import_weights(save(small_model, tmp_path / "w.pt", toolkit), out=tmp_path / "start")
    data = write_dataset(tmp_path / "data", 2)
    for arguments, message in [
        ({"init_from": tmp_path / "gone"}, "no such file"),
        ({"init_from": tmp_path / "gone", "recipe": "yolov5n"}, "no such file"),
        ({"init_from": start, "recipe": "yolov5s"}, "is a run of yolov5n, and yolov5s cannot start"),
        (
            {"init_from": start, "recipe": "classify_lite0"},
            "is a run of yolov5n, and timm:tf_efficientnet_lite0 cannot start",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            train(data, out=tmp_path / "run", steps=1, **arguments)
        assert not (tmp_path / "run").exists(), message


@pytest.mark.parametrize("change", ["width", "names", "layers", "nothing"])
def test_another_network_is_an_error(small_model, toolkit, tmp_path, change):
    path = tmp_path / "w.pt"
    if change == "width":
        save(build_yolov5(3, depth=0.33, width=0.3), path, toolkit)
    elif change == "names":
        save(small_model, path, toolkit)
        held = torch.load(path, weights_only=False)
        del held["model"].names
        torch.save(held, path)
    elif change == "layers":
        save(small_model, path, toolkit)
        held = torch.load(path, weights_only=False)
        held["model"].model.register_buffer("extra", torch.zeros(1))
        torch.save(held, path)
    else:
        torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(InputError, match=r"w\.pt: "):
        import_weights(path, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_that_would_run_code_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("w.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'touch RAN'\ntR.")
    assert cli.main(["import", "w.pt", "--out", "run"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"]


def test_a_cut_file_leaves_nothing(small_model, toolkit, tmp_path):
    path = save(small_model, tmp_path / "w.pt", toolkit)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"w\.pt: cannot be read"):
        import_weights(path, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_licence_in_the_file_is_reported(small_model, toolkit, tmp_path, capsys):
    path = save(small_model, tmp_path / "w.pt", toolkit, license="Some-1.0")
    run = Run(import_weights(path, out=tmp_path / "run"))
    assert 'the file says "Some-1.0"' in run.metadata.origin["licence"]
    assert "Some-1.0" in capsys.readouterr().out


def test_classes_of_coco_have_its_category_ids():
    names = COCO_CLASSES
    found = dict(zip(names, category_ids(names), strict=True))
    known = {
        "person": 1,
        "stop sign": 13,
        "bench": 15,
        "backpack": 27,
        "dining table": 67,
        "book": 84,
        "toothbrush": 90,
    }
    assert known.items() <= found.items()
    assert category_ids(["cup", "can"]) == [0, 1]
    assert category_ids(names[:79]) == list(range(79))


def test_the_names_of_coco_are_those_in_its_files():
    truth = SHARED / "data" / "coco_val2017_128" / "instances.json"
    if not truth.exists():
        pytest.skip(f"{truth} is not there; FOLDFUSE_SHARED names the folder of the data")
    assert tuple(read(truth).classes) == COCO_CLASSES


@pytest.mark.slow
def test_a_real_checkpoint_reaches_its_published_score(tmp_path):
    weights, data = SHARED / "weights" / "yolov5n.pt", SHARED / "data" / "coco_val2017_128" / "instances.json"
    if not weights.exists() or not data.exists():
        pytest.skip(f"{weights} or {data} is not there; FOLDFUSE_SHARED names the folder of both")
    run = import_weights(weights, out=tmp_path / "run")
    truth = read(data)
    found = read_predictions(predict(run, data, out=tmp_path / "p.parquet"), truth)
    score = score_predictions(found, truth)
    assert score.ap >= 0.33
    assert score.ap50 >= 0.51
