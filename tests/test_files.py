"""Files appear whole or not at all, with the mode of any new file, and never through a link."""

import os
import secrets
import stat
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from fastae import files
from fastae.files import check_writable, remove_leftovers, write_whole


def fail_halfway(file: BinaryIO) -> None:
    file.write(b"half")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("content", [b"\x00\xff", "gr\u00fc\u00df", lambda file: file.write(b"called")])
def test_a_file_holds_what_was_given(tmp_path, content):
    path = tmp_path / "new"
    path.write_text("old and longer than the new content")
    assert write_whole(path, content) == path
    expected = b"called" if callable(content) else content if isinstance(content, bytes) else content.encode()
    assert path.read_bytes() == expected and os.listdir(tmp_path) == ["new"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_gives_the_mode(tmp_path, umask):
    before = os.umask(umask)
    try:
        path = write_whole(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_failure_leaves_the_old_file_and_names_it(tmp_path):
    path = write_whole(tmp_path / "file", "old")
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_whole(path, fail_halfway)
    assert (caught.value.errno, caught.value.filename) == (28, str(path))
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_links_are_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(secrets, "token_hex", lambda _: "known")
    (tmp_path / ".tmp-known").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "file", "x")
    monkeypatch.undo()
    (tmp_path / "link").symlink_to(victim)
    write_whole(tmp_path / "link", "x")
    assert victim.read_text() == "precious" and not (tmp_path / "link").is_symlink()


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such locks")
def test_leftovers_of_killed_processes_are_removed_and_no_others(tmp_path):
    """The file of a process that is still writing is locked."""
    left, own = tmp_path / f".tmp-{'0' * 16}", tmp_path / ".tmp-notes"
    started, go_on = tmp_path / "started", tmp_path / "go on"

    def write(file: BinaryIO) -> None:
        started.touch()
        while not go_on.exists():
            time.sleep(0.01)
        file.write(b"whole")

    child = os.fork()
    if child == 0:
        write_whole(tmp_path / "file", write)
        os._exit(0)
    while not started.exists():
        time.sleep(0.01)
    for path in (left, own):
        path.touch()
    remove_leftovers(tmp_path)
    go_on.touch()
    assert os.waitpid(child, 0)[1] == 0
    assert not left.exists() and own.exists()
    assert (tmp_path / "file").read_bytes() == b"whole" and not list(tmp_path.glob(".tmp-?????????*"))


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such locks")
def test_a_file_that_was_taken_for_a_leftover_is_written_under_another_name(tmp_path, monkeypatch):
    calls: list[int] = []

    def lock(descriptor: int) -> bool:
        calls.append(descriptor)
        if len(calls) == 1:
            next(tmp_path.glob(".tmp-*")).unlink()
        return True

    monkeypatch.setattr(files, "lock", lock)
    write_whole(tmp_path / "file", "x")
    assert len(calls) == 2 and os.listdir(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    check_writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []
    with pytest.raises(OSError):
        check_writable(Path(tmp_path / "file" / "below"))
