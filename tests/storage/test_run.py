"""The folder of a run: what comes back from it, and what happens when a file in it is broken."""

import pytest
import torch

from foldfuse.errors import InputError
from foldfuse.recipes import load_recipe
from foldfuse.storage.run import Run, RunMetadata

RECIPE = load_recipe("efficientdet_lite0", ["image_size=320"])


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", RECIPE, RunMetadata(("a",)))


def test_everything_comes_back(run):
    assert (run.recipe, run.metadata, run.log) == (RECIPE, RunMetadata(("a",)), [])
    run.write_log([{"step": 0}, {"step": 1}])
    run.save_weights({"w": torch.arange(3.0)})
    run.save_checkpoint({"step": 7, "model": {"w": torch.ones(2)}})
    assert run.log == [{"step": 0}, {"step": 1}]
    assert torch.equal(run.load_weights()["w"], torch.arange(3.0))
    state, trouble = run.load_checkpoint()
    assert state is not None
    assert state["step"] == 7
    assert trouble is None
    assert not list(run.folder.glob(".*")), "a temporary file was left"


def test_a_line_that_a_crash_cut_short_is_no_row_of_the_log(run):
    run.append_log([{"step": 0}, {"step": 1}])
    run.append_log([{"step": 2}])
    with (run.folder / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert [row["step"] for row in run.log] == [0, 1, 2]
    run.write_log(run.log)
    run.append_log([{"step": 3}])
    assert [row["step"] for row in run.log] == [0, 1, 2, 3]
    (run.folder / "log.jsonl").write_text("{broken\n{}\n")
    with pytest.raises(InputError, match=r"log\.jsonl: line 1: is not JSON.* Remove the run"):
        _ = run.log


def test_metadata_of_a_later_version_is_refused(run):
    (run.folder / "run.json").write_text('{"format": 99}')
    with pytest.raises(
        InputError, match="is the metadata of a run of format 99, and this version of Foldfuse reads up to 2"
    ):
        _ = run.metadata


@pytest.mark.parametrize("broken", [b"", b"no checkpoint", None])
def test_a_broken_state_falls_back_to_the_one_before(run, broken):
    for step in (1, 2, 3):
        run.save_checkpoint({"step": step, "w": torch.zeros(1000)})
    path = run.folder / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-500] if broken is None else broken)
    state, trouble = run.load_checkpoint()
    assert state is not None
    assert state["step"] == 2
    assert trouble is not None
    assert str(path) in trouble
    assert "the checkpoint before it" in trouble


def test_a_state_that_was_never_renamed_is_found(run):
    run.save_checkpoint({"step": 1})
    (run.folder / "checkpoint.pt").replace(run.folder / "checkpoint.previous.pt")  # killed between the two renames
    state, trouble = run.load_checkpoint()
    assert state == {"step": 1}
    assert trouble is None


def test_without_a_checkpoint_there_is_no_state(run):
    assert run.load_checkpoint() == (None, None)


def test_two_broken_states_are_told(run):
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (run.folder / name).write_bytes(b"x")
    state, trouble = run.load_checkpoint()
    assert state is None
    assert trouble is not None
    assert "from step 0" in trouble


def test_a_state_file_that_would_run_code_is_refused(run):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"step": Evil()}, run.folder / "checkpoint.pt")
    state, trouble = run.load_checkpoint()
    assert state is None
    assert trouble is not None


def test_files_that_are_missing_or_broken_are_named(run, tmp_path):
    with pytest.raises(InputError, match="trained to its end"):
        run.load_weights()
    (run.folder / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"weights\.safetensors: is broken"):
        run.load_weights()
    (run.folder / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json: is not JSON"):
        _ = run.metadata
    with pytest.raises(InputError, match="the folder of a run"):
        _ = Run(tmp_path / "gone").metadata
    with pytest.raises(InputError, match="the folder of a run"):
        _ = Run(tmp_path / "gone").recipe


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "a.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(InputError, match="is there already"):
            Run.create(folder, RECIPE, RunMetadata())
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    (tmp_path / "empty").mkdir()
    assert Run.create(tmp_path / "empty", RECIPE, RunMetadata()).metadata == RunMetadata()
