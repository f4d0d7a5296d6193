"""No code in a checkpoint is executed when it is read: each attack ends in one error sentence, with nothing done."""

import io
import os
import pickle
import struct
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from foldfuse.errors import InputError
from foldfuse.models.pretrained.checkpoint import MAX_PICKLE, Inert, read_checkpoint, shown, tensors_in

INERT = ("models", "torch.nn.modules", "numpy")


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Storage:
    """Pickles as a storage of the archive."""

    def __init__(self, key="0", numel=6):
        self.id = ("storage", torch.FloatStorage, key, "cpu", numel)


class Pickler(pickle.Pickler):
    """Pickles storages as torch.save does."""

    def persistent_id(self, value):
        return value.id if isinstance(value, Storage) else None


def forged(path: Path, content: object, *, compress: int = zipfile.ZIP_STORED) -> Path:
    """A checkpoint with this pickle, or with the pickle of `content`, and with one storage of six numbers."""
    if not isinstance(content, bytes):
        file = io.BytesIO()
        Pickler(file, protocol=2).dump(content)
        content = file.getvalue()
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", np.arange(6, dtype=np.float32).tobytes())
    return path


def tensor(storage=None, *, offset=0, size=(6,), stride=(1,)) -> Calls:
    """Pickles as a tensor with this layout."""
    rebuild = torch._utils._rebuild_tensor_v2
    return Calls(rebuild, storage or Storage(), offset, size, stride, False, OrderedDict())


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
    "content",
    [
        Calls(os.system, "touch RAN"),
        Calls(eval, "open('RAN', 'w')"),
        Calls(exec, "open('RAN', 'w')"),
        Calls(open, "RAN", "w"),
        Calls(getattr, "abc", "upper"),
        Calls(__import__, "os"),
        Calls(__import__("subprocess").Popen, "true"),
        {"model": [{"deep": (1, Calls(os.system, "touch RAN"))}]},
        b"cos\nsystem\n(S'touch RAN'\ntR.",
        b"(S'touch RAN'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch RAN'\no.",
        b"\x80\x02cos\nsystem\n" + text("touch RAN") + b"\x85\x81.",
        b"\x80\x04\x8c\x05torch\x8c\x0bhub.os.open\x93.",
        b"\x80\x04\x8c\x0ctorch._utils\x8c\x08os.popen\x93.",
        b"ctorch\nload\n.",
        b"ctorch.nn.modules_evil\nX\n.",
        b"ccollections\nOrderedDict.fromkeys\n.",
    ],
)
def test_calls_of_other_code_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = forged(tmp_path / "w.pt", content)
    with pytest.raises(InputError, match=r"w\.pt: (names .*refused|cannot be read)") as error:
        read_checkpoint(path, inert=INERT)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["os.system", "torch.load", "torch.nn.modules_evil.X", "builtins.eval"])
def test_a_refused_global_is_named(tmp_path, name):
    module, _, function = name.rpartition(".")
    path = forged(tmp_path / "w.pt", f"\x80\x02c{module}\n{function}\n.".encode("latin1"))
    with pytest.raises(InputError, match=rf"names {name}, which is neither a tensor.*refused"):
        read_checkpoint(path, inert=INERT)


def test_stubs_run_nothing_when_called_built_or_given_a_state(tmp_path, monkeypatch):
    """An importable class of the same name is not used either."""
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
        found = read_checkpoint(forged(tmp_path / "w.pt", content), inert=INERT)
        assert isinstance(found, Inert)
        assert (found.kind, found.state) == ("models.yolo.Model", {"a": 1})
    called = read_checkpoint(forged(tmp_path / "w.pt", b"\x80\x02cmodels.yolo\nf\nK\x01K\x02\x86R."), inert=INERT)
    assert isinstance(called, Inert)
    assert ran == []


def test_stubs_are_gone_after_reading(tmp_path):
    forged(tmp_path / "w.pt", b"\x80\x02cmodels.yolo\nModel\n)\x81.")
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(tmp_path / "w.pt", inert=INERT)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(InputError, match="refused"):
        read_checkpoint(tmp_path / "w.pt", inert=())


@pytest.mark.parametrize(
    "target",
    [
        b"cmodels.yolo\nModel\n",  # the stub's class
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"c_codecs\nencode\n",
        b"cbuiltins\nset\n",
        b"ccollections\nOrderedDict\n",
        b"ctorch\nSize\n",
        b"ctorch\nFloatStorage\n",
    ],
)
@pytest.mark.parametrize("slots", [True, False])
def test_functions_and_classes_cannot_be_given_attributes(tmp_path, target, slots):
    state = b"}" + text("function") + b"K\x01s"
    content = b"\x80\x02" + target + (b"N" + state + b"\x86" if slots else state) + b"b."
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        read_checkpoint(forged(tmp_path / "w.pt", content), inert=INERT)


def test_an_inert_object_keeps_plain_states_only(tmp_path):
    content = b"\x80\x02cmodels.yolo\nModel\n)\x81N}" + text("kind") + text("x") + b"s\x86b."
    found = read_checkpoint(forged(tmp_path / "w.pt", content), inert=INERT)
    assert (found.kind, found.state) == ("models.yolo.Model", {})


def test_a_dict_whose_methods_are_hidden_by_attributes_is_searched(tmp_path):
    content = b"\x80\x02ccollections\nOrderedDict\n)R" + text("a") + b"K\x01s}" + text("values") + b"K\x02sb."
    found = read_checkpoint(forged(tmp_path / "w.pt", content), inert=INERT)
    assert list(dict.items(found)) == [("a", 1)]
    assert list(tensors_in(found)) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\x80\x02",
        pickle.dumps([1] * 100)[:-3],
        b"\x80\x02ctorch.nn.modules.conv\nConv2d\nR.",
        b"Np99999999999\n.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0fabc.",  # a string of 2^60 bytes
        b"\x80\x02\x8b\xff\xff\xff\x7f1.",  # an integer of 2^31 bytes
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nK\x01K\x02K\x03K\x04tR.",
        b"Pxyz\n.",  # a storage by a bare name
        b"\x80\x02(" + text("storage") + b"ctorch\nFloatStorage\n" + text("../data.pkl") + text("cpu") + b"K\x01tQ.",
        b"\x80\x02\x82\x01.",  # an extension of copyreg
    ],
)
def test_broken_pickles_are_errors(tmp_path, content):
    with pytest.raises(InputError, match=r"w\.pt: (cannot be read as a checkpoint|names .* refused)"):
        read_checkpoint(forged(tmp_path / "w.pt", content), inert=INERT)


def test_a_damaged_file_is_an_error(tmp_path, saved):
    cut = tmp_path / "cut.pt"
    cut.write_bytes(saved.read_bytes()[:-100])
    page = tmp_path / "page.pt"
    page.write_text("<html>not found</html>")
    oldest = tmp_path / "oldest.pt"
    with tarfile.open(oldest, "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO(b""))
    other = tmp_path / "other.pt"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    for wrong in (cut, page, oldest, other, tmp_path):
        with pytest.raises(InputError, match=f"{wrong.name}: cannot be read"):
            read_checkpoint(wrong, inert=INERT)
    with pytest.raises(InputError, match="there is no such file"):
        read_checkpoint(tmp_path / "none.pt", inert=INERT)


def test_files_of_older_versions_of_pytorch_are_read_if_they_hold_tensors_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": torch.arange(6.0)}, "older.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(Path("older.pt"), inert=INERT)["x"], torch.arange(6.0))
    torch.save({"x": Calls(os.system, "touch RAN")}, "evil.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"evil\.pt: cannot be read"):
        read_checkpoint(Path("evil.pt"), inert=INERT)
    assert not Path("RAN").exists()


def test_zip_bombs_are_refused_before_they_are_unpacked(tmp_path):
    for name, content in (("small", b"N."), ("bomb", b"N." + b"\0" * MAX_PICKLE)):
        path = forged(tmp_path / f"{name}.pt", content, compress=zipfile.ZIP_DEFLATED)
        with pytest.raises(InputError, match="is compressed"):
            read_checkpoint(path, inert=INERT)
    with pytest.raises(InputError, match="pickle has over 16 MB"):
        read_checkpoint(forged(tmp_path / "large.pt", b"N." + b"\0" * MAX_PICKLE), inert=INERT)


def test_a_compressed_storage_is_refused(tmp_path, saved):
    squeezed = tmp_path / "squeezed.pt"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(squeezed, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED if "/data/" in name else zipfile.ZIP_STORED)
    with pytest.raises(InputError, match="is compressed"):
        read_checkpoint(squeezed, inert=INERT)


def test_a_damaged_storage_is_an_error(saved):
    content = bytearray(saved.read_bytes())
    content[content.index(struct.pack("<f", 5.0))] ^= 1
    saved.write_bytes(content)
    with pytest.raises(InputError, match="data/0 in it cannot be read"):
        read_checkpoint(saved, inert=INERT)


def test_storages_that_lie_about_their_size_are_refused(saved):
    """The zip's directory declares a storage of 2 GB in a file of a kilobyte."""
    content = bytearray(saved.read_bytes())
    entry = next(info for info in zipfile.ZipFile(saved).infolist() if info.filename.endswith("data/0"))
    # The last mention of the name is in the directory, 46 bytes behind the start of its entry.
    name = content.rindex(entry.filename.encode())
    content[name - 46 + 24 : name - 46 + 28] = struct.pack("<I", 2**31)
    saved.write_bytes(content)
    with pytest.raises(InputError, match="larger than the file"):
        read_checkpoint(saved, inert=INERT)


@pytest.mark.parametrize(
    "layout",
    [
        {"offset": 10**4},
        {"offset": -1},
        {"size": (10**4,)},
        {"size": (-6,)},
        {"stride": (-1,)},
        {"size": (10**6, 10**6), "stride": (0, 0)},  # a tensor of 4 TB out of one number
        {"size": (10**6, 10**6), "stride": (10**6, 1)},
        {"size": (0, 10**30), "stride": (1, 1)},
        {"size": (1,), "stride": (10**30,)},
        {"storage": Storage(numel=10**9)},
        {"storage": Storage(numel=10**30)},
        {"storage": Storage(key="77")},
        {"storage": Storage(key="../data.pkl")},
    ],
)
def test_tensors_beyond_the_file_are_refused(tmp_path, layout):
    path = tmp_path / "w.pt"
    honest = read_checkpoint(forged(path, {"x": tensor()}), inert=INERT)
    assert torch.equal(honest["x"], torch.arange(6.0))
    with pytest.raises(InputError, match=r"w\.pt: (its tensors are larger than the file|cannot be read)"):
        read_checkpoint(forged(path, {"x": tensor(**layout)}), inert=INERT)


def test_one_storage_cannot_be_many_times_the_file(tmp_path):
    torch.save({"x": [torch.zeros(10000)[:] for _ in range(2)]}, tmp_path / "honest.pt")
    read_checkpoint(tmp_path / "honest.pt", inert=INERT)
    whole = torch.zeros(10000)
    torch.save({"x": [whole[:] for _ in range(100)]}, tmp_path / "aliases.pt")
    with pytest.raises(InputError, match="larger than the file"):
        read_checkpoint(tmp_path / "aliases.pt", inert=INERT)


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
    for name, found in read_checkpoint(path, inert=()).items():
        assert torch.equal(found, want[name]), name
        assert found.dtype == want[name].dtype


def test_other_contents_of_checkpoints_are_read(tmp_path):
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
    found = read_checkpoint(path, inert=INERT)
    assert list(found["state"]) == ["weight", "bias"]
    assert (found["seen"], found["size"], found["bytes"]) == ({1, 2}, (2, 3), b"abc")
    assert isinstance(found["best"], Inert)
    assert isinstance(found["scores"], Inert)
    assert len(list(tensors_in(found))) == 2


def test_a_file_cannot_write_on_the_terminal():
    assert shown("os\n\x1b[31mred") == "os\\n\\x1b[31mred"
    assert len(shown("x" * 10**6)) == 120
