"""A checkpoint is read without running anything in it: attacks of every kind end in one sentence, with nothing done."""

import io
import os
import pickle
import struct
import sys
import tarfile
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from foldfuse.errors import InputError
from foldfuse.models.pretrained import unpickle
from foldfuse.models.pretrained.unpickle import Inert, Stored, read_checkpoint, shown

INERT = ("models", "torch.nn.modules", "numpy")


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def forged(path: Path, content: object, *, compress: int = zipfile.ZIP_STORED) -> Path:
    """A checkpoint with this pickle, or with what pickles as `content`."""
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr(
            "archive/data.pkl", content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
        )
    return path


def text(word: str) -> bytes:
    """A string as a pickle's opcode."""
    return b"X" + struct.pack("<I", len(word.encode())) + word.encode()


@pytest.fixture
def saved(tmp_path):
    """An honest file with a tensor of six numbers."""
    path = tmp_path / "w.pt"
    torch.save({"x": torch.arange(6.0)}, path)
    return path


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (Calls(os.system, "touch RAN"), "system"),
        (Calls(eval, "open('RAN', 'w')"), "eval"),
        (Calls(exec, "open('RAN', 'w')"), "exec"),
        (Calls(open, "RAN", "w"), "open"),
        (Calls(getattr, "abc", "upper"), "getattr"),
        (Calls(__import__, "os"), "__import__"),
        (Calls(__import__("subprocess").Popen, "true"), "Popen"),
        ({"model": [{"deep": (1, Calls(os.system, "touch RAN"))}]}, "system"),
        (b"cos\nsystem\n(S'touch RAN'\ntR.", "os.system"),
        (b"(S'touch RAN'\nios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\nS'touch RAN'\no.", "os.system"),
        (b"\x80\x02cos\nsystem\n" + text("touch RAN") + b"\x85\x81.", "os.system"),
        (b"\x80\x04\x8c\x05torch\x8c\x0bhub.os.open\x93.", "torch.hub.os.open"),
        (b"\x80\x04\x8c\x0ctorch._utils\x8c\x08os.popen\x93.", "torch._utils.os.popen"),
        (b"ctorch\nload\n.", "torch.load"),
        (b"ctorch.nn.modules_evil\nX\n.", "torch.nn.modules_evil"),
        (b"ctorch.serialization\n_get_layout\n.", "_get_layout"),
        (b"ccollections\nOrderedDict.fromkeys\n.", "fromkeys"),
    ],
)
def test_calls_of_other_code_are_refused(tmp_path, monkeypatch, content, named):
    monkeypatch.chdir(tmp_path)
    path = forged(tmp_path / "w.pt", content)
    with pytest.raises(InputError, match=f"names .*{named}.*refused") as error:
        read_checkpoint(path, inert=INERT)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [path]


def test_placeholders_run_nothing_when_called_built_or_given_a_state(tmp_path, monkeypatch):
    """A class of the same name that is importable here is not touched either."""
    ran = []

    class Model:
        def __new__(cls, *_):
            ran.append("new")

        def __setstate__(self, _):
            ran.append("state")

    module = types.ModuleType("models.yolo")
    module.Model = Model
    monkeypatch.setitem(sys.modules, "models.yolo", module)
    for make in (b")R", b")\x81"):
        content = b"\x80\x02cmodels.yolo\nModel\n" + make + b"}" + text("a") + b"K\x01sb."
        found = read_checkpoint(forged(tmp_path / "w.pt", content), inert=INERT).value
        assert isinstance(found, Inert)
        assert (found.kind, found.state) == ("models.yolo.Model", {"a": 1})
    called = read_checkpoint(forged(tmp_path / "w.pt", b"cmodels.yolo\nf\n(K\x01K\x02tR."), inert=INERT).value
    assert called.arguments == (1, 2)
    assert ran == []


@pytest.mark.parametrize(
    "target",
    [
        b"cmodels.yolo\nModel\n",  # the placeholder's class
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"c_codecs\nencode\n",
        b"cbuiltins\nset\n",
        b"ccollections\nOrderedDict\n",
        b"ctorch\nSize\n",
        b"ctorch\nFloatStorage\n",
    ],
)
@pytest.mark.parametrize("slots", [True, False])
def test_nothing_of_ours_can_be_given_attributes(tmp_path, target, slots):
    state = b"}" + text("function") + b"K\x01s"
    content = b"\x80\x02" + target + (b"N" + state + b"\x86" if slots else state) + b"b."
    before = {key: getattr(known, "function", None) for key, known in unpickle._KNOWN.items()}
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        read_checkpoint(forged(tmp_path / "w.pt", content), inert=INERT)
    assert {key: getattr(known, "function", None) for key, known in unpickle._KNOWN.items()} == before


def test_an_inert_object_keeps_plain_states_only(tmp_path):
    content = b"cmodels.yolo\nModel\n)\x81N}" + text("kind") + text("x") + b"s\x86b."
    found = read_checkpoint(forged(tmp_path / "w.pt", content), inert=INERT).value
    assert (found.kind, found.state) == ("models.yolo.Model", {})


def test_the_methods_of_a_dict_cannot_be_hidden(tmp_path):
    content = b"\x80\x02ccollections\nOrderedDict\n)R" + text("a") + b"K\x01s}" + text("items") + b"K\x02sb."
    found = read_checkpoint(forged(tmp_path / "w.pt", content), inert=INERT).value
    assert list(found.items()) == [("a", 1)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\x80\x02",
        pickle.dumps([1] * 100)[:-3],
        b"\x80\x02ctorch.nn.modules.conv\nConv2d\nR.",
        b"\x80\x02Nr\xff\xff\xff\x0f.",  # a memo of 2^28 entries, for which the unpickler would set 4 GB aside
        b"Np99999999999\n.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0fabc.",  # a string of 2^60 bytes
        b"\x80\x02\x8b\xff\xff\xff\x7f1.",  # an integer of 2^31 bytes
        b"\x80\x02c_codecs\nencode\n" + text("abc") + text("rot13") + b"\x86R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nK\x01K\x02K\x03K\x04tR.",
        b"Pxyz\n.",  # a storage by a bare name
        b"\x80\x02(" + text("storage") + b"ctorch\nFloatStorage\n" + text("../data.pkl") + text("cpu") + b"K\x01tQ.",
        b"\x80\x02\x82\x01.",  # an extension of copyreg
    ],
)
def test_broken_pickles_are_told(tmp_path, content):
    with pytest.raises(InputError, match=r"w\.pt: cannot be read as a checkpoint"):
        read_checkpoint(forged(tmp_path / "w.pt", content), inert=INERT)


def test_what_is_no_whole_zip_file_is_told(tmp_path, saved):
    cut = tmp_path / "cut.pt"
    cut.write_bytes(saved.read_bytes()[:-100])
    page = tmp_path / "page.pt"
    page.write_text("<html>not found</html>")
    older = tmp_path / "older.pt"
    torch.save({"x": torch.arange(6.0)}, older, _use_new_zipfile_serialization=False)
    oldest = tmp_path / "oldest.pt"
    with tarfile.open(oldest, "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO(b""))
    for wrong in (cut, page, older, oldest):
        with pytest.raises(InputError, match=f"{wrong.name}: is no whole zip file"):
            read_checkpoint(wrong, inert=INERT)
    with pytest.raises(InputError, match="there is no such file"):
        read_checkpoint(tmp_path / "none.pt", inert=INERT)
    with pytest.raises(InputError, match="cannot be read"):
        read_checkpoint(tmp_path, inert=INERT)


def test_a_zip_file_of_something_else_is_told(tmp_path):
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    with pytest.raises(InputError, match=r"holds 0 data\.pkl"):
        read_checkpoint(path, inert=INERT)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
        archive.writestr("b/data.pkl", b"N.")
    with pytest.raises(InputError, match=r"holds 2 data\.pkl"):
        read_checkpoint(path, inert=INERT)


def test_zip_bombs_are_refused_before_they_are_unpacked(tmp_path):
    bomb = forged(tmp_path / "bomb.pt", b"N." + b"\0" * unpickle.PICKLE_MOST, compress=zipfile.ZIP_DEFLATED)
    small = forged(tmp_path / "small.pt", b"N.", compress=zipfile.ZIP_DEFLATED)
    large = forged(tmp_path / "large.pt", b"N." + b"\0" * unpickle.PICKLE_MOST)
    for path in (bomb, small, large):
        with pytest.raises(InputError, match="compressed or over 16 MB"):
            read_checkpoint(path, inert=INERT)


def test_a_compressed_storage_is_refused(tmp_path, saved):
    squeezed = tmp_path / "squeezed.pt"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(squeezed, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED if "/data/" in name else zipfile.ZIP_STORED)
    checkpoint = read_checkpoint(squeezed, inert=INERT)
    with pytest.raises(InputError, match="is compressed"):
        checkpoint.tensors(checkpoint.value)


def test_a_damaged_storage_is_told(saved):
    content = bytearray(saved.read_bytes())
    content[content.index(struct.pack("<f", 5.0))] ^= 1
    saved.write_bytes(content)
    checkpoint = read_checkpoint(saved, inert=INERT)
    with pytest.raises(InputError, match="a storage cannot be read"):
        checkpoint.tensors(checkpoint.value)


def test_storages_that_lie_about_their_size_are_refused(tmp_path, saved):
    """The zip's directory declares a storage of 2 GB in a file of a kilobyte."""
    content = bytearray(saved.read_bytes())
    entry = next(info for info in zipfile.ZipFile(saved).infolist() if info.filename.endswith("data/0"))
    name = content.rindex(
        entry.filename.encode()
    )  # the last mention is the directory's, 46 bytes after its entry's start
    content[name - 46 + 24 : name - 46 + 28] = struct.pack("<I", 2**31)
    saved.write_bytes(content)
    checkpoint = read_checkpoint(saved, inert=INERT)
    with pytest.raises(InputError, match="larger than the file"):
        checkpoint.tensors(checkpoint.value)


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 1},
        {"offset": -1},
        {"size": (7,)},
        {"size": (-6,)},
        {"stride": (2,)},
        {"stride": (-1,)},
        {"size": (10**6, 10**6), "stride": (0, 0)},  # a tensor of 4 TB out of one number
        {"size": (0, 10**30), "stride": (1, 1)},
        {"size": (1,), "stride": (10**30,)},
        {"numel": 10**30},
    ],
)
def test_tensors_stay_within_their_storage(saved, change):
    checkpoint = read_checkpoint(saved, inert=())
    stored = checkpoint.value["x"]
    assert torch.equal(checkpoint.tensors({"x": stored})["x"], torch.arange(6.0))
    with pytest.raises(InputError, match="beyond its storage"):
        checkpoint.tensors({"x": replace(stored, **change)})


def test_a_storage_that_is_not_there_in_full_is_told(saved):
    checkpoint = read_checkpoint(saved, inert=())
    stored = checkpoint.value["x"]
    with pytest.raises(InputError, match="not there in full"):
        checkpoint.tensors({"x": replace(stored, numel=10**12)})
    with pytest.raises(InputError, match="is missing"):
        checkpoint.tensors({"x": replace(stored, key="77")})


def test_one_storage_cannot_be_many_times_the_file(saved):
    checkpoint = read_checkpoint(saved, inert=())
    with pytest.raises(InputError, match="larger than the file"):
        checkpoint.tensors({str(i): checkpoint.value["x"] for i in range(1000)})


def test_layouts_are_kept(tmp_path):
    path = tmp_path / "w.pt"
    grid = torch.arange(24).view(4, 6)
    want = {
        "turned": grid.T,
        "part": grid[1:3, ::2],
        "none": torch.empty(0, 3),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "one": torch.tensor(7),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    torch.save(want, path)
    checkpoint = read_checkpoint(path, inert=())
    assert all(isinstance(stored, Stored) for stored in checkpoint.value.values())
    for name, tensor in checkpoint.tensors(checkpoint.value).items():
        assert torch.equal(tensor, want[name]), name
        assert tensor.dtype == want[name].dtype


def test_what_checkpoints_hold_besides_tensors_is_read(tmp_path):
    """The state of a training: numpy's numbers, state dicts with their metadata, sets, sizes."""
    path = tmp_path / "w.pt"
    held = {
        "best": np.float64(0.5),
        "scores": np.arange(3.0),
        "state": torch.nn.Linear(2, 1).state_dict(),
        "seen": {1, 2},
        "size": torch.Size([2, 3]),
        "bytes": b"abc",
    }
    torch.save(held, path)
    found = read_checkpoint(path, inert=INERT).value
    assert list(found["state"]) == ["weight", "bias"]
    assert (found["seen"], found["size"], found["bytes"]) == ({1, 2}, (2, 3), b"abc")
    assert isinstance(found["best"], Inert)
    assert isinstance(found["scores"], Inert)


def test_a_file_cannot_write_on_the_terminal():
    assert shown("os\n\x1b[31mred") == "os\\n\\x1b[31mred"
    assert len(shown("x" * 10**6)) == 120
