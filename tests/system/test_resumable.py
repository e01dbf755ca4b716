"""Resumable writes: interruptions, refused files, and damaged shards."""

import contextlib
import errno
import fcntl
import os
import shutil
import types

import h5py
import numpy as np
import pytest
from tiny import files, owned_elsewhere

from sda.errors import SdaError
from sda.system.resumable import check_space, difference, h5py_errors, new_hdf5, new_shard, read_shard, write_resumable

SETTINGS = {"format": 1, "size": [2, 3]}
ARRAYS = {
    "numbers": np.arange(6, dtype=np.int16).reshape(2, 3),
    "names": np.array(["a b", "ü"]),
    "nothing": np.zeros(0, np.uint8),
}


class Stop(Exception):
    pass


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.h5"


@pytest.fixture
def parts(out):
    return out.with_name("out.h5.parts")


def shard(path, arrays=ARRAYS):
    with new_shard(path) as add:
        for name, array in arrays.items():
            add(name, array)


def make(out, settings=SETTINGS, stop="", accept=lambda: ["from before"], wording=None):
    """Write two shards, each with its number, and then their numbers to `out`; raise Stop before "1.npz", "join" or "end"."""

    def write(parts):
        made = 0
        for number in range(2):
            path = parts / f"{number}.npz"
            if path.exists():
                continue
            if stop == path.name:
                raise Stop
            shard(path, {"number": np.array([number])})
            made += 1
        with new_hdf5(parts, out) as file:
            if stop == "join":
                raise Stop
            file["numbers"] = np.concatenate([dict(read_shard(parts / f"{number}.npz"))["number"] for number in range(2)])
        if stop == "end":
            raise Stop
        return [f"made {made}"]

    return write_resumable(out, settings, accept, write, wording)


def held(out):
    with h5py.File(out) as file:
        return file["numbers"][:].tolist()


def test_an_interrupted_write_resumes_and_removes_its_parts(out, parts):
    with pytest.raises(Stop):
        make(out, stop="1.npz")
    assert sorted(path.name for path in parts.iterdir()) == ["0.npz", "settings.json"] and not out.exists()
    with pytest.raises(Stop):
        make(out, stop="join")
    assert sorted(path.name for path in parts.iterdir()) == ["0.npz", "1.npz", "settings.json"] and not out.exists()
    assert make(out) == ["made 0"]
    assert held(out) == [0, 1] and [path.name for path in out.parent.iterdir()] == ["out.h5"]


def test_a_finished_file_is_not_rewritten(out, parts):
    with pytest.raises(Stop):
        make(out, stop="end")
    before = out.read_bytes()
    assert parts.exists() and make(out) == ["from before"]
    assert files(out.parent) == {"out.h5": before}


def test_a_foreign_file_is_refused(out):
    def refuse():
        raise SdaError(f"{out}: not ours; make it with a command")

    out.write_text("theirs")
    with pytest.raises(SdaError) as caught:
        make(out, accept=refuse)
    assert str(caught.value) == f"{out}: already exists (not ours) and is not overwritten; remove it or choose another --out"
    assert out.read_text() == "theirs"


def test_parts_with_other_settings_are_refused(out, parts):
    with pytest.raises(Stop):
        make(out, stop="1.npz")
    before = files(parts)
    with pytest.raises(SdaError) as caught:
        make(out, {"format": 1, "size": [4, 4]})
    words = "was started with other settings (size is [2, 3], not [4, 4]); remove this folder or choose another --out"
    assert str(caught.value) == f"{parts}: {words}" and files(parts) == before
    out.write_text("finished with other settings")
    make(out, {"format": 1, "size": [4, 4]})
    assert files(parts) == before


def test_difference_names_the_changed_settings():
    assert difference(SETTINGS, SETTINGS) == "" and difference({**SETTINGS, "more": 1}, SETTINGS) == ""
    assert difference({}, SETTINGS) == "format is None, not 1"
    assert difference({"format": 1, "size": "x" * 99}, SETTINGS) == "size differs"
    assert difference({"format": 1}, SETTINGS, {"size": "another size"}) == "another size"


@pytest.mark.parametrize("settings", [None, b"", b'{"format"'])
def test_shards_with_unknown_settings_are_removed(out, parts, settings):
    with pytest.raises(Stop):
        make(out, stop="1.npz")
    (parts / "settings.json").unlink()
    if settings is not None:
        (parts / "settings.json").write_bytes(settings)
    assert make(out, {"format": 2}) == ["made 2"]


@pytest.mark.parametrize("place", range(4))
def test_a_kill_during_the_removal_of_parts(out, parts, monkeypatch, place):
    """At any point of the removal, no shard remains without settings, and the same command removes the rest."""
    unlink, removed = type(out).unlink, []

    def stopping(path, missing_ok=False):
        if path.name != "whole.partial":
            if len(removed) == place:
                raise Stop
            removed.append(path.name)
        unlink(path, missing_ok)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(type(out), "unlink", stopping)
        make(out)
    assert not list(parts.glob("*.npz")) or (parts / "settings.json").exists()
    assert make(out) == ["from before"] and [path.name for path in out.parent.iterdir()] == ["out.h5"]


def test_other_files_in_the_parts_are_kept(out, parts):
    parts.mkdir()
    (parts / "notes.txt").write_text("mine")
    make(out)
    assert files(parts) == {"notes.txt": b"mine"} and held(out) == [0, 1]


def test_a_second_process_is_refused(out, parts):
    with owned_elsewhere(parts), pytest.raises(SdaError, match=r"out\.h5: process \d+ on .* is writing it; wait"):
        make(out)
    assert make(out) == ["made 2"]


def test_a_file_finished_by_another_process_is_accepted(out, monkeypatch):
    """The file appears between the first check and the lock."""
    lock = fcntl.lockf

    def finishing(*arguments):
        out.write_text("theirs")
        lock(*arguments)

    monkeypatch.setattr(fcntl, "lockf", finishing)
    assert make(out) == ["from before"] and files(out.parent) == {"out.h5": b"theirs"}


@pytest.mark.parametrize(("number", "works"), [(errno.ENOLCK, True), (errno.ENOSYS, True), (errno.EIO, False)])
def test_a_file_system_without_locks_is_reported(out, monkeypatch, number, works):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", fail)
    with contextlib.nullcontext() if works else pytest.raises(SdaError, match="cannot be written"):
        assert make(out) == ["made 2"]


def test_a_full_disk_is_reported_in_one_line(out, parts, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(SdaError) as caught:
        patch.setattr(os, "fsync", full)
        make(out)
    words = "free disk space or fix the cause, then run the same command again: it resumes from"
    assert str(caught.value) == f"{out}: cannot be written (No space left on device); {words} {parts}"
    assert make(out) == ["made 2"]


def test_check_space_needs_enough_free_space(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=2_000_000))
    check_space(tmp_path, 2_000_000)
    with pytest.raises(OSError, match="No space left on device: 3 MB needed, 2 MB free"):
        check_space(tmp_path, 3_000_000)


def test_h5py_errors_are_reported_in_one_line():
    with pytest.raises(OSError, match=r"^write failed$"), h5py_errors():
        raise RuntimeError("write failed\nand more")


def test_hdf5_files_are_written_atomically(tmp_path, out):
    with pytest.raises(Stop), new_hdf5(tmp_path, out) as file:
        file["x"] = [1]
        raise Stop
    assert not list(tmp_path.iterdir())
    with pytest.raises(SdaError, match=r"out\.h5: another process created it in the meantime"), new_hdf5(tmp_path, out):
        out.write_text("theirs")
    assert files(tmp_path) == {"out.h5": b"theirs"}


# Shards


def test_shards_round_trip_arrays(tmp_path):
    shard(tmp_path / "0.npz")
    found = dict(read_shard(tmp_path / "0.npz"))
    assert list(found) == list(ARRAYS)
    assert all(found[name].dtype == array.dtype and np.array_equal(found[name], array) for name, array in ARRAYS.items())
    assert [name for name, _ in read_shard(tmp_path / "0.npz", "names")] == ["names"]
    with np.load(tmp_path / "0.npz") as arrays:  # any npz reader can open them
        assert np.array_equal(arrays["numbers"], ARRAYS["numbers"])


def test_an_error_leaves_no_shard(tmp_path):
    with pytest.raises(Stop), new_shard(tmp_path / "0.npz") as add:
        add("numbers", ARRAYS["numbers"])
        raise Stop
    assert not list(tmp_path.iterdir())


def test_errors_of_the_caller_are_not_reported_as_damage(tmp_path):
    shard(tmp_path / "0.npz")
    with pytest.raises(ValueError, match="of the reader"):
        for _ in read_shard(tmp_path / "0.npz"):
            raise ValueError("of the reader")
    assert (tmp_path / "0.npz").exists()


def test_a_flipped_bit_in_the_arrays_is_detected(tmp_path):
    """It is detected, or it is in a field of the zip file without effect."""
    path, refused = tmp_path / "0.npz", 0
    shard(path)
    good = path.read_bytes()
    for place in range(good.index(b"PK\x01\x02")):  # up to the zip directory at the end
        data = bytearray(good)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            found = dict(read_shard(path))
        except SdaError as error:
            assert str(error).startswith(f"{path}: damaged on the disk (") and "\n" not in str(error) and not path.exists()
            refused += 1
        else:
            assert all(np.array_equal(found[name], array) for name, array in ARRAYS.items())
    assert refused > sum(array.nbytes + 128 for array in ARRAYS.values())


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.999])
def test_a_truncated_shard_is_detected(tmp_path, share):
    path = tmp_path / "0.npz"
    shard(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(SdaError, match=r"0\.npz: damaged on the disk \(.*\) and therefore removed; run the same command again$"):
        dict(read_shard(path))
    assert not path.exists()


def test_a_missing_shard_is_not_reported_as_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        dict(read_shard(tmp_path / "0.npz"))
