"""A file or a folder is whole or not there, whatever happens while it is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from foldfuse.errors import InputError
from foldfuse.system.atomic_files import atomic, atomic_folder, write_text


def test_the_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent  # else the renaming could cross file systems
        assert temporary.suffix == ".txt"
    assert path.read_text() == "half"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_an_error_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fail_half_way() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_written_byte_for_byte(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Größe\nx\r\n")
    assert (tmp_path / "a.txt").read_bytes() == "Größe\nx\r\n".encode()


def test_a_folder_that_cannot_be_created_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "text")


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "labels"
    with atomic_folder(path) as temporary:
        (temporary / "a.txt").write_text("half")
        assert not path.exists()
    assert [file.name for file in path.iterdir()] == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o755
    assert list(path.parent.iterdir()) == [path]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    with atomic_folder(tmp_path / "labels") as temporary:
        (temporary / "a.txt").write_text("all")
    assert (tmp_path / "labels" / "a.txt").read_text() == "all"


def test_an_error_leaves_no_folder(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with atomic_folder(tmp_path / "labels") as temporary:
            (temporary / "a.txt").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("before")
    for path, message in [
        (tmp_path / "full", "is a folder that is not empty, expected a new or an empty"),
        (tmp_path / "full" / "a.txt", "is a file, expected a new or an empty folder"),
        (tmp_path / "full" / "a.txt" / "labels", "cannot be written"),
    ]:
        with pytest.raises(InputError, match=message), atomic_folder(path):
            pass
    assert (tmp_path / "full" / "a.txt").read_text() == "before"
    assert len(list(tmp_path.rglob("*"))) == 2


def test_a_folder_is_no_file_to_write(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(InputError, match="is a folder, expected a file to write"), atomic(folder):
        pass
    assert list(tmp_path.rglob("*")) == [folder]


@pytest.mark.skipif(os.name == "nt", reason="permissions and links of files")
def test_permissions_follow_the_umask_and_the_file_that_is_replaced(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_text(tmp_path / "a.txt", "x")
        with atomic_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o700
    (tmp_path / "a.txt").chmod(0o640)
    write_text(tmp_path / "a.txt", "y")
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.name == "nt", reason="permissions and links of files")
def test_a_link_stays_and_the_file_that_it_names_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to("there/a.txt")
    for text in ("new", "newer"):
        write_text(link, text)
        assert link.is_symlink()
        assert (tmp_path / "there" / "a.txt").read_text() == text


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices")
def test_what_is_no_file_is_never_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path, message in [
        (tmp_path / "pipe", "is a pipe, expected a file to write"),
        (tmp_path / "loop", "cannot be written"),
        (Path("/dev/null"), "is a device"),
        (Path("/dev/stdout"), "/dev/stdout: is"),
        (tmp_path / ("n" * 300), "name too long"),
        (Path("a\0b"), "null character"),
    ]:
        with pytest.raises(InputError, match=message):
            write_text(path, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loop", "pipe"]


def test_a_long_name_has_room_for_the_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 240 + ".txt")
    write_text(path, "x")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_half_of_a_character_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds half of a character"):
        write_text(tmp_path / "a.txt", "name \ud800")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_sentence_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fill() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"a\.txt: the disk is full\. Nothing was written there"):
        fill()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
