"""Locks of folders and files: between processes, within a process, and after kills."""

import os
import socket
import subprocess
import sys

import pytest
from tiny import owned_elsewhere

from sda.errors import SdaError
from sda.system.atomic import written_whole
from sda.system.owned import owned, owner


def test_a_second_process_is_refused_and_told_the_first(tmp_path):
    folder = tmp_path / "runs/a"
    with owned_elsewhere(folder) as other:
        words = f"process {other.pid} on {socket.gethostname()}"
        assert owner(folder) == words
        with pytest.raises(SdaError, match=f"runs/a: {words} is writing it; wait until it ends, stop it"), owned(folder):
            pass
        assert owner(folder) == words and folder.exists()


def test_a_kill_releases_the_folder(tmp_path):
    with owned_elsewhere(tmp_path) as other:
        other.kill()
        other.wait()
        assert owner(tmp_path) == "" and (tmp_path / ".lock").exists()
        with owned(tmp_path):
            assert owner(tmp_path) == f"process {os.getpid()} on {socket.gethostname()}"
    assert list(tmp_path.iterdir()) == []


def test_the_same_process_is_refused_too(tmp_path):
    with owned(tmp_path):
        with pytest.raises(SdaError, match=f"process {os.getpid()} on"), owned(tmp_path / "../" / tmp_path.name):
            pass
        assert owner(tmp_path)
    assert owner(tmp_path) == ""


def test_a_new_folder_is_removed_only_if_it_stays_empty(tmp_path):
    with owned(tmp_path / "new/empty"):
        pass
    with owned(tmp_path / "new/full"):
        (tmp_path / "new/full/file").touch()
    (tmp_path / "old").mkdir()
    with owned(tmp_path / "old"):
        pass
    assert sorted(os.listdir(tmp_path / "new")) == ["full"] and (tmp_path / "old").exists()
    with pytest.raises(KeyboardInterrupt), owned(tmp_path / "failed"):
        raise KeyboardInterrupt
    assert not (tmp_path / "failed").exists()


def test_a_child_process_does_not_keep_the_lock(tmp_path):
    with owned(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    assert owner(tmp_path) == ""
    with owned(tmp_path):
        pass
    child.communicate(b"\n")


def test_many_processes_admit_one_at_a_time(tmp_path):
    """Each holds the folder, checks that it is alone, and removes the lock file that the others may be opening."""
    code = """
import pathlib, sys, time
from sda.errors import SdaError
from sda.system.owned import owned
folder, won = pathlib.Path(sys.argv[1]), 0
deadline = time.monotonic() + 20
while won < 30 and time.monotonic() < deadline:
    try:
        with owned(folder):
            (folder / "inside").touch(exist_ok=False)
            (folder / "inside").unlink()
            won += 1
    except SdaError:
        pass
assert won == 30, won
"""
    others = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "shared"]) for _ in range(3)]
    assert [other.wait() for other in others] == [0, 0, 0]


def test_two_writers_of_one_file_never_mix(tmp_path):
    path = tmp_path / "file"
    with written_whole(path) as file:
        file.write(b"first")
        with pytest.raises(SdaError, match=r"file\.partial: another process is writing this file"), written_whole(path) as other:
            other.write(b"second")
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == ["file"]
    path.with_name("file.partial").write_bytes(b"longer than the new content, left by a kill")
    with written_whole(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", ["link to a file", "dangling link", "pipe", "folder"])
def test_a_lock_that_is_no_regular_file_is_refused(tmp_path, kind):
    (tmp_path / "mine").write_text("precious")
    folder, lock = tmp_path / "run", tmp_path / "run/.lock"
    folder.mkdir()
    if kind == "pipe":
        os.mkfifo(lock)
    elif kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to(tmp_path / ("mine" if kind == "link to a file" else "nowhere/x"))
    with pytest.raises(SdaError, match=r"run/\.lock: is not a regular file; remove it"), owned(folder):
        pass
    assert (tmp_path / "mine").read_text() == "precious" and os.path.lexists(lock)
