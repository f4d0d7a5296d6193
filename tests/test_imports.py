"""Checkpoints of the original YOLOv5 toolkit become runs; whatever else is in such a file does not run."""

import os
import pickle
import sys
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from foldfuse.data import read
from foldfuse.errors import InputError
from foldfuse.formats import read_predictions
from foldfuse.imports import LAYERS, import_weights
from foldfuse.models.yolov5 import STRIDES, YOLOv5
from foldfuse.predict import predict
from foldfuse.run import Run
from foldfuse.score import score_predictions
from foldfuse.unpickle import read_checkpoint

NAMES = ["cup", "can", "bag"]
SHARED = Path(os.environ.get("FOLDFUSE_SHARED", Path(__file__).parents[2] / "shared"))


def theirs(ours: str) -> str:
    """What the toolkit's files call one of our tensors."""
    number, prefix = max(
        ((n, p) for n, p in LAYERS.items() if ours.startswith(p + ".")), key=lambda found: len(found[1])
    )
    rest = ours.removeprefix(prefix + ".")
    if number == 24:
        return f"{number}." + rest.replace("predict.", "m.")
    words = rest.split(".")
    *parents, layer, leaf = words
    told = {"through": "cv1", "past": "cv2", "join": "cv3", "blocks": "m", "reduce": "cv1", "expand": "cv2"}
    parents = [("cv2" if word == "join" and number == 9 else told.get(word, word)) for word in parents]
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


def save(model: YOLOv5, path: Path, toolkit, **changes) -> Path:
    """`model` as the toolkit would have saved it: a tree of modules, pickled whole, in half precision."""
    root = toolkit()
    root.names = NAMES
    tree = toolkit()
    root.add_module("model", tree)
    tensors = {theirs(key): t for key, t in model.state_dict().items() if key != "anchors"}
    tensors["24.anchors"] = model.anchors / torch.tensor(STRIDES).view(-1, 1, 1)
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
    model = YOLOv5(3, depth=0.33, width=0.25).half().float()
    model.anchors.copy_((model.anchors / 8).half().float() * 8)
    return model


def test_a_checkpoint_becomes_a_run(small_model, toolkit, tmp_path, monkeypatch, capsys):
    path = save(small_model, tmp_path / "weights.pt", toolkit)
    monkeypatch.delitem(sys.modules, "models.yolo")
    run = Run(import_weights(path, out=tmp_path / "run"))
    assert "models.yolo" not in sys.modules
    assert run.recipe.detector == "yolov5n"
    assert run.facts["classes"] == NAMES
    assert run.facts["origin"]["file"] == "weights.pt"
    assert "AGPL-3.0" in capsys.readouterr().out
    for key, tensor in run.load_weights().items():
        torch.testing.assert_close(tensor, small_model.state_dict()[key], msg=key)


def test_the_averaged_network_is_preferred(small_model, toolkit, tmp_path):
    other = YOLOv5(3, depth=0.33, width=0.25)
    path = save(other, tmp_path / "a.pt", toolkit)
    ema = torch.load(path, weights_only=False)["model"]
    path = save(small_model, tmp_path / "b.pt", toolkit, ema=ema)
    weights = Run(import_weights(path, out=tmp_path / "run")).load_weights()
    torch.testing.assert_close(weights["head.predict.0.weight"], other.head.predict[0].weight.half().float())


def test_a_run_of_other_classes_starts_another(small_model, toolkit, tmp_path):
    run = Run(import_weights(save(small_model, tmp_path / "w.pt", toolkit), out=tmp_path / "run"))
    other = YOLOv5(5, depth=0.33, width=0.25)
    before = other.head.predict[0].weight.clone()
    assert "6 tensors of the head begin anew" in run.start(other)
    assert torch.equal(other.head.predict[0].weight, before)
    torch.testing.assert_close(other.backbone.stem[0].weight, small_model.backbone.stem[0].weight)
    with pytest.raises(InputError, match="do not fit"):
        run.start(YOLOv5(3, depth=0.33, width=0.5))


@pytest.mark.parametrize("change", ["width", "names", "layers", "nothing"])
def test_what_is_no_such_network_is_told(small_model, toolkit, tmp_path, change):
    path = tmp_path / "w.pt"
    if change == "width":
        save(YOLOv5(3, depth=0.33, width=0.3), path, toolkit)
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


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def forged(path: Path, content: object, *, compress: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr(
            "archive/data.pkl", content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
        )
    return path


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (Calls(os.system, "touch RAN"), "system"),
        (Calls(eval, "open('RAN', 'w')"), "eval"),
        (Calls(exec, "open('RAN', 'w')"), "exec"),
        (Calls(getattr, "abc", "upper"), "getattr"),
        (Calls(__import__, "os"), "__import__"),
        (Calls(__import__("subprocess").Popen, "true"), "Popen"),
        (b"cos\nsystem\n(S'touch RAN'\ntR.", "os.system"),
        (b"(S'touch RAN'\nios\nsystem\n.", "os.system"),
        (b"\x80\x04\x8c\x05torch\x8c\x0bhub.os.open\x93.", "torch.hub.os.open"),
        (b"ctorch\nload\n.", "torch.load"),
        (b"ctorch.nn.modules_evil\nX\n.", "torch.nn.modules_evil"),
    ],
)
def test_calls_of_other_code_are_refused(tmp_path, monkeypatch, content, named):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"names .*{named}.*refused"):
        import_weights(forged(tmp_path / "w.pt", content), out=tmp_path / "run")
    assert not (tmp_path / "RAN").exists()


def test_inert_objects_take_no_attributes(tmp_path):
    """A state of slots would set attributes; an inert object keeps plain states only."""
    path = forged(tmp_path / "w.pt", b"cmodels.yolo\nModel\n)\x81N}X\x04\x00\x00\x00kindX\x01\x00\x00\x00xs\x86b.")
    assert read_checkpoint(path, inert=("models",)).value.state == {}
    assert read_checkpoint(path, inert=("models",)).value.kind == "models.yolo.Model"


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"\x80\x02", pickle.dumps([1] * 100)[:-3], b"\x80\x02ctorch.nn.modules.conv\nConv2d\nR."],
)
def test_broken_pickles_are_told(tmp_path, content):
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        read_checkpoint(forged(tmp_path / "w.pt", content), inert=("models", "torch.nn.modules"))


def test_broken_archives_are_told(tmp_path, small_model, toolkit):
    path = save(small_model, tmp_path / "w.pt", toolkit)
    cut = tmp_path / "cut.pt"
    cut.write_bytes(path.read_bytes()[:-1000])
    for wrong in (cut, forged(tmp_path / "squeezed.pt", b"N.", compress=zipfile.ZIP_DEFLATED), tmp_path / "none.pt"):
        with pytest.raises(InputError, match=wrong.name):
            import_weights(wrong, out=tmp_path / "run")


@pytest.mark.parametrize("change", [{"offset": 1}, {"size": (7,)}, {"stride": (2,)}, {"offset": -1}, {"stride": (-1,)}])
def test_tensors_stay_within_their_storage(tmp_path, change):
    path = tmp_path / "w.pt"
    torch.save({"x": torch.arange(6.0)}, path)
    checkpoint = read_checkpoint(path, inert=())
    stored = checkpoint.value["x"]
    assert torch.equal(checkpoint.tensors({"x": stored})["x"], torch.arange(6.0))
    with pytest.raises(InputError, match="beyond its storage"):
        checkpoint.tensors({"x": replace(stored, **change)})


def test_a_storage_that_is_not_there_in_full_is_told(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"x": torch.arange(6.0)}, path)
    checkpoint = read_checkpoint(path, inert=())
    stored = checkpoint.value["x"]
    with pytest.raises(InputError, match="not there in full"):
        checkpoint.tensors({"x": replace(stored, numel=10**12)})
    with pytest.raises(InputError, match="is missing"):
        checkpoint.tensors({"x": replace(stored, key="77")})


def test_a_real_checkpoint_reaches_its_published_score(tmp_path):
    weights, data = SHARED / "weights" / "yolov5n.pt", SHARED / "data" / "coco_val2017_128" / "instances.json"
    if not weights.exists() or not data.exists():
        pytest.skip(f"{weights} or {data} is not there; FOLDFUSE_SHARED names the folder of both")
    run = import_weights(weights, out=tmp_path / "run")
    truth = read(data)
    found = read_predictions(predict(run, data, tmp_path / "p.parquet"), truth)
    score = score_predictions(found, truth)
    assert score.ap >= 0.33
    assert score.ap50 >= 0.51
