"""Checkpoints: round trips; corrupt, foreign and hostile files raise an error of one line."""

import errno
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from sda.errors import SdaError
from sda.runs import checkpoint

STATE = {"step": 3, "recipe": {"labels": "all", "size": [48, 64], "crop": None, "rate": 0.1}, "student": {"w": torch.arange(6.0)}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "last.pt"


def rejected(path):
    with pytest.raises(SdaError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


def test_checkpoints_round_trip(path):
    checkpoint.save(path, STATE)
    state = checkpoint.load(path)
    assert torch.equal(state["student"].pop("w"), torch.arange(6.0))
    assert state == {"format": checkpoint.FORMAT, **STATE, "student": {}}
    assert os.listdir(path.parent) == ["last.pt"]


def test_torch_loads_it_with_weights_only(path):
    checkpoint.save(path, STATE)
    assert torch.load(path, weights_only=True)["step"] == 3


def test_saving_replaces_the_old_file(path):
    checkpoint.save(path, STATE)
    checkpoint.save(path, {**STATE, "step": 4})
    assert checkpoint.load(path)["step"] == 4


def test_an_interrupted_write_keeps_the_old_file(path, monkeypatch):
    checkpoint.save(path, STATE)
    before = path.read_bytes()

    def half(state, file):
        file.write(b"PK half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(
        SdaError, match=r"cannot write the checkpoint \(No space left on device\); the previous checkpoint is unchanged"
    ):
        checkpoint.save(path, {**STATE, "step": 4})
    assert path.read_bytes() == before
    monkeypatch.undo()
    checkpoint.save(path, {**STATE, "step": 5})
    assert checkpoint.load(path)["step"] == 5
    assert os.listdir(path.parent) == ["last.pt"]


def test_a_missing_checkpoint_is_named(path):
    assert "no such checkpoint" in rejected(path)
    path.mkdir()
    assert "no such checkpoint" in rejected(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_checkpoint_is_refused(path, share):
    checkpoint.save(path, STATE)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "not a readable checkpoint" in rejected(path)


class Hostile:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("how", ["pickle", "torch", "old torch"])
def test_a_hostile_pickle_does_not_run(path, tmp_path, how):
    trap = tmp_path / "ran"
    content = {"format": 1, "student": Hostile(trap)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    rejected(path)
    assert not trap.exists()


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"format": 2}, {"format": "1"}, [1, 2], torch.zeros(2), 3])
def test_files_of_other_programs_are_refused(path, content):
    torch.save(content, path)
    assert "not a checkpoint of this version of sda" in rejected(path)


@pytest.mark.parametrize("content", [b"hello\n", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x80\x02"])
def test_files_of_other_kinds_are_refused(path, content):
    path.write_bytes(content)
    rejected(path)


def test_archives_of_other_kinds_are_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    rejected(path)
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))
    rejected(path)


def test_damage_raises_only_sda_errors(path):
    """Change every fourth byte of the pickle: loading fails with an SdaError, or succeeds if only names change."""
    checkpoint.save(path, STATE)
    whole = path.read_bytes()
    start = whole.index(b"\x80\x02}")
    failures = []
    for place in range(start, start + 240, 4):
        for value in (0x2E, 0x30, 0x74):
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                checkpoint.load(path)
            except SdaError:
                pass
            except Exception as error:
                failures.append((place - start, value, repr(error)))
    assert failures == []


def test_a_plain_pickle_of_another_protocol_is_refused(path):
    path.write_bytes(pickle.dumps({"format": 1}, protocol=4))
    rejected(path)
